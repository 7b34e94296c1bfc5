"""The predictions that wait to be written: bounded in rows, put without waiting, taken by the writer's thread."""

import asyncio
import threading
import time
import zlib
from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from tabserve.contract import Contract
from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.predictions import SHADOW, Predictions

Hashed = Sequence[Sequence[str | None]]
Put = tuple[str, str, Contract, int, list[int], str, bytes, bytes, Hashed, float, list[float]]
"""Predictions of one model as they wait: model version, variant, contract, number of rows, rows of each request, ids
one behind the other, rows and scores as bytes, hashes, time (seconds since 1970), latency of each request (seconds).

Bytes and texts, so that the objects of a request end with it and their memory serves the next one: a moment later it
would be out of the processor's caches. A plain tuple: one with names takes six times as long to make.
"""


class WaitingPredictions:
    """What is put is kept until there are too many rows, then it is dropped and counted.

    The requests that the event loop answers in one turn, mostly those of one batch, are kept together: between two
    answers this code is out of the processor's caches, and 0.5 µs of work took 3.8 (docs/decisions.md).

    Args:
        max_rows: how many rows may wait, those that are being written included.
        share: of the requests that are kept.
    """

    def __init__(self, max_rows: int, share: float, personal: Personal) -> None:
        self._max_rows = max_rows
        self._share = share
        self._personal = personal
        self._turn: list[tuple[Predictions, float]] = []  # of the event loop's thread alone
        self._lock = threading.Lock()  # held for a microsecond, by either side
        self._waiting: list[Put] = []
        self._n_rows = 0
        self._dropped_rows = 0

    @property
    def n_rows(self) -> int:
        return self._n_rows

    def put(self, predictions: Predictions, latency_seconds: float) -> None:
        """The hot path: no loop over rows, no decoding, no metric."""
        if self._share < 1 and _place_of(predictions.ids[0]) >= self._share:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a thread of BentoML's
            self._keep([(predictions, latency_seconds)])
            return
        if not self._turn:
            loop.call_soon(self.end_turn)
        self._turn.append((predictions, latency_seconds))

    def end_turn(self) -> None:
        """Keeps what was put in this turn of the event loop."""
        done, self._turn = self._turn, []
        for _, of_one_model in groupby(done, key=_model_of):
            self._keep(list(of_one_model))

    def _keep(self, done: Sequence[tuple[Predictions, float]]) -> None:
        requests = [predictions for predictions, _ in done]
        first = requests[0]
        hashed: Hashed = ()
        if first.contract.personal:
            requests = [self._personal.hide(predictions) for predictions in requests]
            of_features = zip(*(predictions.hashed for predictions in requests), strict=True)
            hashed = [list(chain.from_iterable(of_requests)) for of_requests in of_features]
        n_rows_of = [len(predictions.ids) for predictions in requests]
        n_rows = sum(n_rows_of)
        put = (
            first.model_version,
            first.variant,
            first.contract,
            n_rows,
            n_rows_of,
            "".join(chain.from_iterable([predictions.ids for predictions in requests])),
            _bytes_of([predictions.rows for predictions in requests]),
            _bytes_of([predictions.scores for predictions in requests]),
            hashed,
            time.time(),
            [latency_seconds for _, latency_seconds in done],
        )
        with self._lock:
            # A shadow's leave half of the room to what callers were told.
            if self._n_rows + n_rows > (self._max_rows // 2 if first.variant == SHADOW else self._max_rows):
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


def _place_of(prediction_id: str) -> float:
    """In [0, 1), the same for the same id: a shadow's record is kept where the champion's is."""
    return zlib.crc32(prediction_id.encode()) / 2**32


def _model_of(done: tuple[Predictions, float]) -> tuple[str, str]:
    return done[0].model_version, done[0].variant


def _bytes_of(arrays: list[npt.NDArray[np.float64]]) -> bytes:
    """The numbers one behind the other, row by row."""
    parts: list[Any] = arrays  # they are buffers, which their type does not say
    try:
        return b"".join(parts)
    except TypeError:  # some models give their scores column by column
        return b"".join([array.tobytes() for array in arrays])
