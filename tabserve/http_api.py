"""The front door: our routes, answered before BentoML's router; everything that is BentoML's own is passed on to it.

    POST /predict   POST /predict/batch   GET /health   GET /ready   GET /metadata   GET /metrics
    GET /openapi.json   GET /docs   GET /redoc

Every error of these routes is `{"error": sentence, "detail": [{"row", "feature", "rule", "got"}]}`.
"""

import asyncio
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
from tabserve.contract import MAX_ROWS
from tabserve.engine import Scores
from tabserve.prediction_log import PredictionLog, Predictions
from tabserve.rollout import NotReadyError, Rollout, ServedModel
from tabserve.settings import Settings
from tabserve.telemetry import METRICS_CONTENT_TYPE, Telemetry
from tabserve.validation import ReadRows

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

JSON_TYPE = b"application/json"
RETRY_AFTER_SECONDS = 1
SECONDS_BETWEEN_REFUSAL_LINES = 1.0  # writing a line costs as much as refusing several requests

ROWS_OF_A_TURN = 128  # of an answer are written before the event loop looks at others: 0.2 ms
INLINE_BYTES = 8192  # of a body that needs a closer look: handing it to a thread takes about as long as looking


class ClientGoneError(Exception):
    """Nobody is left to answer."""


Handler = Callable[[Scope, Receive], Awaitable[Answer]]


class FrontDoor:
    """The ASGI app before BentoML's.

    Args:
        app: BentoML's app, which answers what is its own.
        rollout: says which model answers.
    """

    def __init__(
        self,
        app: App,
        *,
        rollout: Rollout,
        settings: Settings,
        telemetry: Telemetry,
        prediction_log: PredictionLog,
    ) -> None:
        self._app = app
        self._rollout = rollout
        self._settings = settings
        self._telemetry = telemetry
        self._prediction_log = prediction_log
        self._timeout_seconds = settings.request_timeout_ms / 1000
        self._started = time.monotonic()
        self._next_refusal_line = self._started
        self._refused_without_a_line = 0
        # For what would hold up the event loop, which has probes to answer: long batches, and bodies that are looked at
        # value by value. Two threads, because a body must not wait for a batch to learn that there is no room for it.
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="tabserve-engine")
        self._reader_thread = ThreadPoolExecutor(1, thread_name_prefix="tabserve-reader")
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
        path = scope["path"]
        route = self._routes.get(path)
        if route is not None:
            await self._respond(path, route, scope, receive, send)
        elif path == BENTOML_API:
            await self._guard_bentomls_api(scope, receive, send)
        elif path in BENTOML_PATHS or path.startswith(BENTOML_FILES):
            await self._app(scope, receive, send)
        else:
            await self._respond("other", ("*", self._nothing_here), scope, receive, send)

    async def _respond(
        self, label: str, route: tuple[str, Handler], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers one request on our own routes, whatever comes of it, and counts it below `label`."""
        started = scope["tabserve.started"] = time.perf_counter()
        error: Exception | None = None
        try:
            _check_method(route[0], scope)
            answer = await route[1](scope, receive)
        except ClientGoneError:
            return
        except Exception as fault:  # noqa: BLE001  # a caller gets a sentence, the log gets the traceback
            refusal = _as_refusal(fault)
            error = refusal or fault
            answer = (refusal or HttpError(500, "The service failed to answer; its log says why.")).answer()
        await _send(send, answer, with_body=scope["method"] != "HEAD")
        self._record(label, scope["method"], answer, error, time.perf_counter() - started)

    async def _guard_bentomls_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes BentoML's own API on, which by itself would read a body of any size and kind."""
        started = time.perf_counter()
        error: Exception | None = None
        try:
            receive = _replaying(await self._read_json_body(scope, receive), receive)
        except ClientGoneError:
            return
        except HttpError as refusal:
            error, answer = refusal, refusal.answer()
            await _send(send, answer, with_body=True)
        else:
            answer, error = await _passed_on(self._app, scope, receive, send)
        self._record(BENTOML_API, scope["method"], answer, error, time.perf_counter() - started)
        if error is not None and not isinstance(error, HttpError):
            raise error

    async def _nothing_here(self, scope: Scope, _receive: Receive) -> Answer:
        known = ", ".join(path for path in self._routes if not path.endswith(("/", ".js")))
        raise HttpError(404, f"There is nothing at {quoted(scope['path'])}; known are {known}.")

    # --- predictions

    async def _predict(self, scope: Scope, receive: Receive) -> Answer:
        model, batcher = self._model_with_room(scope)
        body = await self._read_json_body(scope, receive)
        rows = model.bodies.quick_one(body) or await self._look_closer(model.bodies.one, body)
        scores = await self._score(batcher, rows, scope, receive)
        (said,) = _said(model, scores)
        self._add_warnings([said], rows)
        answer = {
            **said,
            "model_version": model.tag,
            "n_features_in": rows.values.shape[1],
            "latency_ms": _milliseconds_since(scope["tabserve.started"]),
        }
        predictions = Predictions([said["prediction_id"]], rows.values, scores, model.tag)
        return Answer(200, msgspec.json.encode(answer), predictions=predictions)

    async def _predict_batch(self, scope: Scope, receive: Receive) -> Answer:
        model, batcher = self._model_with_room(scope)
        body = await self._read_json_body(scope, receive)
        rows = model.bodies.quick_many(body) or await self._look_closer(model.bodies.many, body)
        scores = await self._score(batcher, rows, scope, receive)
        said = _said(model, scores[:ROWS_OF_A_TURN])
        for start in range(ROWS_OF_A_TURN, len(scores), ROWS_OF_A_TURN):
            await asyncio.sleep(0)
            said += _said(model, scores[start : start + ROWS_OF_A_TURN])
        self._add_warnings(said, rows)
        answer = {
            "predictions": said,
            "model_version": model.tag,
            "n_instances": len(said),
            "n_features_in": rows.values.shape[1],
            "latency_ms": _milliseconds_since(scope["tabserve.started"]),
        }
        predictions = Predictions([of_row["prediction_id"] for of_row in said], rows.values, scores, model.tag)
        return Answer(200, msgspec.json.encode(answer), predictions=predictions)

    def _model_with_room(self, scope: Scope) -> tuple[ServedModel, Batcher]:
        """The model for a request and its batcher, where it has room: under overload a body is not even read."""
        model = self._rollout.champion()
        batcher = self._batchers.get(model) or self._batcher_of(model)
        try:
            batcher.admit(1, self._seconds_left(scope))
        except RefusedError as error:
            raise _overloaded(error) from error
        return model, batcher

    def _seconds_left(self, scope: Scope) -> float:
        left: float = self._timeout_seconds + scope["tabserve.started"] - time.perf_counter()
        return left

    async def _look_closer(self, read: Callable[[bytes], ReadRows], body: bytes) -> ReadRows:
        if len(body) <= INLINE_BYTES:
            return read(body)
        return await asyncio.get_running_loop().run_in_executor(self._reader_thread, read, body)

    async def _score(self, batcher: Batcher, rows: ReadRows, scope: Scope, receive: Receive) -> Scores:
        try:
            return await batcher.submit(
                rows.values, timeout_seconds=self._seconds_left(scope), is_wanted=_still_connected(receive)
            )
        except RefusedError as error:
            raise _overloaded(error) from error
        except CallerGoneError as error:
            raise ClientGoneError from error
        except DeadlineExceededError as error:
            raise HttpError(504, f"The service is overloaded: {error}; try again later.") from error

    def _batcher_of(self, model: ServedModel) -> Batcher:
        batcher = Batcher(
            model.loaded.engine.predict,
            self._engine_thread,
            self._telemetry.of_model(model.tag),
            max_rows=MAX_ROWS,
            max_queued_rows=self._settings.max_queued_rows,
            budget_seconds=self._settings.batch_budget_ms / 1000,
            merges=self._settings.batching,
        )
        for n_rows, seconds in model.warm_up_times:
            batcher.service_time.observe(n_rows, seconds)
        self._batchers[model] = batcher
        return batcher

    def _add_warnings(self, said: list[dict[str, Any]], rows: ReadRows) -> None:
        for row, warnings in rows.warnings.items():
            said[row]["warnings"] = [warning.as_detail() for warning in warnings]
            for warning in warnings:
                self._telemetry.value_out_of_range(warning.feature or "")

    async def _read_json_body(self, scope: Scope, receive: Receive) -> bytes:
        _check_media_type(scope)
        limit = self._settings.max_body_bytes
        if _is_all_here(receive):
            body: bytes = (await receive()).get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            return body
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await _body_in_pieces(receive, limit)
        except TimeoutError:
            message = f"The body did not come within {self._timeout_seconds:g} s; send it faster, or send less."
            raise HttpError(408, message, headers={"connection": "close"}) from None

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
        self._telemetry.request_done(route, answer.status, elapsed_seconds)
        predictions = answer.predictions
        if predictions is not None:
            self._prediction_log.put(predictions, elapsed_seconds)
        if isinstance(error, HttpError):
            for violation in error.violations:
                self._telemetry.value_rejected(violation.rule)
        if not self._gets_a_line(route, answer.status):
            return
        champion = self._rollout.champion().tag if self._rollout.is_ready else None
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": answer.status,
            "latency_ms": round(elapsed_seconds * 1000, 3),
            "model_version": predictions.model_version if predictions else champion,
            "prediction_ids": predictions.ids if predictions else [],
        }
        if answer.status == 503:
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

    def _gets_a_line(self, route: str, status: int) -> bool:
        """Whether a request is logged: if it failed; but a flood that is refused must not become a flood of lines."""
        if status < 400:
            return random.random() < self._settings.log_success_share  # noqa: S311
        if route == "/ready":
            return False  # a probe that is told "not ready" is no failure, and comes every few seconds
        if status != 503:
            return True
        now = time.monotonic()
        if now < self._next_refusal_line:
            self._refused_without_a_line += 1
            return False
        self._next_refusal_line = now + SECONDS_BETWEEN_REFUSAL_LINES
        return True


def _check_method(expected: str, scope: Scope) -> None:
    method = scope["method"]
    if expected in (method, "*") or (expected == "GET" and method == "HEAD"):
        return
    allowed = ("GET", "HEAD") if expected == "GET" else (expected,)
    message = f"{scope['path']} takes {' and '.join(allowed)}, got {method}."
    raise HttpError(405, message, headers={"allow": ", ".join(allowed)})


def _check_media_type(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type" and value != JSON_TYPE:
            media_type = value.split(b";")[0].strip().lower()
            if media_type != JSON_TYPE:
                got = quoted(media_type.decode("latin-1"))
                raise HttpError(415, f"Expected Content-Type: application/json, got {got}.")
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            got = quoted(value.strip().lower().decode("latin-1"))
            raise HttpError(415, f"Expected a body without Content-Encoding, got {got}.")


async def _body_in_pieces(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"The body is larger than {limit} bytes; send fewer rows in a request.")


def _said(model: ServedModel, scores: Scores) -> list[dict[str, Any]]:
    """What a caller is told of each row: an id of its own, and what its scores say."""
    return [{"prediction_id": str(uuid7()), **said} for said in outcomes(model.loaded.contract, scores)]


def _overloaded(error: RefusedError) -> HttpError:
    headers = {"retry-after": str(math.ceil(error.retry_after))}
    return HttpError(503, f"The service is overloaded: {error}.", headers=headers)


def _as_refusal(fault: Exception) -> HttpError | None:
    """What a caller is told of a fault where it has a status of its own; None where it is the service's."""
    if isinstance(fault, NotReadyError):
        return HttpError(503, f"Not ready: {fault}.", headers={"retry-after": str(RETRY_AFTER_SECONDS)})
    return fault if isinstance(fault, HttpError) else None


def _replaying(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already once more, and then what comes after it."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return unread.pop() if unread else await receive()

    return receive_again


# What ASGI has no word for: `receive` is a method of uvicorn's own object for a request, which knows it. Under another
# server nothing is known, and the slower way is taken.


def _is_all_here(receive: Receive) -> bool:
    """Whether the whole body has come: reading it waits for nothing, and needs no time limit."""
    cycle = getattr(receive, "__self__", None)
    return getattr(cycle, "more_body", True) is False and getattr(cycle, "disconnected", True) is False


def _still_connected(receive: Receive) -> Callable[[], bool] | None:
    """Whether the caller still waits. ASGI tells only those who read on."""
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
    headers = [(b"content-type", answer.content_type.encode()), (b"content-length", b"%d" % len(answer.body))]
    if answer.headers:
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})
