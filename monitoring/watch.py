"""The long-running form: drift and live quality on a schedule, with metrics, an index page, and the trigger to retrain.

    python -m monitoring.watch [--every 1h] [--window 24h] [--quality-window 7d] [--by COLUMN]... [--model NAME]
                               [--host 127.0.0.1] [--port 9300] [--reports DIR]
                               [--on-retrain COMMAND] [--retrain-webhook URL]

It serves /metrics, the index page at / with the reports, and /health. The first round, of the last turn that has
passed, begins at once. SIGTERM and Ctrl-C end it with exit code 0; where it cannot begin it ends with 2.
"""

import argparse
import fcntl
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path

from monitoring.commands import ERROR, FAULTS, say
from monitoring.drift import check_window
from monitoring.models import log_place
from monitoring.reports.index import write_index
from monitoring.watching.newest import Newest
from monitoring.watching.options import parser
from monitoring.watching.retraining import Command, Retrainer
from monitoring.watching.rounds import Asked, Rounds
from monitoring.watching.schedule import LONGEST_SLEEP_SECONDS, STALE_STEPS, Schedule, step_of
from monitoring.watching.trigger import Rules
from monitoring.watching.web import Pages, server
from monitoring.watching.webhook import webhook_of
from tabserve import model_store
from tabserve.history.window import BadQuestionError, which

logger = logging.getLogger("monitoring.watch")

HANGS_AFTER_SECONDS = 600.0  # drift of ten million rows takes 23
MOST_RUNS_A_WINDOW = 400  # drift is called for after a window of runs in alarm, and of so many the last are read
LOCK_FILE = ".watch.lock"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%FT%TZ", stream=sys.stderr)
    try:
        return _run(options)
    except FAULTS as error:
        logger.error("error: %s", error)
        return ERROR


def _run(options: argparse.Namespace) -> int:
    schedule = Schedule(step_of(options.every))
    asked, rules = _asked(options), _rules(options)
    command = _command(options.on_retrain, step_of(options.retrain_limit))
    webhook = webhook_of(options.retrain_webhook) if options.retrain_webhook else None
    directory: Path = (options.reports or model_store.home() / "monitoring").resolve()
    newest = Newest(schedule.stale_after)
    with _alone_in(directory):
        write_index(directory)
        retrainer = Retrainer(directory, command, webhook, lambda: newest.failed("retraining"))
        makes_reports = not options.no_reports
        rounds = Rounds(asked, directory, newest, rules=rules, retrainer=retrainer, makes_reports=makes_reports)
        loop = Loop(schedule, rounds)
        listening = _listening(Pages(directory, newest.registry, loop.health), options.host, options.port)
        wait_for_end = _end_by(signal.SIGTERM, signal.SIGINT)
        threading.Thread(target=listening.serve_forever, name="pages", daemon=True).start()
        say(f"watching {asked.place.name} every {options.every}, kept in {directory}: {_address(listening)}")
        threading.Thread(target=loop.run, name="schedule", daemon=True).start()
        logger.info("ended by %s", wait_for_end().name)
        loop.stop.set()
        if rounds.reports is not None:
            rounds.reports.stop()
        retrainer.stop()
    return 0


def _end_by(*numbers: int) -> Callable[[], signal.Signals]:
    """From now on these signals end nothing; what is returned waits for one of them.

    By a socket that the interpreter writes to in whichever thread the kernel delivers a signal to: the handlers
    themselves run in the main thread alone, and where that waits for a lock nothing would wake it.
    """
    received, told = socket.socketpair()
    told.settimeout(0)
    signal.set_wakeup_fd(told.fileno())
    for number in numbers:
        signal.signal(number, lambda *_: told)  # which has to live as long
    return lambda: signal.Signals(received.recv(1)[0])


class Loop:
    """Rounds when it is time for them."""

    def __init__(self, schedule: Schedule, rounds: Rounds) -> None:
        self._schedule = schedule
        self._rounds = rounds
        self._looked_at = time.monotonic()
        self.stop = threading.Event()

    def run(self) -> None:
        done: datetime | None = None
        while not self.stop.is_set():
            self._looked_at = time.monotonic()
            now = datetime.now(UTC)
            turn = self._schedule.newest(now)
            if turn == done:
                self.stop.wait(min(LONGEST_SLEEP_SECONDS, self._schedule.seconds_until_after(turn, now)))
                continue
            if done is not None and turn - done > self._schedule.every:
                logger.warning("no round for the turns between %s and %s: the one before took too long", done, turn)
            self._rounds.run(turn)
            done = turn

    def health(self) -> str:
        """What is wrong; empty where nothing is."""
        seconds = time.monotonic() - self._looked_at
        if seconds > max(HANGS_AFTER_SECONDS, STALE_STEPS * self._schedule.every.total_seconds()):
            return f"a round has not ended for {seconds:.0f} s"
        return ""


def _asked(options: argparse.Namespace) -> Asked:
    check_window(step_of(options.window), options.against)
    if step_of(options.window) / step_of(options.every) > MOST_RUNS_A_WINDOW:
        raise BadQuestionError(
            f"--every {options.every} looks more than {MOST_RUNS_A_WINDOW} times at the rows of a --window of "
            f"{options.window}: choose a longer step, or a shorter window"
        )
    return Asked(
        place=log_place(options.log_url),
        of=which(options.model),
        against=options.against,
        window=step_of(options.window),
        quality_window=step_of(options.quality_window),
        mature=step_of(options.mature) if options.mature else timedelta(),
        by=options.by,
    )


def _rules(options: argparse.Namespace) -> Rules:
    if min(options.retrain_after_days, options.retrain_after_labels) < 0:
        raise BadQuestionError("--retrain-after-days and --retrain-after-labels are 0, for never, or more")
    return Rules(step_of(options.retrain_cool_down), options.retrain_after_days, options.retrain_after_labels)


def _command(text: str | None, limit: timedelta) -> Command | None:
    """Looked for now: when it is needed, in weeks perhaps, nobody watches."""
    if text is None:
        return None
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise BadQuestionError(f"--on-retrain is no command ({error}): {text}") from error
    if not arguments or shutil.which(arguments[0]) is None:
        raise BadQuestionError(f"--on-retrain: there is no program {arguments[0] if arguments else text!r}")
    return Command(tuple(arguments), limit.total_seconds())


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Two that keep in one folder would call twice to retrain; the kernel frees the lock of one that dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadQuestionError(f"another monitor keeps its results in {directory}: choose --reports") from error
        yield


def _listening(pages: Pages, host: str, port: int) -> ThreadingHTTPServer:
    try:
        return server(pages, host, port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadQuestionError(f"cannot listen at {host}:{port}: {why}; choose --port") from error


def _address(listening: ThreadingHTTPServer) -> str:
    host, port = listening.server_address[:2]
    return f"http://{host!s}:{port}/"


if __name__ == "__main__":
    code = main()
    with suppress(OSError):
        sys.stdout.flush()
    # At once: a thread in the middle of a question to DuckDB would be waited for. What is written is written whole.
    os._exit(code)
