"""The dashboard of the models: drift, live quality, the prediction log they are read from, and the monitor itself."""

from collections.abc import Sequence

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import limits, variables
from monitoring.dashboards.panels import (
    BYTES,
    DIVERGENCE,
    NUMBER,
    PER_SECOND,
    ROWS,
    ROWS_A_SECOND,
    SECONDS,
    SHARE,
    Panel,
    board,
    heat,
    lines,
    number,
    top_list,
)
from monitoring.dashboards.queries import (
    MODEL_LABELS,
    OF_INSTANCE,
    OF_MODEL,
    Query,
    found,
    or_zero,
    percentiles,
    rate,
    worst_of_range,
)
from monitoring.live.verdict import ACCURACY_ALARM, ERROR_ALARM

_VERSION = "{{model}}:{{model_version}}"
_FEATURE = "{{feature}} ({{model_version}})"
_KL, _PSI = 'method="kl"', 'method="psi"'
_OF_SEGMENTS = 'metric="accuracy", segment!=""'
_TOP = 20  # features that a panel has room for
_LABEL_WINDOW = "6h"  # labels come in seldom, and in heaps


def dashboard() -> Dashboard:
    return board(
        "tabserve-model",
        "tabserve: model and drift",
        "Whether rows, predictions and quality are still those of the training, and whether that was looked at.",
        variables=variables.of_monitor(),
        sections=[
            ("Drift", _drift()),
            ("Rows", _rows()),
            ("Live quality", _quality()),
            ("Prediction log", _prediction_log()),
            ("Monitor", _monitor()),
        ],
    )


def _drift() -> Sequence[Sequence[Panel]]:
    return [
        [
            top_list(
                "KL of features now",
                f"The {_TOP} features of the newest window that are farthest from training; orange is a warning, red "
                "an alarm where it is that in two windows running.",
                DIVERGENCE,
                Query(f"topk({_TOP}, {found('tabserve_feature_drift', 'feature', where=_KL)})", _FEATURE),
                limits=limits.OF_KL,
            ),
            heat(
                "KL of features over time",
                f"The {_TOP} features that were farthest from training in the time shown, each a row.",
                DIVERGENCE,
                Query(worst_of_range(_TOP, "tabserve_feature_drift", "feature", where=_KL), _FEATURE),
                limits=limits.OF_KL,
            ),
        ],
        [
            lines(
                "Largest KL of a feature",
                "Of all features, those beyond the hundred that are told one by one too; lines at warning and alarm.",
                DIVERGENCE,
                [Query(found("tabserve_feature_drift_max", where=_KL), _VERSION)],
                limits=limits.OF_KL,
            ),
            lines(
                "PSI of predictions",
                "How far each score of the newest window is from training; lines at warning and alarm.",
                DIVERGENCE,
                [
                    Query(
                        found("tabserve_prediction_drift", "score", where=_PSI),
                        "{{score}} ({{model_version}})",
                    )
                ],
                limits=limits.OF_PSI,
            ),
            lines(
                "Columns in alarm",
                "Features and scores that are in alarm two windows running.",
                NUMBER,
                [Query(f"sum by ({MODEL_LABELS}) ({found('tabserve_drift_alarm', 'column')})", _VERSION)],
            ),
        ],
    ]


def _rows() -> Sequence[Sequence[Panel]]:
    def shares(title: str, says: str, name: str, of: Sequence[limits.Limit] = ()) -> Panel:
        return lines(title, says, SHARE, [Query(worst_of_range(_TOP // 2, name, "feature"), _FEATURE)], limits=of)

    return [
        [
            shares("Missing", "Share of the rows where a feature is missing.", "tabserve_feature_missing_ratio"),
            shares(
                "Out of range",
                "Share of the rows where a feature is smaller or larger than all that training saw; the line is "
                "where the alert rings.",
                "tabserve_feature_out_of_range_ratio",
                limits.OF_OUT_OF_RANGE,
            ),
            shares(
                "Unknown categories",
                "Share of a feature's values that were refused as a category that training did not see; the line is "
                "where the alert rings.",
                "tabserve_feature_unknown_ratio",
                limits.OF_UNKNOWN,
            ),
        ],
        [
            lines(
                "Rejected",
                "Values that broke the contract, of these and the rows that were answered, in the newest window.",
                SHARE,
                [Query(found("tabserve_rejected_ratio"), _VERSION)],
            ),
            lines(
                "Confidence",
                "The mean of the largest probability in the newest window; a regression has none.",
                SHARE,
                [Query(found("tabserve_confidence"), _VERSION)],
            ),
            lines(
                "Rows a second",
                "Rows that were answered, on average over the newest window.",
                ROWS_A_SECOND,
                [Query(found("tabserve_rows_per_second"), _VERSION)],
            ),
            lines(
                "Rows of the window",
                "Rows that drift was looked for in; below the line they are too few to say.",
                ROWS,
                [Query(found("tabserve_drift_window_rows"), _VERSION)],
                limits=limits.OF_ROWS,
            ),
        ],
    ]


def _quality() -> Sequence[Sequence[Panel]]:
    accuracy = found("tabserve_quality_baseline", where='metric="accuracy"')
    error = found("tabserve_quality_baseline", where='metric="mae"')
    return [
        [
            lines(
                "Accuracy",
                "Of the predictions whose label came, with its 95 % interval, what it was at training, and "
                f"{100 * ACCURACY_ALARM:g} points less, where the alert rings if chance does not explain it.",
                SHARE,
                [*_with_interval("accuracy"), Query(f"{accuracy} - {ACCURACY_ALARM}", f"alarm {_VERSION}")],
            ),
            lines(
                "Mean absolute error",
                "The same of regressions, in the unit of what is predicted; the alert rings where it has risen by "
                f"{ERROR_ALARM:.0%}.",
                NUMBER,
                [*_with_interval("mae"), Query(f"{error} * {1 + ERROR_ALARM}", f"alarm {_VERSION}")],
            ),
            lines(
                "All metrics",
                "Every metric of the predictions whose label came.",
                NUMBER,
                [Query(found("tabserve_quality", "metric", where='segment=""'), "{{metric}} ({{model_version}})")],
            ),
        ],
        [
            lines(
                "Accuracy, estimated and found",
                "What the scores alone promise of all rows, right only as far as they are calibrated, beside what the "
                "labels say of those that have one.",
                SHARE,
                [
                    Query(found("tabserve_estimated_accuracy"), f"estimated {_VERSION}"),
                    Query(found("tabserve_quality", where='metric="accuracy", segment=""'), f"found {_VERSION}"),
                ],
            ),
            top_list(
                "Accuracy by segment, worst first",
                f"The {_TOP} parts of the rows that fare worst, where the monitor was asked to part them (--by).",
                SHARE,
                Query(
                    f"bottomk({_TOP}, {found('tabserve_quality', 'segment', 'segment_value', where=_OF_SEGMENTS)})",
                    "{{segment}}={{segment_value}} ({{model_version}})",
                ),
            ),
        ],
        [
            lines(
                "Label coverage",
                "Share of the predictions in the window that have a label; where it is small those with a label may "
                "not be like the others.",
                SHARE,
                [Query(found("tabserve_label_coverage_ratio"), _VERSION)],
            ),
            lines(
                "Labelled rows",
                "Predictions of the window that have a label; below the line they are too few to say.",
                ROWS,
                [Query(found("tabserve_quality_labelled_rows"), _VERSION)],
                limits=limits.OF_LABELS,
            ),
            lines(
                "Labels",
                "Labels that the service accepts.",
                PER_SECOND,
                [Query(rate("tabserve_labels_total"), "labels")],
            ),
            lines(
                "Delay of labels",
                f"From a prediction to its label, of the labels of the last {_LABEL_WINDOW}.",
                SECONDS,
                percentiles("tabserve_label_delay_seconds", 0.5, 0.9, window=_LABEL_WINDOW),
                is_logarithmic=True,
            ),
        ],
    ]


def _with_interval(metric: str) -> list[Query]:
    of_all = f'metric="{metric}", segment=""'
    return [
        Query(found("tabserve_quality", where=of_all), _VERSION),
        Query(found("tabserve_quality_low", where=of_all), f"low {_VERSION}"),
        Query(found("tabserve_quality_high", where=of_all), f"high {_VERSION}"),
        Query(found("tabserve_quality_baseline", where=f'metric="{metric}"'), f"at training {_VERSION}"),
    ]


def _prediction_log() -> Sequence[Sequence[Panel]]:
    return [
        [
            lines(
                "Rows written",
                "Rows that the prediction log wrote, by table.",
                ROWS_A_SECOND,
                [Query(or_zero(rate("tabserve_prediction_log_rows_total", by="table"), "table"), "{{table}}")],
            ),
            lines(
                "Rows dropped, and failed writes",
                "Rows that the prediction log lost, by reason, and writes that failed; what is lost is missing in all "
                "panels above.",
                PER_SECOND,
                [
                    Query(
                        or_zero(rate("tabserve_prediction_log_dropped_rows_total", by="reason"), "reason"),
                        "dropped: {{reason}}",
                    ),
                    Query(rate("tabserve_prediction_log_write_errors_total"), "writes that failed"),
                ],
            ),
            lines(
                "Rows that wait",
                "Rows in the memory of the replicas that wait to be written.",
                ROWS,
                [
                    Query(
                        f"sum by (instance) (tabserve_prediction_log_queue_rows{{{OF_INSTANCE}}})",
                        "{{instance}}",
                    )
                ],
            ),
            lines(
                "Spool",
                "What waits on the local disk for a bucket or a database; beyond the line, half of the default of "
                "TABSERVE_LOG_SPOOL_BYTES, records are soon dropped.",
                BYTES,
                [
                    Query(
                        f"max by (instance) (tabserve_prediction_log_spool_bytes{{{OF_INSTANCE}}})",
                        "{{instance}}",
                    )
                ],
                limits=limits.of_spool(),
            ),
        ],
    ]


def _monitor() -> Sequence[Sequence[Panel]]:
    last_success = "tabserve_monitor_last_success_timestamp_seconds"
    return [
        [
            heat(
                "Retraining due",
                "Reasons to train again, orange where one holds; drift alone never puts a new model in service.",
                NUMBER,
                Query(found("tabserve_retraining_due", "reason"), "{{reason}} ({{model_version}})"),
                limits=limits.OF_RETRAINING,
            ),
            number(
                "Age of the results",
                "How long ago drift and quality were looked for; all that is shown above of them is as old.",
                SECONDS,
                Query(f"time() - max by (kind) ({last_success}{{{OF_MODEL}}})", "{{kind}}"),
                limits=limits.OF_AGE,
            ),
            lines(
                "Time of a run",
                "How long the last run of the monitor took, without reports.",
                SECONDS,
                [Query("max by (kind) (tabserve_monitor_run_duration_seconds)", "{{kind}}")],
            ),
            lines(
                "Failures of the monitor",
                "Runs, reports and calls to retrain that failed within an hour, by kind.",
                NUMBER,
                [Query("sum by (kind) (increase(tabserve_monitor_failures_total[1h]))", "{{kind}}")],
            ),
        ],
    ]
