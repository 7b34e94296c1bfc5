"""Requests that are recorded: which, and the spans of each."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from tabserve.asgi import App, Receive, Scope, Send
from tabserve.tracing.receiver import Sampler
from tabserve.tracing.spans import Clock, Spans, below
from tabserve.tracing.traceparent import Caller, caller_of

ROUTES = frozenset({"/predict", "/predict/batch", "/feedback", "/bento/predict"})  # probes and pages are not recorded
FAULTY_BODY = frozenset({400, 408, 413, 415, 422})


class TracedRequests:
    """The ASGI app before the front door.

    Args:
        model_in_service: what is named where no batch answered.
    """

    def __init__(self, app: App, spans: Spans, sampler: Sampler, model_in_service: Callable[[], str | None]) -> None:
        self._app = app
        self._spans = spans
        self._sampler = sampler
        self._model_in_service = model_in_service

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_one = scope["type"] == "http" and scope["path"] in ROUTES and scope["method"] == "POST"
        trace = self._begin(scope) if is_one else None
        if trace is None:
            return self._app(scope, receive, send)
        scope["tabserve.trace"] = trace
        return self._recorded(trace, scope, receive, send)

    async def _recorded(self, trace: "RequestTrace", scope: Scope, receive: Receive, send: Send) -> None:

        async def send_and_see(message: Any) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            trace.end(self._model_in_service())

    def _begin(self, scope: Scope) -> "RequestTrace | None":
        """What a request is recorded by; None where it is not.

        The id of its trace is put into the scope where it has one: it is recorded, or its caller said so.
        """
        caller = caller_of(scope["headers"])
        if caller is None:
            trace_id = self._spans.new_trace_id()
        else:
            scope["tabserve.trace_id"] = caller.trace_id
            trace_id = int(caller.trace_id, 16)
        if not self._sampler.records(trace_id, caller) or not self._spans.outlet.has_room():
            return None
        scope["tabserve.trace_id"] = f"{trace_id:032x}"
        return RequestTrace(self._spans, scope, trace_id, caller and _context_of(caller, trace_id))


def _context_of(caller: Caller, trace_id: int) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if caller.is_sampled else TraceFlags.DEFAULT)
    return below(NonRecordingSpan(SpanContext(trace_id, caller.span_id, True, flags)))  # noqa: FBT003


class RequestTrace:
    """One request that is recorded."""

    __slots__ = (
        "_clock",
        "_model_version",
        "_n_rows",
        "_parsed",
        "_queued_until",
        "_spans",
        "_started",
        "span",
        "status",
    )

    def __init__(self, spans: Spans, scope: Scope, trace_id: int, caller: Context | None) -> None:
        self._spans = spans
        self._clock = Clock()
        self._started = time.perf_counter()
        self._parsed: float | None = None
        self._queued_until: float | None = None
        self._n_rows: int | None = None
        self._model_version: str | None = None
        self.status: int | None = None
        method, path = scope["method"], scope["path"]
        more: dict[str, Any] = {
            "kind": SpanKind.SERVER,
            "attributes": {
                "http.request.method": method,
                "http.route": path,
                "url.path": path,
                "url.scheme": scope.get("scheme", "http"),
                "network.protocol.version": scope.get("http_version", "1.1"),
            },
        }
        name, start_ns = f"{method} {path}", self._clock.ns(self._started)
        if caller is None:
            self.span = spans.start_trace(trace_id, name, start_ns, **more)
        else:
            self.span = spans.start(name, start_ns, caller, **more)

    def parsed(self, n_rows: int) -> None:
        """The rows are read and checked; from here on they wait."""
        self._parsed, self._n_rows = time.perf_counter(), n_rows

    def fell_into(self, batch: SpanContext, model_version: str, now: float) -> None:
        """A batch takes rows of this request; the first of several ends its waiting."""
        self.span.add_link(batch)
        self._model_version = model_version
        if self._queued_until is None:
            self._queued_until = now

    def end(self, model_in_service: str | None) -> None:
        """The answer was sent, or nobody is left to have it."""
        now = time.perf_counter()
        status, span = self.status, self.span
        fault = "client_gone" if status is None else str(status) if status >= 400 else None
        if self._parsed is not None:
            self._child("parse", self._started, self._parsed, None)
            if self._queued_until is not None:
                self._child("queue", self._parsed, self._queued_until, None)
            elif status != 503:  # which was refused before it waited
                self._child("queue", self._parsed, now, fault)
        elif status in FAULTY_BODY:
            self._child("parse", self._started, now, fault)
        more: dict[str, str | int | None] = {
            "http.response.status_code": status,
            "error.type": fault,
            "tabserve.rows": self._n_rows,
            "tabserve.model_version": self._model_version or model_in_service,
        }
        span.set_attributes({name: value for name, value in more.items() if value is not None})
        if status is not None and status >= 500:  # below it is the caller's fault, which is none of a server span
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._clock.ns(now))

    def _child(self, name: str, start: float, end: float, fault: str | None) -> None:
        attributes = {"error.type": fault} if fault else None
        child = self._spans.start(name, self._clock.ns(start), below(self.span), attributes=attributes)
        child.end(self._clock.ns(end))
