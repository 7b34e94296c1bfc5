"""The front door: our routes, answered before BentoML's router; everything that is BentoML's own is passed on to it.

    POST /predict   POST /predict/batch   GET /health   GET /ready   GET /metadata   GET /metrics
    GET /openapi.json   GET /docs   GET /redoc

Every error of these routes is `{"error": sentence, "detail": [{"row", "feature", "rule", "got"}]}`.
"""

import asyncio
import functools
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from uuid_utils import uuid7

from tabserve import documentation
from tabserve.answers import Answer, HttpError, json_answer, outcomes, quoted
from tabserve.batcher import Batcher, CallerGoneError, DeadlineExceededError, RefusedError
from tabserve.bodies import read_many, read_one
from tabserve.contract import MAX_ROWS
from tabserve.engine import Scores
from tabserve.rollout import NotReadyError, Rollout, ServedModel
from tabserve.settings import Settings
from tabserve.telemetry import METRICS_CONTENT_TYPE, Telemetry
from tabserve.validation import ReadRows, RowReader

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

# What stays BentoML's: probes, its API and the description of it, and the files of its API page. Its page at / is not
# passed on, because it loads a tracker from outside; /docs shows BentoML's API too.
BENTOML_API = "/bento/predict"
BENTOML_PATHS = frozenset({BENTOML_API, "/livez", "/healthz", "/readyz", "/docs.json", "/schema.json"})
BENTOML_FILES = "/static_content/"

RETRY_AFTER_SECONDS = 1

# Up to here the event loop reads a body and writes an answer itself: handing it to a thread takes about as long.
INLINE_BYTES = 8192
INLINE_ROWS = 16


class ClientGoneError(Exception):
    """Nobody is left to answer."""


Handler = Callable[[Scope, Receive], Awaitable[Answer]]


class FrontDoor:
    """An ASGI middleware around BentoML's app.

    Args:
        app: BentoML's app, which answers what is its own.
        rollout: says which model answers.
    """

    def __init__(self, app: App, *, rollout: Rollout, settings: Settings, telemetry: Telemetry) -> None:
        self._app = app
        self._rollout = rollout
        self._settings = settings
        self._telemetry = telemetry
        self._started = time.monotonic()
        # For what would hold up the event loop, which has probes to answer: long batches, long bodies, long answers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tabserve")
        self._batchers: WeakKeyDictionary[ServedModel, Batcher] = WeakKeyDictionary()
        self._routes: dict[str, tuple[str, Handler]] = {
            "/predict": ("POST", self._predict),
            "/predict/batch": ("POST", self._predict_batch),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metadata": ("GET", self._metadata),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._openapi),
            "/": ("GET", self._to_docs),
            **{path: ("GET", _page(page)) for path, page in documentation.PAGES.items()},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        path = scope["path"]
        route = self._routes.get(path)
        passed_on = route is None and (path in BENTOML_PATHS or path.startswith(BENTOML_FILES))
        answer: Answer | None = None
        error: BaseException | None = None
        try:
            if path == BENTOML_API:  # BentoML would read a body of any size and kind
                receive = _replaying(await self._read_json_body(scope, receive), receive)
            elif not passed_on:
                answer = await self._answer(route, scope, receive, started)
        except HttpError as refusal:
            error, answer = refusal, refusal.answer()
        except ClientGoneError:
            return
        except Exception as fault:  # noqa: BLE001  # a caller gets a sentence, the log gets the traceback
            error, answer = fault, HttpError(500, "The service failed to answer; its log says why.").answer()
        label = path if route is not None or path == BENTOML_API else "other"
        if answer is not None:
            await _send(send, answer, with_body=scope["method"] != "HEAD")
            self._record(label, scope["method"], answer, error, time.perf_counter() - started)
        elif path != BENTOML_API:
            await self._app(scope, receive, send)
        else:
            answer, error = await _passed_on(self._app, scope, receive, send)
            self._record(label, scope["method"], answer, error, time.perf_counter() - started)
            if error is not None:
                raise error

    async def _answer(
        self, route: tuple[str, Handler] | None, scope: Scope, receive: Receive, started: float
    ) -> Answer:
        if route is None:
            known = ", ".join(path for path in self._routes if not path.endswith(("/", ".js")))
            raise HttpError(404, f"There is nothing at {quoted(scope['path'])}; known are {known}.")
        method, handler = route
        allowed = ("GET", "HEAD") if method == "GET" else (method,)
        if scope["method"] not in allowed:
            message = f"{scope['path']} takes {' and '.join(allowed)}, got {scope['method']}."
            raise HttpError(405, message, headers={"allow": ", ".join(allowed)})
        scope["tabserve.started"] = started
        try:
            return await handler(scope, receive)
        except NotReadyError as error:
            message = f"Not ready: {error}."
            raise HttpError(503, message, headers={"retry-after": str(RETRY_AFTER_SECONDS)}) from error

    # --- predictions

    async def _predict(self, scope: Scope, receive: Receive) -> Answer:
        model = self._rollout.champion()
        rows = await self._read(read_one, model, scope, receive)
        predictions = self._predictions(model, rows, await self._score(model, rows, receive))
        answer = {
            **predictions[0],
            "model_version": model.tag,
            "n_features_in": rows.values.shape[1],
            "latency_ms": _milliseconds_since(scope["tabserve.started"]),
        }
        ids = (predictions[0]["prediction_id"],)
        return Answer(200, msgspec.json.encode(answer), prediction_ids=ids, model_version=model.tag)

    async def _predict_batch(self, scope: Scope, receive: Receive) -> Answer:
        model = self._rollout.champion()
        rows = await self._read(read_many, model, scope, receive)
        scores = await self._score(model, rows, receive)
        if len(scores) <= INLINE_ROWS:
            return self._batch_answer(model, rows, scores, scope["tabserve.started"])
        answer = functools.partial(self._batch_answer, model, rows, scores, scope["tabserve.started"])
        return await asyncio.get_running_loop().run_in_executor(self._thread, answer)

    def _batch_answer(self, model: ServedModel, rows: ReadRows, scores: Scores, started: float) -> Answer:
        predictions = self._predictions(model, rows, scores)
        answer = {
            "predictions": predictions,
            "model_version": model.tag,
            "n_instances": len(predictions),
            "n_features_in": rows.values.shape[1],
            "latency_ms": _milliseconds_since(started),
        }
        ids = tuple(prediction["prediction_id"] for prediction in predictions)
        return Answer(200, msgspec.json.encode(answer), prediction_ids=ids, model_version=model.tag)

    async def _read(
        self, read: Callable[[RowReader, bytes], ReadRows], model: ServedModel, scope: Scope, receive: Receive
    ) -> ReadRows:
        body = await self._read_json_body(scope, receive)
        if len(body) <= INLINE_BYTES:
            return read(model.reader, body)
        return await asyncio.get_running_loop().run_in_executor(self._thread, read, model.reader, body)

    async def _score(self, model: ServedModel, rows: ReadRows, receive: Receive) -> Scores:
        timeout = self._settings.request_timeout_ms / 1000
        try:
            return await self._batcher_of(model).submit(
                rows.values, timeout_seconds=timeout, is_wanted=_still_connected(receive)
            )
        except RefusedError as error:
            headers = {"retry-after": str(math.ceil(error.retry_after))}
            raise HttpError(503, f"The service is overloaded: {error}.", headers=headers) from error
        except CallerGoneError as error:
            raise ClientGoneError from error
        except DeadlineExceededError as error:
            raise HttpError(504, f"The service is overloaded: {error}; try again later.") from error

    def _batcher_of(self, model: ServedModel) -> Batcher:
        batcher = self._batchers.get(model)
        if batcher is None:
            batcher = Batcher(
                model.loaded.engine.predict,
                self._thread,
                self._telemetry,
                max_rows=MAX_ROWS,
                max_queued_rows=self._settings.max_queued_rows,
                budget_seconds=self._settings.batch_budget_ms / 1000,
            )
            for n_rows, seconds in model.warm_up_times:
                batcher.service_time.observe(n_rows, seconds)
            self._batchers[model] = batcher
        return batcher

    def _predictions(self, model: ServedModel, rows: ReadRows, scores: Scores) -> list[dict[str, Any]]:
        """One answer a row, each with an id of its own."""
        self._telemetry.predictions.labels(model.tag).inc(len(scores))
        predictions: list[dict[str, Any]]
        predictions = [
            {"prediction_id": str(uuid7()), **outcome} for outcome in outcomes(model.loaded.contract, scores)
        ]
        for row, warnings in rows.warnings.items():
            predictions[row]["warnings"] = [warning.as_detail() for warning in warnings]
            for warning in warnings:
                self._telemetry.out_of_range.labels(warning.feature).inc()
        return predictions

    async def _read_json_body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        media_type = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise HttpError(
                415, f"Expected Content-Type: application/json, got {quoted(media_type.decode('latin-1'))}."
            )
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding != b"identity":
            raise HttpError(415, f"Expected a body without Content-Encoding, got {quoted(encoding.decode('latin-1'))}.")
        limit = self._settings.max_body_bytes
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > limit:
                raise HttpError(413, f"The body is larger than {limit} bytes; send fewer rows in a request.")
            if not message.get("more_body"):
                return bytes(body)

    # --- about the service

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
        model = self._rollout.champion()
        metadata = model.loaded.metadata
        return json_answer(
            {
                "model": metadata["name"],
                "model_version": model.tag,
                "trained_at": metadata["trained_at"],
                "in_service_since": model.in_service_since.isoformat(timespec="seconds"),
                "engine": metadata["engine"],
                "metrics": {part: metadata[f"{part}_metrics"] for part in ("test", "train", "baseline")},
                "cross_validation": metadata["cv"],
                "dataset": metadata["dataset"],
                "environment": metadata["environment"],
                "git_commit": metadata["git_commit"],
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
        return json_answer(documentation.openapi(self._rollout.champion().loaded))

    async def _to_docs(self, _scope: Scope, _receive: Receive) -> Answer:
        return Answer(307, b"", headers={"location": "/docs"})

    def _record(
        self, route: str, method: str, answer: Answer, error: BaseException | None, elapsed_seconds: float
    ) -> None:
        self._telemetry.requests.labels(route, answer.status).inc()
        self._telemetry.duration.labels(route).observe(elapsed_seconds)
        if isinstance(error, HttpError):
            for violation in error.violations:
                self._telemetry.rejected.labels(violation.rule).inc()
        failed = answer.status >= 400
        # Probes that say "not ready" are no failures, and come every few seconds.
        if (route == "/ready" and failed) or (not failed and random.random() >= self._settings.log_success_share):  # noqa: S311
            return
        model_version = answer.model_version
        if model_version is None and self._rollout.is_ready:
            model_version = self._rollout.champion().tag
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": answer.status,
            "latency_ms": round(elapsed_seconds * 1000, 3),
            "model_version": model_version,
            "prediction_ids": answer.prediction_ids,
        }
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
        elif failed:
            logger.warning("request refused by BentoML", extra={"fields": fields})
        else:
            logger.info("request", extra={"fields": fields})


def _replaying(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already once more, and then what comes after it."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return unread.pop() if unread else await receive()

    return receive_again


def _still_connected(receive: Receive) -> Callable[[], bool] | None:
    """Whether the caller still waits. ASGI tells only those who read on; uvicorn's own object knows it at once."""
    cycle: Any = getattr(receive, "__self__", None)
    return (lambda: not cycle.disconnected) if hasattr(cycle, "disconnected") else None


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


def _page(page: documentation.Page) -> Handler:
    async def handler(_scope: Scope, _receive: Receive) -> Answer:
        return Answer(200, page.body(), page.content_type, page.headers)

    return handler


async def _passed_on(app: App, scope: Scope, receive: Receive, send: Send) -> tuple[Answer, Exception | None]:
    """What BentoML's app answered, without its body, or what it raised: for the metrics and the log."""
    status = 500  # what a caller gets where the app raises before it answers

    async def send_and_see(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    try:
        await app(scope, receive, send_and_see)
    except Exception as error:  # noqa: BLE001  # raised again when it is recorded
        return Answer(status, b""), error
    return Answer(status, b""), None


async def _send(send: Send, answer: Answer, *, with_body: bool) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *((name.encode(), value.encode()) for name, value in answer.headers.items()),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})
