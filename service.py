"""The Bento service, which `bentoml serve` runs: all that BentoML has to know of tabserve, and its batchable API.

Importing this file reads no model and changes nothing but BentoML's telemetry, which is turned off.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import MutableMapping
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Any

from tabserve import model_store
from tabserve.answers import outcomes
from tabserve.asgi import App, Receive, Scope, Send
from tabserve.audit import NoAuditError
from tabserve.bodies import unwrapped
from tabserve.build import BASE_IMAGE
from tabserve.contract import MAX_ROWS, Rows
from tabserve.engine import finite
from tabserve.http_api import BENTOML_API
from tabserve.json_logs import configure_logging
from tabserve.model_store import ModelRefusedError, StoredModel
from tabserve.prediction_log import CannotKeepError, Predictions
from tabserve.rollout import NotReadyError, choose_model
from tabserve.served_model import ServedModel
from tabserve.settings import BadSettingError, Settings
from tabserve.startup import prepare
from tabserve.validation import InvalidRowsError
from tabserve.worker import Worker

import bentoml
import click
import numpy as np
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import ServiceUnavailable
from pydantic import BaseModel, Field, PrivateAttr, RootModel, model_validator
from uuid_utils import uuid7

logger = logging.getLogger("tabserve.service")

LOOPBACK = "127.0.0.1"

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
            model = self._model = worker.rollout.champion()
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
            starlette.middleware_stack = worker.open(starlette.middleware_stack, receive, host())
            send = closing(send)
        await self._app(scope, receive, send)


def closing(send: Send) -> Send:
    """Closes the worker before uvicorn hears that all is shut down, and the process ends.

    By then every request has been answered: uvicorn waits for them before it says that it is time.
    """

    async def send_when_closed(message: MutableMapping[str, Any]) -> None:
        if message["type"].startswith("lifespan.shutdown."):
            await worker.close()
        await send(message)

    return send_when_closed


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


@bentoml.service(
    name="tabserve",
    # With a distribution BentoML installs a compiler and git, for wheels that need neither.
    image=bentoml.images.Image(base_image=BASE_IMAGE, distro="none", python_version="3.11"),
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
        model, settings = chosen_model(), Settings.from_environment()
        configure_logging(settings.log_level)
        is_fixed = settings.model is not None or model_of_bento() is not None
        try:
            prepare(settings, model.tag, is_fixed=is_fixed, host=host(), tls=tls_files(), n_workers=n_workers())
        except (BadSettingError, CannotKeepError, NoAuditError) as error:
            sys.exit(f"tabserve does not start: {error}")

    def __init__(self) -> None:
        configure_logging(Settings.from_environment().log_level)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start_loading(self) -> None:
        """The worker answers probes while it loads: alive, not ready."""
        self._loading = asyncio.create_task(asyncio.to_thread(worker.load))

    def __is_ready__(self) -> bool:
        return worker.rollout.is_ready

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


def predictions_of(model: ServedModel, rows: list[Row]) -> list[Prediction]:
    started = time.perf_counter()
    values = np.stack([row.values for row in rows])
    contract = model.loaded.contract
    scores = finite(model.loaded.engine.predict(values))
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
