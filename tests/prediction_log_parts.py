"""What the tests of the prediction log share: a contract of every kind, predictions under it, and what is read back."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from conftest import wait_for
from uuid_utils import uuid7

from tabserve.contract import Contract, Feature
from tabserve.prediction_log import PredictionLog, Predictions
from tabserve.prediction_log.opening import open_prediction_log
from tabserve.prediction_log.places import place_of
from tabserve.prediction_log.reading import read
from tabserve.settings import Settings

MODEL = "plans:1.0.0-abcdef"
CONTRACT = Contract(
    features=(
        Feature(name="age", kind="integer"),
        Feature(name="income", kind="number", may_be_missing=True),
        Feature(name="city", kind="category", may_be_missing=True, categories=("Bergen", "Oslo", "Tromsø")),
        Feature(name="zone", kind="category", categories=(1, 2)),
        Feature(name="member", kind="boolean", may_be_missing=True),
    ),
    task="multiclass",
    target="plan",
    classes=("basic", "plus", "pro"),
)
ROW = np.array([44.0, 30500.5, 2.0, 0.0, 1.0])
GAPS = np.array([18.0, np.nan, np.nan, 1.0, np.nan])
SCORES = np.array([0.2, 0.7, 0.1])


class Counts:
    """An observer that counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.errors = 0
        self.queue = 0
        self.spool = 0

    def rows_written(self, table: str, n_rows: int) -> None:
        with self._lock:
            self.written[table] += n_rows

    def rows_dropped(self, reason: str, n_rows: int) -> None:
        with self._lock:
            self.dropped[reason] += n_rows

    def write_failed(self) -> None:
        self.errors += 1

    def queue_holds(self, n_rows: int) -> None:
        self.queue = n_rows

    def spool_holds(self, n_bytes: int) -> None:
        self.spool = n_bytes


def predictions(rows: Sequence[np.ndarray] = (ROW,), contract: Contract = CONTRACT, model: str = MODEL) -> Predictions:
    ids = [str(uuid7()) for _ in rows]
    return Predictions(ids, np.stack(rows), np.stack([SCORES] * len(rows)), model, contract)


def opened(url: str, home: Path, counts: Counts | None = None, **settings: object) -> PredictionLog:
    return open_prediction_log(Settings(log_url=url, **settings), home, counts or Counts())


def records(url: str, table: str = "predictions") -> list[dict]:
    """Every record of a table that a reader finds now."""
    place = place_of(url)
    assert place is not None
    tables = list(read(place, table).tables())
    return pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []


def ids_in(url: str) -> list[str]:
    place = place_of(url)
    assert place is not None
    return [an_id for table in read(place, "predictions").tables() for an_id in table["prediction_id"].to_pylist()]


def wait_for_ids(url: str, ids: Sequence[str]) -> None:
    wait_for(lambda: set(ids) <= set(ids_in(url)))
