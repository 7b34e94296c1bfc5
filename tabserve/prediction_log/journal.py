"""The journal of one table: the segments that this process has open in it."""

import time
from urllib.parse import quote

import pyarrow as pa

from tabserve.prediction_log.places import Place
from tabserve.prediction_log.segment import Segment

# A segment becomes a Parquet file when the first of these is reached.
MOST_ROWS = 100_000  # 25 MB of the built-in model: large enough for a file, small enough for the next reader of it open
MOST_BYTES = 64 << 20  # where rows are wide
MOST_SECONDS = 60.0


def partition_of(*, date: str, model: str | None = None, version: str | None = None) -> str:
    """The folder of rows below their table, as Hive names it: `model=…/version=…/date=…`, or `date=…` alone."""
    known = (("model", model), ("version", version), ("date", date))
    return "/".join(f"{key}={quote(value, safe='')}" for key, value in known if value is not None)


class Journal:
    """Appends batches to a table. Used by one thread."""

    def __init__(self, place: Place, table: str) -> None:
        self.table = table
        self._folder = place.open_segments(table)
        self._open: dict[str, Segment] = {}
        self._closed: list[Segment] = []

    def append(self, partition: str, batch: pa.RecordBatch) -> None:
        """Writes a batch to the segment of its partition: readers see it from here on.

        Raises:
            OSError: where it cannot be written; nothing of it is there then.
        """
        segment = self._open.get(partition)
        if segment is None or not segment.schema.equals(batch.schema, check_metadata=True):
            self._close(partition)
            segment = self._open[partition] = Segment(self._folder, partition, batch.schema)
        try:
            segment.append(batch)
        except OSError:
            self._close(partition)
            raise
        if segment.n_rows >= MOST_ROWS or segment.n_bytes >= MOST_BYTES:
            self._close(partition)

    def take_closed(self, *, everything: bool = False) -> list[Segment]:
        """The segments that are to be rolled: full, older than a minute, or all of them."""
        now = time.monotonic()
        for partition, segment in list(self._open.items()):
            if everything or now - segment.opened >= MOST_SECONDS:
                self._close(partition)
        closed, self._closed = self._closed, []
        return closed

    def _close(self, partition: str) -> None:
        segment = self._open.pop(partition, None)
        if segment is None:
            return
        if segment.n_rows:
            self._closed.append(segment)
        else:
            segment.remove()
