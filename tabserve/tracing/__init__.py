"""Spans for OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT is set; elsewhere nothing imports this module.

    POST /predict                     server span, in the caller's trace or its own; linked to each batch it fell into
      parse                           until its rows are read and checked, reading the body included
      queue                           until the first batch takes it
    batch                             a trace of its own, linked to every recorded request in it
      engine                          one each time that the engine is called

A batch has no parent, because it has many: OpenTelemetry's overview, "Links between spans", has links for this. It is
recorded where at least one of its requests is. Whether a request is recorded is decided when it comes; what there is to
tell of it is put together when its answer has been sent.
"""

import logging
from collections.abc import Callable, Mapping

from tabserve.asgi import App
from tabserve.batcher import Observer, Predict
from tabserve.tracing.batches import TracedBatches
from tabserve.tracing.receiver import SpanCounts, sampler_of
from tabserve.tracing.requests import TracedRequests
from tabserve.tracing.spans import CLOSE_SECONDS, Spans

logger = logging.getLogger(__name__)


class Tracing:
    """What is recorded in one process.

    Args:
        model_in_service: the model that is named where no batch answered.

    Raises:
        BadSettingError: for a variable that cannot be used.
    """

    def __init__(
        self, environment: Mapping[str, str], counts: SpanCounts, model_in_service: Callable[[], str | None]
    ) -> None:
        self._sampler = sampler_of(environment)
        self._spans = Spans(environment, counts)
        self._model_in_service = model_in_service

    def around(self, app: App) -> App:
        """The front door, with a server span for each prediction that is recorded."""
        return TracedRequests(app, self._spans, self._sampler, self._model_in_service)

    def of_batches(self, predict: Predict, observer: Observer, model_version: str) -> tuple[Predict, Observer]:
        """The engine and the observer of one batcher, with spans for its batches."""
        traced = TracedBatches(self._spans, predict, observer, model_version)
        return traced.predict, traced

    def close(self) -> None:
        """Sends what waits, for at most CLOSE_SECONDS."""
        n_lost = self._spans.close()
        if n_lost:
            logger.warning("%d spans were not sent within %g s, and are lost", n_lost, CLOSE_SECONDS)
