"""What remembers predictions. Nothing does yet: this is the place that the front door hands them to."""

from dataclasses import dataclass
from typing import Protocol

from tabserve.contract import Rows
from tabserve.engine import Scores


@dataclass(slots=True)
class Predictions:
    """The predictions of one request: an id, a row and scores for each, in the same order."""

    ids: list[str]
    rows: Rows
    scores: Scores
    model_version: str


class PredictionLog(Protocol):
    """Called on the event loop, behind the answer; it must neither block nor raise."""

    def put(self, predictions: Predictions, latency_seconds: float) -> None: ...


class NoPredictionLog:
    """Remembers nothing."""

    def put(self, predictions: Predictions, latency_seconds: float) -> None:
        pass
