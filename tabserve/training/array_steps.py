"""Fitted preprocessing of scikit-learn as array operations on the contract's coded rows."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from tabserve.contract import Contract
from tabserve.preprocessing import Step

NEVER = -1.0  # the code of a category that an encoder knows and the contract does not: no row has it


class NotCompilableError(Exception):
    """The pipeline has a part that we do not know as array arithmetic, or that ONNX does not know."""


@dataclass
class Part:
    """A block under construction: `width` is the number of columns that it has so far."""

    columns: list[int]
    steps: list[Step]
    width: int


def compile_preprocessing(steps: Pipeline, contract: Contract) -> list[Part]:
    """The fitted preprocessing steps as blocks of array operations, side by side.

    Raises:
        NotCompilableError: for a step that is not among those we know.
    """
    everything = list(range(len(contract.features)))
    parts = [Part(everything, [], len(everything))]
    for _, transformer in steps.steps:
        parts = _apply(transformer, parts, contract)
    return parts


def _apply(transformer: Any, parts: list[Part], contract: Contract) -> list[Part]:  # noqa: C901, PLR0912  # a list of cases
    if not isinstance(transformer, str) and type(transformer).__module__.partition(".")[0] != "sklearn":
        raise NotCompilableError(f"{type(transformer).__name__} is not scikit-learn's own")
    match transformer:
        case "passthrough":
            return parts
        case FunctionTransformer(func=None):
            return parts
        case Pipeline():
            for _, step in transformer.steps:
                parts = _apply(step, parts, contract)
            return parts
        case StandardScaler():
            shifted = _each_column(parts, "subtract", transformer.mean_) if transformer.with_mean else parts
            return _each_column(shifted, "divide", transformer.scale_) if transformer.with_std else shifted
        case RobustScaler():
            shifted = _each_column(parts, "subtract", transformer.center_) if transformer.with_centering else parts
            return _each_column(shifted, "divide", transformer.scale_) if transformer.with_scaling else shifted
        case MaxAbsScaler():
            return _each_column(parts, "divide", transformer.scale_)
        case MinMaxScaler(clip=False):
            return _each_column(_each_column(parts, "multiply", transformer.scale_), "add", transformer.min_)
        case ColumnTransformer():
            return _split(transformer, _untouched(parts, transformer), contract)
        case SimpleImputer():
            return _impute(transformer, parts)
        case OneHotEncoder():
            return [_encode(transformer, _untouched(parts, transformer), contract)]
        case OrdinalEncoder():
            return [_order(transformer, _untouched(parts, transformer), contract)]
    raise NotCompilableError(f"{type(transformer).__name__} is not among the preprocessing steps that are compiled")


def _each_column(parts: list[Part], operation: Any, values: Any) -> list[Part]:
    done, start = [], 0
    for part in parts:
        of_part = [float(value) for value in values[start : start + part.width]]
        done.append(Part(part.columns, [*part.steps, Step(operation=operation, values=of_part)], part.width))
        start += part.width
    return done


def _untouched(parts: list[Part], transformer: Any) -> list[int]:
    """The columns of the rows as they came: categories have to be seen before anything is computed from them."""
    if len(parts) == 1 and not parts[0].steps:
        return parts[0].columns
    raise NotCompilableError(f"{type(transformer).__name__} is compiled only as a first step")


def _split(transformer: ColumnTransformer, columns: list[int], contract: Contract) -> list[Part]:
    done: list[Part] = []
    # The only place that has names, masks and slices resolved.
    positions = transformer._transformer_to_input_indices  # noqa: SLF001
    for name, fitted, _ in transformer.transformers_:
        chosen = [columns[position] for position in positions[name]]
        if fitted == "drop" or not chosen:
            continue
        done += _apply(fitted, [Part(chosen, [], len(chosen))], contract)
    return done


def _impute(imputer: SimpleImputer, parts: list[Part]) -> list[Part]:
    if not (isinstance(imputer.missing_values, float) and math.isnan(imputer.missing_values)):
        raise NotCompilableError("SimpleImputer is compiled only where NaN is what is missing")
    statistics = np.asarray(imputer.statistics_)
    if statistics.dtype == object or np.isnan(statistics).any():
        raise NotCompilableError("SimpleImputer is compiled only for numbers, and columns that are not all missing")
    filled = _each_column(parts, "fill", statistics)
    if imputer.add_indicator and len(imputer.indicator_.features_):
        columns = _untouched(parts, imputer)
        marked = [columns[position] for position in imputer.indicator_.features_]
        filled.append(Part(marked, [Step(operation="is_missing")], len(marked)))
    return filled


def _encode(encoder: OneHotEncoder, columns: list[int], contract: Contract) -> Part:
    if encoder.min_frequency is not None or encoder.max_categories is not None:
        raise NotCompilableError("OneHotEncoder is not compiled with infrequent categories")
    codes: list[list[float | None]] = []
    for position, (column, categories) in enumerate(zip(columns, encoder.categories_, strict=True)):
        dropped = None if encoder.drop_idx_ is None else encoder.drop_idx_[position]
        codes.append([_code(contract, column, c) for index, c in enumerate(categories) if index != dropped])
    return Part(columns, [Step(operation="one_hot", values=codes)], sum(map(len, codes)))


def _order(encoder: OrdinalEncoder, columns: list[int], contract: Contract) -> Part:
    if encoder.min_frequency is not None or encoder.max_categories is not None:
        raise NotCompilableError("OrdinalEncoder is not compiled with infrequent categories")
    tables: list[list[float | None]] = []
    for column, categories in zip(columns, encoder.categories_, strict=True):
        known: dict[float | None, float] = {
            _code(contract, column, category): float(order) for order, category in enumerate(categories)
        }
        if None in known:
            known[None] = encoder.encoded_missing_value
        codes = [*range(len(contract.features[column].categories)), None]
        if encoder.handle_unknown == "error" and any(code not in known for code in codes[:-1]):
            raise NotCompilableError("OrdinalEncoder is compiled only where it takes every category of the contract")
        orders = [known.get(code, encoder.unknown_value) for code in codes]
        tables.append([None if order is None or math.isnan(order) else float(order) for order in orders])
    return Part(columns, [Step(operation="look_up", values=tables)], len(columns))


def _code(contract: Contract, column: int, category: object) -> float | None:
    """The contract's code of a category as the encoder saw it; None for missing."""
    feature = contract.features[column]
    if category is None or (isinstance(category, float) and math.isnan(category)):
        return None
    if feature.kind != "category":
        if isinstance(category, int | float):
            return float(category)
        raise NotCompilableError(f'the encoder of "{feature.name}" saw {category!r}, which is no number')
    return float({str(known): index for index, known in enumerate(feature.categories)}.get(str(category), NEVER))
