"""What the tests of monitoring share: prediction logs of chosen rows, scores, times and weights."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from uuid_utils import uuid7

from tabserve.contract import Contract, Rows
from tabserve.engine import Scores
from tabserve.prediction_log.columns import PredictionColumns, by_day, date_of
from tabserve.prediction_log.journal import partition_of
from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.predictions import Predictions
from tabserve.prediction_log.rejections import REJECTIONS, Rejections
from tabserve.prediction_log.sources import PREDICTIONS
from tabserve.validation import Violation


def write_predictions(
    folder: Path,
    contract: Contract,
    rows: Rows,
    scores: Scores,
    times: Sequence[datetime],
    *,
    model_version: str = "plans:1.0.0-abcdef",
    weight: float = 1.0,
    key: bytes | None = None,
    variant: str = "champion",
    ids: Sequence[str] | None = None,
) -> list[str]:
    """Rolled Parquet files of predictions, as a service leaves them in a log at `folder`; returns their ids.

    Args:
        rows: shape (n, features), coded as in the contract.
        scores: shape (n, classes), or (n,) or (n, 1) of a regression.
        times: in UTC, one each; see `spread`.
        key: hashes personal features; where there is none they are left out.
        ids: those of the champion's answers, of a shadow.
    """
    personal = Personal(key)
    columns = PredictionColumns(contract, model_version, variant, weight, personal_are_hashed=personal.are_hashed)
    ids = list(ids or (str(uuid7()) for _ in rows))
    hidden = Predictions(ids, np.asarray(rows, np.float64), scores, model_version, contract)
    if contract.personal:
        hidden = personal.hide(hidden)
    scores = np.asarray(scores, np.float64).reshape(len(rows), -1)
    put = [
        (
            model_version,
            variant,
            contract,
            1,
            [1],
            ids[n],
            hidden.rows[n].tobytes(),
            scores[n].tobytes(),
            [[hashes[n]] for hashes in hidden.hashed],
            times[n].timestamp(),
            [0.001],
        )
        for n in range(len(rows))
    ]
    for day, raw in by_day(columns.raw(put)):
        partition = partition_of(model=columns.model, version=columns.version, date=date_of(day))
        _write(folder / PREDICTIONS / partition, columns.decode(raw))
    return ids


def write_rejections(
    folder: Path, model_version: str, violations: Sequence[Violation], moment: datetime, route: str = "/predict"
) -> None:
    """A rolled Parquet file of rejected values that were counted at one moment."""
    rejections = Rejections()
    rejections.reject(route, violations, model_version)
    ((_, batch),) = rejections.batches()
    times = pa.array([moment] * len(batch), batch.schema.field("time").type)
    batch = batch.set_column(0, "time", times)
    model, _, version = model_version.partition(":")
    partition = partition_of(model=model, version=version, date=moment.astimezone(UTC).date().isoformat())
    _write(folder / REJECTIONS / partition, batch)


def spread(n_rows: int, since: datetime, length: timedelta) -> list[datetime]:
    """Times at equal distances, from `since` on; the last one is before its end."""
    return [since + length * (n / n_rows) for n in range(n_rows)]


def _write(folder: Path, batch: pa.RecordBatch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_batches([batch])
    pq.write_table(table, folder / f"{uuid7()}.parquet", compression="zstd", store_schema=False)
