"""Batches in which there is a request that is recorded, and what the engine did for them."""

import time
from collections.abc import Sequence

from opentelemetry.trace import Link, Span

from tabserve.batcher import Observer, Predict, Slice
from tabserve.contract import Rows
from tabserve.engine import Scores
from tabserve.tracing.requests import RequestTrace
from tabserve.tracing.spans import Clock, Spans, below, fails


class TracedBatches:
    """The observer of one batcher's batches, of which one runs at a time, and its engine."""

    def __init__(self, spans: Spans, predict: Predict, observer: Observer, model_version: str) -> None:
        self._spans = spans
        self._predict = predict
        self._observer = observer
        self._model_version = model_version
        self.queue_left = observer.queue_left
        self.request_split = observer.request_split
        self.refused = observer.refused
        self._span: Span | None = None
        self._clock = Clock()
        self._calls: list[tuple[float, float, int, str | None]] = []

    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices: Sequence[Slice]) -> None:
        self._observer.batch_started(cap_rows, longest_wait_seconds, slices)
        traces: list[RequestTrace] = [job.trace for job, _, _ in slices if job.trace is not None]
        if not traces:
            return
        now = time.perf_counter()
        self._clock = Clock()
        self._calls = []
        self._span = self._spans.start(
            "batch",
            self._clock.ns(now),
            links=[Link(trace.span.get_span_context()) for trace in traces],
            attributes={
                "tabserve.model_version": self._model_version,
                "tabserve.rows": sum(stop - start for _, start, stop in slices),
                "tabserve.requests": len(slices),
            },
        )
        batch = self._span.get_span_context()
        for trace in traces:
            trace.fell_into(batch, self._model_version, now)

    def predict(self, rows: Rows) -> Scores:
        """The engine's answer; may run in a thread, while the event loop does nothing with this batch."""
        if self._span is None:
            return self._predict(rows)
        fault = None
        started = time.perf_counter()
        try:
            return self._predict(rows)
        except Exception as error:
            fault = type(error).__name__
            raise
        finally:
            self._calls.append((started, time.perf_counter(), len(rows), fault))

    def batch_done(self, n_rows: int, service_seconds: float) -> None:
        self._observer.batch_done(n_rows, service_seconds)
        self._end(None)

    def batch_failed(self, reason: str) -> None:
        self._observer.batch_failed(reason)
        self._end(reason)

    def _end(self, fault: str | None) -> None:
        span, self._span = self._span, None
        if span is None:
            return
        context = below(span)
        for started, ended, n_rows, error in self._calls:
            engine = self._spans.start("engine", self._clock.ns(started), context, attributes={"tabserve.rows": n_rows})
            if error is not None:
                fails(engine, error)
            engine.end(self._clock.ns(ended))
        if fault is not None:
            fails(span, fault)
        span.end(self._clock.ns(time.perf_counter()))
