"""What the commands share: their exit codes, the faults that are a sentence, and what a fault must not hide."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable

from monitoring.verdict import Level
from tabserve.history.records import UnreadableError
from tabserve.history.window import BadQuestionError
from tabserve.model_store import ModelRefusedError
from tabserve.prediction_log.predictions import CannotKeepError
from tabserve.settings import BadSettingError

logger = logging.getLogger("monitoring")

QUIET, ALARM, ERROR, TOO_FEW = 0, 1, 2, 3  # exit codes; too few rows, or labels

FAULTS = (BadQuestionError, BadSettingError, CannotKeepError, ModelRefusedError, UnreadableError, OSError)
"""What a run may end with; the message of each says what was expected."""


def ended(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Runs a command, and returns its exit code; a fault is said as a sentence, and is ERROR."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run(options)
    except FAULTS as error:
        logger.error("error: %s", error)
        return ERROR


def exit_code(levels: Iterable[Level]) -> int:
    """Of the results of all model versions; an error where there is none, since then no version was known."""
    found = set(levels)
    if not found:
        return ERROR
    if "alarm" in found:
        return ALARM
    return TOO_FEW if found == {"too few rows"} else QUIET


def fails(write: Callable[..., object], *arguments: object) -> bool:
    """Whether results could not be written, which is said; the others are written all the same."""
    try:
        write(*arguments)
    except OSError as error:
        logger.error("error: %s", error)
        return True
    return False


def say(text: str) -> None:
    """Prints at once: who waits for a line at the end of a pipe gets it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
