"""The writer: one thread of a worker that takes what waits, and appends it to the journals."""

import logging
import threading
import time
from collections.abc import Sequence

from tabserve.prediction_log.faults import Fault
from tabserve.prediction_log.journal import Journal
from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.places import Place
from tabserve.prediction_log.roller import Roller
from tabserve.prediction_log.sources import Source
from tabserve.prediction_log.spool import Spool, SpoolFullError

logger = logging.getLogger(__name__)

# What a killed process may lose is half a second; half of that, so that a slow flush is within it too. Where much comes
# it is written sooner, while it is still in the processor's caches.
FLUSH_SECONDS = 0.25
BEHIND_ROLL_SECONDS = 60.0  # or a database that is away for an hour would find 3,600 files of each worker
GLANCE_SECONDS = 0.05
MANY_ROWS = 256
CLOSE_SECONDS = 10.0  # of the thirty that BentoML gives a worker to end


class Writer:
    """Writes the rows of some sources to the journals of their tables, until it is closed.

    Started in the process that writes: threads and locks are not inherited.
    """

    def __init__(
        self,
        place: Place,
        sources: Sequence[Source],
        *,
        retention_days: int,
        spool: Spool | None = None,
        observer: Observer,
    ) -> None:
        self._roll_seconds = place.roll_seconds
        self._spool = spool
        self._journals = [(source, Journal(place, source.table)) for source in sources]
        self._observer = observer
        self._roller = Roller(place, [source.table for source in sources], retention_days, observer)
        self._writing = Fault(
            f"the prediction log cannot be written in {place.folder}, rows are dropped until it can",
            f"the prediction log is written again in {place.folder}",
        )
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tabserve-writer", daemon=True)

    def start(self) -> None:
        self._roller.start()
        self._thread.start()

    def close(self) -> None:
        """Writes and rolls what there is. Rows that come later are lost."""
        self._is_closing.set()
        self._thread.join(CLOSE_SECONDS)
        self._roller.close(CLOSE_SECONDS)

    def _run(self) -> None:
        is_last = False
        flush_at = 0.0
        while not is_last:
            is_last = self._is_closing.wait(min(GLANCE_SECONDS, FLUSH_SECONDS))
            now = time.monotonic()
            if not is_last and now < flush_at and sum(source.n_rows for source, _ in self._journals) < MANY_ROWS:
                continue
            flush_at = now + FLUSH_SECONDS
            try:
                self._flush(is_last=is_last)
            except Exception:  # a fault of ours must not end the log
                logger.exception("a flush of the prediction log failed")

    def _flush(self, *, is_last: bool) -> None:
        roll_seconds = self._roll_seconds
        if self._roller.is_behind:
            roll_seconds = max(roll_seconds, BEHIND_ROLL_SECONDS)
        for source, journal in self._journals:
            for partition, batch in source.batches():
                try:
                    if self._spool is not None:
                        self._spool.check()
                    journal.append(partition, batch)
                except OSError as error:
                    self._observer.write_failed()
                    reason = "spool_full" if isinstance(error, SpoolFullError) else "write_error"
                    self._observer.rows_dropped(reason, len(batch))
                    self._writing.happened(error)
                else:
                    self._observer.rows_written(source.table, len(batch))
                    self._writing.did_not_happen()
            source.report(self._observer)
            if self._spool is not None:
                self._spool.look()
                self._observer.spool_holds(self._spool.n_bytes)
            for segment in journal.take_closed(0.0 if is_last else roll_seconds):
                self._roller.give(source.table, segment)
