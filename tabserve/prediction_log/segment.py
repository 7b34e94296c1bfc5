"""A segment: rows of one partition in a file that only grows, an Arrow IPC stream, before they are rolled to Parquet.

Its owner holds a lock on the file (flock) as long as it lives, and leaves no word about itself: the kernel frees the
lock of whoever dies, in another container too. A file that can be locked has no owner, and may be recovered.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from uuid_utils import uuid7

from tabserve.prediction_log.columns import PredictionColumns

SUFFIX = ".arrows"
ROWS_AT_ONCE = 32_768  # are in memory when a segment is read, and become a row group
_PARTITION = b"tabserve.partition"


class SegmentGoneError(OSError):
    """Somebody removed the file of a segment that is written."""


class Segment:
    """A segment that this process writes.

    Args:
        folder: of the open segments; made where it is missing.
        partition: the folder that its Parquet file goes to, `model=…/version=…/date=…`.
        like: a batch of the schema that all others must have.

    Raises:
        OSError: where it cannot be made.
    """

    def __init__(self, folder: Path, partition: str, like: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.partition = partition
        self.schema = like
        self.opened = time.monotonic()
        self.n_rows = 0
        self.n_bytes = 0
        self._file, self.path = _make_locked(folder)
        try:
            self._write(like.with_metadata({**(like.metadata or {}), _PARTITION: partition}).serialize())
        except OSError:
            self.remove()
            raise

    def append(self, batch: pa.RecordBatch) -> None:
        """Writes a whole batch or nothing of it.

        Raises:
            OSError: where it cannot be written. The segment takes no further batch then: a reader that had seen the
                start of this one must not find another at its place.
        """
        if os.fstat(self._file).st_nlink == 0:
            raise SegmentGoneError(f"{self.path} was removed")
        self._write(batch.serialize())
        self.n_rows += len(batch)

    def _write(self, buffer: pa.Buffer) -> None:
        view = memoryview(buffer)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.n_bytes)
            raise
        self.n_bytes += len(buffer)

    def remove(self) -> None:
        """Deletes the file, and with it the lock."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)


def _make_locked(folder: Path) -> tuple[int, Path]:
    while True:
        path = folder / f"{uuid7()}{SUFFIX}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)
        if _try_lock(file):
            return file, path
        os.close(file)  # who recovers was quicker than the lock, and takes it for one that was left behind


def _try_lock(file: int) -> bool:
    """Locks a file that is still there; False where somebody else has it, or removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file).st_nlink > 0


@contextlib.contextmanager
def adopted(path: Path) -> Iterator[bool]:
    """Whether a segment had no owner; it has one in the block."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _try_lock(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def _torn() -> Iterator[None]:
    """Passes over what a torn or foreign tail makes Arrow say; what the system says of a file is raised."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
    except (pa.ArrowException, EOFError):
        pass


class WholeBatches:
    """Reads a segment, whoever writes it: every whole batch, and nothing of a torn tail.

    The file is open from here on, and may be removed meanwhile. Iterated, it gives the batches as they were written.

    Raises:
        FileNotFoundError: where it is not there any more.
        ValueError: where another version of this wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path))
        self.partition = ""
        self.schema: pa.Schema | None = None
        """Of the tables; None where not even the schema of the file is whole."""
        self._stream: pa.RecordBatchStreamReader | None = None
        self._columns: PredictionColumns | None = None
        with _torn():
            self._stream = pa.ipc.open_stream(self._file)
            metadata = self._stream.schema.metadata or {}
            self.partition = metadata.get(_PARTITION, b"").decode()
            self._columns = PredictionColumns.of_metadata(metadata)
            self.schema = self._columns.schema if self._columns else self._stream.schema.remove_metadata()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._stream is None:
            return
        while True:
            whole = None
            with contextlib.suppress(StopIteration), _torn():
                batch = self._stream.read_next_batch()
                batch.validate(full=True)
                whole = batch
            if whole is None:
                return
            yield whole

    def tables(self) -> Iterator[pa.Table]:
        """The rows as their readers want them, so many at once that memory does not grow with the segment."""
        waiting: list[pa.RecordBatch] = []
        for batch in self:
            waiting.append(batch)
            if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                yield self._decoded(waiting)
                waiting = []
        if waiting:
            yield self._decoded(waiting)

    def _decoded(self, batches: list[pa.RecordBatch]) -> pa.Table:
        table = pa.Table.from_batches(batches).combine_chunks()
        if self._columns is None:
            return table.replace_schema_metadata(None)
        return pa.Table.from_batches([self._columns.decode(batch) for batch in table.to_batches()])

    def close(self) -> None:
        self._file.close()
