"""Live quality: how good the models are on the rows whose label came, and what their scores promise of the others.

    python -m monitoring.quality [--window 7d] [--by COLUMN]... [--model NAME[:VERSION]] [--mature 2d]

Each model version that answered in the window is judged apart. Exit codes: 0 quiet, or a warning; 1 alarm; 2 error;
3 too few labels of every version to say.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring.metrics import push
from monitoring.models import MonitoredModel, load, log_place, versions_in
from monitoring.quality_text import text_of
from monitoring.results import QualityResult
from monitoring.segments import SegmentColumn, segment_column
from monitoring.verdict import Level
from monitoring.version_quality import Quality, find_quality
from tabserve.history.records import UnreadableError
from tabserve.history.window import BadQuestionError, Which, Window, length_of, which
from tabserve.model_store import ModelRefusedError
from tabserve.prediction_log.predictions import CannotKeepError
from tabserve.settings import BadSettingError

logger = logging.getLogger("monitoring.quality")

RESULT_FILE = "result.json"
QUIET, ALARM, ERROR, TOO_FEW_LABELS = 0, 1, 2, 3  # exit codes


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _run(options)
    except (BadQuestionError, BadSettingError, CannotKeepError, ModelRefusedError, UnreadableError, OSError) as error:
        logger.error("error: %s", error)
        return ERROR


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m monitoring.quality",
        description="How good the models are on rows whose label came. Exit codes: 0 quiet, or a warning; 1 alarm; "
        "2 error; 3 too few labels to say.",
    )
    command.add_argument("--window", default="7d", metavar="7d", help="minutes, hours or days: 90m, 24h, 7d")
    command.add_argument(
        "--mature",
        metavar="2d",
        help="end the window so long ago: the labels that come first are not like the others (default: it ends now)",
    )
    command.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="each value of a feature, of variant or of label (what was predicted) apart; may be repeated",
    )
    command.add_argument("--model", metavar="NAME", help="only of this model, or of name:version")
    command.add_argument("--log-url", metavar="URL", help="where the log is kept (default: as TABSERVE_LOG_URL says)")
    command.add_argument("--html", type=Path, metavar="DIR", help="keep the results and their reports in this folder")
    command.add_argument("--push", metavar="URL", help="push the numbers to the Pushgateway there")
    return command


def _run(options: argparse.Namespace) -> int:
    until = datetime.now(UTC) - (length_of(options.mature) if options.mature else timedelta())
    window, of = Window(until - length_of(options.window), until), which(options.model)
    place = log_place(options.log_url)
    versions = versions_in(place, window, of)
    if not versions:
        if of.model is not None:
            load(of.model, of.version)  # where nobody knows it, that is what there is to say
        _print(f"too few labels to say: no predictions in {options.window} up to {until:%F %H:%M} UTC in {place.url}")
        return TOO_FEW_LABELS
    models = list(_known(versions))
    found = []
    for model, by in zip(models, _columns(models, options.by), strict=True):
        found.append(find_quality(place, model, window, by))
        _print(text_of(found[-1].result) + "\n")
    has_failed = False
    if options.html:
        has_failed = _fails(_keep, found, options.html)
    if options.push and found:
        has_failed |= _fails(push, [one.result for one in found], options.push)
    code = exit_code(one.result.level for one in found)
    return ERROR if has_failed and code != ALARM else code


def exit_code(levels: Iterable[Level]) -> int:
    """Of the results of all model versions; an error where there is none, since then no version was known."""
    found = set(levels)
    if not found:
        return ERROR
    if "alarm" in found:
        return ALARM
    return TOO_FEW_LABELS if found == {"too few rows"} else QUIET


def _known(versions: Iterable[Which]) -> Iterator[MonitoredModel]:
    """Those that the model store has; of another one nobody knows its classes, nor how good it was, which is said."""
    for version in versions:
        try:
            yield load(str(version.model), version.version)
        except ModelRefusedError as error:
            logger.error("%s:%s is left out: %s", version.model, version.version, error)


def _fails(write: Callable[..., object], *arguments: object) -> bool:
    """Whether results could not be written, which is said."""
    try:
        write(*arguments)
    except OSError as error:
        logger.error("error: %s", error)
        return True
    return False


def _columns(models: Sequence[MonitoredModel], names: Sequence[str]) -> list[list[SegmentColumn]]:
    """The columns of each model to judge by; one that not all of them have is left out where it is not.

    Raises:
        BadQuestionError: where no model has one of them.
    """
    columns: list[list[SegmentColumn]] = [[] for _ in models]
    for name in dict.fromkeys(names):
        refusals = []
        for model, of_model in zip(models, columns, strict=True):
            try:
                of_model.append(segment_column(model.contract, name))
            except BadQuestionError as error:
                refusals.append((model, error))
        if models and len(refusals) == len(models):
            raise refusals[0][1]
        for model, refusal in refusals:
            logger.warning("%s:%s is not parted: %s", model.name, model.version, refusal)
    return columns


def _keep(found: Sequence[Quality], directory: Path) -> None:
    """Results and reports, a folder each, and the index page over them."""
    from monitoring.index import write_index  # here, because they need Evidently, which takes seconds and 280 MB
    from monitoring.reports import write_quality_reports

    for one in found:
        result, folder = one.result, keep_result(one.result, directory)
        sampled_from = result.n_labelled if result.n_sampled < result.n_labelled else None
        write_quality_reports(result, one.labelled, folder, contract=one.contract, sampled_from=sampled_from)
    write_index(directory)


def keep_result(result: QualityResult, directory: Path) -> Path:
    """Writes a result as JSON, whole or not at all, and returns its folder, which is the run's own."""
    folder = directory / result.model / result.version / "quality" / result.until.strftime("%Y-%m-%dT%H%M%SZ")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{RESULT_FILE}"
    unfinished.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / RESULT_FILE)
    return folder


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
