"""Predictions of a window as a file of their own, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from uuid_utils import uuid7

from tabserve.history.records import Records
from tabserve.history.window import BadQuestionError

_WRITERS: dict[str, Callable[[str, pa.Schema], Any]] = {
    ".parquet": lambda path, schema: pq.ParquetWriter(path, schema, compression="zstd"),
    ".csv": pyarrow.csv.CSVWriter,
}


def check_target(target: Path) -> None:
    """Whether predictions can be written as such a file.

    Raises:
        BadQuestionError: where not.
    """
    if target.suffix.lower() not in _WRITERS:
        raise BadQuestionError(f"expected a .parquet or .csv file, got {target}")
    if not target.parent.is_dir():
        raise BadQuestionError(f"{target.parent} is no folder")


def export(records: Records, target: Path, *, with_labels: bool) -> int:
    """Writes predictions, in no order; returns how many. Memory does not grow with them.

    Raises:
        OSError: where the file cannot be written; what was there before is there still.
    """
    n_rows = 0
    unfinished = target.with_name(f".{uuid7()}{target.suffix}")
    batches = records.batches(f"SELECT * FROM {'joined' if with_labels else 'predictions'}")
    first = next(batches)  # there is always one, with the schema
    try:
        with _WRITERS[target.suffix.lower()](str(unfinished), first.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                n_rows += len(batch)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return n_rows
