"""The predictions that wait to be written: bounded in rows, put without waiting, taken by the writer's thread."""

import random
import threading
import time

from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.predictions import Predictions

Put = tuple[Predictions, float, float]
"""Predictions as they were put: when (seconds since 1970), and how many seconds their answer took. A plain tuple: one
with names takes ten times as long to make."""


class WaitingPredictions:
    """What is put is kept until there are too many rows, then it is dropped and counted.

    Args:
        max_rows: how many rows may wait, those that are being written included.
        share: of the requests that are kept.
    """

    def __init__(self, max_rows: int, share: float, personal: Personal) -> None:
        self._max_rows = max_rows
        self._share = share
        self._personal = personal
        self._lock = threading.Lock()  # held for a microsecond, by either side
        self._waiting: list[Put] = []
        self._n_rows = 0
        self._dropped_rows = 0

    @property
    def n_rows(self) -> int:
        return self._n_rows

    def put(self, predictions: Predictions, latency_seconds: float) -> None:
        """The hot path: no loop over rows, no decoding, no metric."""
        if self._share < 1 and random.random() >= self._share:  # noqa: S311
            return
        if predictions.contract.personal:
            predictions = self._personal.hide(predictions)
        n_rows = len(predictions.ids)
        with self._lock:
            if self._n_rows + n_rows > self._max_rows:
                self._dropped_rows += n_rows
                return
            self._n_rows += n_rows
            self._waiting.append((predictions, time.time(), latency_seconds))

    def take(self) -> list[Put]:
        """All that wait. Their rows count until `done` is told."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def done(self, n_rows: int) -> None:
        """So many of the rows that were taken are written, or lost."""
        with self._lock:
            self._n_rows -= n_rows

    def take_dropped_rows(self) -> int:
        """How many rows were dropped since the last call."""
        with self._lock:
            dropped, self._dropped_rows = self._dropped_rows, 0
        return dropped
