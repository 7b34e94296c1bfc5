"""What is asked about the service: whether it lives and is ready, what it serves and has counted, how it is asked."""

import asyncio
import time

from tabserve import documentation
from tabserve.access.description import with_access
from tabserve.access.gate import Gate
from tabserve.answers import Answer, json_answer
from tabserve.asgi import Handler, Receive, Scope
from tabserve.build import this_build
from tabserve.rollout import Rollout
from tabserve.telemetry import METRICS_CONTENT_TYPE, Telemetry


class About:
    """Answers questions about the service, all of them by GET.

    Args:
        gate: what the OpenAPI page says of keys and limits; None where everybody may ask.
    """

    def __init__(self, rollout: Rollout, telemetry: Telemetry, gate: Gate | None) -> None:
        self._rollout = rollout
        self._telemetry = telemetry
        self._gate = gate
        self._started = time.monotonic()
        self.handlers: dict[str, Handler] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metadata": self._metadata,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
            "/": _to_docs,
            **{path: _page(page) for path, page in documentation.PAGES.items()},
        }
        """By path."""

    async def _health(self, _scope: Scope, _receive: Receive) -> Answer:
        loaded = self._rollout.champion().tag if self._rollout.is_ready else None
        return json_answer(
            {
                "status": "alive",
                "model_loaded": loaded is not None,
                "model": loaded.partition(":")[0] if loaded else None,
                "model_version": loaded,
                "uptime_seconds": round(time.monotonic() - self._started, 3),
            }
        )

    async def _ready(self, _scope: Scope, _receive: Receive) -> Answer:
        return json_answer({"status": "ready", "model_version": self._rollout.champion().tag})

    async def _metadata(self, _scope: Scope, _receive: Receive) -> Answer:
        in_service = self._rollout.now
        model = in_service.champion
        metadata = model.loaded.metadata
        return json_answer(
            {
                "model": metadata["name"],
                "model_version": model.tag,
                "trained_at": metadata["trained_at"],
                "in_service_since": in_service.since.isoformat(timespec="seconds"),
                "rollout": self._rollout.as_metadata(),
                "engine": metadata["engine"],
                "metrics": {part: metadata[f"{part}_metrics"] for part in ("test", "train", "baseline")},
                "cross_validation": metadata["cv"],
                "dataset": metadata["dataset"],
                "lineage": metadata.get("lineage"),  # of a model that was retrained: which of the logged rows
                "environment": metadata["environment"],
                "git_commit": metadata["git_commit"],
                "build": await asyncio.to_thread(this_build),  # reads a file, the first time
                "known_limitations": metadata["known_limitations"],
                "contract_hash": model.loaded.contract.hash,
                "contract": model.loaded.contract.model_dump(mode="json"),
            }
        )

    async def _metrics(self, _scope: Scope, _receive: Receive) -> Answer:
        self._telemetry.ready.set(self._rollout.is_ready)
        # Reading the files of all processes takes milliseconds, too long for the event loop.
        body = await asyncio.to_thread(self._telemetry.exposition)
        return Answer(200, body, METRICS_CONTENT_TYPE)

    async def _openapi(self, _scope: Scope, _receive: Receive) -> Answer:
        page = documentation.openapi(self._rollout.champion().loaded)
        return json_answer(with_access(page, self._gate) if self._gate else page)


async def _to_docs(_scope: Scope, _receive: Receive) -> Answer:
    return Answer(307, b"", headers={"location": "/docs"})


def _page(page: documentation.Page) -> Handler:
    async def handler(_scope: Scope, _receive: Receive) -> Answer:
        return Answer(200, page.body(), page.content_type, page.headers)

    return handler
