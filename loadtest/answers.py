"""Whether an answer is what it must be: its status, its shape, and what scikit-learn says of the same row."""

import math
from collections import deque
from typing import Any

import msgspec

from tabserve.contract import Contract
from tabserve.engine import LARGEST_DIFFERENCE

REMEMBERED_IDS = 200_000  # of the predictions of a process; a soak of hours would fill its memory with all of them


class FailedAnswerError(Exception):
    """An answer that counts as a failure. The message is one of few, as Locust counts each of them.

    Args:
        detail: what makes this one different from the others of its kind; for the log.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class WrongAnswerError(FailedAnswerError):
    """An answer that a caller would believe, and that is not right."""

    PREFIX = "wrong answer: "

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(self.PREFIX + message, detail)


class AnswerCheck:
    """Checks answers of one model. Each method raises FailedAnswerError for what is not as it must be.

    Args:
        tag: the model's version, which each answer must bear.
        scores: what scikit-learn says of each payload row; None where nobody can say.
        model_may_change: answers of another version are right too, and compared with nothing.
    """

    def __init__(
        self, contract: Contract, tag: str, scores: list[Any] | None, *, model_may_change: bool = False
    ) -> None:
        self._contract = contract
        self._tag = tag
        self._scores = scores
        self._model_may_change = model_may_change
        self._outcome = {"value"} if contract.task == "regression" else {"label", "probabilities"}
        self._ids: set[int] = set()
        self._oldest_ids: deque[int] = deque()

    def one(self, status: int, body: bytes, number: int) -> None:
        """The answer of /predict to the payload row of this number."""
        answer = _decoded(status, body)
        rest = {"model_version", "n_features_in", "latency_ms"}
        self._check_envelope(answer, {"prediction_id", *self._outcome, *rest}, may_have={"warnings"})
        self._check_prediction(answer, number, answer["model_version"])

    def many(self, status: int, body: bytes, start: int, n_rows: int) -> None:
        """The answer of /predict/batch to so many payload rows, from the one of number `start`."""
        answer = _decoded(status, body)
        self._check_envelope(
            answer, {"predictions", "model_version", "n_instances", "n_features_in", "latency_ms"}, may_have=set()
        )
        predictions = _one_a_row(answer["predictions"], n_rows)
        _require(answer["n_instances"] == n_rows, "n_instances is not the number of rows", answer["n_instances"])
        for number, prediction in enumerate(predictions, start):
            _check_keys(prediction, {"prediction_id", *self._outcome}, may_have={"warnings", "model_version"})
            version = prediction.get("model_version", answer["model_version"])
            self._check_version(version)
            self._check_prediction(prediction, number, version)

    def bento(self, status: int, body: bytes, start: int, n_rows: int) -> None:
        """The same for BentoML's own API, which names what a prediction does not have as null."""
        keys = {"prediction_id", "model_version", "label", "probabilities", "value", "error"}
        for number, prediction in enumerate(_one_a_row(_decoded(status, body), n_rows), start):
            _check_keys(prediction, keys, may_have=set())
            unused = keys - self._outcome - {"prediction_id", "model_version"}
            _require(all(prediction[key] is None for key in unused), "a part that must be null is not", prediction)
            self._check_version(prediction["model_version"])
            self._check_prediction(prediction, number, prediction["model_version"])

    def _check_envelope(self, answer: Any, keys: set[str], *, may_have: set[str]) -> None:
        _check_keys(answer, keys, may_have)
        self._check_version(answer["model_version"])
        n_features = len(self._contract.features)
        _require(answer["n_features_in"] == n_features, f"n_features_in is not {n_features}", answer["n_features_in"])

    def _check_version(self, version: Any) -> None:
        if not self._model_may_change:
            _require(version == self._tag, f"model_version changed from {self._tag}", version)

    def _check_prediction(self, prediction: dict[str, Any], number: int, version: Any) -> None:
        self._check_id(prediction["prediction_id"])
        scores = self._value(prediction) if self._contract.task == "regression" else self._probabilities(prediction)
        if self._scores is None or version != self._tag:
            return
        expected = self._scores[number]
        if self._contract.task == "regression":
            expected = [expected]
        for score, right in zip(scores, expected, strict=True):
            # As training compares two engines: a value relative to itself, where it is large.
            allowed = LARGEST_DIFFERENCE * (max(1.0, abs(right)) if self._contract.task == "regression" else 1.0)
            if not abs(score - right) <= allowed:
                message = f"differs from scikit-learn's by more than {LARGEST_DIFFERENCE:g}"
                raise WrongAnswerError(message, f"payload row {number}: {scores}, scikit-learn says {expected}")

    def _value(self, prediction: dict[str, Any]) -> list[float]:
        value = prediction["value"]
        _require(_is_number(value), "value is no finite number", value)
        return [value]

    def _probabilities(self, prediction: dict[str, Any]) -> list[float]:
        found = prediction["probabilities"]
        keys = self._contract.probability_keys
        _require(isinstance(found, dict) and tuple(found) == keys, "probabilities are not keyed by class", found)
        scores = list(found.values())
        _require(
            all(_is_number(score) and 0 <= score <= 1 for score in scores)
            and abs(math.fsum(scores) - 1) <= LARGEST_DIFFERENCE,
            "probabilities do not sum to 1",
            found,
        )
        likeliest = self._contract.classes[scores.index(max(scores))]
        _require(prediction["label"] == likeliest, "label is not the likeliest class", prediction)
        return scores

    def _check_id(self, of_prediction: Any) -> None:
        _require(isinstance(of_prediction, str) and bool(of_prediction), "prediction_id is no text", of_prediction)
        key = hash(of_prediction)  # a small number instead of a text, of which two are never the same in practice
        _require(key not in self._ids, "prediction_id came twice", of_prediction)
        self._ids.add(key)
        self._oldest_ids.append(key)
        if len(self._oldest_ids) > REMEMBERED_IDS:
            self._ids.remove(self._oldest_ids.popleft())


def check_refusal(status: int, body: bytes, expected: int) -> None:
    """A refusal that was asked for: its status, and the one shape that all errors have."""
    if status != expected:
        raise FailedAnswerError(f"expected {expected}, got {status}", _shown(body))
    try:
        error = msgspec.json.decode(body)
    except msgspec.DecodeError:
        error = None
    _require(
        isinstance(error, dict)
        and set(error) == {"error", "detail"}
        and isinstance(error["error"], str)
        and isinstance(error["detail"], list),
        "an error is not of the shape that all errors have",
        _shown(body),
    )
    if expected == 422:
        _require(
            bool(error["detail"]) and all(set(one) == {"row", "feature", "rule", "got"} for one in error["detail"]),
            "a 422 does not name row, feature, rule and value",
            error,
        )


def _decoded(status: int, body: bytes) -> Any:
    if status != 200:
        raise FailedAnswerError(f"expected 200, got {status}", _shown(body))
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise WrongAnswerError("it is no JSON", _shown(body)) from error


def _check_keys(found: Any, keys: set[str], may_have: set[str]) -> None:
    _require(
        isinstance(found, dict) and keys <= set(found) <= keys | may_have,
        f"its keys are not {', '.join(sorted(keys))}",
        found,
    )


def _one_a_row(predictions: Any, n_rows: int) -> list[Any]:
    _require(
        isinstance(predictions, list) and len(predictions) == n_rows, "there is not one prediction a row", predictions
    )
    found: list[Any] = predictions
    return found


def _require(condition: bool, message: str, got: object) -> None:  # noqa: FBT001  # as assert has it
    if not condition:
        raise WrongAnswerError(message, f"got {str(got)[:300]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(body: bytes) -> str:
    return body[:300].decode(errors="replace")
