"""Live quality: how good the models are on the rows whose label came, and what their scores promise of the others.

    python -m monitoring.quality [--window 7d] [--by COLUMN]... [--model NAME[:VERSION]] [--mature 2d]

Each model version that answered in the window is judged apart. Exit codes: 0 quiet, or a warning; 1 alarm; 2 error;
3 too few labels of every version to say.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring.commands import ALARM, ERROR, TOO_FEW, ended, exit_code, fails, say
from monitoring.live.text import text_of
from monitoring.live.version_quality import find_quality
from monitoring.metrics import push
from monitoring.models import MonitoredModel, known, load, log_place, versions_in
from monitoring.reports.keeping import keep
from tabserve.history.segments import SegmentColumn, segment_column
from tabserve.history.window import BadQuestionError, Window, length_of, which

logger = logging.getLogger("monitoring.quality")


def main(arguments: Sequence[str] | None = None) -> int:
    return ended(_run, parser().parse_args(arguments))


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
        say(f"too few labels to say: no predictions in {options.window} up to {until:%F %H:%M} UTC in {place.name}")
        return TOO_FEW
    models = list(known(versions))
    found = []
    for model, by in zip(models, columns_of(models, options.by), strict=True):
        found.append(find_quality(place, model, window, by))
        say(text_of(found[-1].result) + "\n")
    results, has_failed = [one.result for one in found], False
    if options.html:
        for model, one in zip(models, found, strict=True):
            has_failed |= fails(keep, place, model, one.result, options.html, one.labelled)
    if options.push and found:
        has_failed |= fails(push, results, options.push)
    code = exit_code(result.level for result in results)
    return ERROR if has_failed and code != ALARM else code


def columns_of(models: Sequence[MonitoredModel], names: Sequence[str]) -> list[list[SegmentColumn]]:
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


if __name__ == "__main__":
    sys.exit(main())
