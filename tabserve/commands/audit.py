"""`tabserve audit`: whether the audit log is whole, and its newest lines."""

import json
import logging
from collections import deque
from pathlib import Path
from typing import Any

from tabserve.audit import audit_log
from tabserve.chained_log import BrokenChainError, ChainedLog
from tabserve.commands import Commands, Options, add_command, positive, say
from tabserve.history.window import BadQuestionError
from tabserve.settings import Settings

logger = logging.getLogger("tabserve.cli")

TAMPERED = 1  # exit code


def add_audit_commands(commands: Commands) -> None:
    verify = add_command(commands, "verify", audit_verify, "Whether each line is as it was written, and none is gone")
    verify.add_argument("--has", metavar="HASH", help="and whether this line, whose hash was kept elsewhere, is there")
    newest = add_command(commands, "tail", audit_tail, "The newest lines, oldest first")
    newest.add_argument("-n", "--lines", type=positive, default=20, metavar="N", help="how many (default: 20)")
    for command in (verify, newest):
        command.add_argument(
            "--file", type=Path, metavar="FILE", help="a chained log (default: the audit log; deployments.jsonl is one)"
        )


def audit_verify(options: Options) -> int:
    log = _log(options, may_be_gone=options.has is not None)
    n_lines, newest, is_there = 0, "", options.has is None
    try:
        for line in log.checked():
            n_lines, newest = n_lines + 1, line["hash"]
            is_there = is_there or newest == options.has
    except BrokenChainError as error:
        say(f"tampered: {error}")
        return TAMPERED
    if not is_there:
        say(f"tampered: no line of {log.path} has the hash {options.has}, it was cut, written anew or taken away")
        return TAMPERED
    say(f"whole: {n_lines} lines in {log.path}" + (f", the newest has the hash {newest}" if newest else ""))
    return 0


def audit_tail(options: Options) -> int:
    log = _log(options)
    try:
        lines = deque(log.checked(), options.lines)
    except BrokenChainError as error:
        say(f"tampered: {error}")
        return TAMPERED
    say(*map(_shown, lines))
    return 0


def _log(options: Options, *, may_be_gone: bool = False) -> ChainedLog:
    if options.file is None:
        from tabserve import model_store  # here, because it imports BentoML, which takes a second

        log = audit_log(Settings.from_environment(), model_store.home())
    else:
        log = ChainedLog(options.file)
    if not log.path.exists() and not may_be_gone:
        raise BadQuestionError(f"there is no {log.path}; nothing was recorded there yet, or --file names another")
    return log


def _shown(line: dict[str, Any]) -> str:
    said = {key: value for key, value in line.items() if key not in ("time", "who", "action", "previous", "hash")}
    words = [line["time"], _word(line["who"]), _word(line["action"])]
    return "  ".join([*words, *(f"{key}={_word(value)}" for key, value in said.items())])


def _word(value: object) -> str:
    """A value as a terminal may show it: a caller's text may have what a terminal obeys."""
    is_plain = isinstance(value, str) and value.isprintable() and value
    return str(value) if is_plain else json.dumps(value)
