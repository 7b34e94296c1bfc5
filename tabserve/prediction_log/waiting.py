"""The predictions that wait to be written: bounded in rows, put without waiting, taken by the writer's thread."""

import random
import threading
import time
from collections.abc import Sequence

from tabserve.contract import Contract
from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.predictions import Predictions

Hashed = Sequence[Sequence[str | None]]
Put = tuple[str, str, Contract, int, str, bytes, bytes, Hashed, float, float]
"""Predictions as they wait: model version, variant, contract, number of rows, ids one behind the other, rows and scores
as bytes, hashes, time (seconds since 1970), latency (seconds).

Bytes and texts, so that the objects of a request end with it and their memory serves the next one: a moment later it
would be out of the processor's caches. A plain tuple: one with names takes six times as long to make.
"""


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
        put = (
            predictions.model_version,
            predictions.variant,
            predictions.contract,
            n_rows,
            "".join(predictions.ids),
            predictions.rows.tobytes(),
            predictions.scores.tobytes(),
            predictions.hashed,
            time.time(),
            latency_seconds,
        )
        with self._lock:
            if self._n_rows + n_rows > self._max_rows:
                self._dropped_rows += n_rows
                return
            self._n_rows += n_rows
            self._waiting.append(put)

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
