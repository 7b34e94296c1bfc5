"""The section of docs/comparison.md that `promotion` writes."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from scipy.stats import beta

from loadtest import pages, provenance
from monitoring.soundness.promotion import FEWER_RESAMPLES, Found

DOCUMENT = provenance.ROOT / "docs" / "comparison.md"
SECTION = "how often the verdict is wrong"

MOST_BETTER, MOST_NOT_WORSE, MOST_WORSE_AS_BETTER = 0.05, 0.05, 0.001
_BY_CHANCE = 0.025  # a count that is so unlikely under the target has missed it

_TITLES = {
    "accuracy": "Accuracy: all outcomes, computed",
    "verdict": "Accuracy with the guards (five groups, Brier): simulated",
    "weights": "Accuracy of rows with weights 1 and 10: simulated",
    "roc_auc": f"Area under the ROC curve: simulated, {FEWER_RESAMPLES} resamples",
    "log_loss": f"Log loss: simulated, {FEWER_RESAMPLES} resamples",
    "rmse": f"RMSE: simulated, {FEWER_RESAMPLES} resamples",
}
_HEAD = (
    "| | rows | runs: equal, worse, better | equal, called better (≤ 5 %) "
    "| worse by 0.01, called not worse or better (≤ 5 %) | worse by 0.01, called better (≤ 0.1 %) "
    "| equal, called not worse or better | better by 0.01, called better |\n"
    "|---|---|---|---|---|---|---|---|"
)


def show(found: Sequence[Found], *, write: bool) -> int:
    """Prints the section, writes it where that was asked for; returns the exit code."""
    text = section(found)
    sys.stdout.write(text + "\n")
    if write:
        pages.replace_section(DOCUMENT, SECTION, text)
    return 1 if "**no**" in text else 0


def section(found: Sequence[Found]) -> str:
    cells = together(found)
    ran = f"{provenance.machine()}. {provenance.versions('numpy', 'scipy', 'scikit-learn')}"
    seeds = sorted({one.seed for one in found if one.seed is not None})
    about = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {provenance.commit()}. {ran}. Seeds {seeds}; "
        f"{sum(one.seconds for one in found) / 60:.0f} minutes of one core."
    )
    parts = [about]
    for part in dict.fromkeys(one.part for one in found):
        rows = dict.fromkeys((one.setting, one.n_rows) for one in cells.values() if one.part == part)
        parts += [f"### {_TITLES[part]}", "\n".join([_HEAD, *(_row(cells, part, *row) for row in sorted(rows))])]
    return "\n\n".join(parts)


def together(found: Sequence[Found]) -> dict[tuple[str, str, int, float], Found]:
    """What was found of each cell, the runs of all seeds together."""
    cells: dict[tuple[str, str, int, float], Found] = {}
    for one in found:
        key = one.part, one.setting, one.n_rows, one.difference
        known = cells.get(key)
        if known is None or one.runs == 0:
            cells[key] = one
        else:
            names = {*known.verdicts, *one.verdicts}
            sums = {name: known.verdicts.get(name, 0.0) + one.verdicts.get(name, 0.0) for name in names}
            cells[key] = replace(known, runs=known.runs + one.runs, verdicts=sums)
    return cells


def _row(cells: dict[tuple[str, str, int, float], Found], part: str, setting: str, n_rows: int) -> str:
    equal, worse, better = (cells.get((part, setting, n_rows, difference)) for difference in (0.0, -0.01, 0.01))
    runs = " / ".join(f"{one.runs:,}" if one else "-" for one in (equal, worse, better))
    shown = [
        _judged(equal, MOST_BETTER, equal.share("better")) if equal else "",
        _judged(worse, MOST_NOT_WORSE, worse.share("better", "not worse")) if worse else "",
        _judged(worse, MOST_WORSE_AS_BETTER, worse.share("better")) if worse else "",
        _percent(equal.share("better", "not worse")) if equal else "",
        _percent(better.share("better")) if better else "",
    ]
    return f"| {setting} | {n_rows:,} | {runs if part != 'accuracy' else 'all'} | " + " | ".join(shown) + " |"


def _judged(found: Found, most: float, share: float) -> str:
    """The share; and where it is above the target, whether that may be chance."""
    if share <= most:
        return _percent(share)
    n_seen = round(share * found.runs)
    is_chance = found.runs > 0 and beta.ppf(_BY_CHANCE, n_seen, found.runs - n_seen + 1) <= most
    return f"{_percent(share)} (within chance)" if is_chance else f"{_percent(share)} **no**"


def _percent(share: float) -> str:
    return f"{share:.3%}" if 0 < share < MOST_WORSE_AS_BETTER * 2 else f"{share:.2%}"
