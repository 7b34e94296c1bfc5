"""Random contracts, rows that keep them, and rows that break one rule of them: for the property-based tests."""

import math
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tabserve.contract import LARGEST_EXACT_INTEGER, Contract, Feature

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-LARGEST_EXACT_INTEGER, LARGEST_EXACT_INTEGER)
categories = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=8)


@st.composite
def features(draw: st.DrawFn, name: str) -> Feature:
    kind = draw(st.sampled_from(["number", "integer", "category", "boolean"]))
    common: dict[str, Any] = {"name": name, "kind": kind, "may_be_missing": draw(st.booleans())}
    if kind == "category":
        values = draw(
            st.lists(categories, min_size=1, max_size=5, unique=True)
            | st.lists(st.integers(-9, 9), min_size=1, max_size=5, unique=True)
        )
        return Feature(**common, categories=tuple(sorted(values)))
    if kind == "boolean":
        return Feature(**common)
    low, high = sorted([draw(st.integers(-1000, 1000)), draw(st.integers(-1000, 1000))])
    hard: dict[str, Any] = {}
    if draw(st.booleans()):
        hard = {"hard_minimum": low - 10.0, "hard_maximum": high + 10.0}
    return Feature(**common, **hard, minimum=float(low), maximum=float(high))


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    chosen = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    return Contract(
        features=tuple(draw(features(name)) for name in chosen), task="binary", target="y", classes=("no", "yes")
    )


@st.composite
def values(draw: st.DrawFn, feature: Feature) -> Any:
    """A value that the feature allows."""
    if feature.may_be_missing and draw(st.integers(0, 3)) == 0:
        return None
    if feature.kind == "category":
        return draw(st.sampled_from(feature.categories))
    if feature.kind == "boolean":
        return draw(st.booleans())
    low = feature.hard_minimum if feature.hard_minimum is not None else -1e6
    high = feature.hard_maximum if feature.hard_maximum is not None else 1e6
    whole = draw(st.integers(math.ceil(low), math.floor(high)))
    if feature.kind == "integer":
        return draw(st.sampled_from([whole, float(whole)]))
    return draw(st.sampled_from([whole, draw(st.floats(low, high))]))


@st.composite
def rows(draw: st.DrawFn, contract: Contract) -> Any:
    """A row that keeps the contract, in order or by name (where a missing value may be left out)."""
    row = [draw(values(feature)) for feature in contract.features]
    if draw(st.booleans()):
        return row
    by_name = dict(zip(contract.names, row, strict=True))
    return {name: value for name, value in by_name.items() if value is not None or draw(st.booleans())}


@dataclass(frozen=True)
class Broken:
    """A row with one fault: the name of the feature at fault (None where it is the row), and the rule it breaks."""

    row: Any
    feature: str | None
    rule: str


@st.composite
def broken_rows(draw: st.DrawFn, contract: Contract) -> Broken:
    row = [draw(values(feature)) for feature in contract.features]
    fault = draw(st.sampled_from(["count", "row_shape", "unknown_name", "missing_name", "value"]))
    by_name: dict[str, Any] = dict(zip(contract.names, row, strict=True))
    if fault == "count":
        return Broken(draw(st.sampled_from([row[:-1], [*row, 1.0], []])), None, "count")
    if fault == "row_shape":
        return Broken(draw(st.sampled_from([3, "row", None, True, 1.5])), None, "row_shape")
    if fault == "unknown_name":
        unknown = draw(names.filter(lambda name: name not in contract.names))
        return Broken({**by_name, unknown: 1}, unknown, "unknown_name")
    position = draw(st.integers(0, len(row) - 1))
    feature = contract.features[position]
    if fault == "missing_name" and not feature.may_be_missing:
        del by_name[feature.name]
        return Broken(by_name, feature.name, "missing_name")
    value, rule = draw(st.sampled_from(_bad_values(feature)))
    row[position] = value
    if draw(st.booleans()):
        return Broken(dict(zip(contract.names, row, strict=True)), feature.name, rule)
    return Broken(row, feature.name, rule)


def _bad_values(feature: Feature) -> list[tuple[Any, str]]:
    bad: list[tuple[Any, str]] = [([1.0], "kind"), ({"a": 1}, "kind")]
    if not feature.may_be_missing:
        bad.append((None, "missing"))
    if feature.kind == "category":
        of_text = isinstance(feature.categories[0], str)
        return [
            *bad,
            ("never seen" if of_text else 12345, "category"),
            (1.0 if of_text else "1", "kind"),
            (True, "kind"),
        ]
    if feature.kind == "boolean":
        return [*bad, (1, "kind"), (0.0, "kind"), ("true", "kind")]
    bad += [(True, "kind"), ("1.0", "kind"), (math.nan, "finite"), (math.inf, "finite"), (-math.inf, "finite")]
    bad.append((10**400, "finite"))
    if feature.kind == "integer":
        bad += [(0.5, "kind"), (2**53, "exact")]
    if feature.hard_minimum is not None and feature.hard_maximum is not None:
        bad += [(feature.hard_minimum - 1, "minimum"), (feature.hard_maximum + 1, "maximum")]
    return bad
