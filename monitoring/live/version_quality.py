"""The quality of one model version in a window: measured of all rows and of parts of them, and how bad that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from monitoring.live.labelled import LabelledRows, reference_averages
from monitoring.live.verdict import Finding, estimate_holds, judge, worse_than_others
from monitoring.models import MonitoredModel
from monitoring.results import QualityMetric, QualityResult, QualitySegment
from monitoring.verdict import ENOUGH_LABELS, LEVELS, Level
from tabserve import model_store
from tabserve.contract import Contract
from tabserve.history.records import opened
from tabserve.history.segments import SegmentColumn
from tabserve.history.window import Which, Window
from tabserve.prediction_log.places import Place
from tabserve.statistics.intervals import Average
from tabserve.statistics.quality import Counts, Measured, mean_error, of_counts, of_scores, of_values


@dataclass(frozen=True)
class Quality:
    """What was found, and the labelled rows that reports are made of: `LabelledRows.sample`."""

    result: QualityResult
    labelled: pd.DataFrame
    contract: Contract


@dataclass(frozen=True)
class _Part:
    """Some of the labelled rows: counted over all of them, and those of the sample."""

    contract: Contract
    counts: Counts
    sample: pd.DataFrame

    @property
    def decides(self) -> Average:
        """What the level is made of: accuracy, or the mean absolute error."""
        if self.contract.task == "regression":
            return mean_error(*self._values("true_value", "value", "weight"))
        return self.counts.accuracy

    @property
    def n_labels(self) -> int:
        """Those that `decides` is of."""
        return len(self.sample) if self.contract.task == "regression" else self.counts.n_rows

    def measured(self) -> Measured:
        if self.contract.task == "regression":
            return of_values(*self._values("true_value", "value", "weight"))
        classes = tuple(map(str, self.contract.classes))
        scores = self.sample[[f"probability:{key}" for key in self.contract.probability_keys]].to_numpy(np.float64)
        (weights,) = self._values("weight")
        counted = of_counts(self.counts, classes)
        scored = of_scores(self.sample["true"].to_numpy(np.intp), scores, weights, classes)
        return Measured(counted.metrics + scored.metrics, counted.left_out + scored.left_out)

    def _values(self, *columns: str) -> Any:
        return [self.sample[column].to_numpy(np.float64) for column in columns]


def find_quality(place: Place, model: MonitoredModel, window: Window, by: Sequence[SegmentColumn] = ()) -> Quality:
    """Judges one model version by all rows, and by each part of the columns `by`.

    All rows are held against the test rows of training, a part against the out-of-fold predictions of the same part of
    the training rows where there are any; a part that fares worse than all others is a warning.

    Raises:
        BadQuestionError: where DuckDB is missing.
        ModelRefusedError: where the store does not have the model any more.
        UnreadableError: where the log, or the model's reference sample, cannot be read.
    """
    by = tuple(dict.fromkeys(by))  # a column may have been asked for by both its names
    contract = model.contract
    metadata = model_store.read_metadata(model_store.find(model.tag))
    with opened(place, window, Which(model.name, model.version)) as records:
        rows = LabelledRows(records, contract, by)
        totals = rows.totals()
        sample = rows.sample(totals.n_labelled)
        counts = rows.counts()
        counts_of_parts = [rows.counts(column) for column in by]
    nothing = Counts(*(np.zeros((max(1, len(contract.classes)),) * 2) for _ in range(3)))
    whole = _Part(contract, counts.get("", nothing), sample)
    baseline = baseline_of(metadata)
    finding = judge(whole.decides, baseline, whole.n_labels)
    segments = [_segment(whole, None, None, finding, metadata["test_metrics"])]
    for number, (column, of_parts) in enumerate(zip(by, counts_of_parts, strict=True)):
        known = reference_averages(model.sample, contract, column)
        names = sample[f"part:{number}"]
        segments += _segments(
            column.name,
            whole,
            of_parts,
            names,
            at_training=known,
            baseline=baseline,
            n_judged=_n_judged(counts_of_parts),
        )
    result = QualityResult(
        model=model.name,
        version=model.version,
        made_at=datetime.now(UTC),
        since=window.since,
        until=window.until,
        level=_level(segments),
        n_rows=totals.n_rows,
        n_labelled=totals.n_labelled,
        coverage=totals.coverage,
        estimated_accuracy=totals.estimate,
        estimate_of_labelled=totals.estimate_of_labelled,
        estimate_holds=estimate_holds(totals.estimate_of_labelled, whole.decides, totals.n_labelled),
        segments=tuple(segments),
        n_baseline=int(metadata["n_test"]),
        n_sampled=len(sample),
        n_unusable_labels=totals.n_unusable_labels,
        label_delay_seconds=totals.delay_seconds,
    )
    return Quality(result, sample, contract)


def _level(segments: Sequence[QualitySegment]) -> Level:
    """The worst; parts of rows that are too few together are too few as well."""
    return max((segment.level for segment in segments), key=LEVELS.index)


def _n_judged(counts_of_parts: Sequence[Mapping[str, Counts]]) -> int:
    """How many parts have labels enough to be judged, of all columns together."""
    n_labels = (counts.n_rows for of_parts in counts_of_parts for counts in of_parts.values())
    return max(1, sum(n >= ENOUGH_LABELS for n in n_labels))


def baseline_of(metadata: Mapping[str, Any]) -> Average:
    """Accuracy, or the mean absolute error, of the test rows at training.

    The deviation of an error's size follows from both errors: rmse^2 = mae^2 + deviation^2.
    """
    metrics, n_test = metadata["test_metrics"], float(metadata["n_test"])
    if "mae" not in metrics:
        return Average(float(metrics["accuracy"]), n_test)
    mae, rmse = float(metrics["mae"]), float(metrics["rmse"])
    return Average(mae, n_test, max(0.0, rmse**2 - mae**2) ** 0.5)


def _segments(
    column: str,
    whole: _Part,
    parts: Mapping[str, Counts],
    part_of_row: "pd.Series[Any]",
    *,
    at_training: Mapping[str, Average],
    baseline: Average,
    n_judged: int,
) -> list[QualitySegment]:
    """The parts of a column, worst first; `part_of_row` names those of the sample."""
    is_regression = whole.contract.task == "regression"
    found = []
    for name, counts in parts.items():
        is_in = part_of_row == name
        part = _Part(whole.contract, counts, whole.sample[is_in])
        others = _Part(whole.contract, whole.counts.without(counts), whole.sample[~is_in])
        average, known = part.decides, at_training.get(name)
        finding = judge(average, known or baseline, part.n_labels, n_judged=n_judged)
        if finding.level in {"quiet", "warning"} and others.n_labels >= ENOUGH_LABELS:
            finding = worse_than_others(average, others.decides, part.n_labels, n_judged=n_judged) or finding
        baselines = {"mae" if is_regression else "accuracy": known.value} if known else {}
        badness = average.value if is_regression else -average.value
        found.append((-LEVELS.index(finding.level), -badness, _segment(part, column, name, finding, baselines)))
    return [segment for *_, segment in sorted(found, key=lambda entry: entry[:2])]


def _segment(
    part: _Part,
    column: str | None,
    value: str | None,
    finding: Finding,
    baselines: Mapping[str, float | None],
) -> QualitySegment:
    measured = part.measured()
    return QualitySegment(
        column=column,
        value=value,
        n_labelled=part.counts.n_rows,
        metrics=tuple(
            QualityMetric(
                name=metric.name,
                value=metric.value,
                low=metric.interval.low,
                high=metric.interval.high,
                baseline=baselines.get(metric.name),
            )
            for metric in measured.metrics
        ),
        level=finding.level,
        because=finding.because,
        left_out=measured.left_out,
    )
