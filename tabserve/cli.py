"""The command `tabserve`: one function a subcommand, which asks the package and prints what it says.

Exit codes: 0 done, 2 bad input, 3 it could not be read or saved.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from tabserve.contract import Contract
from tabserve.history import label_file, stats, tail
from tabserve.history.export import check_target, export
from tabserve.history.records import UnreadableError, opened, readable_place
from tabserve.history.window import BadQuestionError, Which, last, length_of, which
from tabserve.prediction_log import CannotKeepError
from tabserve.prediction_log.elsewhere import RefusedError
from tabserve.prediction_log.places import REMOTE, Place, default_url, place_of, with_usable_spool
from tabserve.settings import BadSettingError, Settings

logger = logging.getLogger("tabserve.cli")

Options = argparse.Namespace
Commands = Any  # what argparse's add_subparsers returns, which has no public name


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (BadQuestionError, BadSettingError, CannotKeepError) as error:
        logger.error("bad input: %s", error)
        return 2
    except BrokenPipeError:  # who reads has seen enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnreadableError, RefusedError) as error:
        logger.error("failed: %s", error)
        return 3
    return code


def parser() -> argparse.ArgumentParser:
    """The command line: a group of subcommands for each noun."""
    whole = argparse.ArgumentParser(prog="tabserve", description=__doc__)
    groups = whole.add_subparsers(required=True, metavar="COMMAND")
    add_log_commands(groups.add_parser("log", help="the predictions that were made").add_subparsers(required=True))
    add_label_commands(groups.add_parser("labels", help="what came true of them").add_subparsers(required=True))
    return whole


def add_command(
    commands: Commands, name: str, run: Callable[[Options], int], help_text: str
) -> argparse.ArgumentParser:
    """A subcommand that `run` runs; the first line of its help is that of the list of commands."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=f"{help_text}.")
    command.set_defaults(run=run)
    return command


# --- log


def add_log_commands(commands: Commands) -> None:
    newest = add_command(commands, "tail", log_tail, "The newest predictions")
    newest.add_argument("-n", "--lines", type=_positive, default=20, metavar="N", help="how many (default: 20)")
    newest.add_argument("-f", "--follow", action="store_true", help="and those that come, until Ctrl-C")
    numbers = add_command(commands, "stats", log_stats, "The numbers of a window")
    to_file = add_command(commands, "export", log_export, "The predictions of a window as a file")
    to_file.add_argument("--to", type=Path, required=True, metavar="FILE", help="a .parquet or .csv file")
    to_file.add_argument("--with-labels", action="store_true", help="and what came true of each")
    for command in (newest, numbers, to_file):
        command.add_argument("--window", default="24h", metavar="24h", help="minutes, hours or days: 90m, 24h, 7d")
        command.add_argument("--model", metavar="NAME", help="only of this model, or of name:version")
        command.add_argument("--version", metavar="VERSION", help="only of this version of the model")
        _add_log_url(command)


def log_tail(options: Options) -> int:
    place, window, of = _asked(options)
    if options.follow and place.is_remote:
        raise BadQuestionError(
            f"--follow looks every second, and would copy a day of {_named(place)} each time: leave it out, or follow "
            "the service's own folder"
        )
    with opened(place, window, of) as records:
        found = tail.newest(records, max(options.lines, tail.AT_ONE_LOOK))
    lines = found[-options.lines :]
    if not lines and not options.follow:
        _say_that_there_is_nothing(options, place)
        return 0
    _print(tail.header(), *lines)
    if options.follow:
        for line in tail.follow(place, of, {line.prediction_id for line in found}, over_with_ctrl_c()):
            _print(line or "… more came at once than are shown")
            sys.stdout.flush()
    return 0


def over_with_ctrl_c() -> threading.Event:
    """Set by Ctrl-C; a second one ends the process. As an exception it is lost where DuckDB or a finalizer runs."""
    is_over = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_over.set()

    signal.signal(signal.SIGINT, end)
    return is_over


def log_stats(options: Options) -> int:
    place, window, of = _asked(options)
    with opened(place, window, of) as records:
        found = stats.stats_of(records, window, of_all_models=of == Which())
    _print(stats.text_of(found, window, f"the last {options.window} in {_named(place)}"))
    if not place.is_remote:
        _print(stats.size_of(place))
    return 0


def log_export(options: Options) -> int:
    place, window, of = _asked(options)
    check_target(options.to)
    with opened(place, window, of) as records:
        n_rows = export(records, options.to, with_labels=options.with_labels)
    if n_rows == 0:
        _say_that_there_is_nothing(options, place)
    logger.info("%d predictions are in %s", n_rows, options.to)
    return 0


def _asked(options: Options) -> tuple[Place, Any, Which]:
    """The place, the window and the models that a question is about."""
    window, of = last(length_of(options.window)), which(options.model, options.version)
    return readable_place(_log_url(options)), window, of


def _say_that_there_is_nothing(options: Options, place: Place) -> None:
    logger.info("no predictions in the last %s in %s, that match", options.window, _named(place))


def _named(place: Place) -> str:
    """An address without a password in it."""
    return str(place.sink) if place.is_remote else place.url


# --- labels


def add_label_commands(commands: Commands) -> None:
    from_file = add_command(
        commands, "import", labels_import, "Labels from a file with the columns prediction_id and label"
    )
    from_file.add_argument("file", type=Path, metavar="FILE", help="a .csv or .parquet file")
    from_file.add_argument(
        "--model", metavar="NAME", help="whose labels they are, or name:version (default: that which is served)"
    )
    from_file.add_argument("--skip-bad", action="store_true", help="import what can be; else one bad row keeps all out")
    _add_log_url(from_file)


def labels_import(options: Options) -> int:
    place = place_of(_log_url(options))
    if place is None:
        raise BadQuestionError("labels are not kept: the address of the prediction log is null:")
    found = label_file.read_label_file(options.file, _contract(options.model))
    for fault in found.faults:
        logger.error("%s: %s", options.file, fault)
    if found.n_bad_rows and not options.skip_bad:
        raise BadQuestionError(
            f"{found.n_bad_rows} rows of {options.file} are no labels, nothing was imported: "
            "mend them, or leave them out with --skip-bad"
        )
    if len(found.labels):
        label_file.save(found.labels, place)
    skipped = f", {found.n_bad_rows} rows were left out" if found.n_bad_rows else ""
    logger.info("%d labels were imported%s", len(found.labels), skipped)
    return 0


def _contract(wanted: str | None) -> Contract:
    from tabserve import model_store  # here, because it imports BentoML, which takes a second
    from tabserve.rollout import choose_model

    try:
        model = model_store.find(wanted) if wanted else choose_model(Settings.from_environment())
        return Contract.load(model.directory / model_store.CONTRACT_FILE)
    except model_store.ModelRefusedError as error:
        raise BadQuestionError(str(error)) from error


# --- what several of them share


def _add_log_url(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log-url", metavar="URL", help="where the log is kept (default: as TABSERVE_LOG_URL says)")


def _log_url(options: Options) -> str:
    url: str | None = options.log_url or Settings.from_environment().log_url
    if url and urlsplit(url).scheme not in REMOTE:
        return url
    from tabserve import model_store  # as above

    home = model_store.home()
    return with_usable_spool(url, home) if url else default_url(home)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 10000, got {text!r}")
    return int(text)


def _print(*lines: object) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
