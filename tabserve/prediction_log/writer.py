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

logger = logging.getLogger(__name__)

# What a killed process may lose is half a second; half of that, so that a slow flush is within it too. Where much comes
# it is written sooner, while it is still in the processor's caches.
FLUSH_SECONDS = 0.25
GLANCE_SECONDS = 0.05
MANY_ROWS = 256
CLOSE_SECONDS = 10.0  # of the thirty that BentoML gives a worker to end


class Writer:
    """Writes the rows of some sources to the journals of their tables, until it is closed.

    Started in the process that writes: threads and locks are not inherited.
    """

    def __init__(self, place: Place, sources: Sequence[Source], *, retention_days: int, observer: Observer) -> None:
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
        for source, journal in self._journals:
            for partition, batch in source.batches():
                try:
                    journal.append(partition, batch)
                except OSError as error:
                    self._observer.write_failed()
                    self._observer.rows_dropped("write_error", len(batch))
                    self._writing.happened(error)
                else:
                    self._observer.rows_written(source.table, len(batch))
                    self._writing.did_not_happen()
            source.report(self._observer)
            for segment in journal.take_closed(everything=is_last):
                self._roller.give(source.table, segment)
