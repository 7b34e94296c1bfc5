"""The spool: what waits on the local disk for a bucket or a database, bounded in bytes.

Where it is full the newest rows are dropped. What was accepted is never deleted before it is delivered: the counts of
rows stay true, an outage costs its end and not a hole that moves, and no worker deletes the segments of another.
"""

import hashlib
import time
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

PARAMETER = "spool"  # of an address: a folder in place of that in BentoML's home
SECONDS_BETWEEN_LOOKS = 1.0  # a worker at full load writes 4 MB in it


class SpoolFullError(OSError):
    """There is no room for further rows until the sink takes some."""


class Spool:
    """The files that wait in a folder, of all its workers. Used by one thread.

    Args:
        max_bytes: how much may wait; a second's rows more, since it is looked at once a second.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._look_at = 0.0
        self.n_bytes = 0

    def look(self) -> None:
        """Has `n_bytes` be what there was within the last second."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + SECONDS_BETWEEN_LOOKS
            self.n_bytes = _bytes_in(self._folder)

    def check(self) -> None:
        """Raises SpoolFullError where it is full."""
        self.look()
        if self.n_bytes >= self._max_bytes:
            raise SpoolFullError(f"{self.n_bytes} bytes wait there to be delivered, at most {self._max_bytes} may")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.glob("*/_open/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # delivered meanwhile
            continue
    return total


def folder_name(url: str) -> str:
    """A name for the spool of an address: another place has another one, whoever the user is and whatever the key."""
    parts = urlsplit(url)
    identity = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"prediction_log_spool/{parts.scheme}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def with_spool(url: str, folder: Path) -> str:
    """The address with a folder for its spool."""
    parts = urlsplit(url)
    query = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=f"{query}{PARAMETER}={quote(str(folder), safe='/')}"))


def without_spool(url: str) -> tuple[str, Path | None]:
    """The address as others understand it, and the folder that it named for its spool."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    folder = query.pop(PARAMETER, None)
    rest = urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))
    return rest, Path(folder) if folder else None
