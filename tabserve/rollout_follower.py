"""Follows the rollout file: what it says is put in service while the service runs, and what cannot be is refused.

A thread reads the file a few times a second; on a shared file system nobody would be notified. Each new content is
tried in a thread of its own, so that a model that takes long to load keeps nobody from going back.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tabserve import model_store
from tabserve.assignment import Split
from tabserve.chained_log import BrokenChainError
from tabserve.deployments import champions_before, happened, history, last_champion
from tabserve.model_store import ModelRefusedError
from tabserve.rollout import InService, Rollout
from tabserve.rollout_state import BadRolloutError, Challenger, RolloutState, read_rollout
from tabserve.served_model import ServedModel, made_ready
from tabserve.settings import Settings
from tabserve.shadow import Shadow

logger = logging.getLogger(__name__)

# A rollback is to reach every worker within two seconds. Reading the file takes 20 µs, and unlike its time of change it
# is not answered from the cache of a network file system.
LOOK_SECONDS = 0.2


class RolloutObserver(Protocol):
    """What is told about the rollout; the metrics of the service."""

    def in_service(self, models: set[tuple[str, str]], *, is_paused: bool) -> None:
        """Version and variant of all models that are asked."""

    def refused(self, *, is_refused: bool, is_news: bool) -> None: ...


@dataclass(eq=False)
class _Attempt:
    """One content of the file, None where there is no file, a reason where it cannot be read; and the models that it
    names, as they were.
    """

    content: bytes | str | None
    folders: dict[str, object] = field(default_factory=dict)
    is_refused: bool = False


class Follower:
    """Has a rollout follow a file.

    Args:
        shadow_of: makes the shadow of a model that sees such a share (0 to 1) of the requests.
        accepted: where the workers of a service note what they accepted last, for one that is started again.
    """

    def __init__(
        self,
        rollout: Rollout,
        path: Path,
        *,
        settings: Settings,
        observer: RolloutObserver,
        shadow_of: Callable[[ServedModel, float], Shadow],
        accepted: Path | None = None,
    ) -> None:
        self._rollout = rollout
        self._path = path
        self._settings = settings
        self._observer = observer
        self._shadow_of = shadow_of
        self._accepted = accepted
        self._lock = threading.RLock()  # of what several attempts change
        self._attempt = _Attempt(None)
        self._models: dict[str, Future[ServedModel]] = {}
        # The champion before this one stays loaded and warm: a rollback to it waits for nothing.
        self._standby: str | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tabserve-rollout", daemon=True)

    def begin(self, otherwise: str) -> None:
        """Puts in service what the file says; where that cannot be used what was accepted last, else a model.

        Raises:
            ModelRefusedError: where not even that one can be used.
        """
        self._rollout.is_followed = True
        last = None
        if self._accepted is not None:
            with contextlib.suppress(BadRolloutError):
                last = read_rollout(self._accepted)
        self._attempt = _Attempt(self._read())
        self._thread.start()  # a challenger that hangs while it is loaded keeps nobody from going back either
        if self._attempt.content is not None or last is not None:
            self._try(self._attempt)
        if not self._rollout.is_ready:
            found = self._made(last, self._attempt)[0] if last else None
            self._switch(found or InService(self._model(otherwise), datetime.now(UTC)))
        threading.Thread(target=self._have_standby, name="tabserve-standby", daemon=True).start()

    def close(self) -> None:
        """Ends it. What is in service stays."""
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(2 * LOOK_SECONDS)

    def _run(self) -> None:
        while not self._is_closing.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception:  # a fault of ours must not keep anybody from going back
                logger.exception("the rollout file %s could not be followed", self._path)

    def _have_standby(self) -> None:
        """Loads the champion before this one, which after a start the deployment history alone knows."""
        tag, home = "before", self._path.parent
        try:
            if self._attempt.content is None and (lost := last_champion(history(home))):
                logger.warning("%s is gone, in which %s was champion: another may answer now", self._path, lost)
            earlier = champions_before(happened(home))
            with self._lock:
                if not earlier or self._standby is not None:
                    return
                tag = self._standby = earlier[-1]
            self._model(tag)
        except Exception as error:  # noqa: BLE001  # of a model anything can be broken
            logger.warning("the champion before is not ready for a rollback: %s", _sentence(tag, error))
        else:
            logger.info("model %s is loaded too, for a rollback", tag)

    def _look(self) -> None:
        content, last = self._read(), self._attempt
        if content == last.content and not (last.is_refused and last.folders != _folders(last.folders)):
            return
        attempt = _Attempt(content)
        with self._lock:
            self._attempt = attempt
        threading.Thread(target=self._try, args=(attempt,), name="tabserve-model", daemon=True).start()

    def _read(self) -> bytes | str | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.strerror or type(error).__name__

    def _try(self, attempt: _Attempt) -> None:
        """Puts in service what one content says, or says why not."""
        try:
            state = self._state_of(attempt.content)
        except BadRolloutError as error:
            self._done(attempt, None, None, str(error))
            return
        tags = [state.champion] + ([state.challenger.model] if state.challenger else [])
        attempt.folders = _folders(tags)  # before they are read: what changes meanwhile is then seen
        if state.paused is not None and self._rollout.is_ready:
            self._meanwhile(attempt, replace(self._rollout.now, paused=state.paused))
        self._done(attempt, state, *self._made(state, attempt))

    def _meanwhile(self, attempt: _Attempt, to: InService) -> None:
        """What waits for no model that has still to be loaded."""
        with self._lock:
            if attempt is self._attempt:
                self._switch(to)

    def _state_of(self, content: bytes | str | None) -> RolloutState:
        if content is None:
            raise BadRolloutError(f"{self._path} is gone: what it said last stays until it is there again")
        if isinstance(content, str):
            raise BadRolloutError(f"{self._path} cannot be read: {content}")
        try:
            return RolloutState.parse(content.decode("utf-8"), self._path)
        except UnicodeDecodeError as error:
            raise BadRolloutError(f"{self._path} is no YAML; expected `champion: name:version`") from error

    def _made(self, state: RolloutState, attempt: _Attempt) -> tuple[InService | None, str | None]:
        """What a state puts in service, and what of it is refused: everything, or the challenger alone."""
        try:
            champion = self._model(state.champion)
        except Exception as error:  # noqa: BLE001  # of a model anything can be broken
            return None, _sentence(state.champion, error)
        alone = InService(champion, datetime.now(UTC), paused=state.paused)
        said = state.challenger
        if said is None:
            return alone, None
        if self._rollout.is_ready and self._rollout.champion() is not champion:
            self._meanwhile(attempt, alone)
        try:
            return self._beside(alone, said, self._model(said.model)), None
        except Exception as error:  # noqa: BLE001
            return alone, f"{_sentence(said.model, error)}; the champion serves alone"

    def _beside(self, alone: InService, said: Challenger, model: ServedModel) -> InService:
        ours, theirs = (one.loaded.contract.hash for one in (alone.champion, model))
        if ours != theirs:
            raise ModelRefusedError(
                f"the challenger {said.model} was trained for the contract {theirs[:12]}, the champion for "
                f"{ours[:12]}: only models under one contract can be asked the same rows"
            )
        if said.mode == "shadow":
            return replace(alone, said=said, shadow=self._shadow_of(model, said.share / 100))
        return replace(alone, said=said, split=Split(alone.champion, model, said))

    def _model(self, tag: str) -> ServedModel:
        """A model that is ready, loaded at most once at a time.

        Raises:
            Exception: whatever is wrong with it.
        """
        with self._lock:
            loading = self._models.get(tag)
            is_ours = loading is None
            if loading is None:
                loading = self._models[tag] = Future()
        if is_ours:
            try:
                loading.set_result(made_ready(model_store.load(model_store.find(tag)), self._settings))
            except BaseException as error:  # noqa: BLE001  # it is raised below, for all who wait for the model
                with self._lock:
                    del self._models[tag]
                loading.set_exception(error)
        return loading.result()

    def _done(self, attempt: _Attempt, state: RolloutState | None, to: InService | None, refused: str | None) -> None:
        with self._lock:
            if attempt is not self._attempt:
                return  # the file says something else by now
            if to is None and state is not None and self._rollout.is_ready:
                to = replace(self._rollout.now, paused=state.paused)
            if to is not None:
                self._switch(to)
            is_news = refused is not None and refused != self._rollout.refused
            self._rollout.refused, attempt.is_refused = refused, refused is not None
            self._observer.refused(is_refused=attempt.is_refused, is_news=is_news)
        if is_news:
            logger.error("the rollout is refused: %s", refused)
        elif refused is None and state is not None and self._accepted is not None:
            with contextlib.suppress(OSError):
                state.save(self._accepted)

    def _switch(self, to: InService) -> None:
        with self._lock:
            before = self._rollout.now if self._rollout.is_ready else None
            if before is not None:
                to = _going_on(before, to)
                if before.champion.tag != to.champion.tag:
                    self._standby = before.champion.tag
            if to.shadow is not None and (before is None or to.shadow is not before.shadow):
                to.shadow.start()
            self._rollout.switch(to)
            if before is not None and before.shadow is not None and before.shadow is not to.shadow:
                before.shadow.close(waits=False)
            needed = {tag for tag, _ in to.models} | {self._standby}
            for tag in [tag for tag, model in self._models.items() if model.done() and tag not in needed]:
                del self._models[tag]
            self._observer.in_service(to.models, is_paused=to.paused is not None)
        if before is None or before.models != to.models or before.paused != to.paused or before.said != to.said:
            logger.info("%s", to)


def _going_on(before: InService, to: InService) -> InService:
    """What begins now, with what goes on as it was: the time since when, and what waits for the shadow."""
    if before.champion is to.champion:
        to = replace(to, since=before.since)
    ours, theirs = before.shadow, to.shadow
    if ours is not None and theirs is not None and (ours.model, ours.share) == (theirs.model, theirs.share):
        to = replace(to, shadow=ours)
    return to


def _folders(tags: Iterable[str]) -> dict[str, object]:
    """The files of models, with sizes and times of change: another value where one was added, replaced or mended."""
    found: dict[str, object] = {}
    for tag in tags:
        files = []
        for path in sorted(model_store.directory_of(tag).rglob("*")):
            with contextlib.suppress(OSError):  # removed meanwhile
                status = path.stat()
                files.append((path, status.st_size, status.st_mtime_ns, status.st_ino))
        found[tag] = files
    return found


def _sentence(tag: str, error: Exception) -> str:
    if isinstance(error, ModelRefusedError | BadRolloutError | BrokenChainError):
        return str(error)
    return f"the model {tag} cannot be used ({type(error).__name__}: {error})"
