"""The prediction log that keeps: what the front door tells it goes to memory here, and a thread writes it."""

from collections.abc import Sequence

from tabserve.labels import Labels
from tabserve.prediction_log.labels import LabelSource
from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.places import Place
from tabserve.prediction_log.predictions import Predictions
from tabserve.prediction_log.rejections import Rejections
from tabserve.prediction_log.sources import PredictionSource
from tabserve.prediction_log.spool import Spool
from tabserve.prediction_log.waiting import WaitingPredictions
from tabserve.prediction_log.writer import Writer
from tabserve.settings import Settings
from tabserve.validation import Violation


class Capture:
    """Keeps predictions, labels and rejected values in a place. A `PredictionLog`."""

    def __init__(self, place: Place, settings: Settings, key: bytes | None, observer: Observer) -> None:
        personal = Personal(key)
        self._waiting = WaitingPredictions(settings.log_max_queued_rows, settings.log_sample, personal)
        self._rejections = Rejections()
        self._labels = LabelSource()
        weight = 1 / settings.log_sample
        predictions = PredictionSource(self._waiting, weight, personal_are_hashed=personal.are_hashed)
        sources = (predictions, self._labels, self._rejections)
        self._writer = Writer(
            place,
            sources,
            retention_days=settings.log_retention_days,
            spool=Spool(place.folder, settings.log_spool_bytes) if place.is_remote else None,
            observer=observer,
        )
        self._writer.start()

    def put(self, predictions: Predictions, latency_seconds: float) -> None:
        """As `PredictionLog.put`."""
        self._waiting.put(predictions, latency_seconds)

    def reject(self, route: str, violations: Sequence[Violation], model_version: str) -> None:
        """As `PredictionLog.reject`."""
        self._rejections.reject(route, violations, model_version)

    def label(self, labels: Labels) -> None:
        """As `PredictionLog.label`."""
        self._labels.put(labels)

    def close(self) -> None:
        """As `PredictionLog.close`."""
        self._waiting.end_turn()
        self._writer.close()
