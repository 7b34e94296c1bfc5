"""From the settings to a prediction log: tried before anything is served, opened where it is served."""

from pathlib import Path

from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.personal import read_key
from tabserve.prediction_log.places import check, default_url, place_of
from tabserve.prediction_log.predictions import NoPredictionLog, PredictionLog
from tabserve.settings import Settings


def usable_url(settings: Settings, home: Path) -> str:
    """Where predictions are kept: what the settings say, else the default; tried, so that it is known before serving.

    Raises:
        CannotKeepError: where that is not possible.
    """
    _key_of(settings)
    url = settings.log_url or default_url(home)
    place = place_of(url)
    if place is not None:
        check(place)
    return url


def open_prediction_log(settings: Settings, home: Path, observer: Observer) -> PredictionLog:
    """The prediction log of this process. Called where it is served from, after any fork: it starts threads.

    Raises:
        CannotKeepError: for an address or a key that cannot be used.
    """
    place = place_of(settings.log_url or default_url(home))
    if place is None:
        return NoPredictionLog()
    from tabserve.prediction_log.capture import Capture  # here: pyarrow's 30 MB only where something is written

    return Capture(place, settings, _key_of(settings), observer)


def _key_of(settings: Settings) -> bytes | None:
    return read_key(Path(settings.log_key_file)) if settings.log_key_file else None
