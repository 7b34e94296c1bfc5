"""The tables of the prediction log in PostgreSQL: their columns, a partition for each day, and batches as CSV for COPY.

What every model has is a column. What differs from model to model, features and probabilities, is an object in a
column of type jsonb: `features->>'age'`, `(probabilities->>'plus')::float8`.

The objects and the CSV are made by Arrow, column by column: no loop over rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tabserve.prediction_log.columns import text_array


@dataclass(frozen=True)
class Table:
    """A table with its columns and their types.

    Args:
        objects: columns of type jsonb, and the start of the names of the Arrow columns that are in each.
    """

    columns: Mapping[str, str]
    objects: Mapping[str, str]
    indexed: str | None = None


TABLES = {
    "predictions": Table(
        columns={
            "prediction_id": "uuid not null",
            "time": "timestamptz not null",
            "model": "text not null",
            "version": "text not null",
            "contract_hash": "text not null",
            "variant": "text not null",
            "label": "text",  # a class is a text in one model and a number in another
            "value": "float8",
            "features": "jsonb not null",
            "probabilities": "jsonb not null",
            "latency_ms": "float8 not null",
            "weight": "float8 not null",
        },
        objects={"features": "feature:", "probabilities": "probability:"},
        indexed="prediction_id",  # a label looks for its prediction
    ),
    "labels": Table(
        columns={
            "prediction_id": "uuid not null",
            "time": "timestamptz not null",
            "label": "text",
            "value": "float8",
            "source": "text not null",
            "business_value": "float8",
        },
        objects={},
        indexed="prediction_id",
    ),
    "rejections": Table(
        columns={
            "time": "timestamptz not null",
            "route": "text not null",
            "feature": "text",
            "rule": "text not null",
            "count": "bigint not null",
            "model": "text not null",
            "version": "text not null",
        },
        objects={},
    ),
}

DELIVERIES = """
create table if not exists deliveries (
    name text primary key, date date not null, n_rows integer not null, delivered timestamptz not null default now())
"""


def made(name: str) -> list[str]:
    """The statements that make a table."""
    table = TABLES[name]
    columns = ", ".join(f'"{column}" {kind}' for column, kind in table.columns.items())
    # Rows come in the order of their times: a brin index finds a window in a thousandth of a btree's space.
    statements = [
        f"create table if not exists {name} ({columns}) partition by range (time)",
        f"create index if not exists {name}_time on {name} using brin (time)",
    ]
    if table.indexed:
        statements.append(f"create index if not exists {name}_{table.indexed} on {name} ({table.indexed})")
    return statements


def widened(name: str) -> str:
    """The statement that gives a table of an earlier version the columns that it lacks."""
    # Only such as may be null can be missing: all others were there from the beginning.
    columns = [f'add column if not exists "{column}" {kind}' for column, kind in TABLES[name].columns.items()]
    return f"alter table {name} {', '.join(columns)}"


def partition_name(name: str, day: date) -> str:
    return f"{name}_p{day:%Y%m%d}"


def partition_made(name: str, day: date) -> list[str]:
    """The statements that make a day's partition.

    Attached, not created as one: that would wait for everybody who reads the table, and have all others wait for it.
    """
    partition = partition_name(name, day)
    after = day + timedelta(days=1)
    return [
        f"create table {partition} (like {name} including all)",
        (
            f"alter table {name} attach partition {partition} "
            f"for values from ('{day} 00:00:00+00') to ('{after} 00:00:00+00')"
        ),
    ]


def copy_statement(name: str) -> str:
    columns = ", ".join(f'"{column}"' for column in TABLES[name].columns)
    return f"copy {name} ({columns}) from stdin (format csv)"


def csv_of(name: str, batch: pa.RecordBatch) -> pa.Buffer:
    """The lines of a batch, in the order of the table's columns."""
    objects = TABLES[name].objects
    columns = [
        _object(batch, objects[column]) if column in objects else _column(batch, column)
        for column in TABLES[name].columns
    ]
    out = pa.BufferOutputStream()
    # A missing text is nothing, and an empty one is "": COPY tells them apart as Arrow does.
    csv.write_csv(
        pa.Table.from_arrays(columns, list(TABLES[name].columns)), out, csv.WriteOptions(include_header=False)
    )
    return out.getvalue()


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(len(batch), pa.string())
    column = batch.column(name)
    if pa.types.is_timestamp(column.type):  # of a time with a zone Arrow writes no zone that PostgreSQL knows
        return pc.binary_join_element_wise(column.cast(pa.timestamp("us")).cast(pa.string()), _text("+00"), _text(""))
    return _without_nul(column.cast(pa.string())) if name == "label" else column


def _object(batch: pa.RecordBatch, start: str) -> pa.Array:
    """The columns whose names begin so, as JSON objects; a missing value is null."""
    pieces: list[pa.Array | pa.StringScalar] = []
    for name in batch.schema.names:
        if name.startswith(start):
            key = json.dumps(name.removeprefix(start).replace("\0", "\ufffd"), ensure_ascii=False)
            pieces += [_text(f"{',' if pieces else '{'}{key}:"), _json(batch.column(name))]
    if not pieces:
        return text_array(["{}"] * len(batch))
    pieces += [_text("}"), _text("")]  # the last is what stands between them
    return pc.binary_join_element_wise(*pieces, null_handling="replace", null_replacement="null")


def _json(column: pa.Array) -> pa.Array:
    """Each value as JSON spells it; null where it is missing, and where JSON has no word for it."""
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_finite(column), column, pa.nulls(len(column), column.type)).cast(pa.string())
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        words = [
            json.dumps(word.replace("\0", "\ufffd"), ensure_ascii=False) for word in encoded.dictionary.to_pylist()
        ]
        return text_array(words).take(encoded.indices)
    return column.cast(pa.string())


def _text(word: str) -> pa.StringScalar:
    return text_array([word])[0]  # pa.scalar would import pandas


def _without_nul(texts: pa.Array) -> pa.Array:
    """PostgreSQL has no text with a character 0 in it."""
    return pc.replace_substring(texts, "\0", "\ufffd")
