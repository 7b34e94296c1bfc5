"""What a worker has while it serves: opened before its first request, closed after its last."""

import asyncio
import gc
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from starlette.middleware.cors import CORSMiddleware

from tabserve import model_store
from tabserve.access.gate import Gate
from tabserve.access.opening import check_access, open_gate
from tabserve.asgi import App, Receive
from tabserve.audit import Refusals, audit_log
from tabserve.connections import bound, limits_of
from tabserve.http_api import FrontDoor
from tabserve.prediction_log import NoPredictionLog, PredictionLog
from tabserve.prediction_log.opening import open_prediction_log
from tabserve.rollout import Rollout, choose_model
from tabserve.rollout_follower import Follower
from tabserve.rollout_state import ROLLOUT_FILE
from tabserve.settings import BadSettingError, Settings, wants_tracing
from tabserve.shadow import Shadow
from tabserve.startup import MODEL_AT_START, bucket_file
from tabserve.telemetry import Telemetry, shared_folder

if TYPE_CHECKING:
    from tabserve.tracing import Tracing

logger = logging.getLogger(__name__)

# How long another thread, such as the writer of the prediction log, may keep the interpreter from the event loop. By
# default it is 5 ms, longer than an answer takes.
SWITCH_SECONDS = 0.0005


class Worker:
    """One process that answers. Until it is opened it has no model, and keeps nothing."""

    def __init__(self) -> None:
        self.rollout = Rollout()
        self.prediction_log: PredictionLog = NoPredictionLog()
        self._telemetry: Telemetry | None = None
        self._refusals: Refusals | None = None
        self._gate: Gate | None = None
        self._tracing: Tracing | None = None
        self._follower: Follower | None = None
        self._watch_of_connections: asyncio.Task[None] | None = None

    def open(self, bentoml_app: App, receive: Receive, host: str) -> App:
        """The app that answers, with BentoML's behind it. Called on the event loop; ends the process where it must.

        Args:
            receive: uvicorn's, by which its server is found.
            host: the address that this worker listens on.
        """
        settings, telemetry = Settings.from_environment(), Telemetry()
        self._telemetry = telemetry
        self.prediction_log = open_prediction_log(settings, model_store.home(), telemetry.of_prediction_log())
        self._tracing = self._open_tracing(telemetry)
        self._refusals = Refusals(audit_log(settings, model_store.home()), telemetry.of_audit_log())
        self._refusals.start()
        self._gate = started_gate(settings, telemetry, host)
        app: App = FrontDoor(
            bentoml_app,
            rollout=self.rollout,
            settings=settings,
            telemetry=telemetry,
            prediction_log=self.prediction_log,
            refusals=self._refusals,
            gate=self._gate,
            trace_batches=self._tracing.of_batches if self._tracing else None,
        )
        if self._tracing:
            app = self._tracing.around(app)
        if settings.cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "X-API-Key"],
            )
        self._watch_of_connections = bound(receive, limits_of(settings), telemetry.connection_refused)
        return app

    def load(self) -> None:
        """Loads the model that the parent chose and puts it in service; a worker that cannot do that ends."""
        try:
            settings, counts = Settings.from_environment(), (self._telemetry or Telemetry()).rollout
            if settings.model is None:
                self._follower = Follower(
                    self.rollout,
                    model_store.home() / ROLLOUT_FILE,
                    settings=settings,
                    observer=counts,
                    shadow_of=lambda model, share: Shadow(model, share, self.prediction_log, counts),
                    accepted=shared / ROLLOUT_FILE if (shared := shared_folder()) else None,
                )
                self._follower.begin(otherwise=os.environ.get(MODEL_AT_START) or choose_model(settings).tag)
            else:
                self.rollout.put_in_service(model_store.load(choose_model(settings)), settings)
                counts.in_service(self.rollout.now.models, is_paused=False)
            quiet_collector()
            sys.setswitchinterval(SWITCH_SECONDS)
        except Exception:
            logger.critical("the model cannot be loaded, the worker ends", exc_info=True)
            end()

    async def close(self) -> None:
        """Has what was predicted, refused and traced written, and ends its threads."""
        await asyncio.to_thread(self._stop_following)
        await asyncio.to_thread(self.prediction_log.close)
        if self._refusals is not None:
            await asyncio.to_thread(self._refusals.close)
        if self._gate is not None:
            self._gate.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _open_tracing(self, telemetry: Telemetry) -> "Tracing | None":
        if not wants_tracing():
            return None
        from tabserve.tracing import Tracing  # here: it takes memory

        def champion() -> str | None:
            return self.rollout.champion().tag if self.rollout.is_ready else None

        return Tracing(os.environ, telemetry.of_tracing(), champion)

    def _stop_following(self) -> None:
        if self._follower is not None:
            self._follower.close()
        if self.rollout.is_ready and self.rollout.now.shadow is not None:
            self.rollout.now.shadow.close()


def started_gate(settings: Settings, telemetry: Telemetry, host: str) -> Gate | None:
    """The gate of a worker, which ends where it cannot be had, or where it listens to strangers without one.

    The parent has looked already; but it was started in another way than by `bentoml serve`, or a file has changed.
    """
    try:
        check_access(settings, host)
        gate = open_gate(settings, telemetry.of_access(), bucket_file())
    except BadSettingError as error:
        logger.critical("the worker ends: %s", error)
        end()
    if gate is not None:
        gate.start()
    return gate


def quiet_collector() -> None:
    """Keeps the garbage collector away from what lives as long as the process, and from walking each request's timer.

    BentoML arms a timer per request that lives for `traffic.timeout`; with Python's thresholds the collector walks them
    again and again, and stops the process for 50 to 290 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def end() -> NoReturn:
    """Ends the process at once, whatever its other threads and its server are doing."""
    logging.shutdown()
    os._exit(1)
