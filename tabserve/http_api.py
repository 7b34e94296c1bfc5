"""The front door: our routes, answered before BentoML's router; everything that is BentoML's own is passed on to it.

    POST /predict   POST /predict/batch   POST /feedback
    GET /health   GET /ready   GET /metadata   GET /metrics   GET /openapi.json   GET /docs   GET /redoc

Every error of these routes is `{"error": sentence, "detail": [{"row", "feature", "rule", "got"}]}`.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec
from uuid_utils import uuid7

from tabserve.about import About
from tabserve.access.gate import Gate
from tabserve.answers import Answer, HttpError, json_answer, outcomes, quoted
from tabserve.asgi import (
    App,
    ClientGoneError,
    Handler,
    Receive,
    Scope,
    Send,
    passed_on,
    read_json_body,
    replaying,
    send_answer,
    still_connected,
)
from tabserve.assignment import Arm
from tabserve.audit import Refusals
from tabserve.batcher import Batcher, CallerGoneError, DeadlineExceededError, RefusedError
from tabserve.batchers import Batchers, TraceBatches
from tabserve.bodies import check_json, labels_of
from tabserve.contract import Rows
from tabserve.engine import Scores
from tabserve.labels import Labels, made_at
from tabserve.prediction_log import CannotKeepError, NoRoomError, PredictionLog, Predictions
from tabserve.request_log import RequestLog
from tabserve.rollout import InService, NotReadyError, Rollout
from tabserve.served_model import ServedModel
from tabserve.settings import Settings
from tabserve.telemetry import Telemetry
from tabserve.validation import ReadRows

# What stays BentoML's: probes, its API and the description of it, and the files of its API page. Its page at / is not
# passed on, because it loads a tracker from outside; /docs shows BentoML's API too.
BENTOML_API = "/bento/predict"
BENTOML_PATHS = frozenset({BENTOML_API, "/livez", "/healthz", "/readyz", "/docs.json", "/schema.json"})
BENTOML_FILES = "/static_content/"

RETRY_AFTER_SECONDS = 1
RETRY_PAUSED_SECONDS = 30  # a pause ends when a person says so

# The errors that the audit log has, and what it says of them.
REFUSED_ACCESS = {401: "not known", 403: "not allowed", 429: "too many requests"}

ROWS_OF_A_TURN = 128  # of an answer are written before the event loop looks at others: 0.2 ms
INLINE_BYTES = 8192  # of a body that needs a closer look: handing it to a thread takes about as long as looking

Read = TypeVar("Read", ReadRows, Labels, None)


class FrontDoor:
    """The ASGI app before BentoML's.

    Args:
        app: BentoML's app, which answers what is its own.
        rollout: says which model answers.
        refusals: records who was refused access.
        gate: says who may come in; None where everybody may.
        trace_batches: puts engine and observer of a batcher, of the model so named, where their batches are recorded.
    """

    def __init__(
        self,
        app: App,
        *,
        rollout: Rollout,
        settings: Settings,
        telemetry: Telemetry,
        prediction_log: PredictionLog,
        refusals: Refusals | None = None,
        gate: Gate | None = None,
        trace_batches: TraceBatches | None = None,
    ) -> None:
        self._app = app
        self._rollout = rollout
        self._settings = settings
        self._telemetry = telemetry
        self._prediction_log = prediction_log
        self._refusals = refusals
        self._gate = gate
        self._timeout_seconds = settings.request_timeout_ms / 1000
        self._request_log = RequestLog(settings.log_success_share)
        # For what would hold up the event loop, which has probes to answer: bodies that are looked at value by value.
        # Not a batcher's thread: a body must not wait for a batch to learn that there is no room for it.
        self._reader_thread = ThreadPoolExecutor(1, thread_name_prefix="tabserve-reader")
        self._batchers = Batchers(settings, telemetry, trace_batches)
        about = About(rollout, telemetry, gate)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/predict": ("POST", self._predict),
            "/predict/batch": ("POST", self._predict_batch),
            "/feedback": ("POST", self._feedback),
            **{path: ("GET", handler) for path, handler in about.handlers.items()},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = self._routes.get(path)
        gate = self._gate
        if gate is not None:
            refusal = gate.refusal(scope)
            if refusal is None and gate.is_shared:
                refusal = await gate.refusal_by_all(scope)
            if refusal is not None:
                label = path if route is not None or path in BENTOML_PATHS else "other"
                await self._respond(label, ("*", _refused(refusal)), scope, receive, send)
                return
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
            refusal = refusal or HttpError(500, "The service failed to answer; its log says why.")
            answer = refusal.answer(scope.get("tabserve.trace_id"))
        await send_answer(send, answer, with_body=scope["method"] != "HEAD")
        self._record(label, scope, answer, error, time.perf_counter() - started)

    async def _guard_bentomls_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes BentoML's own API on, which by itself would read a body of any size and kind."""
        started = time.perf_counter()
        error: Exception | None = None
        try:
            if self._rollout.is_ready:
                self._for_predictions()
            body = await self._body(scope, receive)
            if scope["method"] == "POST":
                await self._look_closer(check_json, body)
            receive = replaying(body, receive)
        except ClientGoneError:
            return
        except HttpError as refusal:
            error, answer = refusal, refusal.answer(scope.get("tabserve.trace_id"))
            await send_answer(send, answer, with_body=True)
        else:
            answer, error = await passed_on(self._app, scope, receive, send)
        self._record(BENTOML_API, scope, answer, error, time.perf_counter() - started)
        if error is not None and not isinstance(error, HttpError):
            raise error

    async def _nothing_here(self, scope: Scope, _receive: Receive) -> Answer:
        known = ", ".join(path for path in self._routes if not path.endswith(("/", ".js")))
        raise HttpError(404, f"There is nothing at {quoted(scope['path'])}; known are {known}.")

    # --- predictions

    async def _predict(self, scope: Scope, receive: Receive) -> Answer:
        in_service = self._for_predictions()
        arm = in_service.only or in_service.arm_of_request(scope)
        batcher = self._batcher_with_room(arm.model, scope) if arm else None
        body = await self._body(scope, receive)
        bodies = in_service.champion.bodies
        rows = bodies.quick_one(body) or await self._look_closer(bodies.one, body)
        if arm is None:
            (arm,) = scope["tabserve.arms"] = in_service.arms_of_rows(rows.values)
        model = arm.model
        scores = await self._score(batcher or self._batchers.of(model), rows.values, scope, receive)
        (said,) = _said(model, scores)
        self._add_warnings([said], rows)
        answer = {
            **said,
            "model_version": model.tag,
            "n_features_in": rows.values.shape[1],
            "latency_ms": _milliseconds_since(scope["tabserve.started"]),
        }
        predictions = Predictions(
            [said["prediction_id"]], rows.values, scores, model.tag, model.loaded.contract, arm.variant
        )
        return Answer(200, msgspec.json.encode(answer), predictions=(predictions,))

    async def _predict_batch(self, scope: Scope, receive: Receive) -> Answer:
        in_service = self._for_predictions()
        arm = in_service.only or in_service.arm_of_request(scope)
        batcher = self._batcher_with_room(arm.model, scope) if arm else None
        body = await self._body(scope, receive)
        bodies = in_service.champion.bodies
        rows = bodies.quick_many(body) or await self._look_closer(bodies.many, body)
        if arm is None or batcher is None:
            said, predictions = await self._said_by_row(in_service.arms_of_rows(rows.values), rows, scope, receive)
        else:
            scores = await self._score(batcher, rows.values, scope, receive)
            said = await _said_by_turns(arm.model, scores)
            predictions = (_predictions(arm, said, rows.values, scores),)
        self._add_warnings(said, rows)
        answer = {
            "predictions": said,
            "model_version": (arm.model if arm else in_service.champion).tag,
            "n_instances": len(said),
            "n_features_in": rows.values.shape[1],
            "latency_ms": _milliseconds_since(scope["tabserve.started"]),
        }
        return Answer(200, msgspec.json.encode(answer), predictions=predictions)

    async def _said_by_row(
        self, of_rows: Sequence[Arm], rows: ReadRows, scope: Scope, receive: Receive
    ) -> tuple[list[dict[str, Any]], tuple[Predictions, ...]]:
        """What is said of each row where a feature decides who answers it, and what each arm predicted."""
        arms = scope["tabserve.arms"] = list(dict.fromkeys(of_rows))
        places = [[place for place, of_row in enumerate(of_rows) if of_row is arm] for arm in arms]
        parts = [rows.values[of_arm] for of_arm in places]
        asked = [
            self._score(self._batchers.of(arm.model), part, scope, receive)
            for arm, part in zip(arms, parts, strict=True)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        said: list[dict[str, Any]] = [{}] * len(of_rows)
        predictions = []
        for arm, of_arm, part, scores in zip(arms, places, parts, answers, strict=True):
            if isinstance(scores, BaseException):
                scope["tabserve.arms"] = (arm,)  # the other one is not to blame
                raise scores
            said_by_arm = await _said_by_turns(arm.model, scores)
            predictions.append(_predictions(arm, said_by_arm, part, scores))
            for place, of_row in zip(of_arm, said_by_arm, strict=True):
                said[place] = {**of_row, "model_version": arm.model.tag}
        return said, tuple(predictions)

    def _for_predictions(self) -> InService:
        """What answers a request that comes now, where anything is to."""
        in_service = self._rollout.now
        if in_service.paused is not None:
            headers = {"retry-after": str(RETRY_PAUSED_SECONDS)}
            raise HttpError(503, f"Predictions are paused: {in_service.paused}.", headers=headers)
        return in_service

    def _batcher_with_room(self, model: ServedModel, scope: Scope) -> Batcher:
        """The batcher of a model, where it has room for a request: under overload a body is not even read."""
        batcher = self._batchers.of(model)
        try:
            batcher.admit(1, self._seconds_left(scope))
        except RefusedError as error:
            raise _overloaded(error) from error
        return batcher

    def _seconds_left(self, scope: Scope) -> float:
        left: float = self._timeout_seconds + scope["tabserve.started"] - time.perf_counter()
        return left

    async def _look_closer(self, read: Callable[[bytes], Read], body: bytes) -> Read:
        if len(body) <= INLINE_BYTES:
            return read(body)
        return await asyncio.get_running_loop().run_in_executor(self._reader_thread, read, body)

    async def _score(self, batcher: Batcher, rows: Rows, scope: Scope, receive: Receive) -> Scores:
        trace = scope.get("tabserve.trace")  # there only where tracing is on and records this request
        if trace is not None:
            trace.parsed(len(rows))
        try:
            return await batcher.submit(
                rows, timeout_seconds=self._seconds_left(scope), is_wanted=still_connected(receive), trace=trace
            )
        except RefusedError as error:
            raise _overloaded(error) from error
        except CallerGoneError as error:
            raise ClientGoneError from error
        except DeadlineExceededError as error:
            raise HttpError(504, f"The service is overloaded: {error}; try again later.") from error

    def _add_warnings(self, said: list[dict[str, Any]], rows: ReadRows) -> None:
        for row, warnings in rows.warnings.items():
            said[row]["warnings"] = [warning.as_detail() for warning in warnings]
            for warning in warnings:
                self._telemetry.value_out_of_range(warning.feature or "")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        return await read_json_body(scope, receive, max_bytes=limit, max_seconds=self._timeout_seconds)

    # --- labels

    async def _feedback(self, scope: Scope, receive: Receive) -> Answer:
        reader = self._rollout.champion().labels
        labels = await self._look_closer(partial(labels_of, reader), await self._body(scope, receive))
        try:
            self._prediction_log.label(labels)
        except CannotKeepError as error:
            raise HttpError(503, f"The labels were not accepted: {error}.") from error
        except NoRoomError as error:
            headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
            raise HttpError(503, f"The labels were not accepted: {error}; try again.", headers=headers) from error
        now = time.time()
        labelled = labels.labelled_ids()
        delays = [max(0.0, now - moment) for moment in map(made_at, labelled) if moment is not None]
        self._telemetry.labels_came(len(labelled), delays)
        return json_answer({"accepted": len(labels)})

    def _record(
        self, route: str, scope: Scope, answer: Answer, error: BaseException | None, elapsed_seconds: float
    ) -> None:
        self._telemetry.request_done(route, answer.status, elapsed_seconds)
        for predictions in answer.predictions:
            self._prediction_log.put(predictions, elapsed_seconds)
            if self._rollout.shadow is not None:
                self._rollout.shadow.see(predictions)
        if "tabserve.arms" in scope:  # only where a canary or an A/B test is in place
            for arm in scope["tabserve.arms"]:
                self._telemetry.rollout.arm_asked(arm.model.tag, arm.variant, answer.status, elapsed_seconds)
        if isinstance(error, HttpError):
            for violation in error.violations:
                self._telemetry.value_rejected(violation.rule)
            if error.violations and self._rollout.is_ready:
                self._prediction_log.reject(route, error.violations, self._rollout.champion().tag)
            if error.status in REFUSED_ACCESS and self._refusals is not None:
                self._refusals.refused(_who(scope), route, REFUSED_ACCESS[error.status])
        if self._request_log.wants(route, answer.status):
            champion = self._rollout.champion().tag if self._rollout.is_ready else None
            self._request_log.write(
                scope["method"],
                route,
                answer,
                error,
                elapsed_seconds=elapsed_seconds,
                champion=champion,
                trace_id=scope.get("tabserve.trace_id"),
                who=scope.get("tabserve.who"),
            )


def _check_method(expected: str, scope: Scope) -> None:
    method = scope["method"]
    if expected in (method, "*") or (expected == "GET" and method == "HEAD"):
        return
    allowed = ("GET", "HEAD") if expected == "GET" else (expected,)
    message = f"{scope['path']} takes {' and '.join(allowed)}, got {method}."
    raise HttpError(405, message, headers={"allow": ", ".join(allowed)})


def _said(model: ServedModel, scores: Scores) -> list[dict[str, Any]]:
    """What a caller is told of each row: an id of its own, and what its scores say."""
    return [{"prediction_id": str(uuid7()), **said} for said in outcomes(model.loaded.contract, scores)]


async def _said_by_turns(model: ServedModel, scores: Scores) -> list[dict[str, Any]]:
    """The same of many rows; the event loop looks at others in between."""
    said = _said(model, scores[:ROWS_OF_A_TURN])
    for start in range(ROWS_OF_A_TURN, len(scores), ROWS_OF_A_TURN):
        await asyncio.sleep(0)
        said += _said(model, scores[start : start + ROWS_OF_A_TURN])
    return said


def _predictions(arm: Arm, said: list[dict[str, Any]], rows: Rows, scores: Scores) -> Predictions:
    ids = [of_row["prediction_id"] for of_row in said]
    return Predictions(ids, rows, scores, arm.model.tag, arm.model.loaded.contract, arm.variant)


def _overloaded(error: RefusedError) -> HttpError:
    headers = {"retry-after": str(math.ceil(error.retry_after))}
    return HttpError(503, f"The service is overloaded: {error}.", headers=headers)


def _as_refusal(fault: Exception) -> HttpError | None:
    """What a caller is told of a fault where it has a status of its own; None where it is the service's."""
    if isinstance(fault, NotReadyError):
        return HttpError(503, f"Not ready: {fault}.", headers={"retry-after": str(RETRY_AFTER_SECONDS)})
    return fault if isinstance(fault, HttpError) else None


def _who(scope: Scope) -> str:
    """Who asked: the name of a key where one was recognized, else the address."""
    address: str = (scope.get("client") or ("unknown",))[0]
    return scope.get("tabserve.who") or address


def _milliseconds_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


def _refused(refusal: HttpError) -> Handler:
    async def handler(_scope: Scope, _receive: Receive) -> Answer:
        raise refusal

    return handler
