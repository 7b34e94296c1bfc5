"""Labels from a CSV or Parquet file into the prediction log: all of a file, or nothing of it."""

import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from uuid_utils import uuid7

from tabserve.contract import Contract
from tabserve.history.window import BadQuestionError
from tabserve.labels import ID, LabelReader, Labels
from tabserve.prediction_log.journal import partition_of
from tabserve.prediction_log.labels import LABELS, label_batch
from tabserve.prediction_log.places import Place

NAMED_FAULTS = 20  # the first ones are enough to mend the file
ROWS_AT_ONCE = 65_536


@dataclass
class LabelFile:
    """What a file says."""

    labels: Labels = field(default_factory=Labels)
    n_bad_rows: int = 0
    faults: list[str] = field(default_factory=list)
    """The first of them, each with its line or row."""


def read_label_file(path: Path, contract: Contract) -> LabelFile:
    """Reads a file with the columns prediction_id and label (or value, of a regression), and checks each row.

    A class stands as it stands in answers. Of a prediction that is in the file twice the last row counts.

    Raises:
        BadQuestionError: for a file that cannot be read, or has not these columns.
    """
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise BadQuestionError(f"expected a .csv or .parquet file, got {path}")
    reader = LabelReader(contract)
    found = LabelFile()
    try:
        for place, number, prediction_id, label in readers[path.suffix.lower()](path, reader):
            faults = reader.add(None, prediction_id, label, found.labels)
            if faults:
                found.n_bad_rows += 1
                room = NAMED_FAULTS - len(found.faults)
                found.faults += [f"{place} {number}: {fault}" for fault in faults[:room]]
    except OSError as error:
        raise BadQuestionError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise BadQuestionError(f"{path} is no readable {path.suffix[1:]} file: {str(error).splitlines()[0]}") from error
    return found


def save(labels: Labels, place: Place) -> None:
    """Writes labels as one file of the table, whole or not at all: a sink takes it over as it takes a rolled segment.

    Raises:
        OSError: where that is not possible now.
    """
    last = {prediction_id: position for position, prediction_id in enumerate(labels.ids)}.values()
    once = Labels([labels.ids[i] for i in last], [labels.classes[i] for i in last], [labels.values[i] for i in last])
    now = time.time()
    batch = label_batch(once, np.full(len(once), int(now * 1e6), np.int64), "import")
    folder = place.open_segments(LABELS)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{uuid7()}.parquet"
    written = folder / f"{name}.importing"
    try:
        pq.write_table(pa.Table.from_batches([batch]), written, compression="zstd", store_schema=False)
        date = datetime.fromtimestamp(now, UTC).date().isoformat()
        place.sink.deliver(LABELS, partition_of(date=date), name, written)
    finally:
        written.unlink(missing_ok=True)


def _columns(names: list[str], reader: LabelReader) -> tuple[str, str]:
    label = next((name for name in reader.names if name in names), None)
    if ID not in names or label is None:
        expected = f"{ID} and {' or '.join(reader.names)}"
        raise BadQuestionError(f"expected the columns {expected}, got {', '.join(names[:NAMED_FAULTS]) or 'none'}")
    return ID, label


def _csv_rows(path: Path, reader: LabelReader) -> Iterator[tuple[str, int, Any, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        names = next(lines, [])
        id_at, label_at = (names.index(name) for name in _columns(names, reader))
        for row in lines:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"line {lines.line_num} has {len(row)} columns, expected {len(names)}")
            yield "line", lines.line_num, row[id_at], reader.from_text(row[label_at])


def _parquet_rows(path: Path, reader: LabelReader) -> Iterator[tuple[str, int, Any, Any]]:
    file = pq.ParquetFile(path)
    names = _columns(file.schema_arrow.names, reader)
    number = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(names)):
        for prediction_id, label in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
            number += 1
            yield "row", number, prediction_id, label
