"""One column of a table: what kind of feature it is, what is wrong with it, its values as the contract codes them."""

import datetime as dt
import re
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from tabserve.contract import LARGEST_EXACT_INTEGER, LARGEST_NUMBER, Category, Contract, Feature, Kind

MOST_CATEGORIES = 1000  # of a column; beyond, it names things instead of describing them
FEWEST_NUMBERS_OF_A_NUMBER = 0.5  # share of numeric texts from which a text column is a number with stray texts in it


class BadTableError(ValueError):
    """Input that cannot be trained on; the message says what was expected, what came and what to do."""


FiniteNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Rule(BaseModel):
    """What a user states of a feature that its data cannot: a kind, hard bounds, may it be missing, is it personal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind | None = None
    min: FiniteNumber | None = None
    max: FiniteNumber | None = None
    missing: StrictBool | None = None
    personal: StrictBool = False

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is larger than max {self.max:g}")
        return self


def infer_feature(column: "pd.Series[Any]", rule: Rule, target: np.ndarray[Any, Any], warnings: list[str]) -> Feature:
    """The feature that a column is, without the statistics of the training rows.

    Args:
        target: coded target of the same rows: int64 for classes, float64 for a regression.
        warnings: what is odd but no error is appended here.

    Raises:
        BadTableError: for a column that cannot be a feature.
    """
    name = str(column.name)
    present = column.dropna()
    if present.empty:
        raise BadTableError(f'column "{name}" is all missing; drop it or fill it')
    kind = rule.kind or _infer_kind(present)
    _check_kind(present, kind)
    distinct = present.nunique()
    if distinct == 1:
        value = "personal" if rule.personal else example(present)
        warnings.append(f'column "{name}" is constant ({value}): it cannot help a model')
    if distinct == len(column) and kind in ("category", "integer"):
        advice = f"if it names rows, leave it out with --id-columns {name}"
        if kind == "category":
            raise BadTableError(f'column "{name}" is unique per row; {advice}')
        warnings.append(f'column "{name}" is unique per row; {advice}')
    if kind == "category" and rule.personal:
        warnings.append(
            f'column "{name}" is personal, and its categories stand in the contract, which callers can read'
        )
    if kind == "category" and distinct > MOST_CATEGORIES:
        raise BadTableError(f'column "{name}" has {distinct} categories, at most {MOST_CATEGORIES} are supported')
    if _is_copy(column, target):
        raise BadTableError(f'column "{name}" is a copy of the target: it would not be known when a prediction is made')
    if rule.missing is False and len(present) < len(column):
        raise BadTableError(
            f'column "{name}" may not be missing by the rules, but {column.isna().sum()} rows have no value'
        )
    if (rule.min is not None or rule.max is not None) and kind not in ("number", "integer"):
        raise BadTableError(f'column "{name}" is of kind {kind}: min and max are for numbers')
    return Feature(
        name=name,
        kind=kind,
        may_be_missing=bool(rule.missing) or len(present) < len(column),
        categories=_categories(present) if kind == "category" else (),
        hard_minimum=rule.min,
        hard_maximum=rule.max,
        personal=rule.personal,
    )


def _check_kind(present: "pd.Series[Any]", kind: Kind) -> None:
    """Whether values can be of a kind at all; a rule may have stated one that they are not."""
    is_bool = pd.api.types.is_bool_dtype(present) or all(isinstance(value, bool | np.bool_) for value in present)
    is_number = pd.api.types.is_numeric_dtype(present) and not is_bool
    fits = {
        "boolean": is_bool,
        "number": is_number,
        "integer": is_number,
        "category": pd.api.types.is_integer_dtype(present) or all(isinstance(value, str) for value in present),
    }
    if not fits[kind]:
        wanted = "texts or whole numbers" if kind == "category" else f"values of kind {kind}"
        raise BadTableError(f'column "{present.name}": expected {wanted}, got values such as {example(present)}')


def _infer_kind(present: "pd.Series[Any]") -> Kind:
    name = present.name
    if pd.api.types.is_bool_dtype(present) or all(isinstance(value, bool | np.bool_) for value in present):
        return "boolean"
    if pd.api.types.is_integer_dtype(present):
        return "integer"
    if pd.api.types.is_float_dtype(present):
        return "number"
    if pd.api.types.is_datetime64_any_dtype(present) or _are_dates(present):
        raise BadTableError(
            f'column "{name}" holds dates; use it to split by time (--time-column {name}), '
            f"leave it out (--id-columns {name}), or make a number of it"
        )
    if not all(isinstance(value, str) for value in present):
        kinds = sorted({type(value).__name__ for value in present})
        raise BadTableError(f'column "{name}" holds {" and ".join(kinds)}; expected numbers, texts or booleans')
    numbers = pd.to_numeric(present, errors="coerce")
    if numbers.notna().mean() >= FEWEST_NUMBERS_OF_A_NUMBER:
        strays = sorted(set(present[numbers.isna()]))[:5]
        raise BadTableError(
            f'column "{name}" holds numbers as texts' + (f", and {strays}" if strays else "") + "; "
            "store numbers as numbers and leave missing values empty, or state kind: category in --rules"
        )
    return "category"


def _are_dates(present: "pd.Series[Any]") -> bool:
    return all(
        isinstance(value, dt.date) or (isinstance(value, str) and re.match(r"\d{4}-\d{2}-\d{2}", value))
        for value in present.head(100)
    )


def _categories(present: "pd.Series[Any]") -> tuple[Category, ...]:
    if pd.api.types.is_integer_dtype(present):
        return tuple(sorted({int(value) for value in present}))
    return tuple(sorted({str(value) for value in present}))


def _is_copy(column: "pd.Series[Any]", target: Any) -> bool:
    """Whether column and target determine each other: one value for one class, or one line through all points."""
    present = column.notna().to_numpy()
    if present.mean() < 0.5:
        return False
    column, target = column[present], target[present]
    if target.dtype == np.int64:  # classes
        pairs = pd.DataFrame({"column": pd.factorize(column)[0], "target": target}).drop_duplicates()
        return len(pairs) == len(set(pairs["column"])) == len(set(pairs["target"]))
    if not pd.api.types.is_numeric_dtype(column) or column.nunique() < 3:
        return False
    return bool(abs(np.corrcoef(column.astype("float64"), target)[0, 1]) > 1 - 1e-12)


def example(values: "pd.Series[Any]") -> str:
    """The first of some values, as Python writes it and not numpy."""
    value = values.iloc[0]
    return repr(value.item() if isinstance(value, np.generic) else value)


def check_values(inputs: pd.DataFrame, contract: Contract) -> None:
    """All values of all columns against the contract, by pandera: what the kind and the rules allow.

    Raises:
        BadTableError: naming every column with a value that is not allowed, and examples.
    """
    schema = pa.DataFrameSchema({feature.name: _column_schema(feature) for feature in contract.features})
    try:
        schema.validate(inputs, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        faults = []
        for (column, check), found in errors.failure_cases.groupby(["column", "check"], sort=True):
            examples = ", ".join(list(dict.fromkeys(map(str, found["failure_case"])))[:3])
            faults.append(f'column "{column}": expected {check}, got {len(found)} other values, such as {examples}')
        raise BadTableError("; ".join(faults)) from errors


def _column_schema(feature: Feature) -> pa.Column:
    checks = []
    if feature.kind in ("number", "integer"):
        checks.append(
            pa.Check(
                lambda column: _floats(column).abs() <= LARGEST_NUMBER,
                error=f"finite numbers of at most {LARGEST_NUMBER:.2g}",
            )
        )
    if feature.kind == "integer":
        checks.append(pa.Check(_are_exact_integers, error="whole numbers of at most 2^53 - 1"))
    if feature.hard_minimum is not None:
        checks.append(pa.Check.ge(feature.hard_minimum, error=f"at least {feature.hard_minimum:g}"))
    if feature.hard_maximum is not None:
        checks.append(pa.Check.le(feature.hard_maximum, error=f"at most {feature.hard_maximum:g}"))
    return pa.Column(checks=checks, nullable=feature.may_be_missing)


def _are_exact_integers(column: "pd.Series[Any]") -> "pd.Series[Any]":
    values = _floats(column)
    # The column itself: two whole numbers beyond are one float.
    small_enough: pd.Series[Any] = column.abs().le(LARGEST_EXACT_INTEGER).fillna(value=True).astype(bool)
    are_exact: pd.Series[Any] = (values == np.floor(values)) & small_enough
    return are_exact


def _floats(column: "pd.Series[Any]") -> "pd.Series[Any]":
    floats: pd.Series[Any] = column.astype("Float64").astype("float64")
    return floats


def code(column: "pd.Series[Any]", feature: Feature) -> np.ndarray[Any, Any]:
    """One column as the contract codes it: float64, NaN where missing."""
    if feature.kind == "category":
        codes = {category: float(index) for index, category in enumerate(feature.categories)}
        column = column.map(codes)
    return column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
