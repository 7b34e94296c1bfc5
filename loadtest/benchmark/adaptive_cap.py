"""A picture of how large batches get while the model's speed changes: the real batcher in simulated time."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.simulation import BatchRecord, SimulatedModel, Simulation, poisson
from tabserve.contract import MAX_ROWS

BUDGET_SECONDS = 0.02
FIXED, PER_ROW = 0.010, 0.0001  # seconds; 100 rows fill the budget
ROWS_PER_SECOND = 3000.0  # 60 % of what batches of 100 can do
NOISE = 0.1  # of the time of a batch, as on a machine with other work
SEED = 1
SLOW_FROM, SLOW_UNTIL = 2.0, 8.0
SLOW_BATCH = 60

ROWS_COLOUR, CAP_COLOUR, SLOW_COLOUR = (
    "#0072b2",
    "#d55e00",
    "#f0e442",
)  # Okabe and Ito: colour-blind people see them too
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.alpha": 0.3,
    "svg.hashsalt": "tabserve",  # the same picture is the same file
}


def plot(path: Path) -> None:
    """Three panels as SVG: a slow phase, one slow batch, and rows that each cost the same."""
    slow_phase, slow_batch = _slow_phase(), _slow_batch()
    slow = slow_batch[SLOW_BATCH]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 8.0), layout="constrained")
        first, second, third = figure.subplots(3)
        _draw(first, "The model takes ten times as long for six seconds: the cap falls, and comes back", slow_phase)
        _mark(first, SLOW_FROM, SLOW_UNTIL)
        _draw(second, "One batch takes a hundred times as long: the cap stays, and the backlog fills it", slow_batch)
        _mark(second, slow.started, slow.started + slow.seconds)
        _draw(third, "Each row costs the same, so that large batches save nothing: they stay small", _constant_cost())
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(axes: Axes, title: str, batches: list[BatchRecord]) -> None:
    started = [batch.started for batch in batches]
    axes.step(started, [batch.cap for batch in batches], where="post", color=CAP_COLOUR, linewidth=1.2, label="cap")
    axes.plot(
        started, [batch.n_rows for batch in batches], ".", color=ROWS_COLOUR, markersize=3, label="rows of a batch"
    )
    axes.axhline(MAX_ROWS, color="grey", linestyle=":", label=f"{MAX_ROWS} rows, the most")
    axes.set_title(title)
    axes.set_xlabel("simulated time in seconds")
    axes.set_ylabel("rows")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 1.5 * MAX_ROWS)
    axes.set_yticks([1, 10, 100], ["1", "10", "100"])


def _mark(axes: Axes, since: float, until: float) -> None:
    axes.axvspan(since, until, color=SLOW_COLOUR, alpha=0.25, linewidth=0, label="slow")


def _slow_phase() -> list[BatchRecord]:
    def slowness(now: float) -> float:
        return 10.0 if SLOW_FROM <= now < SLOW_UNTIL else 1.0

    model = SimulatedModel(fixed=FIXED, per_row=PER_ROW, noise=NOISE, seed=SEED, slowness=slowness)
    arrivals = poisson(ROWS_PER_SECOND, SLOW_UNTIL + 3.0, seed=SEED, timeout_seconds=0.5)
    return Simulation(model, budget_seconds=BUDGET_SECONDS).run(arrivals).batches


def _slow_batch() -> list[BatchRecord]:
    model = SimulatedModel(fixed=FIXED, per_row=PER_ROW, noise=NOISE, seed=SEED, slow_batches={SLOW_BATCH: 100.0})
    arrivals = poisson(ROWS_PER_SECOND, 5.0, seed=SEED)
    return Simulation(model, budget_seconds=BUDGET_SECONDS).run(arrivals).batches


def _constant_cost() -> list[BatchRecord]:
    """Asked for twice what it can do, with a budget for batches of any size: large ones could be had."""
    model = SimulatedModel(fixed=0.0, per_row=0.004, noise=NOISE, seed=SEED)
    arrivals = poisson(500.0, 2.0, seed=SEED, timeout_seconds=0.5)
    return Simulation(model, budget_seconds=10.0).run(arrivals).batches
