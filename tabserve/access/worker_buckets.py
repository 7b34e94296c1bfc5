"""Buckets that all workers of a service take from, in a file that each of them maps: exact however many there are.

The file is a table of 16 bytes for a bucket: a hash of who asks, and when the bucket is full again, by the clock that
all processes of a machine share. A caller's bucket is one of the eight of a set, which his hash names. Where all eight
are others' it takes the place of the one that is full first: who is refused is forgotten only where eight others of
his set are refused too. The hash has a key that is made with the file, so nobody finds addresses that share a set, to
have them forget each other in turn.
"""

import fcntl
import hashlib
import mmap
import secrets
import struct
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from tabserve.access.rate_limit import RateLimit, taken

_KEY_BYTES = 16  # at the start of the file
_WAYS = 8  # of a set; they are read in one go
_SETS = 2**13  # so 65,536 callers, as many as one process remembers
_BUCKET = struct.Struct("=Qd")
_SET = struct.Struct("=" + _WAYS * "Qd")
_FILE_BYTES = _KEY_BYTES + _SETS * _SET.size


def make_bucket_file(path: Path) -> None:
    """Makes the file, all of whose buckets are full."""
    with path.open("wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
        file.truncate(_FILE_BYTES)


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
        self._table = mmap.mmap(self._file.fileno(), _FILE_BYTES)
        # Remembered: making it takes as long as all the rest of a take.
        self._place = lru_cache(maxsize=4096)(partial(_place, self._table[:_KEY_BYTES]))

    def take(self, who: str) -> float:
        """As `Buckets.take`."""
        name, offset = self._place(who)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            place, full_at = self._find(name, offset)
            full_at, wait = taken(full_at, self._clock(), self._interval, self._ahead)
            _BUCKET.pack_into(self._table, place, name, full_at)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return wait

    def give_back(self, who: str) -> None:
        """As `Buckets.give_back`."""
        name, offset = self._place(who)
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


def _place(key: bytes, who: str) -> tuple[int, int]:
    """What a caller is called in the file, and where his set begins."""
    name = int.from_bytes(hashlib.blake2b(who.encode(), key=key, digest_size=8).digest(), "little")
    return name, _KEY_BYTES + name % _SETS * _SET.size
