"""The newest predictions, as lines that a person can read."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tabserve.history.records import Records, opened
from tabserve.history.window import Which, Window
from tabserve.prediction_log.places import Place

HEADER = ("time (UTC)", "prediction_id", "model version", "predicted", "probability", "latency", "came true")
WIDTHS = (23, 36, 28, 12, 11, 10, 9)

SECONDS_BETWEEN_LOOKS = 1.0  # a prediction is there a quarter of a second after it was made: it is seen within two
LOOKED_BACK = timedelta(seconds=30)  # workers write at different moments, on a bad disk late
AT_ONE_LOOK = 200  # lines; nobody reads more


@dataclass(frozen=True)
class Line:
    """What stands in a line about a prediction."""

    microseconds: int
    prediction_id: str
    model_version: str
    predicted: Any
    probability: float | None
    latency_ms: float
    came_true: Any

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.microseconds / 1e6, UTC).replace(tzinfo=None)
        probability = "" if self.probability is None else f"{self.probability:.4f}"
        return _in_columns(
            moment.isoformat(" ", timespec="milliseconds"),
            self.prediction_id,
            self.model_version,
            _shown(self.predicted),
            probability,
            f"{self.latency_ms:.1f} ms",
            _shown(self.came_true),
        )


def header() -> str:
    return _in_columns(*HEADER)


def newest(records: Records, n_lines: int) -> list[Line]:
    """The newest predictions of the window, the newest last."""
    names = next(iter(records.batches("SELECT * FROM predictions LIMIT 0"))).schema.names
    quoted = ['"{}"'.format(name.replace('"', '""')) for name in names if name.startswith("probability:")]
    probability = f"greatest({', '.join(quoted)})" if quoted else "NULL"
    found = records.rows(f"""
        SELECT epoch_us(time), prediction_id, model || ':' || version,
               coalesce(CAST(label AS VARCHAR), CAST(value AS VARCHAR)), {probability}, latency_ms,
               coalesce(true_label, CAST(true_value AS VARCHAR))
        FROM joined ORDER BY time DESC, prediction_id DESC LIMIT {int(n_lines)}
    """)  # names of columns, quoted
    return [Line(*columns) for columns in reversed(found)]  # type: ignore[arg-type]


def follow(place: Place, of: Which, shown: set[str], is_over: threading.Event) -> Iterator[Line | None]:
    """Predictions as they come, until it is over; None where there were more at once than are shown.

    Args:
        shown: the ids of the newest `AT_ONE_LOOK` that were there before. What is not among them later is new, or was
            written late.
    """
    while not is_over.is_set():
        now = datetime.now(UTC)
        with opened(place, Window(now - LOOKED_BACK, now), of) as records:
            found = newest(records, AT_ONE_LOOK)
        new = [line for line in found if line.prediction_id not in shown]
        if len(new) == AT_ONE_LOOK:
            yield None
        yield from new
        shown = {line.prediction_id for line in found}
        is_over.wait(SECONDS_BETWEEN_LOOKS)


def _in_columns(*texts: str) -> str:
    return "  ".join(f"{text:<{width}}" for text, width in zip(texts, WIDTHS, strict=True)).rstrip()


def _shown(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= WIDTHS[3] else text[: WIDTHS[3] - 1] + "…"
