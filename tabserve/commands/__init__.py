"""The subcommands of `tabserve`, a module for each noun, and what they share."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from tabserve.prediction_log.places import REMOTE, default_url, with_usable_spool
from tabserve.settings import Settings

Options = argparse.Namespace
Commands = Any  # what argparse's add_subparsers returns, which has no public name


def add_command(
    commands: Commands, name: str, run: Callable[[Options], int], help_text: str
) -> argparse.ArgumentParser:
    """A subcommand that `run` runs; the first line of its help is that of the list of commands."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=f"{help_text}.")
    command.set_defaults(run=run)
    return command


def add_log_url(command: argparse._ActionsContainer) -> None:
    command.add_argument("--log-url", metavar="URL", help="where the log is kept (default: as TABSERVE_LOG_URL says)")


def log_url_of(options: Options) -> str:
    url: str | None = options.log_url or Settings.from_environment().log_url
    if url and urlsplit(url).scheme not in REMOTE:
        return url
    from tabserve import model_store  # here, because it imports BentoML, which takes a second

    home = model_store.home()
    return with_usable_spool(url, home) if url else default_url(home)


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 10000, got {text!r}")
    return int(text)


def percent(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 100:
        raise argparse.ArgumentTypeError(f"expected percent between 0 and 100, got {text!r}")
    return share


def say(*lines: object) -> None:
    """Writes lines to the standard output, which is what was asked for; all else goes to the log."""
    for line in lines:
        sys.stdout.write(f"{line}\n")


def over_with_ctrl_c() -> threading.Event:
    """Set by Ctrl-C; a second one ends the process. As an exception it is lost where DuckDB or a finalizer runs."""
    is_over = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_over.set()

    signal.signal(signal.SIGINT, end)
    return is_over
