"""A challenger that is asked what the champion was asked, after the caller has its answer; nobody waits for it.

What waits for it is bounded and dropped first, and it works at most half of the time: it may be slow, raise or never
come back, and no answer knows.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tabserve.contract import MAX_ROWS
from tabserve.engine import Scores, finite
from tabserve.prediction_log import PredictionLog, Predictions
from tabserve.prediction_log.faults import Fault
from tabserve.prediction_log.predictions import SHADOW
from tabserve.served_model import ServedModel

logger = logging.getLogger(__name__)

MOST_ROWS = 8192  # that wait: a megabyte of the built-in model's, and more than a second of what one core answers
GLANCE_SECONDS = 0.5  # it looks for rows so often: each look shows in the champion's p99
CLOSE_SECONDS = 1.0  # for the batch that it is at


class ShadowCounts(Protocol):
    """What is told about a shadow's rows."""

    def shadow_rows(self, outcome: str, n_rows: int) -> None:
        """`outcome` is answered, dropped or failed."""


class Shadow:
    """One challenger in the shadow.

    Args:
        share: of the requests that it sees, 0 to 1.
    """

    def __init__(self, model: ServedModel, share: float, log: PredictionLog, counts: ShadowCounts) -> None:
        self.model = model
        self.share = share
        self._contract_hash = model.loaded.contract.hash
        self._log = log
        self._counts = counts
        # No lock: its thread may be without a core for long, and would hold it meanwhile. Each number has one writer.
        self._waiting: deque[Predictions] = deque()
        self._n_taken_in = 0  # rows; the event loop's
        self._n_taken_out = 0  # the thread's
        self._is_closing = threading.Event()
        self._failing = Fault(
            f"the shadow {model.tag} fails; callers are answered as ever", f"the shadow {model.tag} answers again"
        )
        self._thread = threading.Thread(target=self._run, name="tabserve-shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def see(self, answered: Predictions) -> None:
        """Takes a copy of what was answered, where there is room. Called on the event loop, behind the answer."""
        if self.share < 1 and random.random() >= self.share:  # noqa: S311
            return
        # While models change, a request may have been answered under another contract, or by this very model.
        if answered.contract.hash != self._contract_hash or answered.model_version == self.model.tag:
            return
        n_rows = len(answered.ids)
        if self._n_taken_in - self._n_taken_out + n_rows > MOST_ROWS:
            self._counts.shadow_rows("dropped", n_rows)
            return
        self._n_taken_in += n_rows
        self._waiting.append(answered)

    def close(self, *, waits: bool = True) -> None:
        """Ends it after the batch that it is at; what waits is dropped. Waited for is a moment, or not at all."""
        self._is_closing.set()
        if waits and self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        # No lower priority: who waits for a core may hold the interpreter meanwhile, and then the event loop waits too
        # (docs/decisions.md). It rests instead, for as long as a batch took.
        rest = GLANCE_SECONDS
        while not self._is_closing.wait(rest):
            rest = GLANCE_SECONDS
            if batch := self._take():
                started = time.perf_counter()
                self._answer(batch)
                took = time.perf_counter() - started
                rest = took if self._waiting else max(took, GLANCE_SECONDS)
        if n_left := self._n_taken_in - self._n_taken_out:
            self._counts.shadow_rows("dropped", n_left)

    def _take(self) -> list[Predictions]:
        """What is answered together next; its rows do not wait any more."""
        batch: list[Predictions] = []
        n_rows = 0
        while self._waiting and (not batch or n_rows + len(self._waiting[0].ids) <= MAX_ROWS):
            batch.append(self._waiting.popleft())
            n_rows += len(batch[-1].ids)
        self._n_taken_out += n_rows
        return batch

    def _answer(self, batch: Sequence[Predictions]) -> None:
        rows = np.concatenate([one.rows for one in batch])
        started = time.perf_counter()
        try:
            scores = finite(self.model.loaded.engine.predict(rows))
            if len(scores) != len(rows):
                raise RuntimeError(f"the engine gave {len(scores)} scores for {len(rows)} rows")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  # whatever it was, callers are answered as ever
            self._failing.happened(error)
            self._counts.shadow_rows("failed", len(rows))
            return
        seconds = time.perf_counter() - started
        self._failing.did_not_happen()
        self._counts.shadow_rows("answered", len(rows))
        self._keep(batch, scores, seconds)

    def _keep(self, batch: Sequence[Predictions], scores: Scores, seconds: float) -> None:
        start = 0
        for one in batch:
            stop = start + len(one.ids)
            of_one = Predictions(
                one.ids, one.rows, scores[start:stop], self.model.tag, self.model.loaded.contract, SHADOW
            )
            self._log.put(of_one, seconds)
            start = stop
