"""The Bento service, which `bentoml serve` runs: it loads the model, opens the front door, has BentoML's batchable API.

Importing this file reads no model and changes nothing but BentoML's telemetry, which is turned off.
"""

import asyncio
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tabserve import model_store
from tabserve.access.gate import Gate
from tabserve.access.opening import check_access, open_gate, say_who_may_ask
from tabserve.access.worker_buckets import make_bucket_file
from tabserve.answers import outcomes
from tabserve.asgi import App, Receive, Scope, Send
from tabserve.audit import NoAuditError, Refusals, audit_log, check_audit_log
from tabserve.bodies import unwrapped
from tabserve.connections import bound, limits_of
from tabserve.contract import MAX_ROWS, Rows
from tabserve.http_api import BENTOML_API, FrontDoor
from tabserve.model_store import ModelRefusedError, StoredModel
from tabserve.prediction_log import CannotKeepError, NoPredictionLog, PredictionLog, Predictions
from tabserve.prediction_log.opening import open_prediction_log, usable_url
from tabserve.rollout import NotReadyError, Rollout, choose_model
from tabserve.rollout_follower import Follower
from tabserve.rollout_state import ROLLOUT_FILE
from tabserve.rollout_telemetry import RolloutTelemetry
from tabserve.served_model import ServedModel
from tabserve.settings import BadSettingError, Settings, wants_tracing
from tabserve.shadow import Shadow
from tabserve.telemetry import Telemetry, configure_logging, share_metrics, shared_folder
from tabserve.tls import check_tls
from tabserve.validation import InvalidRowsError

import bentoml
import click
import numpy as np
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import ServiceUnavailable
from pydantic import BaseModel, Field, PrivateAttr, RootModel, model_validator
from starlette.middleware.cors import CORSMiddleware
from uuid_utils import uuid7

if TYPE_CHECKING:
    from tabserve.tracing import Tracing

logger = logging.getLogger("tabserve.service")

LOOPBACK = "127.0.0.1"

# How long another thread, such as the writer of the prediction log, may keep the interpreter from the event loop. By
# default it is 5 ms, longer than an answer takes.
SWITCH_SECONDS = 0.0005

# How the parent tells its workers which model it chose where nobody fixed one: they follow the rollout file then.
MODEL_AT_START = "TABSERVE_MODEL_AT_START"

rollout = Rollout()


@dataclass
class Worker:
    """What a worker has only once it serves."""

    rollout_counts: RolloutTelemetry | None = None
    prediction_log: PredictionLog = field(default_factory=NoPredictionLog)
    tracing: "Tracing | None" = None
    refusals: Refusals | None = None
    gate: Gate | None = None
    follower: Follower | None = None
    watch: asyncio.Task[None] | None = None
    """Of the connections."""


worker = Worker()


class Row(RootModel[list[Any] | dict[str, Any]]):
    """One row for BentoML's own API: values in contract order, or an object of names and values.

    It is checked here, before BentoML's queue: a row that broke the contract in a batch would fail every caller in it.
    """

    _values: Any = PrivateAttr()
    _model: Any = PrivateAttr()

    @property
    def values(self) -> Rows:
        """The row as the contract codes it, shape (features,)."""
        values: Rows = self._values
        return values

    @property
    def model(self) -> ServedModel:
        """The model by whose contract it was read, which answers it."""
        model: ServedModel = self._model
        return model

    @model_validator(mode="after")
    def _keeps_the_contract(self) -> "Row":
        try:
            model = self._model = rollout.champion()
        except NotReadyError as error:
            raise ServiceUnavailable(str(error)) from error
        try:
            self._values = model.reader.read([unwrapped(self.root)]).values[0]
        except InvalidRowsError as error:  # pydantic says which row it is
            worker.prediction_log.reject(BENTOML_API, error.violations, model.tag)
            raise InvalidRowsError([replace(violation, row=None) for violation in error.violations]) from None
        return self


class Prediction(BaseModel):
    """One answer of BentoML's own API: label and probabilities, or the value of a regression."""

    prediction_id: str
    model_version: str
    label: int | str | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    error: str | None = None


class ChosenModel(bentoml.models.BentoModel):  # type: ignore[misc]  # BentoML loads it lazily, untyped
    """The model to serve as BentoML wants to know it, to pin it in a Bento: chosen when BentoML asks, not at import."""

    def __init__(self) -> None:
        pass

    @property
    def tag(self) -> bentoml.Tag:
        return bentoml.Tag.from_taglike(chosen_model().tag)


def chosen_model() -> StoredModel:
    """The model to serve, checked. Ends the process with a sentence where there is none that may be served."""
    try:
        model = choose_model(Settings.from_environment(), pinned=model_of_bento())
        model_store.verify(model)
    except (ModelRefusedError, BadSettingError) as error:
        sys.exit(f"tabserve does not start: {error}")
    return model


def model_of_bento() -> str | None:
    """The tag that the Bento pins which this service was loaded from; None where it runs from its folder."""
    service: Any = Tabserve  # the decorator made a Service of the class, which mypy does not see
    return str(service.bento.info.all_models[0].tag) if service.bento else None


class InFront:
    """Puts the front door before BentoML's own middlewares, when a worker starts.

    BentoML lets a service add middlewares only behind its own, which cost as much as everything that we do for a
    prediction, and arm a timer for each request that lives for `traffic.timeout` (docs/decisions.md has the numbers).
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # what Starlette is told once, before any request
            starlette = scope["app"]
            settings, telemetry = Settings.from_environment(), Telemetry()
            worker.rollout_counts = telemetry.rollout
            worker.prediction_log = open_prediction_log(settings, model_store.home(), telemetry.of_prediction_log())
            worker.tracing = open_tracing(telemetry)
            worker.refusals = Refusals(audit_log(settings, model_store.home()), telemetry.of_audit_log())
            worker.refusals.start()
            worker.gate = gate_of(settings, telemetry)
            front_door = FrontDoor(
                starlette.middleware_stack,
                rollout=rollout,
                settings=settings,
                telemetry=telemetry,
                prediction_log=worker.prediction_log,
                refusals=worker.refusals,
                gate=worker.gate,
                trace_batches=worker.tracing.of_batches if worker.tracing else None,
            )
            outermost: App = worker.tracing.around(front_door) if worker.tracing else front_door
            starlette.middleware_stack = for_pages_of(settings.cors_origins, outermost)
            worker.watch = bound(receive, limits_of(settings), telemetry.connection_refused)
            send = closing(send)
        await self._app(scope, receive, send)


def for_pages_of(origins: tuple[str, ...], app: App) -> App:
    """The app as scripts of web pages of these origins may ask it; the app itself where there are none."""
    if not origins:
        return app
    allowed: App = CORSMiddleware(
        app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["Authorization", "X-API-Key"]
    )
    return allowed


def check_tracing() -> None:
    """Ends the process with a sentence where spans are wanted and cannot be sent."""
    if not wants_tracing():
        return
    try:
        from tabserve.tracing import receiver  # here: the exporter is an extra, and takes memory
    except ImportError as error:
        sys.exit(
            f"tabserve does not start: OTEL_EXPORTER_OTLP_ENDPOINT wants traces, and a package for them is missing "
            f"({error.name}); install it (pip install -r requirements/tracing.txt) or unset the variable"
        )
    try:
        receiver.check(os.environ)
    except BadSettingError as error:
        sys.exit(f"tabserve does not start: {error}")


def tls_files() -> tuple[str | None, str | None, str | None]:
    """Certificate, key and the key's password, as `bentoml serve` was told or configuration.yaml says."""
    command = click.get_current_context(silent=True)
    told = command.params if command else {}
    ssl = BentoMLContainer.ssl
    return (
        told.get("ssl_certfile") or ssl.certfile.get(),
        told.get("ssl_keyfile") or ssl.keyfile.get(),
        told.get("ssl_keyfile_password") or ssl.keyfile_password.get(),
    )


def host() -> str:
    """The address that a worker listens on; in the parent, what `bentoml serve` was told or configuration.yaml says."""
    command = click.get_current_context(silent=True)
    told = command.params if command else {}
    if "fd" in told:
        with socket.socket(fileno=os.dup(told["fd"])) as listener:
            is_of_network = listener.family in (socket.AF_INET, socket.AF_INET6)
            return str(listener.getsockname()[0]) if is_of_network else LOOPBACK
    return str(told.get("host") or BentoMLContainer.http.host.get())


def n_workers() -> int | str:
    """How many processes serve, as configuration.yaml or the decorator says; `cpu_count` for as many as there are."""
    workers: int | str = BentoMLContainer.config.services[Tabserve.name].get()["workers"]  # type: ignore[attr-defined]
    return workers


def bucket_file() -> Path | None:
    """Where the rate limit of several workers is counted."""
    shared = shared_folder()
    return shared / "buckets" if shared else None


def gate_of(settings: Settings, telemetry: Telemetry) -> Gate | None:
    """The gate of this worker, which ends where it cannot be had, or where it listens to strangers without one.

    The parent has looked already; but it was started in another way than by `bentoml serve`, or a file has changed.
    """
    try:
        check_access(settings, host())
        gate = open_gate(settings, telemetry.of_access(), bucket_file())
    except BadSettingError as error:
        logger.critical("the worker ends: %s", error)
        logging.shutdown()
        os._exit(1)
    if gate is not None:
        gate.start()
    return gate


def open_tracing(telemetry: Telemetry) -> "Tracing | None":
    """What records requests, where that is wanted."""
    if not wants_tracing():
        return None
    from tabserve.tracing import Tracing

    return Tracing(os.environ, telemetry.of_tracing(), lambda: rollout.champion().tag if rollout.is_ready else None)


def closing(send: Send) -> Send:
    """Has what was predicted and traced written before uvicorn hears that all is shut down, and the process ends.

    By then every request has been answered: uvicorn waits for them before it says that it is time.
    """

    async def send_when_closed(message: MutableMapping[str, Any]) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await asyncio.to_thread(stop_following)
            await asyncio.to_thread(worker.prediction_log.close)
            if worker.refusals is not None:
                await asyncio.to_thread(worker.refusals.close)
            if worker.gate is not None:
                worker.gate.close()
            if worker.tracing is not None:
                await asyncio.to_thread(worker.tracing.close)
        await send(message)

    return send_when_closed


@bentoml.service(
    name="tabserve",
    workers=1,
    http={"host": LOOPBACK},  # whoever wants others to ask says so, and has keys: tabserve.access.opening
    # BentoML arms a timer per request that lives this long, whatever the answer took: short, to keep few of them.
    traffic={"timeout": 10},
    # Ours replace them: BentoML's count every unknown path as a label, and its tracing costs more than a prediction.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class Tabserve:
    """Serves one model of the BentoML model store."""

    model = ChosenModel()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def choose() -> None:  # BentoML calls it on the class
        """Before any worker starts, in their parent: checks the model, and has every worker serve this one."""
        model = chosen_model()
        is_fixed = Settings.from_environment().model is not None or model_of_bento() is not None
        configure_logging(Settings.from_environment().log_level)
        check_tracing()
        try:
            check_tls(*tls_files())
            check_access(Settings.from_environment(), host())
        except BadSettingError as error:
            sys.exit(f"tabserve does not start: {error}")
        say_who_may_ask(Settings.from_environment(), host())
        # By itself uvicorn believes every process of this machine who the caller is.
        os.environ["FORWARDED_ALLOW_IPS"] = ",".join(Settings.from_environment().trusted_proxies)
        share_metrics()
        if (buckets := bucket_file()) and n_workers() != 1:
            make_bucket_file(buckets)
        os.environ["TABSERVE_MODEL" if is_fixed else MODEL_AT_START] = model.tag
        try:
            os.environ["TABSERVE_LOG_URL"] = usable_url(Settings.from_environment(), model_store.home())
            check_audit_log(Settings.from_environment(), model_store.home())
        except (CannotKeepError, NoAuditError) as error:
            sys.exit(f"tabserve does not start: {error}")
        # Where scikit-learn serves: processes scale, threads of one batch would fight for the cores of the others.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    def __init__(self) -> None:
        configure_logging(Settings.from_environment().log_level)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start_loading(self) -> None:
        """The worker answers probes while it loads: alive, not ready."""
        self._loading = asyncio.create_task(asyncio.to_thread(load))

    def __is_ready__(self) -> bool:
        return rollout.is_ready

    @bentoml.api(batchable=True, max_batch_size=MAX_ROWS, max_latency_ms=10_000, route="/bento/predict")  # type: ignore[untyped-decorator]
    def predict(self, rows: Annotated[list[Row], Field(max_length=MAX_ROWS)]) -> list[Prediction]:
        """Answers rows in batches that BentoML merges from its callers."""
        # Total: it never raises, answers each row, and reads no context (which would be another caller's).
        said: list[Prediction] = []
        for model, of_one in groupby(rows, key=attrgetter("model")):  # while models change there may be two
            some = list(of_one)
            try:
                said += predictions_of(model, some)
            except Exception:  # whatever it was, the other rows of the batch deserve an answer
                logger.exception("a batch of BentoML's API failed, its rows are answered one by one")
                said += [predict_alone(model, row) for row in some]
        return said


Tabserve.add_asgi_middleware(InFront)  # type: ignore[attr-defined]


def load() -> None:
    """Loads the model that the parent chose and puts it in service; a worker that cannot do that ends."""
    try:
        settings, counts = Settings.from_environment(), worker.rollout_counts or Telemetry().rollout
        if settings.model is None:
            follow(settings, counts)
        else:
            rollout.put_in_service(model_store.load(choose_model(settings)), settings)
            counts.in_service(rollout.now.models, is_paused=False)
        quiet_collector()
        sys.setswitchinterval(SWITCH_SECONDS)
    except Exception:
        logger.critical("the model cannot be loaded, the worker ends", exc_info=True)
        logging.shutdown()
        os._exit(1)


def follow(settings: Settings, counts: RolloutTelemetry) -> None:
    """Serves what the rollout file says, from now on."""
    shared = shared_folder()
    worker.follower = Follower(
        rollout,
        model_store.home() / ROLLOUT_FILE,
        settings=settings,
        observer=counts,
        shadow_of=lambda model, share: Shadow(model, share, worker.prediction_log, counts),
        accepted=shared / ROLLOUT_FILE if shared else None,
    )
    worker.follower.begin(otherwise=os.environ.get(MODEL_AT_START) or choose_model(settings).tag)


def stop_following() -> None:
    if worker.follower is not None:
        worker.follower.close()
    if rollout.is_ready and rollout.now.shadow is not None:
        rollout.now.shadow.close()


def quiet_collector() -> None:
    """Keeps the garbage collector away from what lives as long as the process, and from walking each request's timer.

    BentoML arms a timer per request that lives for `traffic.timeout`; with Python's thresholds the collector walks them
    again and again, and stops the process for 50 to 290 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def predictions_of(model: ServedModel, rows: list[Row]) -> list[Prediction]:
    started = time.perf_counter()
    values = np.stack([row.values for row in rows])
    contract = model.loaded.contract
    scores = model.loaded.engine.predict(values)
    said = [
        Prediction(prediction_id=str(uuid7()), model_version=model.tag, **outcome)
        for outcome in outcomes(contract, scores)
    ]
    predictions = Predictions([one.prediction_id for one in said], values, scores, model.tag, contract)
    worker.prediction_log.put(predictions, time.perf_counter() - started)
    return said


def predict_alone(model: ServedModel, row: Row) -> Prediction:
    try:
        return predictions_of(model, [row])[0]
    except Exception as error:  # noqa: BLE001  # it is in the log already, and here in the answer
        return Prediction(prediction_id=str(uuid7()), model_version=model.tag, error=type(error).__name__)
