"""The section of docs/monitoring.md that the proof writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from scipy.stats import chi2

from loadtest import pages, provenance
from monitoring.soundness import plots, power, stationary
from monitoring.verdict import PSI_ALARM

DOCUMENT = provenance.ROOT / "docs" / "monitoring.md"
PLOTS = provenance.ROOT / "docs" / "monitoring"
SECTION = "soundness"
MOST_FALSE_ALARMS = f"≤ {plots.TARGET_FALSE_ALARMS:g}"  # in 100 days
FOUND = f"≥ {plots.TARGET_FOUND}"  # share of the runs
HARDLY_EVER = "≤ 0.01"


@dataclass(frozen=True)
class Proof:
    """All that was simulated."""

    stationary: Sequence[stationary.Found]
    of_kinds: Sequence[power.Found]
    of_missing: Sequence[power.Found]
    of_built_in: Sequence[power.Found]
    outliers: Sequence[power.Outlier]
    minutes: float


def upper_bound(alarms: int, days: int) -> float:
    """The largest number of false alarms in 100 days that goes with as few as were seen, one-sided 95 %, Poisson."""
    return float(chi2.isf(0.05, 2 * (alarms + 1)) / 2 / days * 100)


def write(proof: Proof) -> None:
    """Writes the section and the plots."""
    plots.draw_false_alarms(proof.stationary, PLOTS / "false-alarms.svg")
    plots.draw_power(proof.of_kinds, PLOTS / "power.svg")
    pages.replace_section(DOCUMENT, SECTION, section(proof))


def section(proof: Proof) -> str:
    """The text of the section."""
    ran = f"{provenance.machine()}. {provenance.versions('evidently', 'scikit-learn', 'scipy', 'numpy')}"
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {provenance.commit()}"
    return "\n\n".join(
        [
            f"{now}. {ran}. {proof.minutes:.0f} minutes.",
            targets(proof),
            "### Without drift",
            _about_stationary(proof.stationary),
            *(false_alarms_table(found) for found in proof.stationary),
            "![false alarms](monitoring/false-alarms.svg)",
            "### The reference of the predictions",
            prediction_table(proof.stationary),
            "### With drift",
            power_table(proof.of_kinds, "column"),
            "![power](monitoring/power.svg)",
            built_in_table(proof.of_built_in),
            "### Missing values",
            power_table(proof.of_missing, "column"),
            "### One absurd value",
            outlier_table(proof.outliers),
        ]
    )


def targets(proof: Proof) -> str:
    """What was asked, what was found, and whether that is enough."""
    ours = [(found, key) for found in proof.stationary for key in found.days if key[0] == stationary.OURS]
    worst = max(upper_bound(found.alarms[key], found.days[key]) for found, key in ours)
    lines = ["| | target | found | met |", "|---|---|---|---|"]
    lines.append(
        _target(
            "false alarms in 100 days, all columns together: upper 95 % bound, worst case", worst, MOST_FALSE_ALARMS
        )
    )
    for shift, windows in ((0.6, 2), (0.5, 4)):
        what = f"shift of {shift} sd within {windows} windows of {power.WINDOW_ROWS} rows, 2000 reference rows"
        chosen = [one for one in proof.of_kinds if (one.n_reference, one.shift) == (2000, shift)]
        lines += [_target(f"{what}: {one.column}", _within(one, windows), FOUND) for one in chosen]
        chosen = [one for one in proof.of_built_in if (one.n_reference, one.shift) == (2000, shift)]
        lowest = min(_within(one, windows) for one in chosen)
        lines.append(_target(f"{what}: worst column of the built-in table", lowest, FOUND))
    for one in proof.of_missing:
        what = f"missing share from 1 % to 10 % within {power.WINDOWS} windows, {one.n_reference} reference rows"
        lines.append(_target(what, one.within_4, FOUND))
    for outlier in proof.outliers:
        wanted = FOUND if outlier.what.startswith("shift") else HARDLY_EVER
        lines.append(_target(f"alarms: {outlier.what}", outlier.tabserve, wanted))
    return "\n".join(lines)


def _within(found: power.Found, windows: int) -> float:
    return found.within_2 if windows == 2 else found.within_4


def _target(what: str, found: float, wanted: str) -> str:
    limit = float(wanted[2:])
    met = found >= limit if wanted[0] == "≥" else found <= limit
    return f"| {what} | {wanted} | {found:.3g} | {'yes' if met else '**no**'} |"


def _about_stationary(all_found: Sequence[stationary.Found]) -> str:
    same = sum(found.same_as_the_preset for found in all_found)
    compared = sum(found.compared_with_the_preset for found in all_found)
    return (
        "Alarms in 100 days, the upper 95 % bound (Poisson) behind them, and in how many of the trainings there was "
        "one. "
        f"Evidently's statistics were called column by column, with its own choice of them and its own thresholds; on "
        f"{same} of {compared} days that its preset itself reported as well, it flagged the same columns."
    )


def false_alarms_table(found: stationary.Found) -> str:
    sizes = sorted({n_rows for _, n_rows in found.days})
    lines = [
        f"**{found.population}**, {found.trainings} trainings:\n",
        "| | days | " + " | ".join(f"{n_rows} rows a day" for n_rows in sizes) + " |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for judge in stationary.JUDGES:
        keys = [(judge, n_rows) for n_rows in sizes if found.days[judge, n_rows]]
        if keys:
            cells = [_cell(found, key) for key in keys]
            lines.append(f"| {judge} | {found.days[keys[0]]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: stationary.Found, key: tuple[str, int]) -> str:
    alarms, days = found.alarms[key], found.days[key]
    bound = min(100.0, upper_bound(alarms, days))
    return f"{100 * alarms / days:.3g} (≤ {bound:.3g}; {found.trainings_with_alarms[key]})"


def prediction_table(all_found: Sequence[stationary.Found]) -> str:
    about = (
        f"PSI of the scores of {stationary.PSI_ROWS} fresh rows without drift (the alarm is at {PSI_ALARM}), by what "
        "they are held against: median and largest of the trainings, the worst score of each."
    )
    lines = [
        about,
        "",
        "| | out-of-fold (what is stored) | in-sample | out-of-fold, deciles alone | in-sample, deciles alone |",
        "|---|---|---|---|---|",
    ]
    for found in all_found:
        values = np.array(found.prediction_psi)
        cells = [f"{m:.3f}, {w:.3f}" for m, w in zip(np.median(values, axis=0), values.max(axis=0), strict=True)]
        lines.append(f"| {found.population} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def power_table(all_found: Sequence[power.Found], what: str) -> str:
    """A row a column, for the shifts of the targets."""
    shown = [found for found in all_found if found.shift in power.FEW_SHIFTS]
    shifts = sorted({found.shift for found in shown})
    about = (
        f"Share of the runs that found it, within 2 and within 4 windows of {power.WINDOW_ROWS} rows; behind it "
        "Evidently's default, flagged in one of 2 windows."
    )
    lines = [
        about,
        "",
        f"| {what} | reference rows | runs | "
        + " | ".join(f"{shift} sd" if len(shifts) > 1 else "found" for shift in shifts)
        + " |",
        "|---" * (len(shifts) + 3) + "|",
    ]
    for key in dict.fromkeys((found.column, found.n_reference, found.runs) for found in shown):
        cells = [
            f"{found.within_2:.2f}, {found.within_4:.2f}; {found.evidently_within_2:.2f}"
            for found in shown
            if (found.column, found.n_reference, found.runs) == key
        ]
        lines.append("| " + " | ".join(map(str, key)) + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def built_in_table(all_found: Sequence[power.Found]) -> str:
    """The columns of the built-in table together: the worst and the median one."""
    shifts = sorted({found.shift for found in all_found})
    about = (
        f"The {len({found.column for found in all_found})} columns of the built-in table, each shifted: the worst "
        "column and the median one, within 2 and within 4 windows."
    )
    lines = [
        about,
        "",
        "| reference rows | runs | | " + " | ".join(f"{shift} sd" for shift in shifts) + " |",
        "|---" * (len(shifts) + 3) + "|",
    ]
    worst_and_median: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
        ("worst", min),
        ("median", lambda values: float(np.median(values))),
    )
    for n_reference, runs in dict.fromkeys((found.n_reference, found.runs) for found in all_found):
        for name, middle in worst_and_median:
            cells = []
            for shift in shifts:
                ours = [found for found in all_found if (found.n_reference, found.shift) == (n_reference, shift)]
                cells.append(f"{middle([f.within_2 for f in ours]):.2f}, {middle([f.within_4 for f in ours]):.2f}")
            lines.append(f"| {n_reference} | {runs} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def outlier_table(found: Sequence[power.Outlier]) -> str:
    lines = [
        "Share of the runs with an alarm (ours: two windows running; Evidently: one window).\n",
        "| 2000 reference rows, windows of 1000 | runs | tabserve | Evidently's default | Evidently's PSI |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.what} | {one.runs} | {one.tabserve:.2f} | {one.evidently:.2f} | {one.evidently_psi:.2f} |"
        for one in found
    ]
    return "\n".join(lines)
