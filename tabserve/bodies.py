"""The body of a request to rows: quickly where it is plain numbers, and else with a closer look at each value."""

import json
from typing import Any

import msgspec

from tabserve.answers import HttpError, unprocessable
from tabserve.validation import InvalidRowsError, ReadRows, RowReader, Violation, check_row_count

ONE_EXPECTED = 'expected {"features": [values in order]} or {"features": {name: value}}'
MANY_EXPECTED = 'expected {"instances": [rows]}, each a list of values or an object of names and values'


class _OneRow(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /predict where the contract is all numbers: what needs no closer look."""

    features: list[float]


class _ManyRows(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[list[float]]


_ONE_ROW = msgspec.json.Decoder(_OneRow)
_MANY_ROWS = msgspec.json.Decoder(_ManyRows)


def unwrapped(instance: Any) -> Any:
    """A row of many, which may come as `{"features": row}` too, as it does alone."""
    if isinstance(instance, dict) and len(instance) == 1 and isinstance(instance.get("features"), list | dict):
        return instance["features"]
    return instance


def read_one(reader: RowReader, body: bytes) -> ReadRows:
    """The row of `{"features": row}`.

    Raises:
        HttpError: 400 for what is no JSON, 422 for what breaks the contract.
    """
    if reader.contract.is_all_numbers:
        try:
            rows = reader.read_numbers([_ONE_ROW.decode(body).features])
        except msgspec.MsgspecError:
            rows = None  # the closer look below says what is wrong, and reads rows that are objects
        if rows is not None:
            return rows
    return _read(reader, [_only_key(_parse(body, ONE_EXPECTED), "features", ONE_EXPECTED)])


def read_many(reader: RowReader, body: bytes) -> ReadRows:
    """The rows of `{"instances": [row, …]}`.

    Raises:
        HttpError: as `read_one`.
    """
    if reader.contract.is_all_numbers:
        try:
            rows = reader.read_numbers(_MANY_ROWS.decode(body).instances)
        except msgspec.MsgspecError:
            rows = None
        if rows is not None:
            return rows
    instances = _only_key(_parse(body, MANY_EXPECTED), "instances", MANY_EXPECTED)
    if not isinstance(instances, list):
        raise unprocessable(Violation(None, None, "shape", "expected a list of rows as instances", instances))
    return _read(reader, instances)


def _read(reader: RowReader, instances: list[Any]) -> ReadRows:
    try:
        check_row_count(len(instances))  # before a million of them are looked at
        return reader.read([unwrapped(instance) for instance in instances])
    except InvalidRowsError as error:
        raise unprocessable(*error.violations) from error


def _parse(body: bytes, expected: str) -> Any:
    """JSON as people write it, the bare words NaN and Infinity included, so that they can be refused by name."""
    try:
        return json.loads(body.decode("utf-8"), parse_int=_parse_integer)
    except UnicodeDecodeError as error:
        raise HttpError(400, f"The body is not UTF-8 (byte {error.start}); {expected}.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise HttpError(400, f"The body is not JSON: {error.msg} at {place}; {expected}.") from error
    except RecursionError as error:
        raise HttpError(400, f"The body is nested too deeply; {expected}.") from error


def _parse_integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)  # Python refuses to read very long integers


def _only_key(parsed: Any, key: str, expected: str) -> Any:
    if not isinstance(parsed, dict):
        raise unprocessable(Violation(None, None, "shape", expected, parsed))
    if key not in parsed:
        raise unprocessable(Violation(None, None, "missing_key", f'expected the key "{key}"', parsed))
    if len(parsed) > 1:
        unknown = next(name for name in parsed if name != key)
        raise unprocessable(Violation(None, None, "unknown_key", f'expected only the key "{key}"', unknown))
    return parsed[key]
