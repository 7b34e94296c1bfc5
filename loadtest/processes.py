"""Servers as processes of their own: started on chosen cores, waited for, measured, and stopped by their id."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# In the environment of a server, and so of all that it starts: BentoML's workers have a session of their own, and when
# their parent is killed nothing else tells whose they were, while they keep its port.
MARK = "TABSERVE_STARTED_AS"


class NotStartedError(Exception):
    """A server that ended, or did not listen in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server with all its processes."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    @property
    def has_children(self) -> bool:
        """Whether any of its children lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return any(child.status() != psutil.STATUS_ZOMBIE for child in self._tree()[1:])
        return False

    def is_connected_to(self, port: int) -> bool:
        """Whether any of its processes has a connection to a port, busy or idle."""
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(one.raddr and one.raddr.port == port for one in process.net_connections("tcp")):
                    return True
        return False

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

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """None of its processes runs in the block, as in a long stall of its machine."""
        processes = self._tree()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def ask_to_end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ends it and all that it started, with force where it does not end by itself."""
        self.ask_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def find_program(name: str) -> str | None:
    """Where a program is; Debian has servers in folders that are not on everybody's PATH."""
    newest_first = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *newest_first]))


def start(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    cores: Sequence[int] | None = None,
) -> Server:
    """A server that will listen on a port, out of reach of the terminal's Ctrl-C; its log goes on where there is one.

    Args:
        cores: the cores that it may use, with all its children; any, where None.
    """
    mark = uuid.uuid4().hex
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, MARK: mark},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    if cores is not None:
        os.sched_setaffinity(process.pid, cores)  # before it can have started anything
    return Server(port, process, log, mark)


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
    """A server that listens on a port, as `start` has it; it and its children end with the block.

    Raises:
        NotStartedError: where it does not listen in time.
    """
    server = start(command, port, log, cwd=cwd, environment=environment, cores=cores)
    try:
        _wait_until_it_listens(server, limit_seconds)
        yield server
    finally:
        server.stop()


def _wait_until_it_listens(server: Server, limit_seconds: float) -> None:
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        if server.has_ended:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
            return
        time.sleep(0.05)
    end_of_log = server.log.read_text()[-2000:]
    raise NotStartedError(f"nothing listens on port {server.port}; the end of its log:\n{end_of_log}")
