"""Who did what to models, keys and rollout, and who was refused: the lines of a chained log.

What a command does is recorded before it says that it is done. Refusals come from the event loop, which writes nothing:
they are counted, and a thread writes them, so that an attack makes a few lines a minute and not one each.
"""

import logging
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

from tabserve.chained_log import BrokenChainError, ChainedLog
from tabserve.settings import Settings

logger = logging.getLogger(__name__)

AUDIT_FILE = "audit.jsonl"
REFUSED = "refused"  # the action of a refusal's line

GLANCE_SECONDS = 0.5  # from a refusal to its line
QUIET_SECONDS = 60.0  # in which refusals of one kind are counted, after a line of it
# Of callers in such a time that are named; the others are counted together. A line has 350 bytes: 25 MB a day, where an
# attack from ever new addresses never ends.
MOST_NAMED = 50
OTHERS = "others"
# Of a file, beyond which no refusal is written any more: a year of what is above. What people do is always recorded.
MOST_BYTES = 8 * 2**30
WHO_CHARACTERS = 100
CLOSE_SECONDS = 5.0

Kind = tuple[str, str, str]
"""Who, route, reason."""


class NoAuditError(Exception):
    """There is no audit log where one was asked for; the message says why and what to do."""


class Observer(Protocol):
    """What is told of the audit log."""

    def refusals_recorded(self, n_refusals: int) -> None: ...

    def refusals_dropped(self, n_refusals: int) -> None: ...


def audit_log(settings: Settings, home: Path) -> ChainedLog:
    """The audit log of a home, for what a command did to models, keys or rollout."""
    return ChainedLog(Path(settings.audit_log) if settings.audit_log else home / AUDIT_FILE)


def check_audit_log(settings: Settings, home: Path) -> None:
    """Whether it can be written. Where its place was not asked for, a line in the log says that it cannot.

    Raises:
        NoAuditError: where it was asked for.
    """
    log = audit_log(settings, home)
    try:
        log.check()
    except (OSError, BrokenChainError) as error:
        reason = getattr(error, "strerror", None) or error
        if settings.audit_log:
            raise NoAuditError(
                f"TABSERVE_AUDIT_LOG is {settings.audit_log!r}, which cannot be written ({reason}): "
                "name a file that can be, or mend it"
            ) from error
        logger.warning("nobody who is refused is recorded, %s cannot be written (%s)", log.path, reason)


class Refusals:
    """Refused accesses on their way to the audit log.

    Started in the process that serves: threads are not inherited.

    Args:
        most_named: how many kinds of refusal get lines of their own in `quiet_seconds`.
    """

    def __init__(
        self,
        log: ChainedLog,
        observer: Observer,
        *,
        quiet_seconds: float = QUIET_SECONDS,
        most_named: int = MOST_NAMED,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._log = log
        self._observer = observer
        self._quiet_seconds = quiet_seconds
        self._most_named = most_named
        self._most_bytes = most_bytes
        self._lock = threading.Lock()  # held for a microsecond, by either side
        self._counts: Counter[Kind] = Counter()
        self._last_lines: dict[Kind, float] = {}  # of this process's clock; of the thread that writes
        self._is_failing = False
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tabserve-audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def refused(self, who: str, route: str, reason: str) -> None:
        """Counts a refusal; never waits for a disk.

        Args:
            who: the name of a key or the subject of a token where one is known, else the caller's address.
            route: one of ours, and not what the caller wrote.
            reason: a few words of ours, such as `no key`.
        """
        kind = (who[:WHO_CHARACTERS], route, reason)
        with self._lock:
            if kind not in self._counts and len(self._counts) >= self._most_named:
                kind = (OTHERS, route, reason)
            self._counts[kind] += 1

    def close(self) -> None:
        """Writes what there is."""
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_closing.wait(GLANCE_SECONDS)
            try:
                self._write(everything=is_last)
            except Exception:  # a fault of ours must not end the log
                logger.exception("refusals could not be recorded")

    def _write(self, *, everything: bool) -> None:
        now = time.monotonic()
        self._last_lines = {kind: at for kind, at in self._last_lines.items() if now - at < self._quiet_seconds}
        with self._lock:
            counts, self._counts = self._counts, Counter()
        later: Counter[Kind] = Counter()
        for kind, n_refusals in self._named(counts).items():
            if kind in self._last_lines and not everything:
                later[kind] = n_refusals
            else:
                self._last_lines[kind] = now
                self._append(kind, n_refusals)
        with self._lock:
            self._counts.update(later)

    def _named(self, counts: Counter[Kind]) -> Counter[Kind]:
        """The same, with those who came when enough had been named counted together."""
        room = self._most_named - len(self._last_lines)
        named: Counter[Kind] = Counter()
        for kind, n_refusals in counts.items():
            is_named = kind in self._last_lines or len(named) < room
            named[kind if is_named else (OTHERS, *kind[1:])] += n_refusals
        return named

    def _append(self, kind: Kind, n_refusals: int) -> None:
        who, route, reason = kind
        try:
            self._check_size()
            self._log.append(REFUSED, who=who, route=route, reason=reason, count=n_refusals)
        except (OSError, BrokenChainError) as error:
            self._observer.refusals_dropped(n_refusals)
            if not self._is_failing:
                self._is_failing = True
                logger.error("refusals are not recorded, %s cannot be written (%s)", self._log.path, error)
        else:
            self._observer.refusals_recorded(n_refusals)
            if self._is_failing:
                self._is_failing = False
                logger.warning("refusals are recorded again in %s", self._log.path)

    def _check_size(self) -> None:
        if self._log.size() > self._most_bytes:
            raise OSError(f"it has more than {self._most_bytes} bytes, move it away")
