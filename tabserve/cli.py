"""The command `tabserve`: one function a subcommand, which asks the package and prints what it says.

Exit codes: 0 done, 1 it was looked at and is not good, 2 bad input, 3 it could not be read, saved or said, or not now.
"""

import argparse
import logging
import os
import sys

from tabserve.access.api_keys import BadKeysError
from tabserve.chained_log import BrokenChainError
from tabserve.commands import ab_result, audit, evaluate, keys, labels, log, replay, retrain, rollout, version
from tabserve.history.records import UnreadableError
from tabserve.history.window import BadQuestionError
from tabserve.prediction_log import CannotKeepError
from tabserve.prediction_log.elsewhere import RefusedError
from tabserve.rollout_state import BadRolloutError
from tabserve.settings import BadSettingError

logger = logging.getLogger("tabserve.cli")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (BadQuestionError, BadSettingError, CannotKeepError, BadRolloutError, BadKeysError) as error:
        logger.error("bad input: %s", error)
        return 2
    except BrokenPipeError:  # who reads has seen enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BrokenChainError as error:
        logger.error(
            "failed: %s. Nothing is changed before that is looked into: move the file away, and keep it", error
        )
        return 3
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
    audit.add_audit_commands(
        groups.add_parser("audit", help="who did what, and who was refused").add_subparsers(required=True)
    )
    keys.add_key_commands(groups.add_parser("keys", help="who may ask the service").add_subparsers(required=True))
    rollout.add_rollout_commands(groups)
    retrain.add_retrain_command(groups)
    evaluate.add_evaluate_command(groups)
    replay.add_replay_command(groups)
    ab_result.add_ab_result_command(groups)
    version.add_version_command(groups)
    return whole
