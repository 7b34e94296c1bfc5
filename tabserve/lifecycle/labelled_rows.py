"""The labelled rows of a window of the prediction log, as a model is trained on them.

A prediction is one row, the one that the caller was told: the view leaves a shadow's copies out. What counts is the
last label. Rows of another contract are counted and left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tabserve.contract import Contract, Feature, Rows
from tabserve.history.records import Records
from tabserve.history.sql import quoted, text
from tabserve.history.window import BadQuestionError

MOST_ROWS = 200_000  # more change a model of tables little, and make the training slow
MOST_VALUES = 20_000_000  # 160 MB; with more than a hundred features fewer rows


@dataclass(frozen=True)
class Counts:
    """Of the predictions of a window, each counted once."""

    n_predictions: int
    """Under the contract."""
    n_other_contract: int
    n_labels: int
    n_usable: int
    """Labels that are classes of the contract, or finite numbers."""
    coverage: float
    """The share of the predictions, by weight, whose label is usable."""
    weights: tuple[float, float]
    """The least and the greatest of the labelled rows."""


@dataclass(frozen=True)
class WindowRows:
    """Labelled rows in order of time, coded as the contract has them."""

    rows: Rows
    target: np.ndarray[Any, Any]
    times: "pd.Series[Any]"

    def __len__(self) -> int:
        return len(self.target)


def check_features(contract: Contract) -> None:
    """Whether the log has the rows as the model saw them.

    Raises:
        BadQuestionError: where it has not.
    """
    personal = [contract.names[position] for position in contract.personal]
    if personal:
        raise BadQuestionError(
            f"the log has no values of personal features, or only their hashes, and this model needs {_few(personal)}: "
            "train it with train.py, on a table that has them"
        )
    n_alike = Counter(name.casefold() for name in contract.names)
    alike = [name for name in contract.names if n_alike[name.casefold()] > 1]
    if alike:  # DuckDB's names have no case: of two that differ in nothing else it would read one twice
        raise BadQuestionError(
            f"the log cannot be read for {_few(alike)}, whose names differ only in case: rename them"
        )


class LabelledRows:
    """The rows of a window that was opened for one model, under one contract of it."""

    def __init__(self, records: Records, contract: Contract) -> None:
        self._records = records
        self._contract = contract
        ours = f"contract_hash = {text(contract.hash)}"
        if contract.task == "regression":
            known = "isfinite(true_value)"
        else:
            known = f"true_label IN ({', '.join(text(str(label)) for label in contract.classes)})"
        self._ours = ours
        self._usable = f"{ours} AND coalesce(labelled_at IS NOT NULL AND {known}, false)"
        self._once = f"""
            SELECT * FROM joined
            QUALIFY 1 = row_number() OVER (PARTITION BY prediction_id ORDER BY CAST({ours} AS INTEGER) DESC, time)
        """

    def counts(self) -> Counts:
        """Of all rows."""
        ((n_rows, n_ours, n_labels, n_usable, coverage, least, greatest),) = self._records.rows(f"""
            SELECT count(*), count(*) FILTER ({self._ours}), count(labelled_at) FILTER ({self._ours}),
                   count(*) FILTER ({self._usable}),
                   coalesce(sum(weight) FILTER ({self._usable}) / sum(weight) FILTER ({self._ours}), 0),
                   coalesce(min(weight) FILTER ({self._usable}), 1), coalesce(max(weight) FILTER ({self._usable}), 1)
            FROM ({self._once})
        """)
        return Counts(
            n_predictions=_whole(n_ours),
            n_other_contract=_whole(n_rows) - _whole(n_ours),
            n_labels=_whole(n_labels),
            n_usable=_whole(n_usable),
            coverage=float(str(coverage)),
            weights=(float(str(least)), float(str(greatest))),
        )

    def read(self, n_usable: int) -> WindowRows:
        """The usable rows: all of them, or beyond a bound about so many, those whose id has a small hash."""
        features = self._contract.features
        at_most = min(MOST_ROWS, MOST_VALUES // len(features))
        some = "" if n_usable <= at_most else f"AND hash(prediction_id) % 1000000 < {at_most * 1_000_000 // n_usable}"
        is_regression = self._contract.task == "regression"
        columns = ["time", "true_value" if is_regression else "true_label"]
        columns += [f"{_as_logged(feature)} AS x{position}" for position, feature in enumerate(features)]
        batches = self._records.batches(
            f"SELECT {', '.join(columns)} FROM ({self._once}) WHERE {self._usable} {some} ORDER BY time, prediction_id"
        )
        rows, target, times = [], [], []
        for batch in batches:
            columns_of_rows = [_coded(batch.column(2 + position), feature) for position, feature in enumerate(features)]
            rows.append(np.column_stack(columns_of_rows))
            said = batch.column(1)
            target.append(_numbers(said) if is_regression else _places(said, self._contract.classes).astype(np.int64))
            times.append(batch.column(0).to_pandas())
        return WindowRows(np.concatenate(rows), np.concatenate(target), pd.concat(times, ignore_index=True))


def _as_logged(feature: Feature) -> str:
    """As the log of this contract has it, whatever type it has beside that of another version."""
    column = quoted(f"feature:{feature.name}")
    kind = {"category": "VARCHAR", "boolean": "BOOLEAN"}.get(feature.kind, "DOUBLE")
    return f"CAST({column} AS {kind})"


def _coded(column: pa.Array, feature: Feature) -> np.ndarray[Any, Any]:
    """One column as the contract codes it: float64, NaN where missing."""
    return _places(column, feature.categories) if feature.kind == "category" else _numbers(column)


def _places(column: pa.Array, known: Sequence[object]) -> np.ndarray[Any, Any]:
    return _numbers(pc.index_in(column, pa.array([str(one) for one in known], pa.string())))


def _numbers(column: pa.Array) -> np.ndarray[Any, Any]:
    numbers: np.ndarray[Any, Any] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _whole(value: object) -> int:
    return int(str(value))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
