"""What one record is: the Arrow schema that follows from a contract, and predictions as batches of it.

    prediction_id, time, model, version, contract_hash, variant
    feature:<name>        one for each feature, as the model saw it; null where it is missing
    label or value        the prediction, as the answer has it
    probability:<key>     one for each class of a classification
    latency_ms, weight    weight is 1 / share of the requests that are kept

A personal feature is the text of its hash, or is left out where it is dropped.

Every batch is made of numpy's buffers as they are: `pyarrow.array` would import pandas, and look at each value.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tabserve.contract import Contract, Feature
from tabserve.prediction_log.predictions import Predictions
from tabserve.prediction_log.waiting import Put

TIME = pa.timestamp("us", "UTC")
Day = int
"""Days since 1970."""
MICROSECONDS_OF_A_DAY = 86_400_000_000

_KINDS = {"number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_(), "category": pa.string()}


def prediction_schema(contract: Contract, *, personal_are_hashed: bool) -> pa.Schema:
    """The schema of the predictions under a contract."""
    fields: list[tuple[str, pa.DataType]] = [("prediction_id", pa.string()), ("time", TIME)]
    fields += [(name, pa.string()) for name in ("model", "version", "contract_hash", "variant")]
    for feature in contract.features:
        if not feature.personal:
            fields.append((f"feature:{feature.name}", _KINDS[feature.kind]))
        elif personal_are_hashed:
            fields.append((f"feature:{feature.name}", pa.string()))
    if contract.task == "regression":
        fields.append(("value", pa.float64()))
    else:
        fields.append(("label", pa.int64() if has_integer_labels(contract) else pa.string()))
        fields += [(f"probability:{key}", pa.float64()) for key in contract.probability_keys]
    return pa.schema([*fields, ("latency_ms", pa.float64()), ("weight", pa.float64())])


def has_integer_labels(contract: Contract) -> bool:
    return all(isinstance(label, int) for label in contract.classes)


class PredictionColumns:
    """Makes batches of the predictions of one model in one role.

    Args:
        like: a prediction of that model in that role.
    """

    def __init__(self, like: Predictions, weight: float, *, personal_are_hashed: bool) -> None:
        predictions = like
        contract = self._contract = predictions.contract
        self.model, _, self.version = predictions.model_version.partition(":")
        self.schema = prediction_schema(contract, personal_are_hashed=personal_are_hashed)
        self._weight = weight
        self._constants = (self.model, self.version, contract.hash, predictions.variant)
        self._repeated: list[pa.Array] = []
        self._categories = [text_array([str(category) for category in f.categories]) for f in contract.features]
        self._personal_are_hashed = personal_are_hashed
        if contract.classes and not has_integer_labels(contract):
            self._labels = text_array([str(label) for label in contract.classes])
        else:
            self._labels = None

    def batch(self, put: Sequence[Put]) -> pa.RecordBatch:
        """One batch of predictions of this model, in their order."""
        predictions, times, latencies = zip(*put, strict=True)
        ids = list(chain.from_iterable(of_request.ids for of_request in predictions))
        n_rows = len(ids)
        n_rows_of = np.fromiter((len(of_request.ids) for of_request in predictions), np.int64, len(put))
        microseconds = (np.array(times) * 1e6).astype(np.int64)
        latency_ms = (np.array(latencies) * 1e3).round(3)
        columns = [
            text_array(ids),
            _fixed(TIME, np.repeat(microseconds, n_rows_of)),
            *self._constant(n_rows),
            *self._features(predictions),
            *self._prediction(predictions),
            _fixed(pa.float64(), np.repeat(latency_ms, n_rows_of)),
            _fixed(pa.float64(), np.full(n_rows, self._weight)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _constant(self, n_rows: int) -> list[pa.Array]:
        if not self._repeated or len(self._repeated[0]) < n_rows:
            self._repeated = [text_array([value] * n_rows) for value in self._constants]
        return [column.slice(0, n_rows) for column in self._repeated]

    def _features(self, predictions: Sequence[Predictions]) -> list[pa.Array]:
        # Transposed once: a column is then a piece of memory, which Arrow takes as it is.
        rows = np.ascontiguousarray(np.concatenate([of_request.rows for of_request in predictions]).T)
        missing = np.isnan(rows)
        has_missing = missing.any(axis=1).tolist()
        columns = []
        n_personal = 0
        for position, feature in enumerate(self._contract.features):
            if feature.personal:
                if self._personal_are_hashed:
                    hashes = chain.from_iterable(of_request.hashed[n_personal] for of_request in predictions)
                    columns.append(text_array(list(hashes)))
                n_personal += 1
                continue
            absent = missing[position] if has_missing[position] else None
            columns.append(self._feature(position, feature, rows[position], absent))
        return columns

    def _feature(
        self, position: int, feature: Feature, values: npt.NDArray[np.float64], absent: npt.NDArray[np.bool_] | None
    ) -> pa.Array:
        if feature.kind == "number":
            return _fixed(pa.float64(), values, absent)
        known = values if absent is None else np.where(absent, 0.0, values)
        if feature.kind == "integer":
            return _fixed(pa.int64(), known.astype(np.int64), absent)
        if feature.kind == "boolean":
            return _fixed(pa.bool_(), known != 0, absent)
        return self._categories[position].take(_fixed(pa.int32(), known.astype(np.int32), absent))

    def _prediction(self, predictions: Sequence[Predictions]) -> list[pa.Array]:
        scores = np.concatenate([of_request.scores for of_request in predictions])
        if self._contract.task == "regression":
            return [_fixed(pa.float64(), scores)]
        chosen = scores.argmax(axis=1)  # the first of the largest, as the answer
        if self._labels is None:
            label = _fixed(pa.int64(), np.array(self._contract.classes, np.int64)[chosen])
        else:
            label = self._labels.take(_fixed(pa.int32(), chosen.astype(np.int32)))
        return [label, *(_fixed(pa.float64(), column) for column in np.ascontiguousarray(scores.T))]


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """A column of texts."""
    encoded = [b"" if text is None else text.encode() for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, encoded), np.int32, len(texts)), out=offsets[1:])
    absent = np.array([text is None for text in texts]) if None in texts else None
    buffers = [_validity(absent), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def number_array(kind: pa.DataType, values: npt.NDArray[Any], absent: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """A column of numbers, booleans or times; `values` are of the width of the kind, `absent` says which are none."""
    return _fixed(kind, values, absent)


def _fixed(kind: pa.DataType, values: npt.NDArray[Any], absent: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [_validity(absent), pa.py_buffer(data)])


def _validity(absent: npt.NDArray[np.bool_] | None) -> pa.Buffer | None:
    return None if absent is None else pa.py_buffer(np.packbits(~absent, bitorder="little"))


def by_day(batch: pa.RecordBatch) -> list[tuple[Day, pa.RecordBatch]]:
    """A batch in one piece for each day that its times fall on; nearly always one."""
    times = np.frombuffer(batch.column("time").buffers()[1], np.int64)[: len(batch)]
    days = times // MICROSECONDS_OF_A_DAY
    if days[0] == days[-1] and (days == days[0]).all():
        return [(int(days[0]), batch)]
    return [(day, batch.filter(_fixed(pa.bool_(), days == day))) for day in np.unique(days).tolist()]


def date_of(day: Day) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
