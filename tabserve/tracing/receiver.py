"""Spans on their way to an OTLP receiver: what the environment says of it, and a queue that never holds up a request.

The variables are OpenTelemetry's own; what the SDK would overlook with a warning is refused before anything is served.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from tabserve.prediction_log.faults import Fault
from tabserve.settings import BadSettingError
from tabserve.tracing.traceparent import Caller

DEFAULT_SHARE = 0.01  # of the requests without a caller who decided; docs/benchmarks.md has what it costs
DEFAULT_QUEUE_SPANS = 2048  # the SDK's

_EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class SpanCounts(Protocol):
    """What is told about spans: the metrics of the service."""

    def spans_sent(self, n_spans: int) -> None: ...
    def spans_dropped(self, reason: str, n_spans: int) -> None: ...


def check(environment: Mapping[str, str]) -> None:
    """Whether spans could be sent as the environment says; not, whether somebody receives them.

    Raises:
        BadSettingError: for the first variable that cannot be used.
    """
    of_traces, of_all = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    variable = of_traces if environment.get(of_traces, "").strip() else of_all
    if not _is_address(environment.get(variable, "").strip()):  # not repeated, there may be a password in it
        raise BadSettingError(f"{variable} is no address, expected http://host:4318 or https://host:4318")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = environment.get(variable, "").strip()
        if protocol not in ("", "http/protobuf"):
            raise BadSettingError(f"{variable} is {protocol!r}, expected http/protobuf, which is the default")
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"):
        compression = environment.get(variable, "").strip().lower()
        if compression not in ("", "none", "gzip", "deflate"):
            raise BadSettingError(f"{variable} is {compression!r}, expected none, gzip or deflate")
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "otlp"):
        raise BadSettingError(f"OTEL_TRACES_EXPORTER is {exporter!r}, expected otlp, which is the default, or none")
    sampler_of(environment)
    _queue_spans(environment)
    try:
        OTLPSpanExporter().shutdown()
    except Exception as error:
        raise BadSettingError(f"the variables OTEL_EXPORTER_OTLP_… cannot be used: {error}") from error


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number
        return False


class Sampler(NamedTuple):
    """Which requests are recorded: as the SDK's samplers of these names decide, which take 2 to 3 µs for it."""

    obeys_caller: bool
    bound: int
    """Of the lower 64 bits of a trace id."""

    def records(self, trace_id: int, caller: Caller | None) -> bool:
        if caller is not None and self.obeys_caller:
            return caller.is_sampled
        return (trace_id & TraceIdRatioBased.TRACE_ID_LIMIT) < self.bound


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """Which requests are recorded, by OpenTelemetry's own variables; the default is our own.

    Raises:
        BadSettingError: for a sampler or a share that there is not.
    """
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    text = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    try:
        # The specification's default is 1, for those who named a sampler.
        share = TraceIdRatioBased(float(text) if text else 1.0 if name else DEFAULT_SHARE).bound
    except ValueError:
        raise BadSettingError(f"OTEL_TRACES_SAMPLER_ARG is {text!r}, expected a number from 0 to 1") from None
    name = name or "parentbased_traceidratio"
    bounds = {"always_on": TraceIdRatioBased.get_bound_for_rate(1.0), "always_off": 0, "traceidratio": share}
    root = name.removeprefix("parentbased_")
    if root not in bounds:
        expected = ", ".join([*bounds, *(f"parentbased_{one}" for one in bounds)])
        raise BadSettingError(f"OTEL_TRACES_SAMPLER is {name!r}, expected one of {expected}")
    return Sampler(root != name, bounds[root])


def _queue_spans(environment: Mapping[str, str]) -> int:
    text = environment.get("OTEL_BSP_MAX_QUEUE_SIZE", "").strip()
    if not text:
        return DEFAULT_QUEUE_SPANS
    if not text.isdecimal() or not 512 <= int(text) <= 1_000_000:
        raise BadSettingError(f"OTEL_BSP_MAX_QUEUE_SIZE is {text!r}, expected a whole number from 512 to 1000000")
    return int(text)


class Outlet(SpanProcessor):
    """The SDK's batch processor, which never holds more than its queue: it would pay to drop them one by one.

    Spans come from the event loop alone, and go from the SDK's thread alone.
    """

    def __init__(self, environment: Mapping[str, str], counts: SpanCounts) -> None:
        self._exporter = OTLPSpanExporter()
        self._counts = counts
        self._max_spans = _queue_spans(environment)
        self._n_taken = 0
        self._n_gone = 0
        self._receiver = Fault("spans cannot be sent, requests are answered as always", "spans are sent again")
        self._queue = Fault("spans are dropped, their queue is full", "spans are not dropped any more")
        self._words = _LastWords()
        logging.getLogger(_EXPORTER_LOGGER).addFilter(self._words)
        self._batches = BatchSpanProcessor(_Counted(self), max_queue_size=self._max_spans)

    @property
    def n_waiting(self) -> int:
        return self._n_taken - self._n_gone

    def has_room(self) -> bool:
        """Whether it is worth recording one more request."""
        if self.n_waiting < self._max_spans:
            self._queue.did_not_happen()
            return True
        self.drop()
        return False

    def drop(self) -> None:
        self._counts.spans_dropped("queue_full", 1)
        self._queue.happened(RuntimeError(f"{self._max_spans} spans wait"))

    def on_end(self, span: ReadableSpan) -> None:
        if self.n_waiting >= self._max_spans:
            self.drop()
            return
        self._n_taken += 1
        self._batches.on_end(span)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the SDK's thread; tries for at most OTEL_EXPORTER_OTLP_TIMEOUT, by default 10 s."""
        result = self._exporter.export(spans)
        self._n_gone += len(spans)
        if result is SpanExportResult.SUCCESS:
            self._counts.spans_sent(len(spans))
            self._receiver.did_not_happen()
        else:
            self._counts.spans_dropped("not_received", len(spans))
            self._receiver.happened(RuntimeError(self._words.last))
        return result

    def shutdown(self) -> None:
        self._batches.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)

    def give_up(self) -> None:
        self._exporter.shutdown()


class _Counted(SpanExporter):
    """The outlet's own end, as the SDK wants it."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._outlet.export(spans)

    def shutdown(self) -> None:
        self._outlet.give_up()


class _LastWords(logging.Filter):
    """Keeps the exporter's lines, one for each attempt, out of the log, and the last of them for ours."""

    last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.last = record.getMessage()[:300]
        return False
