"""Metrics for Prometheus, and logs of one JSON object a line."""

import atexit
import logging
import os
import shutil
import tempfile
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import ValidationError

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Fine where a batch of trees answers, and an edge at 0.5, where people put alerts: no interpolation there.
DURATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NAMED_FAULTS = 100  # of one request in one line

# Where the workers of one service keep the files that their metrics are added up from. BentoML's own place for them is
# one folder for all services of a home, emptied whenever one starts.
_DIRECTORY = "TABSERVE_METRICS_DIR"


def share_metrics() -> None:
    """Gives all workers that this process will start one new folder for their metrics, removed when it ends."""
    directory = tempfile.mkdtemp(prefix="tabserve-metrics-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ[_DIRECTORY] = directory


class Telemetry:
    """The metrics of one process, or of all workers of the service where `share_metrics` gave them a folder."""

    def __init__(self) -> None:
        if _DIRECTORY in os.environ:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ[_DIRECTORY]
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "tabserve_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.duration = Histogram(
            "tabserve_request_duration_seconds",
            "Time from the first byte of a request to its answer.",
            ["route"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.predictions = Counter(
            "tabserve_predictions", "Rows answered, by model version.", ["model_version"], registry=registry
        )
        self.rejected = Counter(
            "tabserve_rejected_values", "Values that broke the contract, by rule.", ["rule"], registry=registry
        )
        self.out_of_range = Counter(
            "tabserve_out_of_range_values",
            "Values answered although outside of the range seen in training, by feature.",
            ["feature"],
            registry=registry,
        )
        self._batch_rows = Histogram(
            "tabserve_batch_rows", "Rows of a batch.", buckets=BATCH_BUCKETS, registry=registry
        )
        self._batch_seconds = Histogram(
            "tabserve_batch_duration_seconds", "Time of the engine.", buckets=DURATION_BUCKETS, registry=registry
        )
        self._wait_seconds = Histogram(
            "tabserve_queue_wait_seconds", "Time before a batch.", buckets=DURATION_BUCKETS, registry=registry
        )
        self._refused_rows = Counter(
            "tabserve_refused_rows", "Rows that were not answered, by reason.", ["reason"], registry=registry
        )
        self._queued_rows = Gauge(
            "tabserve_queued_rows", "Rows that wait for the engine.", registry=registry, multiprocess_mode="livesum"
        )
        self.ready = Gauge(
            "tabserve_ready", "Whether the service can answer.", registry=registry, multiprocess_mode="mostrecent"
        )

    # What the batcher tells.

    def batch_done(self, n_rows: int, service_seconds: float) -> None:
        self._batch_rows.observe(n_rows)
        self._batch_seconds.observe(service_seconds)

    def job_started(self, wait_seconds: float) -> None:
        self._wait_seconds.observe(wait_seconds)

    def refused(self, reason: str, n_rows: int) -> None:
        self._refused_rows.labels(reason).inc(n_rows)

    def queue_changed(self, n_rows: int) -> None:
        self._queued_rows.set(n_rows)

    def exposition(self) -> bytes:
        """All metrics of all processes, as Prometheus reads them."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the `fields` that came as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ValidationError):  # its text and its traceback repeat what the caller sent
            line["faults"] = [{"at": fault["loc"], "type": fault["type"]} for fault in error.errors()[:NAMED_FAULTS]]
        elif record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line).decode()


def configure_logging(level: str) -> None:
    """Every line of this process as JSON, BentoML's, uvicorn's and warnings included."""
    logging.captureWarnings(capture=True)
    formatter = JsonFormatter()
    for name in ("", "bentoml", "uvicorn.error", "circus"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
    logging.getLogger("tabserve").setLevel(level)
