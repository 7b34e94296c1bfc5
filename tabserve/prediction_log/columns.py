"""What one record is: the Arrow schema that follows from a contract, and predictions as batches of it.

    prediction_id, time, model, version, contract_hash, variant
    feature:<name>        one for each feature, as the model saw it; null where it is missing
    label or value        the prediction, as the answer has it
    probability:<key>     one for each class of a classification
    latency_ms, weight    weight is 1 / share of the requests that are kept

A personal feature is the text of its hash, or is left out where it is dropped.

Every batch is made of numpy's buffers as they are: `pyarrow.array` would import pandas, and look at each value.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tabserve.contract import Contract, Feature
from tabserve.prediction_log.waiting import Put

TIME = pa.timestamp("us", "UTC")
Day = int
"""Days since 1970."""
MICROSECONDS_OF_A_DAY = 86_400_000_000

ID_BYTES = 36  # of a UUID as text

_CODEC = b"tabserve.predictions"

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
    """The records of one model in one role: raw, as the writer puts them together quickly, and decoded.

    A raw batch has the rows and scores of a prediction as bytes. What decodes them stands in its schema's metadata, so
    that a segment needs nothing else to be read.
    """

    def __init__(
        self, contract: Contract, model_version: str, variant: str, weight: float, *, personal_are_hashed: bool
    ) -> None:
        self.model, _, self.version = model_version.partition(":")
        self.schema = prediction_schema(contract, personal_are_hashed=personal_are_hashed)
        self._contract = contract
        self._weight = weight
        self._constants = (self.model, self.version, contract.hash, variant)
        self._categories = [text_array([str(category) for category in f.categories]) for f in contract.features]
        self._labels = None
        if contract.classes and not has_integer_labels(contract):
            self._labels = text_array([str(label) for label in contract.classes])
        self._n_hashed = len(contract.personal) if personal_are_hashed else 0
        self._n_scores = max(1, len(contract.classes))
        key = [contract.model_dump(mode="json"), model_version, variant, weight, personal_are_hashed]
        self._raw_schema = pa.schema(
            [
                ("prediction_id", pa.string()),
                ("time", TIME),
                ("latency_ms", pa.float64()),
                ("rows", pa.binary(8 * len(contract.features))),
                ("scores", pa.binary(8 * self._n_scores)),
                *((f"hashed:{number}", pa.string()) for number in range(self._n_hashed)),
            ],
            metadata={_CODEC: json.dumps(key)},
        )

    @classmethod
    def of_metadata(cls, metadata: Mapping[bytes, bytes]) -> Self | None:
        """What decodes the batches of a schema with this metadata; None where they are no raw predictions.

        Raises:
            ValueError: where another version of this wrote them.
        """
        if _CODEC not in metadata:
            return None
        contract, model_version, variant, weight, personal_are_hashed = json.loads(metadata[_CODEC])
        contract = Contract.model_validate_json(json.dumps(contract))  # JSON has no tuples, which only this way allows
        return cls(contract, model_version, variant, weight, personal_are_hashed=personal_are_hashed)

    def raw(self, put: Sequence[Put]) -> pa.RecordBatch:
        """Predictions of this model, in their order."""
        _, _, _, n_rows_put, n_rows_of, ids, rows, scores, hashed, times, latencies = zip(*put, strict=True)
        n_rows = sum(n_rows_put)
        microseconds = np.repeat((np.array(times) * 1e6).astype(np.int64), n_rows_put)
        of_requests = np.array(list(chain.from_iterable(latencies)))
        latency_ms = np.repeat((of_requests * 1e3).round(3), list(chain.from_iterable(n_rows_of)))
        id_offsets = np.arange(0, ID_BYTES * n_rows + 1, ID_BYTES, dtype=np.int32)
        id_buffers = [None, pa.py_buffer(id_offsets), _whole("".join(ids).encode(), n_rows, ID_BYTES)]
        columns = [
            pa.Array.from_buffers(pa.string(), n_rows, id_buffers),
            _fixed(TIME, microseconds),
            _fixed(pa.float64(), latency_ms),
        ]
        for name, parts in (("rows", rows), ("scores", scores)):
            kind = self._raw_schema.field(name).type
            columns.append(
                pa.Array.from_buffers(kind, n_rows, [None, _whole(b"".join(parts), n_rows, kind.byte_width)])
            )
        columns += [
            text_array(list(chain.from_iterable([of_put[number] for of_put in hashed])))
            for number in range(self._n_hashed)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._raw_schema)

    def decode(self, raw: pa.RecordBatch) -> pa.RecordBatch:
        """Records of raw predictions."""
        n_rows = len(raw)
        always_first = _fixed(pa.int32(), np.zeros(n_rows, np.int32))
        columns = [
            raw.column("prediction_id"),
            raw.column("time"),
            *(text_array([constant]).take(always_first) for constant in self._constants),
            *self._features(raw),
            *self._prediction(_matrix_of(raw.column("scores"), self._n_scores)),
            raw.column("latency_ms"),
            _fixed(pa.float64(), np.full(n_rows, self._weight)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _features(self, raw: pa.RecordBatch) -> list[pa.Array]:
        # Transposed once: a column is then a piece of memory, which Arrow takes as it is.
        rows = np.ascontiguousarray(_matrix_of(raw.column("rows"), len(self._contract.features)).T)
        missing = np.isnan(rows)
        with_gaps = set(np.flatnonzero(missing.any(axis=1)).tolist())
        hashed = (raw.column(f"hashed:{number}") for number in range(self._n_hashed))
        columns = []
        for position, feature in enumerate(self._contract.features):
            if not feature.personal:
                absent = missing[position] if position in with_gaps else None
                columns.append(self._feature(position, feature, rows[position], absent))
            elif self._n_hashed:
                columns.append(next(hashed))
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

    def _prediction(self, scores: npt.NDArray[np.float64]) -> list[pa.Array]:
        columns = [_fixed(pa.float64(), column) for column in np.ascontiguousarray(scores.T)]
        if self._contract.task == "regression":
            return columns
        chosen = scores.argmax(axis=1)  # the first of the largest, as the answer
        if self._labels is None:
            label = _fixed(pa.int64(), np.array(self._contract.classes, np.int64)[chosen])
        else:
            label = self._labels.take(_fixed(pa.int32(), chosen.astype(np.int32)))
        return [label, *columns]


def _whole(content: bytes, n_rows: int, width: int) -> pa.Buffer:
    if len(content) != n_rows * width:
        raise ValueError(f"expected {n_rows} rows of {width} bytes, got {len(content)} bytes")
    return pa.py_buffer(content)


def _matrix_of(column: pa.Array, width: int) -> npt.NDArray[np.float64]:
    start = column.offset * width
    return np.frombuffer(column.buffers()[1], np.float64)[start : start + len(column) * width].reshape(-1, width)


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
