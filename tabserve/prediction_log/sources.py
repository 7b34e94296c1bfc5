"""Where the writer gets its batches from: the predictions that wait, decoded only when they are rolled."""

import logging
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from tabserve.prediction_log.columns import PredictionColumns, by_day, date_of
from tabserve.prediction_log.journal import partition_of
from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.waiting import Put, WaitingPredictions

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions"

# Of one batch. Between two batches the event loop gets its turn: so much takes less than half a millisecond.
PUTS_AT_ONCE = 512
ROWS_AT_ONCE = 4096


class Source(Protocol):
    """Rows of one table that are to be written."""

    table: str

    @property
    def n_rows(self) -> int:
        """How many wait; where they are many they are written sooner."""

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """What came since the last call, by partition. Called by the writer's thread every quarter of a second."""

    def report(self, observer: Observer) -> None:
        """What there is to tell after that."""


class PredictionSource:
    """Predictions as they were put to batches of records.

    Args:
        weight: of each row: 1 / share of the requests that are kept.
    """

    table = PREDICTIONS

    def __init__(self, waiting: WaitingPredictions, weight: float, *, personal_are_hashed: bool) -> None:
        self._waiting = waiting
        self._weight = weight
        self._personal_are_hashed = personal_are_hashed
        self._columns: dict[tuple[str, str], PredictionColumns] = {}
        self._failed_rows = 0

    @property
    def n_rows(self) -> int:
        return self._waiting.n_rows

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        taken = deque(self._waiting.take())
        try:
            while taken:
                put, n_rows = _next_of_one_model(taken)
                try:
                    columns = self._columns_of(put[0])
                    pieces = by_day(columns.raw(put))
                except Exception:  # a fault of ours must not end the log
                    logger.exception("%d predictions could not be decoded for the log", n_rows)
                    self._failed_rows += n_rows
                    pieces = []
                put.clear()
                try:
                    for day, batch in pieces:
                        yield partition_of(model=columns.model, version=columns.version, date=date_of(day)), batch
                finally:
                    self._waiting.done(n_rows)
        finally:  # the writer gave up in the middle
            left = sum(n_rows for _, _, _, n_rows, *_ in taken)
            self._failed_rows += left
            self._waiting.done(left)

    def report(self, observer: Observer) -> None:
        for reason, n_rows in (("queue_full", self._waiting.take_dropped_rows()), ("failed", self._failed_rows)):
            if n_rows:
                observer.rows_dropped(reason, n_rows)
        self._failed_rows = 0
        observer.queue_holds(self._waiting.n_rows)

    def _columns_of(self, put: Put) -> PredictionColumns:
        model_version, variant, contract, *_ = put
        key = model_version, variant
        columns = self._columns.get(key)
        if columns is None:
            columns = self._columns[key] = PredictionColumns(
                contract, model_version, variant, self._weight, personal_are_hashed=self._personal_are_hashed
            )
        return columns


def _next_of_one_model(taken: "deque[Put]") -> tuple[list[Put], int]:
    """The first of what was taken, as long as it is of one model and not too much for one batch; and its rows."""
    model_version, variant, *_ = taken[0]
    put: list[Put] = []
    n_rows = 0
    while taken and len(put) < PUTS_AT_ONCE and n_rows < ROWS_AT_ONCE:
        one = taken[0]
        if one[0] != model_version or one[1] != variant:
            break
        n_rows += one[3]
        put.append(taken.popleft())
    return put, n_rows
