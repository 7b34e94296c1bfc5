"""What the benchmark found, as the section of a document, and as a plot."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from loadtest import pages, provenance
from loadtest.benchmark.fairness import Fairness
from loadtest.benchmark.overload import Overload
from loadtest.benchmark.rows import Row, rows_of
from loadtest.benchmark.side_by_side import Point, Result
from loadtest.benchmark.targets import CAREFUL, OURS, PLAIN, Target

PACKAGES = ("bentoml", "scikit-learn", "onnxruntime", "numpy", "fastapi", "starlette", "uvicorn", "uvloop")


def machine() -> str:
    """Where and with what: date, commit, processor, memory, versions."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {provenance.commit()}"
    return f"{now}. {provenance.machine()}. {provenance.versions(*PACKAGES)}."


def targets_table(found: Sequence[Target]) -> str:
    lines = ["| | target | found | met |", "|---|---|---|---|", *map(str, found)]
    return "\n".join(lines)


def side_by_side_tables(results: Sequence[Result], points: Sequence[Point]) -> str:
    """A table a point. Rates, latencies and CPU time are medians over the rounds."""
    return "\n\n".join(_table(point, rows_of(results, point)) for point in points)


def _table(point: Point, rows: dict[str, Row]) -> str:
    unit = f"rows/s ({point.rows} a request)" if point.rows > 1 else "requests/s"
    lines = [
        f"### {point.name[0].upper()}{point.name[1:]}",
        "",
        f"| | {unit} | lowest – highest | × plain | × careful | p50 ms | p99 ms | CPU µs a request | failed | wrong |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        rates = [result.rate * point.rows for result in row.results]
        times = [f"{row.times(rows[other]):.2f}" if other in rows else "" for other in (PLAIN, CAREFUL)]
        lines.append(
            f"| {name} | {median(rates):.0f} | {min(rates):.0f} – {max(rates):.0f} | {' | '.join(times)} "
            f"| {row.middle('p50_ms'):.2f} | {row.middle('p99_ms'):.2f} | {row.middle('cpu_us'):.0f} "
            f"| {sum(r.failed for r in row.results)} | {sum(r.wrong for r in row.results)} |"
        )
    return "\n".join(lines)


def overload_table(found: Sequence[Overload]) -> str:
    head = (
        "| | peak/s | asked/s | answered/s | share of the peak | p50, p99 ms | refused/s | refusal p50, p99 ms "
        "| 503 without Retry-After | other |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {one.what} | {one.peak:.0f} | {one.asked:.0f} | {one.answered:.0f} | {one.share:.0%} "
        f"| {one.p50_ms:.0f}, {one.p99_ms:.0f} | {one.refused:.0f} "
        f"| {one.refusal_p50_ms:.1f}, {one.refusal_p99_ms:.1f} "
        f"| {one.without_retry_after} | {one.other} |"
        for one in found
    ]
    return "\n".join(lines)


def fairness_table(found: Sequence[Fairness]) -> str:
    lines = [
        "| callers of one row | alone: p50, p99 ms | beside 512 rows: p50, p99 ms | ratio of the p99 | 512 rows/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.callers} | {one.alone_p50_ms:.2f}, {one.alone_p99_ms:.2f} "
        f"| {one.beside_p50_ms:.2f}, {one.beside_p99_ms:.2f} | {one.ratio:.2f} | {one.large_rate:.0f} |"
        for one in found
    ]
    return "\n".join(lines)


def plot(results: Sequence[Result], points: Sequence[Point], path: Path) -> None:
    """Requests a second and the 99th percentile of every candidate, a column a point."""
    kinds = (("rate", "requests a second", False), ("p99_ms", "99th percentile, ms", True))
    with pages.figure(path) as plt:
        _, axes = plt.subplots(2, len(points), figsize=(3.6 * len(points) + 2, 6.5), sharey="row", squeeze=False)
        for column, point in enumerate(points):
            rows = rows_of(results, point)
            names = list(rows)[::-1]
            colours = ["#c0504d" if name == OURS else "#8fa8c8" for name in names]
            axes[0][column].set_title(point.name)
            for line, (field, label, is_log) in enumerate(kinds):
                axis = axes[line][column]
                values = [rows[name].middle(field) for name in names]
                bars = axis.barh(names, values, color=colours)
                labels = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values]
                axis.bar_label(bars, labels, padding=3)
                axis.set_xlabel(label)
                axis.set_xscale("log" if is_log else "linear")
                axis.margins(x=0.25)
                axis.spines[["top", "right"]].set_visible(False)
