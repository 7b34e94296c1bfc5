"""Rolls segments to Parquet and hands the files to the sink: those of this process, and those of dead owners."""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tabserve.prediction_log.faults import Fault
from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.places import Place
from tabserve.prediction_log.segment import SUFFIX, Segment, WholeBatches, adopted

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_RECOVERIES = 30.0
SECONDS_BETWEEN_EXPIRIES = 3600.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
ZSTD_LEVEL = 1
MOST_FAILURES = 3  # of segments that are recovered, each perhaps a time-out, before ours get their turn again
MANY_GIVEN = 8  # segments that wait, before they are made larger in place of more
MOST_PENDING = 64  # of which this process holds the locks, and so the file descriptors, while the sink takes nothing
NICENESS = 19  # where a core is contended the roller gets a sixtieth of it: rolling can wait, answers cannot
UNIQUE = ("prediction_id",)  # to look for repetitions in them costs time for nothing
DICTIONARY_BYTES = 65_536  # of a column with more different values than this holds, no more repetitions are looked for


def roll(batches: WholeBatches, to: Path) -> int:
    """Writes the whole batches of a segment as Parquet; returns the rows. Memory does not grow with the segment.

    Raises:
        OSError: where it cannot be written.
    """
    schema = batches.schema or pa.schema([])
    n_rows = 0
    with pq.ParquetWriter(
        to,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=[name for name in schema.names if name not in UNIQUE],
        dictionary_pagesize_limit=DICTIONARY_BYTES,
        store_schema=False,
    ) as writer:
        for table in batches.tables():
            writer.write_table(table)
            n_rows += len(table)
    return n_rows


class Roller:
    """A thread that rolls what it is given, again and again where the sink cannot take it; and cleans up.

    Args:
        tables: whose segments are recovered.
        retention_days: how long a day's rows are kept.
    """

    def __init__(self, place: Place, tables: Collection[str], retention_days: int, observer: Observer) -> None:
        self._place = place
        self._tables = tables
        self._retention = timedelta(days=retention_days)
        self._observer = observer
        self._given: queue.SimpleQueue[tuple[str, Segment] | None] = queue.SimpleQueue()
        self._pending: list[tuple[str, Segment]] = []
        self._rolling = Fault(
            f"the prediction log cannot be delivered to {place.sink}, its segments wait in {place.folder}, "
            "tried again until it can",
            f"the prediction log is delivered to {place.sink} again",
        )
        self._is_behind = False
        self._thread = threading.Thread(target=self._run, name="tabserve-roller", daemon=True)

    def start(self) -> None:
        # Of the whole process. Arrow's own allocator gives memory back between two row groups, and takes it again.
        pa.set_memory_pool(pa.system_memory_pool())
        self._thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether the sink took nothing when it was asked last, or takes less than comes."""
        return self._is_behind or self._given.qsize() >= MANY_GIVEN

    def give(self, table: str, segment: Segment) -> None:
        """Has a closed segment rolled; its lock is kept until it is."""
        self._given.put((table, segment))

    def close(self, limit_seconds: float) -> None:
        """Waits until all that was given is rolled. What is left, a process that starts later recovers."""
        self._given.put(None)
        self._thread.join(limit_seconds)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # of this thread alone, as Linux has it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        recover_at = expire_at = retry_at = 0.0
        retry_seconds = FIRST_RETRY_SECONDS
        while True:
            now = time.monotonic()
            # Ours first, then what others left: while the sink takes nothing each of them would wait for its time-out.
            if self._pending and now >= retry_at:
                if self._roll_pending():
                    retry_seconds, retry_at = FIRST_RETRY_SECONDS, 0.0
                else:
                    retry_at = time.monotonic() + retry_seconds
                    retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)
            if now >= expire_at:
                expire_at = now + SECONDS_BETWEEN_EXPIRIES
                self._expire()
            if now >= recover_at:
                recover_at = now + SECONDS_BETWEEN_RECOVERIES
                self._recover()
            wake_at = min(recover_at, expire_at, retry_at if self._pending else recover_at)
            with contextlib.suppress(queue.Empty):
                given = self._given.get(timeout=max(0.0, wake_at - time.monotonic()))
                if given is None:
                    self._roll_pending()
                    return
                self._pending.append(given)

    def _roll_pending(self) -> bool:
        """Whether all that was given is rolled now."""
        while self._pending:
            table, segment = self._pending[0]
            try:
                n_rows = self._deliver(table, segment.path)
            except OSError as error:
                self._failed(error)
                self._pending.append(self._pending.pop(0))  # the next may be of a table that is not in trouble
                for _, left in self._pending[MOST_PENDING:]:
                    left.release()  # recovered when the sink is back, by this process or another
                del self._pending[MOST_PENDING:]
                return False
            if n_rows is None:
                self._observer.rows_dropped("removed", segment.n_rows)
            segment.remove()
            self._pending.pop(0)
            self._succeeded()
        return True

    def _failed(self, error: Exception) -> None:
        self._is_behind = True
        self._rolling.happened(error)

    def _succeeded(self) -> None:
        self._is_behind = False
        self._rolling.did_not_happen()

    def _recover(self) -> None:
        """Rolls the segments that nobody owns, until the sink did not take some."""
        n_failures = 0
        for table in self._tables:
            for path in sorted(self._place.open_segments(table).glob(f"*{SUFFIX}")):
                try:
                    with adopted(path) as is_ours:
                        if is_ours:
                            n_rows = self._deliver(table, path)
                            path.unlink(missing_ok=True)
                            self._succeeded()
                            if n_rows:
                                logger.info("%d rows of %s were recovered, which nobody had delivered", n_rows, table)
                except OSError as error:
                    self._failed(error)
                    n_failures += 1
                    if n_failures == MOST_FAILURES:
                        return

    def _deliver(self, table: str, path: Path) -> int | None:
        """Rolls a segment that this process has the lock of; the rows, or None where somebody removed it."""
        name, rolled, n_rows = f"{path.stem}.parquet", path.with_suffix(".rolling"), 0
        batches: WholeBatches | None = None
        try:
            batches = WholeBatches(path)
            if batches.schema is None or self._place.sink.has(table, batches.partition, name):
                return 0
            n_rows = roll(batches, rolled)
            if n_rows:
                self._place.sink.deliver(table, batches.partition, name, rolled)
            return n_rows
        except FileNotFoundError:
            if path.exists():
                raise
            return None
        except OSError:
            raise
        except Exception:  # never to be taken, or a fault of ours: kept for whoever wants to know, out of the way
            logger.exception("the segment %s cannot be rolled; it is put aside as .broken", path)
            path.replace(path.with_suffix(".broken"))
            if not n_rows:
                return None
            self._observer.rows_dropped("failed", n_rows)
            return 0
        finally:
            if batches is not None:
                batches.close()
            rolled.unlink(missing_ok=True)

    def _expire(self) -> None:
        try:
            self._place.sink.expire((datetime.now(UTC) - self._retention).date())
        except OSError as error:
            self._failed(error)
            logger.warning("what is older than %s could not be deleted (%s)", self._retention, error)
        else:
            self._succeeded()
