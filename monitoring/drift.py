"""Drift: whether the rows and the predictions of the last hours are still those that the model was trained on.

    python -m monitoring.drift [--window 24h] [--against training|last-week] [--model NAME[:VERSION]]
                               [--html DIR] [--push URL]

Each model version that answered in the window is judged apart, in two windows of that length: the newest, which ends
now, and the one before it. Exit codes: 0 quiet, or a warning; 1 alarm; 2 error; 3 too few rows to say. Of several
versions the worst counts, in the order alarm, error, quiet, too few rows: a version with too few rows hides nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from monitoring import models
from monitoring.commands import ALARM, ERROR, TOO_FEW, ended, exit_code, fails, say
from monitoring.drift_text import text_of
from monitoring.metrics import push
from monitoring.models import MonitoredModel
from monitoring.reports.keeping import WEEK, keep
from monitoring.results import DriftColumn, DriftResult, DriftWindow
from monitoring.verdict import ENOUGH_ROWS, LEVELS, Binned, compare, confirmed
from monitoring.windows import Watched, WindowCounts, count, schema_of, watched_columns
from tabserve.history.records import opened
from tabserve.history.window import BadQuestionError, Which, Window, last, length_of, which
from tabserve.prediction_log.places import Place

Against = Literal["training", "last-week"]


def main(arguments: Sequence[str] | None = None) -> int:
    return ended(_run, parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m monitoring.drift",
        description="Whether rows and predictions are still those of the training. "
        "Exit codes: 0 quiet, or a warning; 1 alarm; 2 error; 3 too few rows to say.",
    )
    command.add_argument(
        "--window", default="24h", metavar="24h", help="how long each of the two windows is: 90m, 24h, 7d"
    )
    command.add_argument(
        "--against",
        choices=("training", "last-week"),
        default="training",
        help="what the windows are held against: the training rows, or each the same hours a week earlier",
    )
    command.add_argument("--model", metavar="NAME", help="only of this model, or of name:version")
    command.add_argument("--log-url", metavar="URL", help="where the log is kept (default: as TABSERVE_LOG_URL says)")
    command.add_argument("--html", type=Path, metavar="DIR", help="keep results and reports in this folder")
    command.add_argument("--push", metavar="URL", help="push the numbers to the Pushgateway there")
    return command


def _run(options: argparse.Namespace) -> int:
    window, of = last(length_of(options.window)), which(options.model)
    check_window(window.until - window.since, options.against)
    place = models.log_place(options.log_url)
    versions = models.versions_in(place, window, of)
    if not versions:
        if of.model is not None:
            models.load(of.model, of.version)  # where nobody knows it, that is what there is to say
        say(f"too few rows to say: no prediction{_of(of)} in the last {options.window} in {place.name}")
        return TOO_FEW
    results, has_failed = [], False
    for model in models.known(versions):
        results.append(find_drift(place, model, window, options.against))
        say(text_of(results[-1]))
        if options.html:
            has_failed |= fails(keep, place, model, results[-1], options.html)
    if options.push and results:
        has_failed |= fails(push, results, options.push)
    code = exit_code(result.level for result in results)
    return ERROR if has_failed and code != ALARM else code


def _of(of: Which) -> str:
    return "" if of.model is None else f" of {of.model}{'' if of.version is None else f':{of.version}'}"


def check_window(length: timedelta, against: Against) -> None:
    """Raises BadQuestionError where a window would be held against itself."""
    if against == "last-week" and length > WEEK:
        raise BadQuestionError("against last-week a window is 7d at the most, else it would be held against itself")


def find_drift(place: Place, model: MonitoredModel, window: Window, against: Against = "training") -> DriftResult:
    """Holds the window, and the one before it, against the reference.

    Against training that is the training rows; against last week each window has its own, the same hours seven days
    earlier, in the same bins. An alarm needs both windows; nothing is remembered between two runs.

    Raises:
        BadQuestionError: where DuckDB is missing, or, against last week, the window is longer than that.
        UnreadableError: where the log cannot be read.
    """
    check_window(window.until - window.since, against)
    of = Which(model.name, model.version)
    length = window.until - window.since
    both = Window(window.since - length, window.until)
    with opened(place, both, of) as records:
        columns, not_watched = watched_columns(model.contract, model.reference, schema_of(records))
        counted = count(records, columns, window.since)
    earlier = None
    if against == "last-week":
        with opened(place, Window(both.since - WEEK, both.until - WEEK), of) as records:
            earlier = count(records, columns, window.since - WEEK)
    found = []
    for column in columns:
        if earlier is None:
            training = Binned(counts=column.bins.counts, n_rows=model.reference.n_rows)
            references = [training, training]
        else:
            references = [window.binned(column) for window in earlier]
        # The training rows are all there will ever be, and the bound by chance knows how many; last week may have none.
        least_rows = 0 if earlier is None else ENOUGH_ROWS
        found.append(_column(column, counted, references, len(columns), least_rows))
    found.sort(key=_badness, reverse=True)
    return DriftResult(
        model=model.name,
        version=model.version,
        against=against,
        made_at=datetime.now(UTC),
        level=max((column.level for column in found), key=LEVELS.index, default="too few rows"),
        windows=(
            _window(Window(both.since, window.since), counted[0]),
            _window(window, counted[1]),
        ),
        columns=tuple(found),
        not_watched=not_watched,
    )


def _column(
    column: Watched,
    counted: Sequence[WindowCounts],
    references: Sequence[Binned],
    n_columns: int,
    least_reference_rows: int,
) -> DriftColumn:
    windows = [window.binned(column) for window in counted]
    divergences = []
    for reference, window in zip(references, windows, strict=True):
        one = compare(reference, window, is_prediction=column.what == "prediction", n_columns=n_columns)
        if reference.n_rows < least_reference_rows:
            one = one.model_copy(update={"level": "too few rows"})
        divergences.append(one)
    newest = counted[-1]
    n_unknown = newest.unknown[column.name] if column.what == "feature" else 0
    return DriftColumn(
        name=column.name,
        what=column.what,
        level=confirmed([divergence.level for divergence in divergences]),
        reference=references[-1],
        windows=tuple(windows),
        divergences=tuple(divergences),
        missing_share=_missing_share(windows[-1]),
        reference_missing_share=_missing_share(references[-1]),
        out_of_range_share=_share(newest.columns[column.column].outside, newest.weight),
        unknown_share=_share(n_unknown, newest.weight + n_unknown),
    )


def _window(window: Window, counted: WindowCounts) -> DriftWindow:
    return DriftWindow(
        since=window.since,
        until=window.until,
        n_rows=counted.n_rows,
        rows_a_second=counted.weight / window.seconds,
        rejected_share=_share(counted.rejected, counted.rejected + counted.weight),
        confidence=counted.confidence,
    )


def _badness(column: DriftColumn) -> tuple[int, float]:
    return LEVELS.index(column.level), column.drift / column.threshold


def _missing_share(binned: Binned) -> float:
    return _share(binned.counts[-1], sum(binned.counts))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


if __name__ == "__main__":
    sys.exit(main())
