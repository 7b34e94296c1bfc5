"""What goes back to a caller: an answer, or an error in the one shape that all our errors have."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from tabserve.contract import Contract
from tabserve.engine import Scores
from tabserve.prediction_log import Predictions
from tabserve.validation import InvalidRowsError, Violation


class Answer(NamedTuple):
    """What goes back: a status, a body that is encoded already, and headers beside its type and length."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = MappingProxyType({})
    predictions: tuple[Predictions, ...] = ()
    """What was predicted, by each model that was asked, for the log."""


class HttpError(Exception):
    """A refusal with its status; `violations` are the entries of its detail."""

    def __init__(
        self,
        status: int,
        message: str,
        violations: tuple[Violation, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.violations = violations
        self.headers = headers or {}

    def answer(self, trace_id: str | None = None) -> Answer:
        """What the caller gets; with the trace by which it can be found again, where there is one."""
        body: dict[str, Any] = {"error": str(self), "detail": [violation.as_detail() for violation in self.violations]}
        if trace_id is not None:
            body["trace_id"] = trace_id
        return Answer(self.status, msgspec.json.encode(body), headers=self.headers)


def json_answer(content: object) -> Answer:
    return Answer(200, msgspec.json.encode(content))


def outcomes(contract: Contract, scores: Scores) -> list[dict[str, Any]]:
    """What each row of scores says: label and probabilities, or the value of a regression."""
    if contract.task == "regression":
        return [{"value": value} for value in scores.tolist()]
    classes, keys = contract.classes, contract.probability_keys
    return [
        # The first of the largest, as numpy's argmax, which is slower for a few numbers.
        {"label": classes[of_row.index(max(of_row))], "probabilities": dict(zip(keys, of_row, strict=True))}
        for of_row in scores.tolist()
    ]


def unprocessable(*violations: Violation) -> HttpError:
    """The 422 for what breaks the contract."""
    return HttpError(422, f"The request breaks the model's contract: {InvalidRowsError(violations)}.", violations)


def quoted(text: str) -> str:
    """A caller's text as a sentence may repeat it: short, and with nothing in it that a terminal would obey."""
    return json.dumps(text if len(text) <= 80 else text[:79] + "…")
