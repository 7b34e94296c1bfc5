"""Replicas of the service behind nginx, all on this machine: `make fleet N=3`, or `python -m loadtest.fleet`.

A replica that dies is started again. SIGHUP restarts one after the other, without a request lost; Ctrl-C or SIGTERM
ends them all. Exit codes: 0; 1 where nginx died; 2 where the input is bad.
"""

import argparse
import contextlib
import http.client
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loadtest.errors import BadInputError
from loadtest.gateway import Gateway, gateway, program
from loadtest.processes import Server, free_port, start
from tabserve.settings import BadSettingError, Settings

ROOT = Path(__file__).parent.parent
GATEWAY_DIED, BAD_INPUT = 1, 2  # exit codes

START_SECONDS = 60.0  # ten times what it takes on two busy cores
DRAIN_SECONDS = 30.0  # longer than any request may take, and nginx keeps idle connections for one second
LONGEST_PAUSE_SECONDS = 30.0  # between two tries to start a replica that does not start


class EndedError(Exception):
    """Somebody asked the fleet to end."""


class Replica:
    """One `bentoml serve`, on a port that it keeps however often it is started."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.port = free_port()
        self._log = folder / f"replica-{number}.log"
        self._server = self._started()

    def __str__(self) -> str:
        return f"replica {self.number}: http://127.0.0.1:{self.port}, process {self._server.process.pid}"

    def _started(self) -> Server:
        command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {
            **os.environ,
            "BENTOML_CONFIG": str(ROOT / "configuration.yaml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_CONTAINERIZED": "true",  # as in an image: it does not start dead workers again
        }
        return start(command, self.port, self._log, cwd=ROOT, environment=environment)

    @property
    def has_ended(self) -> bool:
        return self._server.has_ended

    @property
    def is_alive(self) -> bool:
        """Of one that was ready. BentoML sees every ten seconds whether its worker died, and takes requests for it."""
        return not self.has_ended and self._server.has_children

    @property
    def end(self) -> str:
        code = self._server.process.poll()
        if code is None:
            return "its worker ended"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    @property
    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        return False

    @property
    def last_words(self) -> str:
        """What it said in the end: the service's own sentence, where it refused to start."""
        log = self._log.read_text().strip()
        refusals = re.findall(r"tabserve does not start: (.*)", log)
        return refusals[-1] if refusals else log.rpartition("\n")[2] or "it says nothing"

    def start_again(self) -> None:
        """Ends it, or what is left of it, and starts it anew."""
        self._server.stop()
        self._server = self._started()

    def ask_to_end(self) -> None:
        self._server.ask_to_end()

    def stop(self) -> None:
        self._server.stop()


class Orders:
    """What signals ask of the fleet. They only leave a note: an exception could come between a start and its record."""

    def __init__(self) -> None:
        self.is_to_end = False
        self.is_to_restart = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, self._restart)

    def _end(self, *_: object) -> None:
        self.is_to_end = True

    def _restart(self, *_: object) -> None:
        self.is_to_restart = True


class Fleet:
    """Replicas and their gateway. At most one replica at a time is out of service on purpose, or being started."""

    def __init__(self, replicas: Sequence[Replica], nginx: Gateway, orders: Orders) -> None:
        self._replicas = replicas
        self._nginx = nginx
        self._orders = orders

    def watch(self) -> None:
        """Starts again what died, and restarts all where that was asked for.

        Raises:
            EndedError: when it is asked to end.
        """
        while not self._nginx.has_ended:
            self._mend()
            if self._orders.is_to_restart:
                self._orders.is_to_restart = False
                self._restart_all()
            wait_until(lambda: self._orders.is_to_restart or self._nginx.has_ended, self._orders, seconds=0.5)

    def _mend(self) -> None:
        for replica in self._replicas:
            if not replica.is_alive:
                say(f"replica {replica.number} died ({replica.end}) and is started again")
                self._renew(replica)

    def _restart_all(self) -> None:
        if len(self._replicas) == 1:
            say("no restart: with one replica requests would be lost; --replicas 2 has none lost")
            return
        say("restarting one replica after the other")
        for replica in self._replicas:
            self._mend()
            self._renew(replica)
        say("all replicas were restarted")

    def _renew(self, replica: Replica) -> None:
        """Takes a replica out of service, ends it when its requests have ended, and puts a new one in its place."""
        self._nginx.take_out(replica.number)
        if replica.is_alive:
            is_left = wait_until(
                lambda: not replica.is_alive or not self._nginx.is_connected_to(replica.port),
                self._orders,
                seconds=DRAIN_SECONDS,
            )
            if not is_left:
                say(f"replica {replica.number} still has requests after {DRAIN_SECONDS:g} s and is ended nevertheless")
        replica.start_again()
        pause = 1.0
        while not is_up(replica, self._orders):
            say(f"replica {replica.number} does not start, next try in {pause:g} s; it said: {replica.last_words}")
            wait_until(lambda: False, self._orders, seconds=pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            replica.start_again()
        self._nginx.put_back(replica.number)
        say(replica)


def is_up(replica: Replica, orders: Orders) -> bool:
    """Waits for a replica that was started, until it is ready or has ended."""
    wait_until(lambda: replica.has_ended or replica.is_ready, orders, seconds=START_SECONDS)
    return not replica.has_ended and replica.is_ready


def wait_until(condition: Callable[[], bool], orders: Orders, *, seconds: float) -> bool:
    """Whether a condition came to hold in time.

    Raises:
        EndedError: when the fleet is asked to end.
    """
    until = time.monotonic() + seconds
    while not condition():
        if orders.is_to_end:
            raise EndedError
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def started(n_replicas: int, folder: Path, orders: Orders) -> Iterator[list[Replica]]:
    """Replicas that are ready; they end with the block.

    Raises:
        BadInputError: where one does not start.
    """
    replicas = [Replica(number, folder) for number in range(n_replicas)]
    try:
        for replica in replicas:
            if not is_up(replica, orders):
                raise BadInputError(f"the service does not start: {replica.last_words}")
        yield replicas
    finally:
        for replica in replicas:
            replica.ask_to_end()
        for replica in replicas:
            replica.stop()


def checked(port: int, n_replicas: int) -> None:
    """Looks for what would fail later, in the middle of a start.

    Raises:
        BadInputError: where something would.
    """
    if n_replicas < 1:
        raise BadInputError(f"--replicas is {n_replicas}, expected 1 or more")
    program()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nginx does it
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise BadInputError(f"--port {port} cannot be used ({error}); choose another one") from error


def say(line: object) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Serves until it is asked to end."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.fleet", description=__doc__)
    parser.add_argument("--replicas", type=int, default=3, metavar="N", help="how many (default: 3)")
    parser.add_argument("--port", type=int, default=3000, help="nginx's, on 127.0.0.1 (default: 3000)")
    arguments = parser.parse_args()
    orders = Orders()
    try:
        settings = Settings.from_environment()
        checked(arguments.port, arguments.replicas)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tabserve-fleet-")))
            replicas = stack.enter_context(started(arguments.replicas, folder, orders))
            ports = [replica.port for replica in replicas]
            nginx = stack.enter_context(gateway(folder / "nginx", arguments.port, ports, settings.max_body_bytes))
            say("\n".join(map(str, replicas)))
            say(f"logs in {folder}; kill -HUP {os.getpid()} restarts one after the other, Ctrl-C ends them all")
            say(f"serving on http://127.0.0.1:{arguments.port}")
            Fleet(replicas, nginx, orders).watch()
            say(f"fleet: nginx died; it said: {nginx.last_words}")
        return GATEWAY_DIED
    except EndedError:
        return 0
    except (BadInputError, BadSettingError) as error:
        say(f"fleet: {error}")
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
