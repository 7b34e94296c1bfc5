"""Metrics for Prometheus."""

import asyncio
import atexit
import collections
import functools
import os
import shutil
import tempfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.values import MultiProcessValue

from tabserve.access.observer import REASONS, Reason
from tabserve.batcher import Slice
from tabserve.resources import ProcessesCollector
from tabserve.rollout_telemetry import RolloutTelemetry

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Fine where a batch of trees answers, and an edge at 0.5, where people put alerts: no interpolation there.
DURATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Seconds. From a person who looks at the answer to a loan that was paid back: a second to a quarter.
DELAY_BUCKETS = (1, 10, 60, 600, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 14 * 86400, 30 * 86400, 91 * 86400)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# Where the workers of one service keep the files that their metrics are added up from. BentoML's own place for them is
# one folder for all services of a home, emptied whenever one starts.
_DIRECTORY = "TABSERVE_METRICS_DIR"


def share_metrics() -> None:
    """Gives all workers that this process will start one new folder for their metrics, removed when it ends."""
    directory = tempfile.mkdtemp(prefix="tabserve-metrics-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ[_DIRECTORY] = directory


def shared_folder() -> Path | None:
    """The folder that `share_metrics` gave; what else all workers of a service are to see may be there too."""
    directory = os.environ.get(_DIRECTORY)
    return Path(directory) if directory else None


class ManyHistogram(Histogram):
    """A histogram that takes many observations for little more than the price of one: a write costs most of it."""

    def observe_all(self, values: Sequence[float]) -> None:
        """As `observe`, for each of the values."""
        counts = collections.Counter(bisect_left(self._upper_bounds, value) for value in values)
        self._sum.inc(sum(values))
        for bucket, n_values in counts.items():
            self._buckets[bucket].inc(n_values)


class Telemetry:
    """The metrics of one process, or of all workers of the service where `share_metrics` gave them a folder."""

    def __init__(self) -> None:
        if _DIRECTORY in os.environ:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ[_DIRECTORY]
            # By default it asks the system for the process's id each time that it counts something.
            process_id = os.getpid()
            prometheus_client.values.ValueClass = MultiProcessValue(lambda: process_id)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "tabserve_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._duration = ManyHistogram(
            "tabserve_request_duration_seconds",
            "Time from the first byte of a request to its answer.",
            ["route"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.predictions = Counter(
            "tabserve_predictions", "Rows answered, by model version.", ["model_version"], registry=registry
        )
        self._rejected = Counter(
            "tabserve_rejected_values", "Values that broke the contract, by rule.", ["rule"], registry=registry
        )
        self._out_of_range = Counter(
            "tabserve_out_of_range_values",
            "Values answered although outside of the range seen in training, by feature.",
            ["feature"],
            registry=registry,
        )
        self._labels = Counter("tabserve_labels", "Labels accepted.", registry=registry)
        self._label_delay = ManyHistogram(
            "tabserve_label_delay_seconds",
            "Time from a prediction to its label, where its id tells when it was made.",
            buckets=DELAY_BUCKETS,
            registry=registry,
        )
        self.batch_rows = Histogram("tabserve_batch_rows", "Rows of a batch.", buckets=BATCH_BUCKETS, registry=registry)
        self.batch_seconds = Histogram(
            "tabserve_batch_duration_seconds", "Time of the engine.", buckets=DURATION_BUCKETS, registry=registry
        )
        self.wait_seconds = Histogram(
            "tabserve_queue_wait_seconds",
            "Time that the request of a batch waited which waited longest.",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.refused_rows = Counter(
            "tabserve_refused_rows",
            "Rows that were not answered, by reason; one for a request whose body was not read.",
            ["reason"],
            registry=registry,
        )
        self._refused_connections = Counter(
            "tabserve_refused_connections",
            "Connections that were refused or ended, by reason.",
            ["reason"],
            registry=registry,
        )
        self.failed_batches = Counter(
            "tabserve_failed_batches",
            "Batches of which the engine raised (halved until only the requests at fault fail) or lost rows.",
            ["reason"],
            registry=registry,
        )
        self.split_requests = Counter(
            "tabserve_split_requests", "Requests that went to the engine in several batches.", registry=registry
        )
        self.cap_rows = Gauge(
            "tabserve_batch_cap_rows",
            "The most rows that the last batch could have had.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.queued_rows = Gauge(
            "tabserve_queued_rows",
            "Rows that were left waiting when the last batch started.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "tabserve_ready", "Whether the service can answer.", registry=registry, multiprocess_mode="mostrecent"
        )
        self.rollout = RolloutTelemetry(registry)

        self._done: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        # The children of each combination of labels: looking one up costs more than counting.
        self._requests_by = functools.cache(self._requests.labels)
        self._duration_by = functools.cache(self._duration.labels)

    # What the front door tells.

    def request_done(self, route: str, status: int, seconds: float) -> None:
        """Counts a request. Called on the event loop, which answers many in one turn: they are written together."""
        if not self._done:
            asyncio.get_running_loop().call_soon(self._write_done)
        self._done[route, status].append(seconds)

    def _write_done(self) -> None:
        for (route, status), seconds in self._done.items():
            self._requests_by(route, status).inc(len(seconds))
            self._duration_by(route).observe_all(seconds)
        self._done.clear()

    def value_rejected(self, rule: str) -> None:
        self._rejected.labels(rule).inc()

    def value_out_of_range(self, feature: str) -> None:
        self._out_of_range.labels(feature).inc()

    def connection_refused(self, reason: str) -> None:
        self._refused_connections.labels(reason).inc()

    def labels_came(self, n_labels: int, delays_seconds: Sequence[float]) -> None:
        self._labels.inc(n_labels)
        self._label_delay.observe_all(delays_seconds)

    def of_model(self, version: str) -> "BatchTelemetry":
        """What the batcher of one model tells."""
        return BatchTelemetry(self, version)

    def of_prediction_log(self) -> "PredictionLogTelemetry":
        """What the prediction log tells."""
        return PredictionLogTelemetry(self._registry)

    def of_tracing(self) -> "TracingTelemetry":
        """What is told about spans."""
        return TracingTelemetry(self._registry)

    def of_audit_log(self) -> "AuditTelemetry":
        """What the audit log tells."""
        return AuditTelemetry(self._registry)

    def of_access(self) -> "AccessTelemetry":
        """What the gate tells."""
        return AccessTelemetry(self._registry)

    def exposition(self) -> bytes:
        """All metrics of all processes, as Prometheus reads them."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if directory is None:
            return generate_latest(self._registry)
        _forget_queues_of_the_dead(Path(directory))
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        everyone.register(ProcessesCollector(os.getppid()))  # who started the workers, and all of them
        return generate_latest(everyone)


def _forget_queues_of_the_dead(directory: Path) -> None:
    """A worker that was killed leaves its files behind: what it counted stays true, what waited in it does not."""
    for path in directory.glob("gauge_live*_*.db"):
        process_id = int(path.stem.rpartition("_")[2])
        try:
            os.kill(process_id, 0)  # only asks
        except ProcessLookupError:
            mark_process_dead(process_id, str(directory))  # type: ignore[no-untyped-call]


class BatchTelemetry:
    """The metrics of the batches of one model. A `tabserve.batcher.Observer`."""

    def __init__(self, telemetry: Telemetry, model_version: str) -> None:
        self._rows = telemetry.batch_rows
        self._seconds = telemetry.batch_seconds
        self._wait_seconds = telemetry.wait_seconds
        self._queued_rows = telemetry.queued_rows
        self._refused_rows = telemetry.refused_rows
        self._predictions = telemetry.predictions.labels(model_version)
        self._failed_batches = telemetry.failed_batches
        self._split_requests = telemetry.split_requests
        self._cap_rows = telemetry.cap_rows
        self._last_queued_rows = 0
        self._last_cap_rows = 0

    def queue_left(self, n_rows: int) -> None:
        if n_rows != self._last_queued_rows:
            self._last_queued_rows = n_rows
            self._queued_rows.set(n_rows)

    def request_split(self) -> None:
        self._split_requests.inc()

    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices: Sequence[Slice]) -> None:  # noqa: ARG002
        self._wait_seconds.observe(longest_wait_seconds)
        if cap_rows != self._last_cap_rows:
            self._last_cap_rows = cap_rows
            self._cap_rows.set(cap_rows)

    def batch_done(self, n_rows: int, service_seconds: float) -> None:
        self._rows.observe(n_rows)
        self._seconds.observe(service_seconds)
        self._predictions.inc(n_rows)

    def batch_failed(self, reason: str) -> None:
        self._failed_batches.labels(reason).inc()

    def refused(self, reason: str, n_rows: int) -> None:
        self._refused_rows.labels(reason).inc(n_rows)


class TracingTelemetry:
    """The metrics of the spans. A `tabserve.tracing.SpanCounts`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sent = Counter("tabserve_spans", "Spans that the receiver took.", registry=registry)
        self._dropped = Counter(
            "tabserve_dropped_spans",
            "Spans that never reached the receiver, by reason; one for a request of which nothing was recorded.",
            ["reason"],
            registry=registry,
        )

    def spans_sent(self, n_spans: int) -> None:
        self._sent.inc(n_spans)

    def spans_dropped(self, reason: str, n_spans: int) -> None:
        self._dropped.labels(reason).inc(n_spans)


class PredictionLogTelemetry:
    """The metrics of the prediction log. A `tabserve.prediction_log.observer.Observer`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = Counter(
            "tabserve_prediction_log_rows",
            "Rows written by the prediction log, by table.",
            ["table"],
            registry=registry,
        )
        self._dropped_rows = Counter(
            "tabserve_prediction_log_dropped_rows",
            "Rows that the prediction log lost, by reason.",
            ["reason"],
            registry=registry,
        )
        self._write_errors = Counter(
            "tabserve_prediction_log_write_errors", "Writes of the prediction log that failed.", registry=registry
        )
        self._queue_rows = Gauge(
            "tabserve_prediction_log_queue_rows",
            "Rows that wait to be written by the prediction log.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._spool_bytes = Gauge(
            "tabserve_prediction_log_spool_bytes",
            "Bytes of the prediction log that wait on the local disk for a bucket or a database.",
            registry=registry,
            multiprocess_mode="livemax",  # each worker sees those of all
        )

    def rows_written(self, table: str, n_rows: int) -> None:
        self._rows.labels(table).inc(n_rows)

    def rows_dropped(self, reason: str, n_rows: int) -> None:
        self._dropped_rows.labels(reason).inc(n_rows)

    def write_failed(self) -> None:
        self._write_errors.inc()

    def queue_holds(self, n_rows: int) -> None:
        self._queue_rows.set(n_rows)

    def spool_holds(self, n_bytes: int) -> None:
        self._spool_bytes.set(n_bytes)


class AuditTelemetry:
    """The metrics of the audit log. A `tabserve.audit.Observer`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refusals = Counter("tabserve_audit_refusals", "Refused accesses that were recorded.", registry=registry)
        self._dropped = Counter(
            "tabserve_audit_dropped_refusals",
            "Refused accesses that could not be recorded, because the audit log cannot be written.",
            registry=registry,
        )

    def refusals_recorded(self, n_refusals: int) -> None:
        self._refusals.inc(n_refusals)

    def refusals_dropped(self, n_refusals: int) -> None:
        self._dropped.inc(n_refusals)


class AccessTelemetry:
    """The metrics of the gate. A `tabserve.access.observer.Observer`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter(
            "tabserve_refused_access", "Requests that were not let in, by reason.", ["reason"], registry=registry
        )
        for reason in REASONS:  # a zero before the first one, or an alert could not see it come
            self._refused.labels(reason)
        self._stale = Gauge(
            "tabserve_stale_access_file",
            "Whether a file or address of keys cannot be used, and what it said before goes on to be.",
            ["source"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._limited_alone = Counter(
            "tabserve_rate_limited_alone",
            "Requests that were not counted together with those of other replicas, because Redis did not answer.",
            registry=registry,
        )

    def access_refused(self, reason: Reason) -> None:
        self._refused.labels(reason).inc()

    def file_is_stale(self, source: str, *, is_stale: bool) -> None:
        self._stale.labels(source).set(is_stale)

    def limited_alone(self) -> None:
        self._limited_alone.inc()
