"""The labels that wait to be written, bounded in rows, and what one record of them is.

prediction_id, time    time is when the label came; where there are several of one prediction, the last one counts
label, value           of a class its text, whatever its kind, so that all labels of a place are one table; or a number
business_value         what the prediction was worth, a number; the last one counts, whether or not a label came with it
source                 feedback or import
"""

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tabserve.labels import Labels
from tabserve.prediction_log.columns import TIME, by_day, date_of, number_array, text_array
from tabserve.prediction_log.journal import partition_of
from tabserve.prediction_log.observer import Observer
from tabserve.prediction_log.predictions import NoRoomError

LABELS = "labels"
SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("time", TIME),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("source", pa.string()),
        ("business_value", pa.float64()),  # the last one: files of before 2026-11-26 do not have it
    ]
)
MOST_ROWS = 100_000  # may wait: ten seconds of 20 requests a second that are full


class LabelSource:
    """Labels as they came. A source of the writer.

    Unlike predictions they are not dropped where there is no room, they are refused: who sends one can send it again.
    """

    table = LABELS

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Labels, int]] = []
        self._n_rows = 0
        self._last_time = 0

    @property
    def n_rows(self) -> int:
        return self._n_rows

    def put(self, labels: Labels) -> None:
        """Has labels written.

        Raises:
            NoRoomError: where too many wait already.
        """
        with self._lock:
            if self._n_rows + len(labels) > MOST_ROWS:
                raise NoRoomError(f"{self._n_rows} labels wait to be written already")
            # No two labels of a process have one time: which is the last one is always known.
            first = max(int(time.time() * 1e6), self._last_time + 1)
            self._last_time = first + len(labels) - 1
            self._n_rows += len(labels)
            self._waiting.append((labels, first))

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """As `Source.batches`."""
        with self._lock:
            taken, self._waiting = self._waiting, []
            self._n_rows = 0
        if not taken:
            return
        together = Labels()
        for labels, _ in taken:
            together.extend(labels)
        times = np.concatenate([first + np.arange(len(labels)) for labels, first in taken])
        for day, batch in by_day(label_batch(together, times, "feedback")):
            yield partition_of(date=date_of(day)), batch

    def report(self, observer: Observer) -> None:
        """As `Source.report`."""


def label_batch(labels: Labels, times: npt.NDArray[np.int64], source: str) -> pa.RecordBatch:
    """Records of labels; `times` in microseconds since 1970, one each."""
    columns = [
        text_array(labels.ids),
        number_array(TIME, times),
        text_array(labels.classes),
        _numbers(labels.values),
        text_array([source] * len(labels)),
        _numbers(labels.business_values),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _numbers(values: Sequence[float | None]) -> pa.Array:
    absent = np.array([value is None for value in values], dtype=bool)
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return number_array(pa.float64(), numbers, absent if absent.any() else None)
