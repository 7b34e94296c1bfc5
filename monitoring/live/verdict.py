"""When live quality is an alarm: enough labels, a loss that matters, and more of it than chance gives.

Accuracy decides for a classification and the mean absolute error for a regression. The baseline is uncertain too (the
built-in model has 114 test rows), so the interval of the difference has both numbers of rows in it. It is the 99 %
interval: with the 95 % one a model that is as good as ever would be an alarm in more than one window of a hundred
(tests/test_live_quality.py). Several segments share the one in a hundred (Bonferroni).
"""

from dataclasses import dataclass

from monitoring.verdict import ENOUGH_LABELS, WARNING, Level
from tabserve.statistics.intervals import Average, difference

ACCURACY_ALARM = 0.05  # points of accuracy lost
ERROR_ALARM = 0.2  # of the mean absolute error at training, that it has risen by
CHANCE = 0.01  # of the windows the interval of a difference may miss, half of them on the side that could alarm
TRUSTED_WITHIN = 0.01  # an estimate of the accuracy that is off by less holds, however many labels say so
_SPECK = 1e-9  # 0.95 - 0.90 is a little more than 0.05


@dataclass(frozen=True)
class Finding:
    level: Level
    because: str


def judge(
    live: Average, baseline: Average | None, n_labels: int, *, n_judged: int = 1, than: str = "at training"
) -> Finding:
    """Whether the rows fare worse than the baseline did.

    Args:
        live: accuracy, or the mean absolute error where it has a deviation.
        baseline: the same of other rows; None where nothing is known.
        n_labels: as they were counted, without weights.
        n_judged: how many are judged together.
        than: of which rows the baseline is, in the sentence.
    """
    name = "accuracy" if live.deviation is None else "mean absolute error"
    if n_labels < ENOUGH_LABELS:
        return Finding("too few rows", f"{n_labels} labels, {ENOUGH_LABELS} are needed to say")
    if baseline is None or baseline.n_rows <= 0:
        return Finding("quiet", f"{name} {live.value:.4g}, with nothing to hold it against")
    of, less = (baseline, live) if live.deviation is None else (live, baseline)
    found = difference(of, less, CHANCE / n_judged)
    loss, margin = of.value - less.value, ACCURACY_ALARM
    said = f"{100 * loss:.1f} points"
    if live.deviation is not None:
        margin = ERROR_ALARM * baseline.value
        said = f"{loss / baseline.value:.0%}" if baseline.value else f"{loss:.4g}"
    compared = f"{name} {live.value:.4g}, {than} {baseline.value:.4g}"
    if loss <= WARNING * margin + _SPECK:
        return Finding("quiet", compared)
    if found.low <= 0:
        return Finding("quiet", f"{compared}: {said} worse, which may be chance")
    level: Level = "alarm" if loss > margin + _SPECK else "warning"
    return Finding(level, f"{compared}: {said} worse, more than chance")


def worse_than_others(rows: Average, others: Average, n_labels: int, *, n_judged: int) -> Finding | None:
    """A warning where a group fares worse than all other rows, by as much as would be an alarm; else None.

    Never an alarm: a group that was harder at training already stays so, and would be one forever.
    """
    found = judge(rows, others, n_labels, n_judged=n_judged, than="of the others")
    return Finding("warning", found.because) if found.level == "alarm" else None


def estimate_holds(estimate: float | None, accuracy: Average, n_labels: int) -> bool | None:
    """Whether the accuracy that scores promised of labelled rows is what they had; None with too few labels to say.

    It does not where it lies outside of the 95 % interval of that accuracy, by more than a point of it.
    """
    if estimate is None or n_labels < ENOUGH_LABELS:
        return None
    found = accuracy.interval()
    return found.low <= estimate <= found.high or abs(estimate - accuracy.value) <= TRUSTED_WITHIN
