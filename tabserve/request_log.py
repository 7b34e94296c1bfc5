"""A line in the log for a request: for each that failed, and for a share of those that did not."""

import logging
import random
import time
from typing import Any

from tabserve.answers import Answer, HttpError

logger = logging.getLogger(__name__)

FLOODS = frozenset({401, 403, 429, 503})  # what a flood is answered with
SECONDS_BETWEEN_REFUSAL_LINES = 1.0  # writing a line costs as much as refusing several requests


class RequestLog:
    """Chooses which requests get a line, and writes it. No line repeats what a caller sent."""

    def __init__(self, success_share: float) -> None:
        self._success_share = success_share
        self._next_refusal_line = 0.0
        self._refused_without_a_line = 0

    def wants(self, route: str, status: int) -> bool:
        """Whether a request is logged: if it failed; but a flood that is refused must not become a flood of lines."""
        if status < 400:
            return random.random() < self._success_share  # noqa: S311
        if route == "/ready":
            return False  # a probe that is told "not ready" is no failure, and comes every few seconds
        if status not in FLOODS:
            return True
        now = time.monotonic()
        if now < self._next_refusal_line:
            self._refused_without_a_line += 1
            return False
        self._next_refusal_line = now + SECONDS_BETWEEN_REFUSAL_LINES
        return True

    def write(
        self,
        method: str,
        route: str,
        answer: Answer,
        error: BaseException | None,
        *,
        elapsed_seconds: float,
        champion: str | None,
        trace_id: str | None = None,
        who: str | None = None,
    ) -> None:
        """Writes a line. `champion` is the model that is named where none made predictions; `who`, a key's name."""
        predictions = answer.predictions
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": answer.status,
            "latency_ms": round(elapsed_seconds * 1000, 3),
            "model_version": " ".join(one.model_version for one in predictions) or champion,
            "prediction_ids": [its_id for one in predictions for its_id in one.ids],
        }
        if who is not None:
            fields["who"] = who
        if trace_id is not None:
            fields["trace_id"] = trace_id
        if answer.status in FLOODS:
            fields["refused_without_a_line"], self._refused_without_a_line = self._refused_without_a_line, 0
        if isinstance(error, HttpError):
            # A name that is not the model's is the caller's text, as a value is.
            named = [violation for violation in error.violations if violation.rule != "unknown_name"]
            fields["rules"] = sorted(
                {violation.rule for violation in error.violations}
                | {f"{v.rule}:{v.feature}" for v in named if v.feature}
            )
            logger.warning("request refused", extra={"fields": fields})
        elif error is not None:
            logger.error("request failed", exc_info=error, extra={"fields": fields})
        elif answer.status >= 400:
            logger.warning("request refused by BentoML", extra={"fields": fields})
        else:
            logger.info("request", extra={"fields": fields})
