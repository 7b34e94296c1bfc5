"""A model that may answer: loaded, with what reads the rows for it, warmed up and asked its own examples."""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tabserve.bodies import BodyReader
from tabserve.contract import MAX_ROWS
from tabserve.engine import LARGEST_DIFFERENCE
from tabserve.labels import LabelReader
from tabserve.model_store import LoadedModel, ModelRefusedError
from tabserve.settings import Settings
from tabserve.validation import RowReader

WARM_UP_ROWS = (1, 8, 64, MAX_ROWS)  # the batcher's first idea of what a batch costs


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model in service, with what reads the rows for it."""

    loaded: LoadedModel
    reader: RowReader
    bodies: BodyReader
    labels: LabelReader
    warm_up_times: list[tuple[int, float]]
    """Rows and seconds of the batches that it was warmed up with."""

    @cached_property
    def tag(self) -> str:
        return self.loaded.tag


def made_ready(model: LoadedModel, settings: Settings) -> ServedModel:
    """Warms a model up, and checks that it says what it said at training.

    Raises:
        ModelRefusedError: where it says something else.
    """
    times = warm_up(model)
    reader = RowReader(model.contract, strict=settings.strict_ranges)
    return ServedModel(model, reader, BodyReader(reader), LabelReader(model.contract), times)


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
