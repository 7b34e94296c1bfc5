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
from tabserve.labels import BUSINESS_VALUE, ID, LabelReader, Labels, number_from_text
from tabserve.prediction_log.journal import partition_of
from tabserve.prediction_log.labels import LABELS, label_batch
from tabserve.prediction_log.places import Place
from tabserve.validation import ABSENT

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

    A class stands as it stands in answers. A column business_value may stand beside them or in the label's place; where
    there is one, an empty cell says nothing. Of a prediction that is in the file twice the last one of each counts.

    Raises:
        BadQuestionError: for a file that cannot be read, or has not these columns.
    """
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise BadQuestionError(f"expected a .csv or .parquet file, got {path}")
    reader = LabelReader(contract)
    found = LabelFile()
    try:
        for place, number, prediction_id, label, worth in readers[path.suffix.lower()](path, reader):
            faults = reader.add(None, prediction_id, label, found.labels, business_value=worth)
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
    once = _once(labels)
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


def _once(labels: Labels) -> Labels:
    """One entry of each prediction: the last label that is said, and the last business value."""
    found: dict[str, tuple[str | None, float | None, float | None]] = {}
    columns = (labels.ids, labels.classes, labels.values, labels.business_values)
    for prediction_id, label, value, worth in zip(*columns, strict=True):
        before = found.get(prediction_id, (None, None, None))
        came_true = before[:2] if label is None and value is None else (label, value)
        found[prediction_id] = (*came_true, before[2] if worth is None else worth)
    classes, values, worths = (list(column) for column in zip(*found.values(), strict=True))
    return Labels(list(found), classes, values, worths)


def _columns(names: list[str], reader: LabelReader) -> tuple[str, str | None, str | None]:
    """Of the id, of the label and of the business value; one of the two may be missing."""
    label = next((name for name in reader.names if name in names), None)
    worth = BUSINESS_VALUE if BUSINESS_VALUE in names else None
    if ID not in names or (label is None and worth is None):
        expected = f"{ID} and {' or '.join(reader.names)}, or {BUSINESS_VALUE}"
        raise BadQuestionError(f"expected the columns {expected}, got {', '.join(names[:NAMED_FAULTS]) or 'none'}")
    return ID, label, worth


def _csv_rows(path: Path, reader: LabelReader) -> Iterator[tuple[str, int, Any, Any, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        names = next(lines, [])
        columns = _columns(names, reader)
        at = [None if name is None else names.index(name) for name in columns]
        for row in lines:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"line {lines.line_num} has {len(row)} columns, expected {len(names)}")
            prediction_id, label, worth = (ABSENT if place is None else row[place] for place in at)
            label, worth = _said(label, worth, empty="")
            label = label if label is ABSENT else reader.from_text(label)
            yield "line", lines.line_num, prediction_id, label, worth if worth is ABSENT else number_from_text(worth)


def _parquet_rows(path: Path, reader: LabelReader) -> Iterator[tuple[str, int, Any, Any, Any]]:
    file = pq.ParquetFile(path)
    columns = _columns(file.schema_arrow.names, reader)
    number = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name for name in columns if name]):
        nothing = [ABSENT] * len(batch)
        of_batch = (nothing if name is None else batch.column(name).to_pylist() for name in columns)
        for prediction_id, label, worth in zip(*of_batch, strict=True):
            number += 1
            yield "row", number, prediction_id, *_said(label, worth, empty=None)


def _said(label: Any, worth: Any, *, empty: str | None) -> tuple[Any, Any]:
    """An empty cell says nothing where the file has both columns; else it is a fault, as ever."""
    if label is not ABSENT and worth is not ABSENT and not (label == empty and worth == empty):
        return ABSENT if label == empty else label, ABSENT if worth == empty else worth
    return label, worth
