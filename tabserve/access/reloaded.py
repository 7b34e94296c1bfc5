"""What a file or an address says, read again when it changes; where it cannot be read, what it said before."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import Generic, Protocol, TypeVar

import httpx

from tabserve.access.observer import Observer

logger = logging.getLogger(__name__)

GLANCE_SECONDS = 1.0  # from a change of a file to its effect, at the most
MOST_BYTES = 2**20  # 4000 keys

FETCH_SECONDS = 5.0  # that an address may take to answer
FRESH_SECONDS = 600.0  # an issuer announces a key long before it signs with it
ASK_AGAIN_SECONDS = 60.0  # whoever makes up names of keys must not have the issuer asked for each
RETRY_SECONDS = 5.0  # after a failure

T = TypeVar("T")


class UnusableError(Exception):
    """What was found cannot be used; the message says why."""


class Source(Protocol):
    """Where it stands."""

    name: str

    def read(self) -> bytes | None:
        """What it says; None where that is what it said before, or where it is too early to ask.

        Raises:
            UnusableError: where it cannot be read.
        """

    def ask(self) -> None:
        """Something is missing in what it said: read again as soon as that is allowed."""


class FileSource:
    """A file; of a link, as Kubernetes mounts secrets, the file at its end."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> bytes | None:
        try:
            stat = os.stat(self._path)  # noqa: PTH116  # follows links
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return None
            if not S_ISREG(stat.st_mode):  # a pipe would keep whoever reads it waiting, for ever
                raise UnusableError("it is no file")
            if stat.st_size > MOST_BYTES:
                raise UnusableError(f"it has {stat.st_size} bytes, expected at most {MOST_BYTES}")
            content = self._path.read_bytes()
        except OSError as error:
            self._seen = None
            raise UnusableError(f"it cannot be read ({error.strerror})") from error
        self._seen = seen
        return content

    def ask(self) -> None:
        """It is looked at every second anyway."""


class UrlSource:
    """An address, asked every ten minutes, and once a minute where something is missing."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._asked = float("-inf")
        self._is_asked_for = False
        self._has_failed = False

    def read(self) -> bytes | None:
        since = time.monotonic() - self._asked
        wait = RETRY_SECONDS if self._has_failed else ASK_AGAIN_SECONDS if self._is_asked_for else FRESH_SECONDS
        if since < wait:
            return None
        self._asked, self._is_asked_for, self._has_failed = time.monotonic(), False, True
        try:
            with httpx.stream("GET", self.name, timeout=FETCH_SECONDS, follow_redirects=False) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise UnusableError(f"it answered {answer.status_code}")
                content = bytearray()
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > MOST_BYTES or time.monotonic() - self._asked > FETCH_SECONDS:
                        raise UnusableError(f"it does not end within {MOST_BYTES} bytes and {FETCH_SECONDS:g} s")
        except (httpx.HTTPError, ValueError) as error:  # the second for a name that no host can have
            raise UnusableError(f"it does not answer ({type(error).__name__})") from error
        self._has_failed = False
        return bytes(content)

    def ask(self) -> None:
        self._is_asked_for = True


class Reloaded(Generic[T]):
    """The newest usable state of a source, looked after by a thread.

    Args:
        parse: makes the state of what the source says; raises ValueError where it cannot be used.
        label: what the state is called in the metrics.
        otherwise: the state until the source said something usable; None where it has to before there is one.

    Raises:
        UnusableError: where nothing can be read now, and there is no `otherwise`.
    """

    def __init__(
        self, source: Source, parse: Callable[[bytes], T], observer: Observer, *, label: str, otherwise: T | None = None
    ) -> None:
        self._source = source
        self._parse = parse
        self._observer = observer
        self._label = label
        self._is_stale = False
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tabserve-{label}", daemon=True)
        first = self._newest() if otherwise is None else otherwise
        if first is None:
            raise UnusableError("it says nothing")
        self.now: T = first

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_closing.set()

    def ask(self) -> None:
        """Something is missing in it. Never waits."""
        self._source.ask()

    def look(self) -> None:
        """Takes the newest state; keeps the one that there is where that fails, says so once, and counts it."""
        try:
            newest = self._newest()
        except UnusableError as error:
            if not self._is_stale:
                logger.error("%s cannot be used, what it said before goes on to be: %s", self._source.name, error)
            self._set_stale(is_stale=True)
            return
        if newest is not None:
            self.now = newest
            logger.info("%s was read", self._source.name)
            self._set_stale(is_stale=False)

    def _newest(self) -> T | None:
        content = self._source.read()
        if content is None:
            return None
        try:
            return self._parse(content)
        except ValueError as error:
            self._source.ask()
            raise UnusableError(str(error)) from error

    def _set_stale(self, *, is_stale: bool) -> None:
        self._is_stale = is_stale
        self._observer.file_is_stale(self._label, is_stale=is_stale)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # a fault of ours must not end the thread
                logger.exception("%s could not be looked at", self._source.name)
            if self._is_closing.wait(GLANCE_SECONDS):
                return
