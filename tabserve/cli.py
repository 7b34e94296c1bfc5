"""The command `tabserve`: one function a subcommand, which asks the package and prints what it says.

Exit codes: 0 done, 1 not good enough, 2 bad input, 3 it could not be read or saved, or not now.
"""

import argparse
import logging
import os
import sys

from tabserve.commands import labels, log, retrain
from tabserve.history.records import UnreadableError
from tabserve.history.window import BadQuestionError
from tabserve.prediction_log import CannotKeepError
from tabserve.prediction_log.elsewhere import RefusedError
from tabserve.settings import BadSettingError

logger = logging.getLogger("tabserve.cli")


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
    log.add_log_commands(groups.add_parser("log", help="the predictions that were made").add_subparsers(required=True))
    labels.add_label_commands(groups.add_parser("labels", help="what came true of them").add_subparsers(required=True))
    retrain.add_retrain_command(groups)
    return whole
