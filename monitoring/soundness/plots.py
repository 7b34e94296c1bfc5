"""The two plots of docs/monitoring.md: false alarms by rows a day, and what is found by the size of the shift."""

from collections.abc import Sequence
from pathlib import Path

from loadtest import pages
from monitoring.soundness import power, stationary

TARGET_FALSE_ALARMS = 1.0  # in 100 days
TARGET_FOUND = 0.95  # of the runs


def draw_false_alarms(all_found: Sequence[stationary.Found], path: Path) -> None:
    styles = {
        stationary.OURS: ("#c0504d", "o-"),
        stationary.FEATURE: ("#8fa8c8", "s--"),
        stationary.FEATURE_TWO: ("#3b5f8a", "^--"),
        stationary.HALF: ("#888888", "x:"),
    }
    with pages.figure(path) as plt:
        _, axes = plt.subplots(1, len(all_found), figsize=(5 * len(all_found), 3.8), sharey=True, squeeze=False)
        for axis, found in zip(axes[0], all_found, strict=True):
            for judge, (colour, style) in styles.items():
                sizes = [n_rows for name, n_rows in found.days if name == judge]
                shares = [100 * found.alarms[judge, n] / found.days[judge, n] for n in sizes]
                axis.plot(sizes, shares, style, color=colour, label=judge)
            axis.axhline(TARGET_FALSE_ALARMS, color="#c0504d", linewidth=0.8, linestyle=":")
            axis.set(title=found.population, xscale="log", xlabel="rows a day", ylim=(-4, 104))
            axis.set_xticks(sizes, [str(n) for n in sizes])
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].set_ylabel("days of 100 with a false alarm")
        axes[0][-1].legend(frameon=False, fontsize=8)


def draw_power(all_found: Sequence[power.Found], path: Path) -> None:
    columns = list(dict.fromkeys(found.column for found in all_found))
    with pages.figure(path) as plt:
        _, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
        for axis, n_reference in zip(axes, (2000, 455), strict=True):
            for place, column in enumerate(columns):
                points = [f for f in all_found if (f.column, f.n_reference) == (column, n_reference)]
                axis.plot(
                    [f.shift for f in points],
                    [f.within_4 for f in points],
                    marker="o",
                    markersize=3,
                    color=plt.get_cmap("tab10")(place),
                    label=column,
                )
            axis.axhline(TARGET_FOUND, color="#888888", linewidth=0.8, linestyle=":")
            axis.set(title=f"{n_reference} reference rows", xlabel="shift, in standard deviations of the column")
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(f"found within 4 windows of {power.WINDOW_ROWS} rows")
        axes[1].legend(frameon=False, fontsize=8)
