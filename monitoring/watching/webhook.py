"""A POST of JSON to an address of the operator: three attempts, with an idempotency key since they may arrive twice."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tabserve.history.window import BadQuestionError

ATTEMPTS = 3
ANSWER_SECONDS = 10.0
LATER = (408, 425, 429)  # of the refusals of a client's fault those that another attempt may mend


class WebhookFailedError(OSError):
    """It did not take the message; the error says why, without the address: that is often the secret itself."""


class _NoRedirect(HTTPRedirectHandler):
    """Followed, a POST would become a GET without its body, and its answer would look like success."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Webhook:
    url: str = field(repr=False)
    first_pause_seconds: float = 2.0
    """Twice as long before each further attempt."""

    def post(self, content: Mapping[str, Any], key: str, is_stopped: threading.Event) -> str:
        """Posts until it is taken; returns what was answered.

        Raises:
            WebhookFailedError: after three attempts, or a refusal that another one would not mend.
        """
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key, "User-Agent": "tabserve"}
        why = ""
        if is_stopped.is_set():
            raise WebhookFailedError("the monitor was stopped before it was called")
        for attempt in range(ATTEMPTS):
            if attempt and is_stopped.wait(self.first_pause_seconds * 2 ** (attempt - 1)):
                raise WebhookFailedError(f"the monitor was stopped after {why}")
            request = Request(self.url, body, headers, method="POST")  # noqa: S310  # http or https: webhook_of
            try:
                with build_opener(_NoRedirect).open(request, timeout=ANSWER_SECONDS) as answer:
                    return f"HTTP {answer.status}"
            except HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code < 500 and error.code not in LATER:
                    raise WebhookFailedError(f"{why}, which another attempt would not change") from error
            except (OSError, ValueError, HTTPException) as error:
                why = str(getattr(error, "reason", None) or error or type(error).__name__)
        raise WebhookFailedError(f"{ATTEMPTS} attempts, the last: {why}")


def webhook_of(url: str) -> Webhook:
    """The webhook at an address.

    Raises:
        BadQuestionError: where it is none of http or https.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise BadQuestionError("a webhook is an address such as https://host/path; what was given is none")
    return Webhook(url)
