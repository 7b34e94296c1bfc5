"""`tabserve log`: the predictions that were made."""

import logging
import sys
from pathlib import Path
from typing import Any

from tabserve.commands import Commands, Options, add_command, add_log_url, log_url_of, over_with_ctrl_c, positive, say
from tabserve.history import stats, tail
from tabserve.history.export import check_target, export
from tabserve.history.records import opened, readable_place
from tabserve.history.window import BadQuestionError, Which, last, length_of, which
from tabserve.prediction_log.places import Place

logger = logging.getLogger("tabserve.cli")


def add_log_commands(commands: Commands) -> None:
    newest = add_command(commands, "tail", log_tail, "The newest predictions")
    newest.add_argument("-n", "--lines", type=positive, default=20, metavar="N", help="how many (default: 20)")
    newest.add_argument("-f", "--follow", action="store_true", help="and those that come, until Ctrl-C")
    numbers = add_command(commands, "stats", log_stats, "The numbers of a window")
    to_file = add_command(commands, "export", log_export, "The predictions of a window as a file")
    to_file.add_argument("--to", type=Path, required=True, metavar="FILE", help="a .parquet or .csv file")
    to_file.add_argument("--with-labels", action="store_true", help="and what came true of each")
    for command in (newest, numbers, to_file):
        command.add_argument("--window", default="24h", metavar="24h", help="minutes, hours or days: 90m, 24h, 7d")
        command.add_argument("--model", metavar="NAME", help="only of this model, or of name:version")
        command.add_argument("--version", metavar="VERSION", help="only of this version of the model")
        add_log_url(command)


def log_tail(options: Options) -> int:
    place, window, of = _asked(options)
    if options.follow and place.is_remote:
        raise BadQuestionError(
            f"--follow looks every second, and would copy a day of {place.name} each time: leave it out, or follow "
            "the service's own folder"
        )
    with opened(place, window, of) as records:
        found = tail.newest(records, max(options.lines, tail.AT_ONE_LOOK))
    lines = found[-options.lines :]
    if not lines and not options.follow:
        _say_that_there_is_nothing(options, place)
        return 0
    say(tail.header(), *lines)
    if options.follow:
        for line in tail.follow(place, of, {line.prediction_id for line in found}, over_with_ctrl_c()):
            say(line or "… more came at once than are shown")
            sys.stdout.flush()
    return 0


def log_stats(options: Options) -> int:
    place, window, of = _asked(options)
    with opened(place, window, of) as records:
        found = stats.stats_of(records, window, of_all_models=of == Which())
    say(stats.text_of(found, window, f"the last {options.window} in {place.name}"))
    if not place.is_remote:
        say(stats.size_of(place))
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
    return readable_place(log_url_of(options)), window, of


def _say_that_there_is_nothing(options: Options, place: Place) -> None:
    logger.info("no predictions in the last %s in %s, that match", options.window, place.name)
