"""The metrics of models beside each other: which are in service, what was refused, how each arm does."""

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Seconds. The edge at 0.3 is there because a canary is judged by it.
ARM_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)


class RolloutTelemetry:
    """A `tabserve.rollout_follower.RolloutObserver` and a `tabserve.shadow.ShadowCounts`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "tabserve_variant_requests",
            "Requests that each arm of a canary or an A/B test was asked, by the status of its answer.",
            ["model_version", "variant", "status"],
            registry=registry,
        )
        duration = Histogram(
            "tabserve_variant_duration_seconds",
            "Time from the first byte of a request to its answer, by the arm that was asked.",
            ["model_version", "variant"],
            buckets=ARM_BUCKETS,
            registry=registry,
        )
        self._models = Gauge(
            "tabserve_rollout_model",
            "1 for each model in service, by what it is there.",
            ["model_version", "variant"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._is_refused = Gauge(
            "tabserve_rollout_refused",
            "Whether what the rollout file says is not, or not all, in service; /metadata says why.",
            registry=registry,
            multiprocess_mode="livemax",  # of a service as soon as of one of its workers
        )
        self._refusals = Counter(
            "tabserve_rollout_refusals", "Refusals of what the rollout file says, of all workers.", registry=registry
        )
        self._is_paused = Gauge(
            "tabserve_paused",
            "Whether predictions are refused because somebody wants it so.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._shadow_rows = Counter(
            "tabserve_shadow_rows",
            "Rows for a challenger in the shadow: answered, dropped or failed.",
            ["outcome"],
            registry=registry,
        )
        self._in_service: set[tuple[str, str]] = set()
        # The children of each combination of labels: looking one up costs more than counting.
        self._requests_by = functools.cache(requests.labels)
        self._duration_by = functools.cache(duration.labels)

    def arm_asked(self, model_version: str, variant: str, status: int, seconds: float) -> None:
        """Counts a request for one of two arms."""
        self._requests_by(model_version, variant, str(status)).inc()
        self._duration_by(model_version, variant).observe(seconds)

    def in_service(self, models: set[tuple[str, str]], *, is_paused: bool) -> None:
        for gone in self._in_service - models:
            self._models.labels(*gone).set(0)
        for there in models:
            self._models.labels(*there).set(1)
        self._in_service = models
        self._is_paused.set(is_paused)

    def refused(self, *, is_refused: bool, is_news: bool) -> None:
        self._is_refused.set(is_refused)
        if is_news:
            self._refusals.inc()

    def shadow_rows(self, outcome: str, n_rows: int) -> None:
        self._shadow_rows.labels(outcome).inc(n_rows)
