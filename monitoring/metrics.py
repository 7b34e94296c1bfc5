"""Results as Prometheus gauges, in a registry of their own; and pushed to a Pushgateway.

The registry holds what the results say and nothing else: a model version that is in none of them any more is gone.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from http.client import HTTPException
from typing import Literal
from urllib.error import HTTPError

from prometheus_client import CollectorRegistry, push_to_gateway
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitoring.results import DriftColumn, DriftResult, QualityResult

Result = DriftResult | QualityResult

JOBS: dict[type[Result], str] = {DriftResult: "tabserve_drift", QualityResult: "tabserve_quality"}
"""Of the Pushgateway: one job a kind, since a push replaces all that its job has of a model."""
MOST_COLUMNS = 100  # features, or scores, of a model version that are exported: those with the largest drift
PUSH_SECONDS = 10.0

LAST_SUCCESS = "tabserve_monitor_last_success_timestamp_seconds"

_HELP = {
    "tabserve_feature_drift": "How far a feature of the newest window is from the reference, in fixed bins.",
    "tabserve_feature_drift_max": "The largest drift of a feature, of those that are not exported too.",
    "tabserve_prediction_drift": "How far a score of the newest window is from the reference.",
    "tabserve_confidence": "The mean of the largest probability.",
    "tabserve_feature_missing_ratio": "Share of the rows where the feature is missing.",
    "tabserve_feature_out_of_range_ratio": "Share of the rows where the feature is outside of what training saw.",
    "tabserve_feature_unknown_ratio": "Share of the values that were refused as a category that training did not see.",
    "tabserve_rejected_ratio": "Values that broke the contract, of these and the rows that were answered.",
    "tabserve_rows_per_second": "Rows that were answered, over the whole window.",
    "tabserve_drift_window_rows": "Rows of the newest window.",
    "tabserve_drift_alarm": "1 where a column is in alarm two windows running, else 0.",
    LAST_SUCCESS: "When the result was made.",
    "tabserve_quality": "A metric of the labelled rows; segment and segment_value are empty for all of them.",
    "tabserve_quality_low": "The lower end of its 95 % interval.",
    "tabserve_quality_high": "The upper end of its 95 % interval.",
    "tabserve_quality_baseline": "What the metric was at training.",
    "tabserve_label_coverage_ratio": "Share of the predictions that have a label.",
    "tabserve_quality_labelled_rows": "Predictions that have a label.",
    "tabserve_estimated_accuracy": "An estimate from the scores alone, right as far as they are calibrated.",
}


class NotPushedError(OSError):
    """The Pushgateway did not take the metrics; the message says why."""


def registry_of(results: Sequence[Result]) -> CollectorRegistry:
    """A registry of the newest results, one of each model version and kind."""
    registry = CollectorRegistry()
    registry.register(ResultCollector(results))
    return registry


def push(results: Sequence[Result], url: str) -> None:
    """Replaces what a Pushgateway has of each model in the results, all its versions, of that kind.

    Raises:
        NotPushedError: where it cannot be reached, or refuses them.
    """
    groups: defaultdict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[JOBS[type(result)], result.model].append(result)
    for (job, model), found in groups.items():
        try:
            # Job and model are all of the key: with the version in it, one that retired would stay there for ever.
            push_to_gateway(url, job, registry_of(found), grouping_key={"model": model}, timeout=PUSH_SECONDS)
        except HTTPError as error:
            raise NotPushedError(
                f"the Pushgateway at {url} refused the metrics: {error.code} {error.reason}"
            ) from error
        except (OSError, ValueError, HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise NotPushedError(f"the Pushgateway at {url} cannot be reached: {why}") from error


class ResultCollector(Collector):
    """Gauges of results."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results

    def collect(self) -> Iterator[Metric]:
        yield from gauges_of(self._results).families.values()


def gauges_of(results: Sequence[Result]) -> "Gauges":
    """What the results say."""
    gauges = Gauges()
    for result in results:
        if isinstance(result, DriftResult):
            _add_drift(gauges, result)
        else:
            _add_quality(gauges, result)
    return gauges


class Gauges:
    """The families that were added to so far."""

    def __init__(self) -> None:
        self.families: dict[str, GaugeMetricFamily] = {}

    def add(self, name: str, result: Result, value: float | None, **labels: str) -> None:
        """Adds a sample; where there is no value there is none."""
        if value is None:
            return
        labels = {"model": result.model, "model_version": result.version, **labels}
        if name not in self.families:
            self.families[name] = GaugeMetricFamily(name, _HELP[name], labels=list(labels))
        self.families[name].add_metric(list(labels.values()), value)

    def add_success(self, result: Result, kind: Literal["drift", "quality"], made_at: datetime) -> None:
        self.add(LAST_SUCCESS, result, made_at.timestamp(), kind=kind)


def _add_drift(gauges: Gauges, result: DriftResult) -> None:
    newest = result.windows[-1]
    gauges.add_success(result, "drift", result.made_at)
    gauges.add("tabserve_drift_window_rows", result, newest.n_rows)
    gauges.add("tabserve_rows_per_second", result, newest.rows_a_second)
    gauges.add("tabserve_rejected_ratio", result, newest.rejected_share)
    gauges.add("tabserve_confidence", result, newest.confidence)
    features = _largest(result, "feature")
    for column in features[:MOST_COLUMNS]:
        gauges.add("tabserve_feature_unknown_ratio", result, column.unknown_share, feature=column.name)
        if newest.n_rows:
            gauges.add("tabserve_feature_missing_ratio", result, column.missing_share, feature=column.name)
            gauges.add("tabserve_feature_out_of_range_ratio", result, column.out_of_range_share, feature=column.name)
    # Of a few rows these would be large numbers that mean nothing.
    for column in [c for c in features[:MOST_COLUMNS] if c.level != "too few rows"]:
        gauges.add("tabserve_feature_drift", result, column.divergences[-1].kl, feature=column.name, method="kl")
        gauges.add("tabserve_feature_drift", result, column.divergences[-1].psi, feature=column.name, method="psi")
        _add_alarm(gauges, result, column)
    if features and features[0].level != "too few rows":
        divergences = [column.divergences[-1] for column in features]
        gauges.add("tabserve_feature_drift_max", result, max(d.kl for d in divergences), method="kl")
        gauges.add("tabserve_feature_drift_max", result, max(d.psi for d in divergences), method="psi")
    for column in [c for c in _largest(result, "prediction")[:MOST_COLUMNS] if c.level != "too few rows"]:
        gauges.add("tabserve_prediction_drift", result, column.divergences[-1].kl, score=column.name, method="kl")
        gauges.add("tabserve_prediction_drift", result, column.divergences[-1].psi, score=column.name, method="psi")
        _add_alarm(gauges, result, column)


def _largest(result: DriftResult, what: str) -> list[DriftColumn]:
    return sorted((column for column in result.columns if column.what == what), key=lambda c: c.drift, reverse=True)


def _add_alarm(gauges: Gauges, result: DriftResult, column: DriftColumn) -> None:
    # A feature and a score may have one name.
    gauges.add("tabserve_drift_alarm", result, float(column.level == "alarm"), column=f"{column.what}:{column.name}")


def _add_quality(gauges: Gauges, result: QualityResult) -> None:
    gauges.add_success(result, "quality", result.made_at)
    gauges.add("tabserve_label_coverage_ratio", result, result.coverage)
    gauges.add("tabserve_quality_labelled_rows", result, result.n_labelled)
    gauges.add("tabserve_estimated_accuracy", result, result.estimated_accuracy)
    for segment in result.segments:
        for metric in segment.metrics:
            labels = {
                "metric": metric.name,
                "segment": segment.column or "",
                "segment_value": "" if segment.value is None else segment.value,
            }
            gauges.add("tabserve_quality", result, metric.value, **labels)
            gauges.add("tabserve_quality_low", result, metric.low, **labels)
            gauges.add("tabserve_quality_high", result, metric.high, **labels)
            if segment.column is None:
                gauges.add("tabserve_quality_baseline", result, metric.baseline, metric=metric.name)
