"""The body of a request to rows, quickly where it is as usual, else with a closer look at each value; or to labels."""

import json
import math
from typing import Annotated, Any

import msgspec
import numpy as np

from tabserve.answers import HttpError, quoted, unprocessable
from tabserve.contract import MAX_ROWS, Feature
from tabserve.labels import LabelReader, Labels
from tabserve.validation import (
    NAMED_VIOLATIONS,
    InvalidRowsError,
    ReadRows,
    RowReader,
    Violation,
    check_row_count,
    kind_of,
)

ONE_EXPECTED = 'expected {"features": [values in order]} or {"features": {name: value}}'
MANY_EXPECTED = 'expected {"instances": [rows]}, each a list of values or an object of names and values'

# What the decoders raise; the second for a key that is no UTF-8.
NO_USUAL_BODY = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# Of a body that needs no closer look: those of its one key, since no value is a text. A key that stands there twice
# has more, of which the decoders would take the last one without a word.
QUOTES = 2


def unwrapped(instance: Any) -> Any:
    """A row of many, which may come as `{"features": row}` too, as it does alone."""
    if isinstance(instance, dict) and len(instance) == 1 and isinstance(instance.get("features"), list | dict):
        return instance["features"]
    return instance


class BodyReader:
    """Reads bodies under one contract: `{"features": row}` and `{"instances": [row, …]}`.

    A body of values in contract order is decoded and checked in one go, by decoders that are made from the contract.
    What they refuse gets a closer look, which reads all that may be read and names what may not.
    """

    def __init__(self, rows: RowReader) -> None:
        self._rows = rows
        self._one: msgspec.json.Decoder[Any] | None = None
        self._many: msgspec.json.Decoder[Any] | None = None
        features = rows.contract.features
        if any(feature.kind == "category" for feature in features):
            return
        # One row is mostly in the range of the training rows, which the decoder checks for nothing; of many rows one
        # mostly is not, and numpy finds it.
        usual = [_value(feature, feature.lowest_usual, feature.highest_usual) for feature in features]
        allowed = [_value(feature, feature.lowest, feature.highest) for feature in features]
        some = msgspec.Meta(min_length=1, max_length=MAX_ROWS)
        self._one = _decoder_of("features", _row(usual))
        self._many = _decoder_of("instances", Annotated[list[_row(allowed)], some])  # type: ignore[misc]

    def quick_one(self, body: bytes) -> ReadRows | None:
        """The row of `{"features": row}` where it needs no closer look, else None. Takes 2 µs."""
        if self._one is None or body.count(b'"') != QUOTES:
            return None
        try:
            return ReadRows(np.array((self._one.decode(body).features,), dtype=np.float64))
        except NO_USUAL_BODY:
            return None

    def quick_many(self, body: bytes) -> ReadRows | None:
        """The rows of `{"instances": [row, …]}` where they need no closer look, else None. Takes 2 µs a row."""
        if self._many is None or body.count(b'"') != QUOTES:
            return None
        try:
            return self._rows.with_warnings(np.array(self._many.decode(body).instances, dtype=np.float64))
        except (*NO_USUAL_BODY, InvalidRowsError):
            return None

    def one(self, body: bytes) -> ReadRows:
        """The row of `{"features": row}`.

        Raises:
            HttpError: 400 for what is no JSON, 422 for what breaks the contract.
        """
        return self.quick_one(body) or self._look_closer(
            [_only_key(_parse(body, ONE_EXPECTED), "features", ONE_EXPECTED)]
        )

    def many(self, body: bytes) -> ReadRows:
        """The rows of `{"instances": [row, …]}`.

        Raises:
            HttpError: as `one`.
        """
        quick = self.quick_many(body)
        if quick is not None:
            return quick
        instances = _only_key(_parse(body, MANY_EXPECTED), "instances", MANY_EXPECTED)
        if not isinstance(instances, list):
            raise unprocessable(
                Violation(None, None, "shape", "expected a list of rows as instances", kind_of(instances))
            )
        return self._look_closer(instances)

    def _look_closer(self, instances: list[Any]) -> ReadRows:
        try:
            check_row_count(len(instances))  # before a million of them are looked at
            return self._rows.read([unwrapped(instance) for instance in instances])
        except InvalidRowsError as error:
            raise unprocessable(*error.violations) from error


def labels_of(reader: LabelReader, body: bytes) -> Labels:
    """The labels of `{"prediction_id", "label", "business_value"}` or `{"labels": [the same, …]}`: all, or none.

    Raises:
        HttpError: 400 for what is no JSON, 422 for what is no label under the contract.
    """
    expected = f'{reader.expected}, or {{"labels": [of these]}}'
    parsed = _parse(body, expected)
    entries = [parsed]
    if isinstance(parsed, dict) and "labels" in parsed:
        entries = _only_key(parsed, "labels", expected)
        if not isinstance(entries, list):
            raise unprocessable(Violation(None, None, "shape", "expected a list as labels", kind_of(entries)))
    elif not isinstance(parsed, dict):
        raise unprocessable(Violation(None, None, "shape", expected, kind_of(parsed)))
    labels = Labels()
    faults: list[Violation] = []
    try:
        check_row_count(len(entries))
    except InvalidRowsError as error:
        raise unprocessable(*error.violations) from error
    for row, entry in enumerate(entries):
        faults += reader.read(row, entry, labels)
    if faults:
        raise unprocessable(*faults[:NAMED_VIOLATIONS])
    return labels


def _row(values: list[Any]) -> Any:
    """The type of a row: a tuple, of which numpy makes the row as the contract codes it (true to 1.0, null to NaN)."""
    return tuple[tuple(values)]  # type: ignore[misc]


def _value(feature: Feature, low: float, high: float) -> Any:
    """The type of a feature's value between two bounds."""
    value: Any = bool
    if feature.kind == "integer":
        value = Annotated[int, msgspec.Meta(ge=math.ceil(low), le=math.floor(high))]
    elif feature.kind == "number":
        value = Annotated[float, msgspec.Meta(ge=low, le=high)]
    return value | None if feature.may_be_missing else value


def _decoder_of(key: str, content: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(msgspec.defstruct("Body", [(key, content)], forbid_unknown_fields=True))


def check_json(body: bytes) -> None:
    """Whether a body is JSON that whoever reads it reads alike.

    Raises:
        HttpError: 400 where it is not.
    """
    _parse(body, 'expected {"rows": [rows]}')


def _parse(body: bytes, expected: str) -> Any:
    """JSON as people write it, the bare words NaN and Infinity included, so that they can be refused by name."""
    try:
        return json.loads(body.decode("utf-8"), parse_int=_parse_integer, object_pairs_hook=_object)
    except DuplicateKeyError as error:
        raise HttpError(400, f"The body has the key {quoted(str(error))} twice in one object; {expected}.") from error
    except UnicodeDecodeError as error:
        raise HttpError(400, f"The body is not UTF-8 (byte {error.start}); {expected}.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise HttpError(400, f"The body is not JSON: {error.msg} at {place}; {expected}.") from error
    except RecursionError as error:
        raise HttpError(400, f"The body is nested too deeply; {expected}.") from error


class DuplicateKeyError(ValueError):
    """The key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON does not say which of two equal keys counts: someone before us may have looked at the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _parse_integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)  # Python refuses to read very long integers


def _only_key(parsed: Any, key: str, expected: str) -> Any:
    if not isinstance(parsed, dict):
        raise unprocessable(Violation(None, None, "shape", expected, kind_of(parsed)))
    if key not in parsed:
        raise unprocessable(Violation(None, None, "missing_key", f'expected the key "{key}"', parsed))
    if len(parsed) > 1:
        unknown = next(name for name in parsed if name != key)
        raise unprocessable(Violation(None, None, "unknown_key", f'expected only the key "{key}"', unknown))
    return parsed[key]
