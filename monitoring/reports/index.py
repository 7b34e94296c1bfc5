"""The index page over all runs that a folder keeps: what drifted, how it went over the runs, and every report.

One file without scripts and without anything from elsewhere; made anew from the results after each run.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from monitoring.reports import wording
from monitoring.reports.files import write_whole
from monitoring.reports.pictures import shares_picture, threshold_bar, trend_picture
from monitoring.reports.runs import KeptRuns, Run, read_runs
from monitoring.reports.wording import WORST_FIRST, decisive, divergence, headline, moment, number, percent, rate
from monitoring.results import DriftColumn, DriftResult, QualityMetric, QualityResult
from monitoring.verdict import Level

INDEX_FILE = "index.html"
TEMPLATE = Path(__file__).parent / "index_page.html"

MOST_TRENDS = 6  # of columns; the worst of the newest run
RUNS_SHOWN = 10  # the others are folded
STILL_SERVED = timedelta(days=2)  # a version whose newest run is older than the newest of all by this is folded

WORDS: dict[Level, str] = {"alarm": "alarm", "warning": "warning", "quiet": "quiet", "too few rows": "too few rows"}


@dataclass(frozen=True)
class Trend:
    """One small plot, with its newest number in words."""

    title: str
    newest: str
    picture: Markup


@dataclass(frozen=True)
class Version:
    """What the page shows of one model version; its runs are the newest first."""

    name: str
    anchor: str
    level: Level
    drift: DriftResult | None
    quality: QualityResult | None
    loud: Sequence[DriftColumn]
    quiet: Sequence[DriftColumn]
    trends: Sequence[Trend]
    runs: Sequence[Run]
    is_open: bool


def write_index(directory: Path) -> Path:
    """Writes DIR/index.html from the results below DIR, in one step; returns its path.

    What cannot be read of a run is named on the page.

    Raises:
        OSError: where the page cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / INDEX_FILE
    write_whole(target, page_of(read_runs(directory), directory))
    return target


def page_of(kept: KeptRuns, directory: Path) -> str:
    """The page as HTML; links are relative to `directory`."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"moment": moment, "percent": percent, "rate": rate, "unbroken": _unbroken}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    versions = _versions(kept)
    return template.render(
        versions=versions,
        unreadable=[(str(one.path.relative_to(directory)), one.why) for one in kept.unreadable],
        n_older=kept.n_older,
        newest=max((wording.span(run.result)[1] for run in kept.runs), default=None),
        runs_shown=RUNS_SHOWN,
        words=WORDS,
        headline=headline,
        decisive=decisive,
        divergence=divergence,
        span=wording.span,
        counted=wording.counted,
        links=lambda run: _links(run, directory),
        bar=lambda column: Markup(threshold_bar(*decisive(column)[1:], column.level)),  # noqa: S704  # numbers
        shares=lambda column: Markup(shares_picture(column.reference.counts, column.windows[-1].counts)),  # noqa: S704
        metric_in_words=wording.metric_in_words,
    )


def _versions(kept: KeptRuns) -> list[Version]:
    """The one with the newest run first."""
    by_name: dict[str, list[Run]] = {}
    for run in reversed(kept.runs):  # the newest first
        by_name.setdefault(f"{run.result.model}:{run.result.version}", []).append(run)
    newest = [wording.span(runs[0].result)[1] for runs in by_name.values()]
    return [
        _version(name, f"version-{place}", runs, is_open=max(newest) - newest[place] <= STILL_SERVED)
        for place, (name, runs) in enumerate(by_name.items())
    ]


def _version(name: str, anchor: str, runs: Sequence[Run], *, is_open: bool) -> Version:
    drift_runs = [run.result for run in runs if isinstance(run.result, DriftResult)]
    quality_runs = [run.result for run in runs if isinstance(run.result, QualityResult)]
    drift = drift_runs[0] if drift_runs else None
    quality = quality_runs[0] if quality_runs else None
    columns = wording.worst_first(drift.columns) if drift else []
    loud = [column for column in columns if column.level in ("alarm", "warning")]
    return Version(
        name=name,
        anchor=anchor,
        level=min((r.level for r in (drift, quality) if r), key=WORST_FIRST.index),
        drift=drift,
        quality=quality,
        loud=loud,
        quiet=[column for column in columns if column not in loud],
        trends=[*_drift_trends(drift_runs[::-1], columns), *_quality_trends(quality_runs[::-1])],
        runs=runs,
        is_open=is_open,
    )


def _drift_trends(results: Sequence[DriftResult], worst: Sequence[DriftColumn]) -> Iterable[Trend]:
    """The worst columns of the newest run, the worst prediction among them, then how many rows came."""
    if not results:
        return
    loud = [column for column in worst if column.level in ("alarm", "warning")][:MOST_TRENDS]
    chosen = loud or list(worst[:2])
    for column in [c for c in worst if c.what == "prediction"][:1]:
        chosen += [] if column in chosen else [column]
    for column in chosen:
        what, newest, threshold = decisive(column)
        values = [_of(result, column) for result in results]
        said = f"{what} {divergence(newest)}, alarm above {threshold:g}"
        kind = " (prediction)" if column.what == "prediction" else ""
        yield _trend(f"{column.name}{kind}", said, values, threshold=threshold)
    windows = [result.windows[-1] for result in results]
    rates = [window.rows_a_second for window in windows]
    yield _trend("row rate", f"{rate(rates[-1])}; a day {_range(rates, _rows_a_day)}", rates)
    refused = [window.rejected_share for window in windows]
    yield _trend("share refused by the contract", f"{percent(refused[-1])}; {_range(refused, percent)}", refused)
    sure = [window.confidence for window in windows]
    if sure[-1] is not None:
        said = f"{_in_percent(sure[-1])}; {_range(sure, _in_percent)}"
        yield _trend("mean confidence", said, sure, from_zero=False)


def _quality_trends(results: Sequence[QualityResult]) -> Iterable[Trend]:
    """The metric that leads in the newest run, with its interval, the estimate beside it; then how many have labels."""
    everything = [wording.all_rows(result) for result in results]
    if not everything or everything[-1] is None:
        return
    if everything[-1].metrics:
        leading = wording.leading_metric(everything[-1])
        of_runs = [next((m for m in (s.metrics if s else ()) if m.name == leading.name), None) for s in everything]

        def line(of: Callable[[QualityMetric], float | None]) -> list[float | None]:
            return [None if metric is None else of(metric) for metric in of_runs]

        estimates = [result.estimated_accuracy for result in results]
        with_estimate = leading.name.lower() == "accuracy" and any(e is not None for e in estimates)
        said = wording.metric_in_words(leading)
        if with_estimate and estimates[-1] is not None:
            said += f"; dotted: estimated before labels, {number(estimates[-1])}"
        yield _trend(
            f"{leading.name} of labelled rows",
            said,
            line(lambda metric: metric.value),
            low=line(lambda metric: metric.low),
            high=line(lambda metric: metric.high),
            beside=estimates if with_estimate else None,
            threshold=leading.baseline,
            from_zero=False,
        )
    coverage = [result.coverage for result in results]
    yield _trend("predictions that have a label", f"{percent(coverage[-1])}; {_range(coverage, percent)}", coverage)


def _trend(title: str, newest: str, values: Sequence[float | None], **more: Any) -> Trend:
    picture = trend_picture(values, title=f"{title}, {wording.counted(len(values), 'run', 'runs')}", **more)
    return Trend(title, newest, Markup(picture))  # noqa: S704  # its title is escaped, all else are numbers


def _range(values: Sequence[float | None], said: Callable[[float], str]) -> str:
    """The least and the greatest of the runs: the picture has no axis."""
    seen = [value for value in values if value is not None and math.isfinite(value)]
    if not seen:
        return "no run has it"
    least, most = said(min(seen)), said(max(seen))
    return "the same in every run" if least == most else f"from {least} to {most}"


def _in_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rows_a_day(rows_a_second: float) -> str:
    return f"{rows_a_second * 86400:,.0f}"


def _unbroken(text: str) -> str:
    """A number stays on the line of what it is."""
    return re.sub(r"(KL|PSI) (?=[\d])", "\\1\N{NO-BREAK SPACE}", text)


def _of(result: DriftResult, column: DriftColumn) -> float | None:
    same = (c for c in result.columns if (c.what, c.name) == (column.what, column.name))
    return next((decisive(found)[1] for found in same), None)


def _links(run: Run, directory: Path) -> list[tuple[str, str]]:
    return [(shown, quote(path.relative_to(directory).as_posix())) for shown, path in run.pages.items()]
