"""Personal features leave the log's way in before they are queued: hashed where there is a key, else dropped.

A hash is `HMAC-SHA256(key, "<feature>=<value>")` in hexadecimal, the value as JSON spells it (a text without quotes):
whoever has the key can find a person's rows, and nobody else. The name is in it so that equal values of two features do
not look alike.
"""

import hmac
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from tabserve.contract import Feature
from tabserve.prediction_log.predictions import CannotKeepError, Predictions

LEAST_KEY_BYTES = 16  # 128 bits; a shorter key can be guessed, and then every value that has few possibilities


def read_key(path: Path) -> bytes:
    """The key in a file, without the white space around it.

    Raises:
        CannotKeepError: where there is none, or one that is too short.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise CannotKeepError(
            f"the key file {path} of TABSERVE_LOG_KEY_FILE cannot be read ({error.strerror}): "
            "make one with openssl rand -hex 32"
        ) from error
    if len(key) < LEAST_KEY_BYTES:
        raise CannotKeepError(
            f"the key file {path} of TABSERVE_LOG_KEY_FILE holds {len(key)} bytes, "
            f"expected at least {LEAST_KEY_BYTES}: make one with openssl rand -hex 32"
        )
    return key


class Personal:
    """Hides personal values. Where there is a key that costs 3 µs a value."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key

    @property
    def are_hashed(self) -> bool:
        return self._key is not None

    def hide(self, predictions: Predictions) -> Predictions:
        """The same predictions, without a personal value."""
        positions = predictions.contract.personal
        rows = predictions.rows.copy()  # the caller's answer may still need its own
        rows[:, list(positions)] = np.nan
        hashed = [] if self._key is None else [self._hashes(predictions, position) for position in positions]
        return replace(predictions, rows=rows, hashed=hashed)

    def _hashes(self, predictions: Predictions, position: int) -> list[str | None]:
        feature = predictions.contract.features[position]
        return [self._hash(feature, value) for value in predictions.rows[:, position].tolist()]

    def _hash(self, feature: Feature, value: float) -> str | None:
        if math.isnan(value):
            return None
        text = f"{feature.name}={_text(feature, value)}"
        return hmac.digest(self._key or b"", text.encode(), "sha256").hex()


def _text(feature: Feature, value: float) -> str:
    if feature.kind == "category":
        return str(feature.categories[int(value)])
    if feature.kind == "boolean":
        return "true" if value else "false"
    return str(int(value)) if feature.kind == "integer" else repr(value)
