"""The dashboard of adaptive batching: how large batches are, what they cost, and who waits for them."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import variables
from monitoring.dashboards.panels import (
    PER_SECOND,
    REQUESTS_A_SECOND,
    ROWS,
    ROWS_A_SECOND,
    SECONDS,
    SHARE,
    board,
    histogram,
    lines,
)
from monitoring.dashboards.queries import OF_INSTANCE, OF_TAG, Query, buckets, mean, or_zero, percentiles, rate

_ROWS, _SECONDS, _WAIT = "tabserve_batch_rows", "tabserve_batch_duration_seconds", "tabserve_queue_wait_seconds"


def dashboard() -> Dashboard:
    return board(
        "tabserve-batching",
        "tabserve: batching",
        "Sizes of batches, their cost, the queue before them, and what failed or was refused.",
        variables=variables.of_service(),
        sections=[
            (
                "Batches",
                [
                    [
                        lines(
                            "Rows of a batch",
                            "How many rows go to the engine together; more under load, and a lone request goes alone.",
                            ROWS,
                            [Query(mean(_ROWS), "mean"), *percentiles(_ROWS, 0.5, 0.95)],
                        ),
                        histogram(
                            "Sizes of batches",
                            "How many batches had up to so many rows, and more than the size below.",
                            ROWS,
                            Query(buckets(_ROWS), "{{le}}"),
                        ),
                        lines(
                            "Cap",
                            "The most rows that the last batch could have had: what the engine does within its budget.",
                            ROWS,
                            [Query(f"max by (instance) (tabserve_batch_cap_rows{{{OF_INSTANCE}}})", "{{instance}}")],
                        ),
                    ],
                    [
                        lines(
                            "Time of a batch",
                            "What the engine takes for a batch.",
                            SECONDS,
                            percentiles(_SECONDS, 0.5, 0.95, 0.99),
                            is_logarithmic=True,
                        ),
                        lines(
                            "Engine at work",
                            "Share of the time that the engine of a replica computes; more than 1 where it has several "
                            "workers.",
                            SHARE,
                            [Query(rate(f"{_SECONDS}_sum", by="instance"), "{{instance}}")],
                        ),
                        lines(
                            "Batches and rows",
                            "Batches each second, and the rows in them, by the version that answered.",
                            PER_SECOND,
                            [
                                Query(rate(f"{_ROWS}_count"), "batches"),
                                Query(
                                    rate("tabserve_predictions_total", OF_TAG, by="model_version"),
                                    "rows of {{model_version}}",
                                ),
                            ],
                        ),
                    ],
                ],
            ),
            (
                "Waiting",
                [
                    [
                        lines(
                            "Wait",
                            "How long the request of a batch waited that waited longest.",
                            SECONDS,
                            percentiles(_WAIT, 0.5, 0.95, 0.99),
                            is_logarithmic=True,
                        ),
                        lines(
                            "Queue",
                            "Rows that were left waiting when the last batch started.",
                            ROWS,
                            [Query(f"sum by (instance) (tabserve_queued_rows{{{OF_INSTANCE}}})", "{{instance}}")],
                        ),
                        lines(
                            "Requests split",
                            "Requests that went to the engine in several batches: they have more rows than the cap.",
                            REQUESTS_A_SECOND,
                            [Query(rate("tabserve_split_requests_total"), "split")],
                        ),
                    ],
                    [
                        lines(
                            "Rows refused",
                            "Rows that were not answered, by reason: the queue was full, or they would have been late.",
                            ROWS_A_SECOND,
                            [Query(or_zero(rate("tabserve_refused_rows_total", by="reason"), "reason"), "{{reason}}")],
                        ),
                        lines(
                            "Batches that failed",
                            "Batches of which the engine raised or lost rows; only requests at fault were told 500.",
                            PER_SECOND,
                            [
                                Query(
                                    or_zero(rate("tabserve_failed_batches_total", by="reason"), "reason"), "{{reason}}"
                                )
                            ],
                        ),
                    ],
                ],
            ),
        ],
    )
