"""Servers as processes of their own: started on chosen cores, waited for, measured, and stopped by their id."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


class NotStartedError(Exception):
    """A server that ended, or did not listen in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server with all its processes."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_bytes(self) -> int:
        """Resident memory of all its processes; what they share counts for each of them."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    cores: Sequence[int] | None = None,
    limit_seconds: float = 60,
) -> Iterator[Server]:
    """A server that listens on a port; it and its children end with the block.

    Args:
        cores: the cores that it may use, with all its children; any, where None.

    Raises:
        NotStartedError: where it does not listen in time.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environment),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)  # before it can have started anything
    try:
        _wait_until_it_listens(process, port, log, limit_seconds)
        yield Server(port, process, log)
    finally:
        _stop(process)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path, limit_seconds: float) -> None:
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise NotStartedError(f"nothing listens on port {port}; the end of its log:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
