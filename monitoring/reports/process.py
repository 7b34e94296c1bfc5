"""Evidently's reports of a run, made in a process of their own: `python -m monitoring.reports.process FOLDER`.

They take up to 18 s and 480 MB, which a process does not give back; and what hangs or crashes there harms nobody.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from monitoring.commands import ERROR, FAULTS
from monitoring.models import load, log_place
from monitoring.reports.keeping import write_reports
from monitoring.reports.runs import read_result

logger = logging.getLogger("monitoring.watch")

LIMIT_SECONDS = 300.0
NICENESS = 10  # reports are in no hurry


class ReportMaker:
    """A thread that has reports made, one run at a time; of runs that wait, only the newest of a version and kind."""

    def __init__(
        self,
        log_url: str,
        when_made: Callable[[], None],
        when_failed: Callable[[], None],
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        self._log_url = log_url
        self._when_made = when_made
        self._when_failed = when_failed
        self._limit_seconds = limit_seconds
        self._waiting: dict[Path, Path] = {}
        self._changed = threading.Condition()
        self._running: subprocess.Popen[str] | None = None
        self._is_stopped = False
        threading.Thread(target=self._work, name="reports", daemon=True).start()

    def make(self, folder: Path) -> None:
        """Has the reports of a run made that is kept there."""
        with self._changed:
            # In the place of the one that waits: put at the end, a kind whose reports are slow would never be first.
            skipped = self._waiting.get(folder.parent, folder)
            self._waiting[folder.parent] = folder
            self._changed.notify()
        if skipped != folder:
            logger.info("no reports of %s: the ones before took too long", skipped)

    def stop(self) -> None:
        """Ends the process that runs."""
        with self._changed:
            self._is_stopped = True
            self._waiting.clear()
            self._changed.notify()
            running = self._running
        if running is not None:
            _end(running)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopped)
                if self._is_stopped:
                    return
                folder = self._waiting.pop(next(iter(self._waiting)))
            try:
                self._make(folder)
            except Exception as error:  # noqa: BLE001  # the next reports are made all the same
                if not self._is_stopped:
                    self._when_failed()
                    logger.error("the reports of %s failed: %s", folder, error)

    def _make(self, folder: Path) -> None:
        command = [sys.executable, "-m", "monitoring.reports.process", str(folder)]
        with self._changed:
            if self._is_stopped:
                return
            self._running = subprocess.Popen(  # noqa: S603  # ourselves
                command,
                env={**os.environ, "TABSERVE_LOG_URL": self._log_url},  # what a command is told, everybody can read
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        try:
            _, said = self._running.communicate(timeout=self._limit_seconds)
        except subprocess.TimeoutExpired:
            _end(self._running)
            self._running.communicate()
            raise TimeoutError(f"they were not made within {self._limit_seconds:g} s") from None
        if self._running.returncode:
            lines = said.strip().splitlines()
            raise ChildProcessError(lines[-1] if lines else f"exit code {self._running.returncode}")
        self._when_made()


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:  # the number of one that has ended may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main(folder: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.nice(NICENESS)
    try:
        result = read_result(folder)
        write_reports(log_place(None), load(result.model, result.version), result, folder)
    except (*FAULTS, ValueError) as error:
        logger.error("%s", error)
        return ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
