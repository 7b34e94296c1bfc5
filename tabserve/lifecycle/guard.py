"""Goes back by itself: receives Alertmanager's webhook, and rolls a version back that was promoted not long ago; or
pauses, where an alert rings of which that was said before.

Alertmanager sends the same alert again and again, and once more when nobody answered 2xx; so what was done for a group
of alerts and a version is noted in the deployment history, and is not done twice, after a restart neither. Only a
champion that was promoted within the last hours is gone back from: an alert of the model that is back is a matter for
people.
"""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tabserve import deployments
from tabserve.chained_log import BrokenChainError
from tabserve.lifecycle import changes
from tabserve.model_store import ModelRefusedError
from tabserve.rollout_state import ROLLOUT_FILE, BadRolloutError, read_rollout

logger = logging.getLogger(__name__)

# What a model that has just been promoted can be the cause of. Drift is none of it: another model sees the same rows.
# Latency neither: it rises with the load, and a canary has looked at it.
ALERTS = frozenset({"TabserveAccuracyLow", "TabserveErrorGrown", "TabserveErrorsHigh"})
PROMOTIONS = frozenset({"promote", "canary_promote"})

MOST_BYTES = 1_000_000  # of a message; one of a thousand alerts has half of that
TIMEOUT_SECONDS = 10.0


class BadMessageError(Exception):
    """What came is no message of Alertmanager's."""


@dataclass(frozen=True)
class Guard:
    """What goes back, and for how long after a promotion; and on which alerts it pauses, of whatever answers."""

    home: Path
    within: timedelta
    pause_on: frozenset[str] = frozenset()

    def take(self, message: bytes) -> str:
        """Does what a message asks for, if anything, and says what that was.

        Raises:
            BadMessageError: where it is no message of Alertmanager's.
            OSError, BadRolloutError, ModelRefusedError, BrokenChainError: where something should be done, and could not
                be.
        """
        try:
            content = json.loads(message)
            group = str(content["groupKey"])
            firing = [alert for alert in content["alerts"] if alert["status"] == "firing"]
            ringing = [Ringing.of(alert) for alert in firing if self._is_a_reason(alert["labels"])]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadMessageError(
                f"expected a message of Alertmanager's webhook, version 4, with groupKey and alerts ({error!r})"
            ) from error
        if not ringing:
            return "nothing in it is a reason to do anything"
        state = read_rollout(self.home / ROLLOUT_FILE)
        if state is None:
            return "no version was promoted yet"
        meant = [one for one in ringing if _is_about(one.labels, state.champion)]
        if not meant:
            return f"it is about another version than {state.champion}, which answers"
        key = f"{group} {state.champion}"
        grave = [one.labels["alertname"] for one in meant if one.labels["alertname"] in self.pause_on]
        if grave and state.paused is not None:
            return "it is paused already"
        if grave:
            return self._pause(state.champion, grave[0], f"pause {key}")
        return self._go_back(state.champion, meant, key)

    def _is_a_reason(self, labels: dict[str, Any]) -> bool:
        """A warning is of one replica, and so no reason to go back everywhere."""
        name = labels["alertname"]
        return name in self.pause_on or (name in ALERTS and labels.get("severity", "critical") == "critical")

    def _pause(self, champion: str, alert: str, key: str) -> str:
        if any(change.key == key for change in deployments.happened(self.home)):
            return "that was paused for already"  # whoever resumed since knows better
        changes.pause(self.home, f"alert {alert} of {champion}", key=key)
        return f"paused {champion}: {alert}"

    def _go_back(self, champion: str, ringing: list["Ringing"], key: str) -> str:
        done = deployments.happened(self.home)
        if any(change.key == key for change in done):
            return "that was gone back from already"
        since = next((change for change in reversed(done) if _came(change, champion)), None)
        if since is None or since.action not in PROMOTIONS:
            return f"{champion} was not promoted, but gone back to: a matter for people"
        promoted_at = datetime.fromisoformat(since.time)
        # What rang before it answered is not its fault; an alert that names the version is of it in any case.
        its = [one for one in ringing if "model_version" in one.labels or one.since is None or one.since >= promoted_at]
        if not its:
            return f"it rang before {champion} was promoted: a matter for people"
        alert = its[0].labels["alertname"]
        age = datetime.now(UTC) - promoted_at
        if age > self.within:
            return f"{champion} was promoted {age} ago, more than {self.within}: a matter for people"
        to = changes.rollback(self.home, f"alert {alert} of {champion}", key=key, only_from=champion)
        return f"gone back from {champion} to {to.champion}: {alert}"


@dataclass(frozen=True)
class Ringing:
    """An alert that fires, and since when; None where that was not said."""

    labels: dict[str, Any]
    since: datetime | None

    @classmethod
    def of(cls, alert: dict[str, Any]) -> Self:
        since = datetime.fromisoformat(alert["startsAt"]) if "startsAt" in alert else None
        return cls(alert["labels"], since if since is None or since.tzinfo else since.replace(tzinfo=UTC))


def _is_about(labels: dict[str, Any], champion: str) -> bool:
    """Of a version where the alert names one, else of whatever answers."""
    if "model_version" not in labels:
        return True
    return champion in (f"{labels.get('model')}:{labels['model_version']}", labels["model_version"])


def _came(change: deployments.Change, champion: str) -> bool:
    before, after = (state.champion if state else None for state in (change.before, change.after))
    return after == champion != before


def server(guard: Guard, host: str, port: int) -> ThreadingHTTPServer:
    """A server that takes Alertmanager's messages at any path; port 0 for a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_SECONDS

        def do_POST(self) -> None:
            # 2xx ends the matter for Alertmanager, 5xx has it send the message again; 4xx does not.
            length = self.headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MOST_BYTES:
                self._say(413, f"expected a message with a Content-Length of at most {MOST_BYTES}")
                return
            try:
                self._say(200, guard.take(self.rfile.read(int(length))))
            except BadMessageError as error:
                self._say(400, str(error))
            except (OSError, BadRolloutError, ModelRefusedError, BrokenChainError) as error:
                self._say(500, f"could not be done: {error}")

        def _say(self, status: int, sentence: str) -> None:
            logger.log(logging.INFO if status == 200 else logging.ERROR, "%s", sentence)
            body = json.dumps({"done": sentence}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """What it does is in our log already."""

    return ThreadingHTTPServer((host, port), Handler)
