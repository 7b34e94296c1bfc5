"""The prediction log that keeps: what the front door tells it goes to memory here, and a thread writes it."""

from collections.abc import Sequence
from pathlib import Path

from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.personal import Personal, read_key
from tabserve.prediction_log.places import Place, check, default_url, place_of, with_usable_spool
from tabserve.prediction_log.predictions import NoPredictionLog, PredictionLog, Predictions
from tabserve.prediction_log.rejections import Rejections
from tabserve.prediction_log.sources import PredictionSource
from tabserve.prediction_log.spool import Spool
from tabserve.prediction_log.waiting import WaitingPredictions
from tabserve.prediction_log.writer import Writer
from tabserve.settings import Settings
from tabserve.validation import Violation


def usable_url(settings: Settings, home: Path) -> str:
    """Where predictions are kept: what the settings say, else the default; tried, so that it is known before serving.

    Raises:
        CannotKeepError: where that is not possible.
    """
    _key_of(settings)
    url = with_usable_spool(settings.log_url or default_url(home), home)
    place = place_of(url)
    if place is not None:
        check(place)
    return url


def open_prediction_log(settings: Settings, home: Path, observer: Observer) -> PredictionLog:
    """The prediction log of this process. Called where it is served from, after any fork: it starts threads.

    Raises:
        CannotKeepError: for an address or a key that cannot be used.
    """
    place = place_of(settings.log_url or default_url(home), home)
    return NoPredictionLog() if place is None else Capture(place, settings, observer)


class Capture:
    """Keeps predictions and rejected values in a place. A `PredictionLog`."""

    def __init__(self, place: Place, settings: Settings, observer: Observer) -> None:
        personal = Personal(_key_of(settings))
        self._waiting = WaitingPredictions(settings.log_max_queued_rows, settings.log_sample, personal)
        self._rejections = Rejections()
        weight = 1 / settings.log_sample
        predictions = PredictionSource(self._waiting, weight, personal_are_hashed=personal.are_hashed)
        sources = (predictions, self._rejections)
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

    def close(self) -> None:
        """As `PredictionLog.close`."""
        self._writer.close()


def _key_of(settings: Settings) -> bytes | None:
    return read_key(Path(settings.log_key_file)) if settings.log_key_file else None
