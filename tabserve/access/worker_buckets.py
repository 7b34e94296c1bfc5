"""Buckets that all workers of a service take from, in a file that each of them maps: exact however many there are.

The file is a table of 16 bytes for a bucket: a hash of who asks, and when the bucket is full again, by the clock that
all processes of a machine share. A caller's bucket is one of the eight of a set, which his hash names. Where all eight
are others' it takes the place of the one that is full first, so that who is refused is never forgotten for others.
"""

import fcntl
import hashlib
import mmap
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tabserve.access.rate_limit import RateLimit

_WAYS = 8  # of a set; they are read in one go
_SETS = 2**13  # so 65,536 callers, as many as one process remembers
_BUCKET = struct.Struct("=Qd")
_SET = struct.Struct("=" + _WAYS * "Qd")


def make_bucket_file(path: Path) -> None:
    """Makes the file, all of whose buckets are full."""
    with path.open("wb") as file:
        file.truncate(_SETS * _SET.size)


class WorkerBuckets:
    """The buckets of all workers. Opened in each of them: a lock of the file is not inherited.

    The lock is held for 2 µs, and freed by the kernel when its worker dies.
    """

    def __init__(self, path: Path, limit: RateLimit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._interval = limit.interval
        self._ahead = limit.ahead
        self._clock = clock
        self._file = path.open("r+b")
        self._table = mmap.mmap(self._file.fileno(), _SETS * _SET.size)

    def take(self, who: str) -> float:
        """As `Buckets.take`."""
        name, offset = _place(who)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            now = self._clock()
            place, full_at = self._find(name, offset)
            full_at = max(full_at, now)
            wait = full_at - now - self._ahead
            if wait > 0:
                return wait
            _BUCKET.pack_into(self._table, place, name, full_at + self._interval)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return 0.0

    def give_back(self, who: str) -> None:
        """As `Buckets.give_back`."""
        name, offset = _place(who)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            place, full_at = self._find(name, offset)
            if full_at > 0:
                _BUCKET.pack_into(self._table, place, name, full_at - self._interval)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _find(self, name: int, offset: int) -> tuple[int, float]:
        """Where the bucket is or may be, and when it is full; 0 for one that was not there."""
        found = _SET.unpack_from(self._table, offset)
        names, full_at = found[::2], found[1::2]
        if name in names:
            way = names.index(name)
            return offset + way * _BUCKET.size, full_at[way]
        return offset + full_at.index(min(full_at)) * _BUCKET.size, 0.0


@lru_cache(maxsize=4096)  # making it takes as long as all the rest of a take
def _place(who: str) -> tuple[int, int]:
    """What a caller is called in the file, and where his set begins."""
    name = int.from_bytes(hashlib.blake2b(who.encode(), digest_size=8).digest(), "little")
    return name, name % _SETS * _SET.size
