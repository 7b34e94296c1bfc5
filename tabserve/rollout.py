"""Which model answers whom, now: what is in service in this process."""

import logging
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from tabserve import model_store
from tabserve.assignment import Arm, Split
from tabserve.contract import Rows
from tabserve.model_store import LoadedModel, ModelRefusedError, StoredModel
from tabserve.prediction_log.predictions import CHALLENGER, CHAMPION, SHADOW
from tabserve.rollout_state import ROLLOUT_FILE, BadRolloutError, Challenger, read_rollout
from tabserve.served_model import ServedModel, made_ready
from tabserve.settings import Settings
from tabserve.shadow import Shadow

logger = logging.getLogger(__name__)


class NotReadyError(Exception):
    """No model is in service yet."""


@dataclass(frozen=True, eq=False)
class InService:
    """What answers at one moment. A request sees one of these from its beginning to its end.

    `said` is the challenger as the rollout file has it, which is in `split` (canary, A/B) or in `shadow`.
    """

    champion: ServedModel
    since: datetime
    said: Challenger | None = None
    split: Split | None = None
    shadow: Shadow | None = None
    paused: str | None = None

    @cached_property
    def only(self) -> Arm | None:
        """Who is asked where there is no choice."""
        return Arm(self.champion, CHAMPION) if self.split is None else None

    def arm_of_request(self, scope: MutableMapping[str, Any]) -> Arm | None:
        """Who is asked where there is one, noted in the request's scope; None where each row decides."""
        if self.split is None or self.split.is_by_row:
            return None
        arm = self.split.of_request(scope["headers"])
        scope["tabserve.arms"] = (arm,)
        return arm

    def arms_of_rows(self, rows: Rows) -> Sequence[Arm]:
        """Who is asked each row, shape (n, features)."""
        return self.split.of_rows(rows) if self.split else []

    def __str__(self) -> str:
        said = self.said
        beside = f"; {said.mode} of {said.model} for {said.share:g} % of the requests" if said else ""
        paused = "; paused" if self.paused is not None else ""
        return f"model {self.champion.tag} is in service, on {self.champion.loaded.engine.name}{beside}{paused}"

    @cached_property
    def models(self) -> set[tuple[str, str]]:
        """Version and variant of all that are asked."""
        found = {(self.champion.tag, CHAMPION)}
        if self.said is not None:
            found.add((self.said.model, SHADOW if self.shadow else CHALLENGER))
        return found


class Rollout:
    """What is in service. Empty, and not ready, until something is put in service.

    Read on the event loop, changed by a thread: it is one reference, which changes as a whole.
    """

    def __init__(self) -> None:
        self._now: InService | None = None
        self.shadow: Shadow | None = None
        self.refused: str | None = None
        """Why what the rollout file says is not in service."""
        self.is_followed = False

    @property
    def is_ready(self) -> bool:
        return self._now is not None

    @property
    def now(self) -> InService:
        """What is in service.

        Raises:
            NotReadyError: while the model is being loaded.
        """
        if self._now is None:
            raise NotReadyError("the model is being loaded, try again in a moment")
        return self._now

    def champion(self) -> ServedModel:
        """The model that answers unless another one is chosen.

        Raises:
            NotReadyError: while it is being loaded.
        """
        return self.now.champion

    def switch(self, to: InService) -> None:
        """From now on requests are answered by this; those that have begun end as they began."""
        self._now, self.shadow = to, to.shadow

    def put_in_service(self, model: LoadedModel, settings: Settings) -> None:
        """Has one model answer everybody.

        Raises:
            ModelRefusedError: where it answers its own examples differently than at training.
        """
        self.switch(InService(made_ready(model, settings), datetime.now(UTC)))
        logger.info("%s", self._now)

    def as_metadata(self) -> dict[str, Any]:
        """What /metadata says of it."""
        now = self.now
        return {
            "champion": now.champion.tag,
            "challenger": now.said.model_dump() if now.said else None,
            "paused": now.paused,
            "refused": self.refused,
            "followed": self.is_followed,
        }


def choose_model(settings: Settings, pinned: str | None = None) -> StoredModel:
    """The model to begin with: the one that TABSERVE_MODEL names, else the one that a Bento pins, else the champion of
    the rollout file, else the model that was trained last.

    Raises:
        ModelRefusedError: where it is not in the store, or the rollout file cannot be used.
    """
    wanted = settings.model or pinned
    if wanted is None:
        try:
            state = read_rollout(model_store.home() / ROLLOUT_FILE)
        except BadRolloutError as error:
            raise ModelRefusedError(str(error)) from error
        wanted = state.champion if state else None
    return model_store.find(wanted)
