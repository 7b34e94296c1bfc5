"""What a result says, in words: the same sentences on the index page and in the reports."""

from collections.abc import Sequence
from datetime import UTC, datetime

from monitoring.results import DriftColumn, DriftResult, QualityMetric, QualityResult, QualitySegment
from monitoring.verdict import ENOUGH_LABELS, ENOUGH_ROWS, KL_ALARM, PSI_ALARM, Level

MOST_NAMED = 3  # columns in a headline
WORST_FIRST: tuple[Level, ...] = ("alarm", "warning", "quiet", "too few rows")


def decisive(column: DriftColumn) -> tuple[str, float, float]:
    """The number that decides about a column, of the newest window: what it is, its value, its threshold."""
    newest = column.divergences[-1]
    return ("PSI", newest.psi, PSI_ALARM) if column.what == "prediction" else ("KL", newest.kl, KL_ALARM)


def worst_first(columns: Sequence[DriftColumn]) -> list[DriftColumn]:
    """Alarms first, then by how many times the threshold it is."""
    return sorted(columns, key=lambda c: (WORST_FIRST.index(c.level), -decisive(c)[1] / decisive(c)[2]))


def drift_headline(result: DriftResult) -> str:
    """Which columns drifted, in one line."""
    if result.level == "too few rows":
        n_rows = min((column.windows[-1].n_rows for column in result.columns), default=0)
        return f"too few rows to say: {n_rows:,.0f} of {ENOUGH_ROWS}"
    parts = []
    for level, verb in (("alarm", "drifted"), ("warning", "may be drifting")):
        for what, one, many in (("feature", "feature", "features"), ("prediction", "prediction", "predictions")):
            of_kind = [column for column in result.columns if column.what == what]
            found = [column for column in worst_first(of_kind) if column.level == level]
            if found:
                share = f"{len(found)} of {counted(len(of_kind), one, many)}"
                parts.append(f"{share} {verb}: {_named(found)}")
    return "; ".join(parts) or "nothing drifted"


def quality_headline(result: QualityResult) -> str:
    """How good the predictions turned out, in one line."""
    everything = all_rows(result)
    if result.level == "too few rows" or everything is None or not everything.metrics:
        return f"too few labels to say: {result.n_labelled:,} of {ENOUGH_LABELS}"
    verb = {"alarm": "quality fell", "warning": "quality may be falling"}.get(result.level, "quality holds")
    said = [f"{verb}: {metric_in_words(leading_metric(everything))}"]
    worse = [s for s in result.segments if s.column is not None and s.level == result.level != "quiet"]
    if worse:
        more = f" and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
        said.append("worst where " + ", ".join(f"{s.column} is {s.value}" for s in worse[:MOST_NAMED]) + more)
    return "; ".join(said)


def leading_metric(segment: QualitySegment) -> QualityMetric:
    """The metric that stands for all: accuracy, or the mean absolute error, or the first there is."""
    by_name = {metric.name.lower(): metric for metric in segment.metrics}
    return by_name.get("accuracy") or by_name.get("mae") or segment.metrics[0]


def metric_in_words(metric: QualityMetric) -> str:
    baseline = "" if metric.baseline is None else f"; {number(metric.baseline)} at training"
    interval = f"95 % interval {number(metric.low)} to {number(metric.high)}"
    return f"{metric.name} {number(metric.value)} ({interval}{baseline})"


def headline(result: DriftResult | QualityResult) -> str:
    return drift_headline(result) if isinstance(result, DriftResult) else quality_headline(result)


def span(result: DriftResult | QualityResult) -> tuple[datetime, datetime]:
    """Since when and until when the newest window reaches."""
    window = result.windows[-1] if isinstance(result, DriftResult) else result
    return window.since, window.until


def moment(when: datetime) -> str:
    """A time to the minute, or to the second where it has any; in UTC."""
    in_utc = when.astimezone(UTC)
    return in_utc.strftime("%Y-%m-%d %H:%M:%S" if in_utc.second else "%Y-%m-%d %H:%M")


def number(value: float) -> str:
    """Three digits that say something, without an exponent where one can do without."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def divergence(value: float) -> str:
    """Two decimals; what is not 0 does not look like it."""
    return "below 0.01" if 0 < value < 0.005 else f"{value:.2f}"


def percent(share: float) -> str:
    """A share as a person says it: 0 %, below 0.1 %, 3.4 %, 27 %."""
    in_percent = 100 * share
    if 0 < in_percent < 0.05:
        return "below 0.1 %"
    return f"{in_percent:.1f} %" if 0 < in_percent < 9.95 else f"{in_percent:.0f} %"


def rate(rows_a_second: float) -> str:
    """Rows in the largest unit of time that leaves at least one of them, and a second at most."""
    for seconds, unit in ((1, "a second"), (60, "a minute"), (3600, "an hour")):
        if rows_a_second * seconds >= 1:
            return f"{number(rows_a_second * seconds)} rows {unit}"
    return f"{number(rows_a_second * 86400)} rows a day"


def counted(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _named(columns: Sequence[DriftColumn]) -> str:
    shown = []
    for column in columns[:MOST_NAMED]:
        what, value, _ = decisive(column)
        shown.append(f"{column.name} ({what} {divergence(value)})")
    more = f" and {len(columns) - MOST_NAMED} more" if len(columns) > MOST_NAMED else ""
    return ", ".join(shown) + more


def all_rows(result: QualityResult) -> QualitySegment | None:
    return next((segment for segment in result.segments if segment.column is None), None)
