"""Which model answers whom: for now one champion, chosen when the service starts."""

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from tabserve import model_store
from tabserve.bodies import BodyReader
from tabserve.contract import MAX_ROWS
from tabserve.engine import LARGEST_DIFFERENCE
from tabserve.labels import LabelReader
from tabserve.model_store import LoadedModel, ModelRefusedError, StoredModel
from tabserve.settings import Settings
from tabserve.validation import RowReader

logger = logging.getLogger(__name__)

ROLLOUT_FILE = "rollout.yaml"
WARM_UP_ROWS = (1, 8, 64, MAX_ROWS)  # the batcher's first idea of what a batch costs


class NotReadyError(Exception):
    """No model is in service yet."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model in service, with what reads the rows for it."""

    loaded: LoadedModel
    reader: RowReader
    bodies: BodyReader
    labels: LabelReader
    in_service_since: datetime
    warm_up_times: list[tuple[int, float]]
    """Rows and seconds of the batches that it was warmed up with."""

    @cached_property
    def tag(self) -> str:
        return self.loaded.tag


class Rollout:
    """Chooses the model for each request. Empty, and not ready, until `put_in_service`."""

    def __init__(self) -> None:
        self._champion: ServedModel | None = None

    @property
    def is_ready(self) -> bool:
        return self._champion is not None

    def champion(self) -> ServedModel:
        """The model that answers unless another one is chosen.

        Raises:
            NotReadyError: while it is being loaded.
        """
        if self._champion is None:
            raise NotReadyError("the model is being loaded, try again in a moment")
        return self._champion

    def put_in_service(self, model: LoadedModel, settings: Settings) -> None:
        """Warms a model up, checks that it says what it said at training, and lets it answer.

        Raises:
            ModelRefusedError: where it says something else.
        """
        reader = RowReader(model.contract, strict=settings.strict_ranges)
        times = warm_up(model)
        self._champion = ServedModel(
            model, reader, BodyReader(reader), LabelReader(model.contract), datetime.now(UTC), times
        )
        logger.info("model %s is in service, on %s", model.tag, model.engine.name)


def choose_model(settings: Settings, pinned: str | None = None) -> StoredModel:
    """The model to serve: the one that TABSERVE_MODEL names, else the one that a Bento pins, else the champion of
    the rollout file, else the model that was trained last.

    Raises:
        ModelRefusedError: where it is not in the store.
    """
    wanted = settings.model or pinned or read_champion(model_store.home() / ROLLOUT_FILE)
    return model_store.find(wanted)


def read_champion(path: Path) -> str | None:
    """The champion that the rollout file names; None where there is no such file.

    Raises:
        ModelRefusedError: for a file that names none.
    """
    if not path.exists():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        champion = content["champion"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ModelRefusedError(f"{path} names no champion; expected `champion: name:version`") from error
    if not isinstance(champion, str) or ":" not in champion:
        raise ModelRefusedError(f"{path} names {champion!r} as champion; expected `champion: name:version`")
    return champion


def warm_up(model: LoadedModel) -> list[tuple[int, float]]:
    """Lets a model answer its own examples, and compares; then times batches of several sizes (rows, seconds).

    Raises:
        ModelRefusedError: where an answer is not the one that was saved with the model.
    """
    rows = RowReader(model.contract).read(model.examples["instances"]).values
    expected = np.array(model.examples["scores"])
    found = model.engine.predict(rows)
    limit = LARGEST_DIFFERENCE * np.maximum(1.0, np.abs(expected))
    if found.shape != expected.shape or not (np.abs(found - expected) <= limit).all():
        raise ModelRefusedError(
            f"the model {model.tag} answers its own examples differently here than where it was trained: "
            "train again on this kind of machine"
        )
    times = []
    for n_rows in WARM_UP_ROWS:
        batch = np.resize(rows, (n_rows, rows.shape[1]))
        started = time.perf_counter()
        model.engine.predict(batch)
        times.append((n_rows, time.perf_counter() - started))
    return times
