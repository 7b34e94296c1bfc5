"""Values as a caller sends them to rows as the contract codes them; whatever breaks the contract is named."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tabserve.contract import LARGEST_EXACT_INTEGER, LARGEST_NUMBER, MAX_ROWS, Contract, Feature, Rows

NAMED_VIOLATIONS = 100  # a request of 512 rows may break thousands of rules; the first ones are enough to mend it
SHOWN_CHARACTERS = 80  # of a value at fault
ABSENT = object()  # what came where nothing came
HIDDEN = "a personal value"  # what came where it is nobody's business: errors end up in the logs of callers


@dataclass(frozen=True, slots=True)
class Violation:
    """One value that breaks a rule: what was expected there, and what came."""

    row: int | None  # counted from 0; None when the fault is not in a row
    feature: str | None
    rule: str
    expected: str
    got: object

    def as_detail(self) -> dict[str, object]:
        """The entry of an error's `detail` or a prediction's `warnings`, ready for JSON."""
        return {
            "row": self.row,
            "feature": self.feature,
            "rule": f"{self.rule}: {self.expected}",
            "got": _shown(self.got),
        }

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [f'feature "{self.feature}"'] if self.feature is not None else []
        return f"{', '.join(place) or 'request'}: {self.expected}, got {_named(self.got)}"


class InvalidRowsError(ValueError):
    """Rows that break the contract; `violations` names each fault (the first 100 of them) and is never empty."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        more = f" (the first of {len(self.violations)})" if len(self.violations) > 1 else ""
        super().__init__(f"{self.violations[0]}{more}")


class ReadRows(NamedTuple):
    """Rows that keep the contract. `warnings` holds, by row, the values outside of the range seen in training."""

    values: Rows
    warnings: Mapping[int, list[Violation]] = MappingProxyType({})


class RowReader:
    """Reads rows under one contract.

    Args:
        contract: what a row is.
        strict: refuse a value outside of the range seen in training, instead of warning.
    """

    def __init__(self, contract: Contract, *, strict: bool = False) -> None:
        self.contract = contract
        self._strict = strict
        self._names = frozenset(contract.names)
        self._codes = [{value: float(code) for code, value in enumerate(f.categories)} for f in contract.features]
        unbounded = float("inf")
        self._low = np.array([_or(f.minimum, -unbounded) for f in contract.features])
        self._high = np.array([_or(f.maximum, unbounded) for f in contract.features])

    def read(self, instances: Sequence[Any]) -> ReadRows:
        """Rows, each a list of values in contract order or a mapping from feature name to value.

        Raises:
            InvalidRowsError: naming row, feature and rule for every fault.
        """
        check_row_count(len(instances))
        values = np.empty((len(instances), len(self.contract.features)))
        violations: list[Violation] = []
        for row, instance in enumerate(instances):
            violations += self._read_row(row, instance, values[row])
            if len(violations) >= NAMED_VIOLATIONS:
                break
        if violations:
            raise InvalidRowsError(violations[:NAMED_VIOLATIONS])
        return self.with_warnings(values)

    def with_warnings(self, values: Rows) -> ReadRows:
        """Rows that keep the rules, shape (rows, features), with what is outside of the range seen in training.

        Raises:
            InvalidRowsError: for that, where it is refused.
        """
        warnings = self._outside_training(values)
        if warnings and self._strict:
            raise InvalidRowsError(
                [violation for of_row in warnings.values() for violation in of_row][:NAMED_VIOLATIONS]
            )
        return ReadRows(values, warnings)

    def _read_row(self, row: int, instance: Any, into: Rows) -> list[Violation]:
        features = self.contract.features
        faults: list[Violation] = []
        if isinstance(instance, Mapping):
            unknown = itertools.islice((name for name in instance if name not in self._names), NAMED_VIOLATIONS)
            faults += [
                Violation(row, _shown_text(str(name)), "unknown_name", "expected no such feature", name)
                for name in unknown
            ]
            values = [instance.get(feature.name, None if feature.may_be_missing else ABSENT) for feature in features]
        elif isinstance(instance, list | tuple):
            values = list(instance)
        else:
            expected = f"expected a list of {len(features)} values or an object of feature names and values"
            return [Violation(row, None, "row_shape", expected, kind_of(instance))]
        if len(values) != len(features):
            return [Violation(row, None, "count", f"expected {len(features)} values", len(values))]
        for position, (feature, value) in enumerate(zip(features, values, strict=True)):
            coded = self._code(row, position, feature, value)
            if isinstance(coded, Violation):
                faults.append(_hidden(coded) if feature.personal else coded)
            else:
                into[position] = coded
        return faults

    def _code(self, row: int, position: int, feature: Feature, value: Any) -> float | Violation:
        if value is ABSENT:
            return Violation(row, feature.name, "missing_name", "expected a value for this feature", ABSENT)
        if value is None:
            if feature.may_be_missing:
                return math.nan
            return Violation(row, feature.name, "missing", "expected a value, this feature may not be missing", None)
        if feature.kind == "boolean":
            if isinstance(value, bool):
                return float(value)
            return Violation(row, feature.name, "kind", "expected true or false", value)
        if feature.kind == "category":
            return self._code_category(row, position, feature, value)
        return _code_number(row, feature, value)

    def _code_category(self, row: int, position: int, feature: Feature, value: Any) -> float | Violation:
        of_text = isinstance(feature.categories[0], str)
        if isinstance(value, str) if of_text else isinstance(value, int | float) and not isinstance(value, bool):
            code = self._codes[position].get(value)
            if code is not None:
                return code
            known = ", ".join(map(str, feature.categories[:20])) + (", …" if len(feature.categories) > 20 else "")
            return Violation(row, feature.name, "category", f"expected one of {known}", value)
        return Violation(row, feature.name, "kind", f"expected {'a text' if of_text else 'a whole number'}", value)

    def _outside_training(self, values: Rows) -> dict[int, list[Violation]]:
        outside = (values < self._low) | (values > self._high)  # false where missing
        warnings: dict[int, list[Violation]] = {}
        for row, position in zip(*np.nonzero(outside), strict=True):
            feature = self.contract.features[position]
            expected = f"expected {feature.minimum:g} to {feature.maximum:g}, the range seen in training"
            violation = Violation(int(row), feature.name, "range", expected, float(values[row, position]))
            if feature.personal:
                violation = _hidden(violation)
            warnings.setdefault(int(row), []).append(violation)
        return warnings


def kind_of(got: object) -> object:
    """What stands where rows should, without what it says: a line of a CSV file may have personal values."""
    match got:
        case None | bool() | list() | dict():
            return got
        case str():
            return f"a text of {len(got)}"
    return "a number"


def _hidden(violation: Violation) -> Violation:
    """The same without the value, but for one that is missing."""
    return violation if violation.got in (None, ABSENT) else replace(violation, got=HIDDEN)


def check_row_count(n_rows: int) -> None:
    """Whether a request may have so many rows.

    Raises:
        InvalidRowsError: where it may not.
    """
    if not 1 <= n_rows <= MAX_ROWS:
        expected = f"expected 1 to {MAX_ROWS} rows, send larger sets in several requests"
        raise InvalidRowsError([Violation(None, None, "row_count", expected, n_rows)])


def _code_number(row: int, feature: Feature, value: Any) -> float | Violation:
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = "a whole number" if feature.kind == "integer" else "a number"
        return Violation(row, feature.name, "kind", f"expected {what}", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= LARGEST_NUMBER:  # NaN too
        hint = ", send null for a missing value" if feature.may_be_missing else ""
        expected = f"expected a finite number of at most {LARGEST_NUMBER:.2g}{hint}"
        return Violation(row, feature.name, "finite", expected, number)
    if feature.kind == "integer":
        if not number.is_integer():
            return Violation(row, feature.name, "kind", "expected a whole number", value)
        if abs(value) > LARGEST_EXACT_INTEGER:
            return Violation(row, feature.name, "exact", "expected a whole number of at most 2^53 - 1", value)
    if feature.hard_minimum is not None and number < feature.hard_minimum:
        return Violation(row, feature.name, "minimum", f"expected at least {feature.hard_minimum:g}", value)
    if feature.hard_maximum is not None and number > feature.hard_maximum:
        return Violation(row, feature.name, "maximum", f"expected at most {feature.hard_maximum:g}", value)
    return number


def _or(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else bound


def _shown(got: object) -> object:
    """A value as an answer may repeat it: itself when it is small and plain, else what it is."""
    match got:
        case None | bool():
            return got
        case float():
            return got if math.isfinite(got) else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(got), "NaN")
        case int():
            return got if abs(got) <= LARGEST_EXACT_INTEGER else f"a whole number of {got.bit_length()} bits"
        case str():
            return _shown_text(got)
        case list() | tuple():
            return f"a list of {len(got)}"
    return None if got is ABSENT else "an object"


def _named(got: object) -> str:
    """The same for a sentence."""
    if got is ABSENT:
        return "nothing"
    shown = _shown(got)
    return json.dumps(shown, ensure_ascii=False) if got is None or isinstance(got, bool | str) else str(shown)


def _shown_text(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # JSON can spell half a character, UTF-8 can not
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
