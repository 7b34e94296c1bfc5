"""Labelled rows of one model version in a window of the log: counted over all of them, or a sample of them in memory.

Counts by class are of all rows, whatever their number. What needs each row (ranks, losses, errors) is of all of them
up to `MOST_ROWS`, beyond of about so many: those whose id has a small hash, so that another look finds the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from tabserve.contract import Contract
from tabserve.history.records import Records, UnreadableError
from tabserve.history.segments import SegmentColumn
from tabserve.history.sql import quoted, text
from tabserve.history.stats import weighted_quantiles
from tabserve.statistics.intervals import Average
from tabserve.statistics.quality import Counts

MOST_ROWS = 200_000
MOST_SCORES = 4_000_000  # with more than twenty classes fewer rows: 32 MB of probabilities

Part = tuple[SegmentColumn, str]
"""A column and one of its values."""


@dataclass(frozen=True)
class Totals:
    """Shares are of the weighted rows."""

    n_rows: int
    n_labelled: int
    coverage: float
    n_unusable_labels: int
    estimate: float | None
    estimate_of_labelled: float | None
    delay_seconds: dict[str, float] = field(default_factory=dict)


class LabelledRows:
    """The rows of a window that was opened for one version, `segments` being asked for."""

    def __init__(self, records: Records, contract: Contract, segments: Sequence[SegmentColumn]) -> None:
        self._records = records
        self._contract = contract
        self._segments = segments
        self._codes = {str(label): code for code, label in enumerate(contract.classes)}
        self._scores = [quoted(f"probability:{key}") for key in contract.probability_keys]
        if contract.task == "regression":
            self._sure = "CAST(NULL AS DOUBLE)"
            known = "isfinite(true_value) AND isfinite(value)"
        else:
            self._sure = f"greatest({', '.join(self._scores)})"  # NaN where one of them is
            known = f"true_label IN ({', '.join(map(text, self._codes))}) AND isfinite({self._sure})"
        self._usable = f"coalesce(labelled_at IS NOT NULL AND {known}, false)"

    def totals(self) -> Totals:
        """Of all rows."""
        ((n_rows, n_labels, n_usable, coverage, estimate, of_labelled),) = self._records.rows(f"""
            SELECT count(*), count(labelled_at), count(*) FILTER (usable),
                   coalesce(sum(weight) FILTER (usable), 0) / sum(weight),
                   sum(weight * sure) FILTER (isfinite(sure)) / sum(weight) FILTER (isfinite(sure)),
                   sum(weight * sure) FILTER (usable) / sum(weight) FILTER (usable)
            FROM (SELECT weight, labelled_at, {self._sure} AS sure, {self._usable} AS usable FROM joined)
        """)
        usable = f"joined WHERE {self._usable}"
        delays = weighted_quantiles(self._records, "epoch(labelled_at) - epoch(time)", usable, (0.5, 0.9))
        return Totals(
            n_rows=_whole(n_rows),
            n_labelled=_whole(n_usable),
            coverage=_number(coverage) or 0.0,
            n_unusable_labels=_whole(n_labels) - _whole(n_usable),
            estimate=_number(estimate),
            estimate_of_labelled=_number(of_labelled),
            delay_seconds={f"p{100 * share:.0f}": seconds for share, seconds in delays.items()},
        )

    def counts(self, column: SegmentColumn | None = None) -> dict[str, Counts]:
        """Rows by class, for each part of a column; with None, one part of all rows. A regression has one class."""
        part = column.sql if column else "''"
        found: dict[str, Counts] = {}
        n_classes = max(1, len(self._codes))
        for name, true, said, n_rows, weight, square in self._records.rows(f"""
            SELECT {part} AS part, true_label, CAST(label AS VARCHAR) AS said,
                   count(*), sum(weight), sum(weight * weight)
            FROM joined WHERE {self._usable} GROUP BY ALL ORDER BY ALL
        """):
            counts = found.setdefault(str(name), Counts(*(np.zeros((n_classes, n_classes)) for _ in range(3))))
            cell = self._codes.get(str(true), 0), self._codes.get(str(said), 0)
            for into, value in ((counts.rows, n_rows), (counts.weights, weight), (counts.squares, square)):
                into[cell] += _number(value) or 0.0
        return found

    def sample(self, n_labelled: int) -> pd.DataFrame:
        """Labelled rows as the log has them: prediction, label, scores and weight; `part:<n>` for the nth segment.

        Beside them, of a classification, `true`: the label's position in the contract's classes.
        """
        columns = ["weight", *self._scores]
        columns += ["true_value", "value"] if self._contract.task == "regression" else ["true_label", "label"]
        columns += [f'{segment.sql} AS "part:{number}"' for number, segment in enumerate(self._segments)]
        at_most = min(MOST_ROWS, MOST_SCORES // max(1, len(self._scores)))
        some = (
            "" if n_labelled <= at_most else f" AND hash(prediction_id) % 1000000 < {at_most * 1000000 // n_labelled}"
        )
        asked = f"SELECT {', '.join(columns)} FROM joined WHERE {self._usable}{some}"
        frame: pd.DataFrame = pa.Table.from_batches(self._records.batches(asked)).to_pandas()
        if self._codes:
            frame["true"] = frame["true_label"].map(self._codes).astype(np.intp)
        return frame


def reference_averages(path: Path, contract: Contract, column: SegmentColumn) -> dict[str, Average]:
    """Accuracy or mean absolute error of each part of a column in a model's reference sample, out-of-fold.

    Raises:
        UnreadableError: where the sample cannot be read.
    """
    if not column.in_reference:
        return {}
    if contract.task == "regression":
        said, average, deviation = "", 'abs("score:value" - target)', 'stddev_samp(abs("score:value" - target))'
    else:
        said, average, deviation = ", prediction AS label", "CAST(prediction = target AS DOUBLE)", "NULL"
    try:
        with duckdb.connect() as connection:
            found = connection.execute(
                f"SELECT {column.sql} AS part, avg({average}), count(*), {deviation} "
                f"FROM (SELECT *{said} FROM read_parquet({text(str(path))})) GROUP BY part"
            ).fetchall()
    except duckdb.Error as error:
        raise UnreadableError(f"the reference sample {path} cannot be read: {str(error).splitlines()[0]}") from error
    if contract.task == "regression":  # of one row there is no deviation
        return {part: Average(mean, n_rows, spread) for part, mean, n_rows, spread in found if spread is not None}
    return {part: Average(share, n_rows) for part, share, n_rows, _ in found}


def _whole(value: object) -> int:
    return int(str(value))


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
