"""What is kept of a run: a folder with a page, its plots in it, and tables; and one line in docs/benchmarks.md."""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from locust.env import Environment
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV, StatsEntry, StatsError, sort_stats

from loadtest import pages, provenance, slo
from loadtest.timeline import Interval
from tabserve.statistics.drawing import drawn

TEMPLATE = Path(__file__).parent / "report.html"
PAGE, TIMELINE, REQUESTS, FAILURES = "report.html", "timeline.csv", "requests.csv", "failures.csv"
SECTION = "runs"  # of the page that gets a line a run
PACKAGES = ("locust", "bentoml", "scikit-learn", "numpy")

logger = logging.getLogger("loadtest")


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    environment: Environment
    started: datetime
    intervals: Sequence[Interval]
    findings: Sequence[slo.Finding]
    objectives: slo.Objectives
    model: str
    load: str
    """What was asked, in a few words."""

    @property
    def is_good(self) -> bool:
        return all(finding.is_met for finding in self.findings)


def keep(run: Ended, folder: Path, page: Path | None) -> Path:
    """Writes what is kept of a run.

    Args:
        folder: gets a folder of its own for this run.
        page: gets a line, where it has a section for it.

    Returns:
        The page of the run.

    Raises:
        OSError: where something cannot be written.
    """
    own = folder / f"{run.started:%Y-%m-%d-%H%M%S-%f}"
    own.mkdir(parents=True)
    _write_tables(run, own)
    (own / PAGE).write_text(_page(run), encoding="utf-8")
    if page is not None:
        try:
            pages.append_row(page, SECTION, line(run))
        except ValueError as error:
            logger.warning("no line is added: %s", error)
    return own / PAGE


def line(run: Ended) -> str:
    """The run as a row of a table."""
    total = run.environment.stats.total
    cells = (
        f"{run.started:%Y-%m-%d %H:%M}",
        provenance.commit(),
        provenance.machine(),
        provenance.versions(*PACKAGES),
        run.model,
        run.load,
        f"{total.num_requests}",
        f"{total.num_failures}",
        *(_percentile(total, share) for share in (0.5, 0.95, 0.99, 1.0)),
        "met" if run.is_good else "**missed**",
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _write_tables(run: Ended, folder: Path) -> None:
    tables = StatsCSV(run.environment, PERCENTILES_TO_REPORT)
    _write_csv(folder / REQUESTS, tables.requests_csv)
    _write_csv(folder / FAILURES, tables.failures_csv)

    def timeline(writer: Any) -> None:
        writer.writerow([field.name for field in fields(Interval)])
        writer.writerows([_rounded(value) for value in asdict(interval).values()] for interval in run.intervals)

    _write_csv(folder / TIMELINE, timeline)


def _write_csv(path: Path, write: Callable[[Any], None]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        write(csv.writer(file))


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 3)


def _page(run: Ended) -> str:
    # What a service answers may stand in an error: it is text, and never markup.
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    stats = run.environment.stats
    return template.render(
        run=run,
        host=run.environment.host,
        commit=provenance.commit(),
        machine=provenance.machine(),
        versions=provenance.versions(*PACKAGES),
        shares=[0.5, 0.95, 0.99, 0.999, 1.0],
        entries=[*sort_stats(stats.entries), stats.total],
        percentile=_percentile,
        errors=[(error, StatsError.parse_error(error.error)) for error in sort_stats(stats.errors)],
        plots=_plots(run),
    )


def _percentile(entry: StatsEntry, share: float) -> str:
    """The time in ms within which that share of the answers came; none where nothing was timed."""
    is_timed = entry.num_requests > entry.num_none_requests
    return f"{entry.get_response_time_percentile(share):g}" if is_timed else "–"


# A panel: its title, the axis, the fields that it shows with their names, and whether its axis is logarithmic.
_PANELS = (
    ("Latency", "ms", {"p99_ms": "99 %", "p95_ms": "95 %", "p50_ms": "50 %"}, True),
    ("Requests", "a second", {"requests_per_second": "all", "failures_per_second": "failed"}, False),
    ("Rows in a batch", "mean", {"rows_per_batch": "rows"}, False),
    ("Rows waiting in the service", "rows", {"queued_rows": "rows"}, False),
    ("CPU of the service", "cores", {"cpu_cores": "all its processes"}, False),
    ("Memory of the service", "MB", {"memory_mb": "all its processes"}, False),
)
_COLOURS = ("#b03a2e", "#e59866", "#2e6da4")


def _plots(run: Ended) -> str:
    """All panels below each other, over the same seconds, as SVG."""
    seconds = [interval.seconds for interval in run.intervals]
    with drawn() as (plt, picture):
        figure, axes = plt.subplots(3, 2, figsize=(11, 8), sharex=True)
        for axis, (title, unit, shown, is_log) in zip(axes.flat, _PANELS, strict=True):
            for (name, label), colour in zip(shown.items(), _COLOURS, strict=False):
                values = [getattr(interval, name) for interval in run.intervals]
                axis.plot(seconds, [float("nan") if v is None else v for v in values], label=label, color=colour)
            if title == "Latency":
                _draw_objectives(axis, run.objectives)
            axis.set_title(title, loc="left", fontsize=10)
            axis.set_ylabel(unit)
            axis.set_yscale("log" if is_log else "linear")
            if not is_log:
                axis.set_ylim(0, 1.05 * max(axis.get_ylim()[1], 0.1 if unit == "cores" else 1))
            if len(shown) > 1:
                axis.legend(frameon=False, fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", color="#dddddd")
        for axis in axes[-1]:
            axis.set_xlabel("seconds")
        figure.align_ylabels()
    return picture.getvalue().partition("<svg")[1] + picture.getvalue().partition("<svg")[2]


def _draw_objectives(axis: Any, objectives: slo.Objectives) -> None:
    for name, objective in objectives.items():
        if isinstance(objective, slo.Latency):
            axis.axhline(objective.limit_ms, color="#777777", linestyle=":", label=f"objective {name}")
