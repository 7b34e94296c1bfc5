"""What the tests of access share."""

import asyncio
import json
from collections import Counter
from pathlib import Path

from tabserve.access.api_keys import KeyFile
from tabserve.access.gate import Gate
from tabserve.access.key_store import write_keys
from tabserve.http_api import FrontDoor
from tabserve.prediction_log import NoPredictionLog
from tabserve.rollout import Rollout
from tabserve.settings import Settings
from tabserve.telemetry import Telemetry


class Counted:
    """An observer that counts."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.stale: dict[str, bool] = {}
        self.alone = 0

    def access_refused(self, reason: str) -> None:
        self.refused[reason] += 1

    def file_is_stale(self, source: str, *, is_stale: bool) -> None:
        self.stale[source] = is_stale

    def limited_alone(self) -> None:
        self.alone += 1


def add_key(path: Path, name: str, *scopes: str, **more) -> str:
    """Adds a key to a file, and returns what its holder shows."""
    known = KeyFile.parse(path.read_bytes()) if path.exists() else KeyFile()
    keys, _, shown = known.created(name, scopes, **more)
    write_keys(path, keys)
    return shown


def door_with(gate: Gate) -> FrontDoor:
    """A front door without a model: who is let in gets 503, or what needs none."""

    async def bentoml(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return FrontDoor(
        bentoml,
        rollout=Rollout(),
        settings=Settings(),
        telemetry=Telemetry(),
        prediction_log=NoPredictionLog(),
        gate=gate,
    )


def answer_to(
    door: FrontDoor, path: str, *headers: tuple[bytes, bytes], client: tuple[str, int] | None = ("192.0.2.1", 5)
) -> tuple[int, dict[bytes, bytes], dict]:
    """Status, headers and body of an answer."""
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": path, "headers": list(headers), "client": client}
    asyncio.run(door(scope, receive, send))
    body = sent[1].get("body") or b"{}"
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body) if body.startswith(b"{") else {}
