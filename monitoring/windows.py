"""The predictions of two windows as counts in the fixed bins, counted by DuckDB: memory does not grow with the rows.

Each column is a question of its own, a scan of that column: 1.0 to 1.4 s of the processor for ten million rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from monitoring.verdict import Binned
from tabserve.contract import Contract, Feature
from tabserve.history.records import Records
from tabserve.history.sql import quoted, text
from tabserve.prediction_log.columns import prediction_schema
from tabserve.reference import Bins, Reference
from tabserve.statistics.divergence import effective_rows

SAMPLE_ROWS = 20_000  # of a window; enough for the plots of a report, and what reports take does not grow
_LABELS_ROUTE = "/feedback"  # its rejected values are of labels, and none of a row


@dataclass(frozen=True)
class Watched:
    """One column of the log, and how its rows are counted."""

    name: str
    """Of the feature, or of the score."""
    what: Literal["feature", "prediction"]
    column: str
    """In the log."""
    bins: Bins
    feature: Feature | None = None

    @property
    def n_bins(self) -> int:
        return len(self.bins.counts)

    @property
    def bin(self) -> str:
        """SQL: the number of the bin of a row, as `Bins.count` has it."""
        if self.bins.codes is None:
            x = self._number
            cases = [f"WHEN {x} < {_number(edge)} THEN {place}" for place, edge in enumerate(self.bins.edges)]
            last, missing = len(self.bins.edges), f"{quoted(self.column)} IS NULL OR isnan({x})"
        else:
            cases = [f"WHEN {self._is(code)} THEN {place}" for place, code in enumerate(self.bins.codes)]
            last, missing = len(self.bins.codes), f"{quoted(self.column)} IS NULL"
        return f"CASE WHEN {missing} THEN {last + 1} {' '.join(cases)} ELSE {last} END"

    @property
    def is_outside(self) -> str:
        """SQL: whether a value is outside of what training saw, by the rule of the answers' warnings."""
        bounds = []
        if self.feature is not None and self.feature.minimum is not None:
            bounds.append(f"{self._number} < {_number(self.feature.minimum)}")
        if self.feature is not None and self.feature.maximum is not None:
            bounds.append(f"{self._number} > {_number(self.feature.maximum)}")
        # For DuckDB NaN is greater than every number.
        return f"({' OR '.join(bounds)}) AND NOT isnan({self._number})" if bounds else "false"

    @property
    def _number(self) -> str:
        return f"CAST({quoted(self.column)} AS DOUBLE)"

    def _is(self, code: int) -> str:
        if self.feature is not None and self.feature.kind == "category":
            return f"{quoted(self.column)} = {text(str(self.feature.categories[code]))}"
        return f"{quoted(self.column)} = {'true' if code else 'false'}"


@dataclass(frozen=True)
class Counted:
    """One column of one window; both weighted."""

    counts: tuple[float, ...]
    outside: float = 0.0


@dataclass(frozen=True)
class WindowCounts:
    """One window of one model version."""

    n_rows: int = 0
    weight: float = 0.0
    effective_rows: float = 0.0
    confidence: float | None = None
    columns: dict[str, Counted] = field(default_factory=dict)
    """By the name in the log."""
    rejected: int = 0
    """Values of rows that broke the contract."""
    unknown: Counter[str] = field(default_factory=Counter)
    """By feature: how many values were refused since training did not see that category."""

    def binned(self, column: Watched) -> Binned:
        return Binned(counts=self.columns[column.column].counts, n_rows=self.effective_rows)


def watched_columns(
    contract: Contract, reference: Reference, schema: pa.Schema | None
) -> tuple[list[Watched], dict[str, str]]:
    """What of a log can be compared with the reference; and the other columns, each with the reason.

    Args:
        schema: of the log; None where it has no row, and so says nothing.
    """
    if schema is None:
        schema = prediction_schema(contract, personal_are_hashed=False)
    watched: list[Watched] = []
    left_out: dict[str, str] = {}
    # DuckDB's names have no case: of two that differ in nothing else it would read one twice.
    n_alike = Counter(name.casefold() for name in contract.names)
    for feature in contract.features:
        column = f"feature:{feature.name}"
        if feature.personal:
            left_out[feature.name] = "personal, its values are not in the log"
        elif n_alike[feature.name.casefold()] > 1:
            left_out[feature.name] = "another feature's name differs only in case"
        elif column not in schema.names:
            left_out[feature.name] = "the log has no such column, it was written with another contract"
        elif not _is_of_kind(schema.field(column).type, feature):
            left_out[feature.name] = f"the log has {schema.field(column).type} where the contract has a {feature.kind}"
        elif feature.name not in reference.features:
            left_out[feature.name] = "the reference of the model has no such feature"
        else:
            watched.append(Watched(feature.name, "feature", column, reference.features[feature.name], feature))
    for key, bins in reference.predictions.items():
        column = "value" if contract.task == "regression" else f"probability:{key}"
        if column in schema.names:
            watched.append(Watched(key, "prediction", column, bins))
        else:
            left_out[column] = "the log has no such column, it was written with another contract"
    return watched, left_out


def _is_of_kind(kind: pa.DataType, feature: Feature) -> bool:
    if feature.kind in ("number", "integer"):
        return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
    if feature.kind == "boolean":
        return bool(pa.types.is_boolean(kind))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def schema_of(records: Records) -> pa.Schema | None:
    """The columns that the predictions have; None where there are none."""
    if not records.rows("SELECT 1 FROM predictions LIMIT 1"):
        return None
    return next(iter(records.batches("SELECT * FROM predictions LIMIT 0"))).schema


def count(records: Records, columns: Sequence[Watched], newest_since: datetime) -> tuple[WindowCounts, WindowCounts]:
    """Counts the predictions before `newest_since`, and those since.

    Raises:
        UnreadableError: where the log cannot be read.
    """
    is_newest = f"time >= {_moment(newest_since)}"
    totals = _totals(records, columns, is_newest)
    rejected, unknown = _rejections(records, is_newest)
    counted = [_count_column(records, column, is_newest, are_there=bool(totals)) for column in columns]
    before, newest = (
        WindowCounts(
            **totals.get(window, {}),
            columns={column.column: of_column[window] for column, of_column in zip(columns, counted, strict=True)},
            rejected=rejected[window],
            unknown=unknown[window],
        )
        for window in (False, True)
    )
    return before, newest


def _totals(records: Records, columns: Sequence[Watched], is_newest: str) -> dict[bool, dict[str, Any]]:
    if schema_of(records) is None:
        return {}
    scores = [quoted(column.column) for column in columns if column.column.startswith("probability:")]
    largest = f"greatest({', '.join(scores)})" if scores else "CAST(NULL AS DOUBLE)"
    # For DuckDB NaN is greater than every number: a row with one is not sure of anything.
    found: list[Any] = records.rows(f"""
        SELECT is_newest, count(*), sum(weight), sum(weight * weight),
               sum(weight * p) FILTER (NOT isnan(p)) / sum(weight) FILTER (NOT isnan(p))
        FROM (SELECT {is_newest} AS is_newest, weight, {largest} AS p FROM predictions) GROUP BY ALL
    """)
    return {
        window: {
            "n_rows": n_rows,
            "weight": weight,
            "effective_rows": effective_rows(weight, squares),
            "confidence": confidence,
        }
        for window, n_rows, weight, squares, confidence in found
    }


def _rejections(records: Records, is_newest: str) -> tuple[Counter[bool], dict[bool, Counter[str]]]:
    found: list[Any] = records.rows(f"""
        SELECT {is_newest} AS is_newest, feature, rule, CAST(sum(count) AS BIGINT) FROM rejections
        WHERE route <> {text(_LABELS_ROUTE)} GROUP BY ALL
    """)
    rejected: Counter[bool] = Counter()
    unknown: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for window, feature, rule, n_values in found:
        rejected[window] += n_values
        if rule == "category":
            unknown[window][feature] += n_values
    return rejected, unknown


def _count_column(records: Records, column: Watched, is_newest: str, *, are_there: bool) -> dict[bool, Counted]:
    found: list[Any] = []
    if are_there:  # a log without a row has no column either
        found = records.rows(f"""
            SELECT {is_newest} AS is_newest, {column.bin} AS bin, {column.is_outside} AS is_outside, sum(weight)
            FROM predictions GROUP BY ALL
        """)
    counts = {window: [0.0] * column.n_bins for window in (False, True)}
    outside = dict.fromkeys((False, True), 0.0)
    for window, place, is_outside, weight in found:
        counts[window][place] += weight
        outside[window] += weight if is_outside else 0.0  # null where the value is missing
    return {window: Counted(tuple(counts[window]), outside[window]) for window in (False, True)}


def sample(records: Records, columns: Sequence[Watched]) -> pd.DataFrame:
    """At most `SAMPLE_ROWS` rows of all, each as likely as any other: the watched columns as the log has them, the
    label of a classification, and the weight.

    Raises:
        UnreadableError: where the log cannot be read.
    """
    names = [*(quoted(column.column) for column in columns), "weight"]
    if any(column.column.startswith("probability:") for column in columns):
        names.append("label")
    # The view filters by time; sampled in one go with it, DuckDB would sample before it filters.
    batches = records.batches(
        f"SELECT * FROM (SELECT {', '.join(names)} FROM predictions) USING SAMPLE reservoir({SAMPLE_ROWS} ROWS)"
    )
    frame: pd.DataFrame = pa.Table.from_batches(list(batches)).to_pandas()
    return frame


def _number(number: float) -> str:
    """From text, since DuckDB reads a plain 0.1 as a decimal number."""
    return f"CAST('{number!r}' AS DOUBLE)"


def _moment(moment: datetime) -> str:
    return f"TIMESTAMPTZ '{moment.isoformat()}'"
