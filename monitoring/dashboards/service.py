"""The dashboard of the service: is it asked, does it answer, how fast, and with what of the machine."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import limits, variables
from monitoring.dashboards.panels import (
    BYTES,
    CORES,
    NUMBER,
    PER_SECOND,
    REQUESTS_A_SECOND,
    ROWS,
    ROWS_A_SECOND,
    SECONDS,
    SHARE,
    board,
    lines,
    number,
)
from monitoring.dashboards.queries import OF_ANSWERS, OF_INSTANCE, OF_TAG, Query, or_zero, percentile, percentiles, rate

_DURATION = "tabserve_request_duration_seconds"
_ASKED = rate("tabserve_requests_total", OF_ANSWERS)
_BUSIEST = f"rate(tabserve_process_cpu_seconds_total{{{OF_INSTANCE}}}[$__rate_interval])"


def _share(status: str) -> str:
    """Of the requests for predictions, those that ended so; nothing where there were none."""
    ended = or_zero(rate("tabserve_requests_total", f"{OF_ANSWERS}, {status}"))
    return f"({ended}) / ({_ASKED} > 0)"


# The service tells 503 and 504 to whom it could not answer in time, and nothing is broken then.
_FAILED = _share('status=~"5..", status!~"503|504"')
_REFUSED = _share('status=~"503|504"')
_REJECTED = _share('status="422"')


def dashboard() -> Dashboard:
    return board(
        "tabserve-service",
        "tabserve: service",
        "Requests, errors, latency, refusals, CPU and memory of the replicas.",
        variables=variables.of_service(),
        sections=[
            (
                "Now",
                [
                    [
                        number(
                            "Replicas in service",
                            "Replicas that have a model and can answer.",
                            NUMBER,
                            Query(f"sum(tabserve_ready{{{OF_INSTANCE}}})", "ready"),
                        ),
                        number(
                            "Requests",
                            "Requests for predictions, each second.",
                            REQUESTS_A_SECOND,
                            Query(_ASKED, "requests"),
                        ),
                        number(
                            "Errors",
                            "Share of the requests for predictions that failed; red beyond the objective of slo.yaml.",
                            SHARE,
                            Query(_FAILED, "errors"),
                            limits=limits.of_errors(),
                        ),
                        number(
                            "Refused",
                            "Share of them that could not be answered in time; red beyond the objective of slo.yaml.",
                            SHARE,
                            Query(_REFUSED, "refused"),
                            limits=limits.of_errors(),
                        ),
                        number(
                            "p99",
                            "The time within which 99 of 100 of them end; red beyond the objective of slo.yaml.",
                            SECONDS,
                            Query(percentile(_DURATION, 0.99, OF_ANSWERS), "p99"),
                            limits=limits.of_latency(),
                        ),
                        number(
                            "Busiest process",
                            "Cores that the busiest process of all replicas uses; one is all that it can.",
                            CORES,
                            Query(f"max({_BUSIEST})", "cores"),
                            limits=limits.OF_CPU,
                        ),
                    ]
                ],
            ),
            (
                "Traffic",
                [
                    [
                        lines(
                            "Requests by route",
                            "Everything that is asked, probes and scrapes too.",
                            REQUESTS_A_SECOND,
                            [Query(rate("tabserve_requests_total", by="route"), "{{route}}")],
                            is_stacked=True,
                        ),
                        lines(
                            "Answers by status",
                            "Requests for predictions by the status that they ended with.",
                            REQUESTS_A_SECOND,
                            [Query(rate("tabserve_requests_total", OF_ANSWERS, by="status"), "{{status}}")],
                            is_stacked=True,
                        ),
                        lines(
                            "Errors and refusals",
                            "Share of the requests for predictions that failed, and that were refused with 503 or 504; "
                            "the line is the objective of slo.yaml, where the alerts ring.",
                            SHARE,
                            [Query(_FAILED, "errors"), Query(_REFUSED, "refused")],
                            limits=limits.of_errors(),
                        ),
                        lines(
                            "Requests rejected",
                            "Share of the requests for predictions that broke the contract and were told 422; the line "
                            "is where the alert rings.",
                            SHARE,
                            [Query(_REJECTED, "rejected")],
                            limits=limits.OF_REJECTED,
                        ),
                    ],
                    [
                        lines(
                            "Latency",
                            "From the first byte of a request for predictions to its answer, of all replicas "
                            "together; the line is the objective of slo.yaml for p99.",
                            SECONDS,
                            percentiles(_DURATION, 0.5, 0.95, 0.99, where=OF_ANSWERS),
                            limits=limits.of_latency(),
                            is_logarithmic=True,
                        ),
                        lines(
                            "Requests in flight",
                            "Requests that are being answered, on average: their rate times their duration (Little).",
                            NUMBER,
                            [
                                Query(
                                    f"sum by (instance) (rate({_DURATION}_sum{{{OF_ANSWERS}}}[$__rate_interval]))",
                                    "{{instance}}",
                                )
                            ],
                        ),
                        lines(
                            "Queue",
                            "Rows that were left waiting when the last batch started.",
                            ROWS,
                            [Query(f"sum by (instance) (tabserve_queued_rows{{{OF_INSTANCE}}})", "{{instance}}")],
                        ),
                    ],
                    [
                        lines(
                            "Rows answered by version",
                            "Which model versions answer, and how much.",
                            ROWS_A_SECOND,
                            [
                                Query(
                                    rate("tabserve_predictions_total", OF_TAG, by="model_version"), "{{model_version}}"
                                )
                            ],
                            is_stacked=True,
                        ),
                        lines(
                            "Rows refused",
                            "Rows that were not answered, by reason: the service had more to do than it can in time.",
                            ROWS_A_SECOND,
                            [
                                Query(
                                    or_zero(rate("tabserve_refused_rows_total", by="reason"), "reason"),
                                    "{{reason}}",
                                )
                            ],
                        ),
                        lines(
                            "Values rejected",
                            "Values that broke the contract, by rule; their requests were told 422.",
                            PER_SECOND,
                            [Query(or_zero(rate("tabserve_rejected_values_total", by="rule"), "rule"), "{{rule}}")],
                        ),
                        lines(
                            "Values out of range",
                            "Values answered with a warning because training saw none so small or large, by feature.",
                            PER_SECOND,
                            [
                                Query(
                                    or_zero(
                                        f"topk(10, {rate('tabserve_out_of_range_values_total', by='feature')})",
                                        "feature",
                                    ),
                                    "{{feature}}",
                                )
                            ],
                        ),
                    ],
                ],
            ),
            (
                "Machine",
                [
                    [
                        lines(
                            "CPU by process",
                            "Cores that each process of a replica uses; the line is where the alert rings for one.",
                            CORES,
                            [
                                Query(
                                    rate("tabserve_process_cpu_seconds_total", by="instance, pid"),
                                    "{{instance}} {{pid}}",
                                )
                            ],
                            limits=limits.OF_CPU,
                        ),
                        lines(
                            "Memory by process",
                            "Resident memory of each process of a replica; what processes share counts for each.",
                            BYTES,
                            [
                                Query(
                                    f"sum by (instance, pid) (tabserve_process_resident_memory_bytes{{{OF_INSTANCE}}})",
                                    "{{instance}} {{pid}}",
                                )
                            ],
                        ),
                    ]
                ],
            ),
        ],
    )
