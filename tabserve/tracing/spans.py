"""Spans of this process: made by OpenTelemetry's SDK, given to the outlet; and the clock by which they are timed."""

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

from tabserve.contract import MAX_ROWS
from tabserve.tracing.receiver import Outlet, SpanCounts

CLOSE_SECONDS = 3.0

NO_PARENT = Context()


class _Ids(RandomIdGenerator):
    """Gives the next trace the id for which it was decided that it is recorded."""

    decided: int | None = None

    def generate_trace_id(self) -> int:
        decided, self.decided = self.decided, None
        return super().generate_trace_id() if decided is None else decided


class Spans:
    """What spans are made with. Made where it serves, after any fork: it has a thread."""

    def __init__(self, environment: Mapping[str, str], counts: SpanCounts) -> None:
        self.outlet = Outlet(environment, counts)
        self._ids = _Ids()
        resource = Resource.create({"process.pid": os.getpid()})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # nobody named it
            resource = resource.merge(Resource({"service.name": "tabserve"}))
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # of what is decided already
            resource=resource,
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_links=MAX_ROWS),  # by default the first of a large batch would be lost
        )
        self._provider.add_span_processor(self.outlet)
        self._tracer = self._provider.get_tracer("tabserve")

    def new_trace_id(self) -> int:
        return self._ids.generate_trace_id()

    def start(self, name: str, start_ns: int, parent: Context = NO_PARENT, **more: Any) -> Span:
        return self._tracer.start_span(name, parent, start_time=start_ns, **more)

    def start_trace(self, trace_id: int, name: str, start_ns: int, **more: Any) -> Span:
        """The first span of a trace whose id was chosen before, to decide whether it is recorded."""
        self._ids.decided = trace_id
        return self.start(name, start_ns, **more)

    def close(self) -> int:
        """Sends what waits, for at most CLOSE_SECONDS. How many spans are lost."""
        sending = threading.Thread(target=self._provider.shutdown, name="tabserve-tracing-close", daemon=True)
        sending.start()
        sending.join(CLOSE_SECONDS)
        return self.outlet.n_waiting


class Clock:
    """Instants as OpenTelemetry wants them, from the clock that never jumps: no child is longer than its parent."""

    __slots__ = ("_offset_ns",)

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def ns(self, seconds: float) -> int:
        """Nanoseconds of the epoch at an instant of time.perf_counter()."""
        return self._offset_ns + int(seconds * 1e9)


def below(span: Span) -> Context:
    """The context of a span's children."""
    return set_span_in_context(span, NO_PARENT)


def fails(span: Span, fault: str) -> None:
    """Marks a span as failed."""
    span.set_attribute("error.type", fault)
    span.set_status(Status(StatusCode.ERROR))
