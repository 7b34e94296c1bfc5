"""Predictions as the front door hands them over, and what may take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tabserve.contract import Contract, Rows
from tabserve.engine import Scores
from tabserve.labels import Labels
from tabserve.validation import Violation

# What a model was when it answered: in service for all, the other side of an A/B test, tried on a share of the
# requests, or asked beside the champion, whose answer the caller got. A shadow's records have the champion's ids.
CHAMPION = "champion"
CONTROL = "control"
CHALLENGER = "challenger"
SHADOW = "shadow"


class CannotKeepError(Exception):
    """Predictions cannot be kept as the settings want it; the message says why and what to do."""


class NoRoomError(Exception):
    """Too many labels wait to be written; the message says how many."""


@dataclass(slots=True)
class Predictions:
    """The predictions of one request: an id, a row and scores for each, in the same order."""

    ids: list[str]
    rows: Rows
    scores: Scores
    model_version: str
    """The tag of the model, `name:version`."""
    contract: Contract
    variant: str = CHAMPION
    """What the model was when it answered."""
    hashed: Sequence[Sequence[str | None]] = ()
    """The hashes of the personal features, a column each; their values are not in `rows` any more then."""


class PredictionLog(Protocol):
    """Told on the event loop, behind the answer, or in a thread of BentoML's; must neither block nor raise."""

    def put(self, predictions: Predictions, latency_seconds: float) -> None: ...

    def reject(self, route: str, violations: Sequence[Violation], model_version: str) -> None:
        """Values that broke the contract."""

    def label(self, labels: Labels) -> None:
        """What came true of predictions.

        Raises:
            CannotKeepError: where nothing is kept.
            NoRoomError: where too many wait to be written.
        """

    def close(self) -> None:
        """Keeps what was put so far. Blocks; called once, when nothing is answered any more."""


class NoPredictionLog:
    """Remembers nothing."""

    def put(self, predictions: Predictions, latency_seconds: float) -> None:
        pass

    def reject(self, route: str, violations: Sequence[Violation], model_version: str) -> None:
        pass

    def label(self, labels: Labels) -> None:  # noqa: ARG002
        raise CannotKeepError("TABSERVE_LOG_URL is null:, which keeps nothing")

    def close(self) -> None:
        pass
