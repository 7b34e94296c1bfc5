"""Rows as Evidently takes them: numbers as float64, all else as text, nothing infinite, no column that is empty.

What Evidently 0.7.23 does with others: an empty column ends the whole report, Int64 and object columns raise, a name
that holds `</script>` ends the script of its page. What is left out or changed here is said in the report.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.reports.evidently_methods import FEATURE_METHOD, PREDICTION_METHOD, BinCounts, Method
from monitoring.results import DriftResult
from tabserve.contract import Contract, Feature
from tabserve.reference import Bins, Reference

Values = npt.NDArray[np.float64]
"""One column, shape (rows,), coded as in a row of the contract; NaN is missing."""

# A column's name or a category goes into a script and into plots that read HTML: it looks the same and means nothing.
_HARMLESS = str.maketrans({"<": "‹", ">": "›"})


@dataclass(frozen=True)
class Shown:
    """One column of a report: what it is called there and in the log, and how it is measured."""

    name: str
    source: str
    is_number: bool
    method: Method
    counts: BinCounts

    @property
    def score(self) -> float:
        return self.method.measure(self.counts.reference, self.counts.current)


@dataclass
class ReportRows:
    """The tables of a report, their columns by the names that people know, and what was left out of them, and why."""

    current: pd.DataFrame
    reference: pd.DataFrame
    columns: list[Shown] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[str]:
        return [column.name for column in self.columns if column.is_number]

    @property
    def texts(self) -> list[str]:
        return [column.name for column in self.columns if not column.is_number]


def drift_rows(
    result: DriftResult, current: pd.DataFrame, reference: pd.DataFrame, contract: Contract, bins: Reference
) -> ReportRows:
    """The columns of both tables, the most drifted first."""
    rows = ReportRows(pd.DataFrame(index=range(len(current))), pd.DataFrame(index=range(len(reference))))
    stored: dict[tuple[str, str], tuple[float, ...]] = {
        (column.what, column.name): column.reference.counts for column in result.columns
    }
    weights = _weights(current, rows)
    for wanted in _wanted(contract, bins):
        reference_counts: tuple[float, ...] = wanted.bins.counts
        if result.against != "training":  # the counts of an earlier window, which no table here has
            reference_counts = stored.get((wanted.what, wanted.key), reference_counts)
        missing_in = [
            where
            for where, table, sources in (
                ("the log's rows", current, (wanted.source,)),
                ("the reference", reference, wanted.reference_sources),
            )
            if not set(sources) & set(table.columns)
        ]
        if missing_in:
            rows.left_out[wanted.name] = f"no column of it in {' and in '.join(missing_in)}"
            continue
        from_reference = next(source for source in wanted.reference_sources if source in reference.columns)
        coded = _coded(_one(current, wanted.source), wanted.feature)
        drawn = _coded(_one(reference, from_reference), wanted.feature)
        column = Shown(
            wanted.name,
            wanted.source,
            wanted.feature is None or wanted.feature.kind in ("number", "integer"),
            FEATURE_METHOD if wanted.what == "feature" else PREDICTION_METHOD,
            BinCounts(reference_counts, _counted(wanted.bins, coded, weights)),
        )
        rows.notes += list(_remarks(column.name, _one(current, wanted.source), coded))
        tables = (("current row", coded), ("reference row", drawn))
        empty = [f"no {what} has a value" for what, values in tables if not np.isfinite(values).any()]
        if empty:
            measured = f"; {column.method.name} {column.score:.3g}" if len(current) else ""
            rows.left_out[wanted.name] = " and ".join(empty) + measured
            continue
        rows.current[column.name] = _for_evidently(coded, wanted.feature)
        rows.reference[column.name] = _for_evidently(drawn, wanted.feature)
        rows.columns.append(column)
    rows.columns.sort(key=lambda column: (-column.score / column.method.threshold, column.name))
    return rows


@dataclass(frozen=True)
class _Wanted:
    what: str
    key: str
    name: str
    source: str
    reference_sources: tuple[str, ...]
    bins: Bins
    feature: Feature | None


def _wanted(contract: Contract, reference: Reference) -> Iterator[_Wanted]:
    taken: set[str] = set()
    for feature in contract.features:
        if feature.name in reference.features:
            name = new_name(feature.name, taken)
            source = f"feature:{feature.name}"
            yield _Wanted("feature", feature.name, name, source, (source,), reference.features[feature.name], feature)
    labels = dict(zip(contract.probability_keys, contract.classes, strict=True))
    for key, bins in reference.predictions.items():
        is_value = contract.task == "regression"
        name = new_name(f"predicted {contract.target}" if is_value else f"probability of {labels.get(key, key)}", taken)
        source = "value" if is_value else f"probability:{key}"
        yield _Wanted("prediction", key, name, source, (f"score:{key}", source), bins, None)


def new_name(text: str, taken: set[str]) -> str:
    """A name that can stand in a page of Evidently, and is no other column's; it is added to those taken."""
    name = first = harmless(text) or "(no name)"
    number = 1
    while name in taken:
        number += 1
        name = f"{first} ({number})"
    taken.add(name)
    return name


def harmless(text: object) -> str:
    return str(text).translate(_HARMLESS)


def to_numbers(column: "pd.Series[Any]") -> Values:
    """float64, NaN for what is missing or no number; Int64, object, boolean and text columns too."""
    try:
        numbers = pd.to_numeric(column, errors="coerce").astype("Float64")
    except (TypeError, ValueError):  # objects that are neither number nor text, which pandas does not coerce
        real = (int, float, np.integer, np.floating)
        found = [float(value) if isinstance(value, real) else np.nan for value in column.to_numpy(object)]
        return np.array(found, np.float64)
    return np.asarray(numbers.to_numpy(np.float64, na_value=np.nan), np.float64)


def _one(table: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """The column of that name; the first, where a table has it twice."""
    found = table.loc[:, table.columns == name].iloc[:, 0]
    return found.reset_index(drop=True)


def _coded(column: "pd.Series[Any]", feature: Feature | None) -> Values:
    if feature is None or feature.kind in ("number", "integer"):
        return to_numbers(column)
    codes: Mapping[Any, float]
    if feature.kind == "boolean":
        codes = {True: 1.0, False: 0.0, "True": 1.0, "False": 0.0, "true": 1.0, "false": 0.0}
    else:
        codes = {text: float(code) for code, text in enumerate(feature.categories)}
        codes |= {str(text): code for text, code in codes.items()}
    other = max(codes.values(), default=-1.0) + 1  # of no bin: counted with the rare ones
    is_missing = column.isna().to_numpy(bool)
    values = np.full(len(column), np.nan)
    for place, value in enumerate(column.to_numpy(object)):
        if not is_missing[place]:
            values[place] = codes.get(value, other) if isinstance(value, Hashable) else other
    return values


def _counted(bins: Bins, values: Values, weights: Values | None) -> tuple[float, ...]:
    if weights is None:
        return bins.count(values)
    found = [weight * np.array(bins.count(values[weights == weight])) for weight in np.unique(weights)]
    return tuple(np.sum(found, axis=0).tolist()) if found else bins.count(values)


def _weights(current: pd.DataFrame, rows: ReportRows) -> Values | None:
    if "weight" not in current.columns:
        return None
    weights = to_numbers(_one(current, "weight"))
    if np.isfinite(weights).all() and (weights > 0).all():
        rows.notes += of_unequal_weight(current)
        return weights
    rows.notes.append("the column weight holds what is no weight: every row counts once")
    return None


def of_unequal_weight(table: pd.DataFrame) -> list[str]:
    """What is to be said of rows of which some stand for more predictions than others; Evidently has no weights."""
    if "weight" not in table.columns or table["weight"].nunique() < 2:
        return []
    return ["rows stand for different numbers of predictions: gauges and verdict count that, the plots do not"]


def _remarks(name: str, column: "pd.Series[Any]", coded: Values) -> Iterator[str]:
    n_infinite = int(np.isinf(coded).sum())
    if n_infinite:
        yield f"{name}: {n_infinite:,} infinite values are counted in the outermost bins and are in no plot"
    n_no_numbers = int((np.isnan(coded) & column.notna().to_numpy(bool)).sum())
    if n_no_numbers:
        yield f"{name}: {n_no_numbers:,} values are no numbers, and count as missing"


def _for_evidently(values: Values, feature: Feature | None) -> Any:
    if feature is None or feature.kind in ("number", "integer"):
        return np.where(np.isfinite(values), values, np.nan)
    known = ("false", "true") if feature.kind == "boolean" else tuple(map(harmless, feature.categories))
    texts = np.array([*known, "another", None], dtype=object)
    places = np.where(np.isnan(values), len(known) + 1, np.minimum(values, len(known))).astype(int)
    return pd.Series(texts[places], dtype=object)
