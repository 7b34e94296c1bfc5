"""A fault that lasts: one line in the log when it begins, and one when it has ended."""

import logging
import time

logger = logging.getLogger(__name__)

QUIET_SECONDS = 2.0  # without the fault, until it has ended: on a disk that is nearly full every second write succeeds


class Fault:
    """Something that fails again and again. Used by one thread.

    Args:
        what: the sentence of the beginning, without its end.
        after: the sentence of the end.
    """

    def __init__(self, what: str, after: str) -> None:
        self._what = what
        self._after = after
        self._last: float | None = None

    def happened(self, error: Exception) -> None:
        if self._last is None:
            reason = getattr(error, "strerror", None) or error
            logger.error("%s (%s)", self._what, reason)
        self._last = time.monotonic()

    def did_not_happen(self) -> None:
        if self._last is not None and time.monotonic() - self._last >= QUIET_SECONDS:
            self._last = None
            logger.warning("%s", self._after)
