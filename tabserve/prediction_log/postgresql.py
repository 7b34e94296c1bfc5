"""A database of PostgreSQL as a place: each rolled file is copied into the table of its rows, in one transaction.

The name of the file goes into the table `deliveries` with it, in the same transaction: a second delivery finds it
there, and changes nothing. Where the first is still under way it waits for the first's end.
"""

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Collection, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from tabserve.prediction_log import postgresql_tables as tables
from tabserve.prediction_log.elsewhere import Elsewhere, RefusedError, day_of
from tabserve.prediction_log.predictions import CannotKeepError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 120  # 100,000 rows took five to eight on two slow cores
LOCK_SECONDS = 2  # to drop a partition nobody may read the table; who waits for that keeps all others waiting
DEADLINE_SECONDS = 150.0  # of everything together, where the server does not even keep its own times
ROWS_AT_ONCE = 32_768
LOCK = 0x7461_6273_6572_7665  # any number; who makes or drops tables holds the advisory lock of it
EXPECTED = (
    "TABSERVE_LOG_URL: expected postgresql://user@host:port/database; a password in it has % : / ? # @ encoded by %, "
    "and is better kept in PGPASSWORD or a file that PGPASSFILE names"
)


class PostgresqlSink:
    """Tables partitioned by day, in the schema that is first in the user's search path.

    Raises:
        CannotKeepError: for an address that cannot be understood.
    """

    def __init__(self, url: str) -> None:
        try:
            known = conninfo_to_dict(url)
        except psycopg.Error:  # its message repeats the address
            raise CannotKeepError(EXPECTED) from None
        host, port = str(known.get("host") or ""), str(known.get("port") or "5432")
        # A character of a password that is not encoded ends up in one of these, and from there in an error's message.
        if "@" in host or not all(one.isdecimal() for one in port.split(",")) or urlsplit(url).fragment:
            raise CannotKeepError(EXPECTED)
        self._secrets = [str(value) for name, value in known.items() if "password" in name and value]
        self._name = f"postgresql://{host}:{port}/{known.get('dbname') or ''}"
        options = f"-c timezone=UTC -c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_SECONDS}s"
        self._settings: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "tabserve",
            "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
            **known,
            "options": f"{options} {known.get('options') or ''}",
        }
        self._connection: psycopg.Connection | None = None
        self._known: set[tuple[str, date]] = set()

    def __str__(self) -> str:
        return self._name

    def has(self, table: str, partition: str, name: str) -> bool:  # noqa: ARG002
        return False  # the delivery looks itself

    def deliver(self, table: str, partition: str, name: str, rolled: Path) -> None:
        file = pq.ParquetFile(rolled)
        day = day_of(partition) or date.min
        with self._connected() as connection:
            self._prepare(connection, table, day)
            with connection.transaction():
                delivered = connection.execute(
                    "insert into deliveries (name, date, n_rows) values (%s, %s, %s) on conflict do nothing",
                    (name, day, file.metadata.num_rows),
                )
                if delivered.rowcount:
                    with connection.cursor().copy(tables.copy_statement(table)) as copy:
                        for batch in file.iter_batches(ROWS_AT_ONCE):
                            copy.write(memoryview(tables.csv_of(table, batch)))

    def _prepare(self, connection: psycopg.Connection, table: str, day: date) -> None:
        """Makes what is missing: the tables, and the partition of a day."""
        if (table, day) in self._known:
            return
        partition = tables.partition_name(table, day)
        with connection.transaction():
            if not _is_there(connection, partition) or _lacks_columns(connection, table):
                connection.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
                if _lacks_columns(connection, table):  # before a partition is made like it
                    connection.execute(tables.widened(table))
                if not _is_there(connection, partition):
                    for statement in (tables.DELIVERIES, *tables.made(table), *tables.partition_made(table, day)):
                        connection.execute(statement)
        self._known.add((table, day))

    def expire(self, before: date) -> None:
        with self._connected() as connection:
            for name in tables.TABLES:
                for partition, day in _partitions(connection, name):
                    if day < before:
                        # Each alone: a reader of one table does not keep the others.
                        connection.execute(f"drop table if exists {partition}")
                        self._known.discard((name, day))
            if _is_there(connection, "deliveries"):
                connection.execute("delete from deliveries where date < %s", (before,))

    def find(self, table: str, since: date | None, until: date | None, names: Collection[str]) -> Elsewhere:
        connection = self._connect()
        try:
            # Names and rows as they were at one moment, or a file delivered in between would be missed or seen twice.
            connection.execute("begin isolation level repeatable read read only")
            if not _is_there(connection, table):
                connection.close()
                return Elsewhere()
            found = connection.execute("select name from deliveries where name = any(%s)", ([*names],)).fetchall()
        except psycopg.Error as error:
            connection.close()
            raise self._sentence(error) from None
        return Elsewhere({name for (name,) in found}, lambda: _rows(connection, table, since, until))

    @contextlib.contextmanager
    def _connected(self) -> "Iterator[psycopg.Connection]":
        """The connection, made where there is none; closed where something fails, for nobody knows how it is left."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            with _deadline(self._connection):
                yield self._connection
        except psycopg.Error as error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._known.clear()
            if isinstance(error, psycopg.DataError | errors.NotNullViolation):
                raise RefusedError(str(self._sentence(error))) from None
            raise self._sentence(error) from None

    def _connect(self) -> psycopg.Connection:
        try:
            return psycopg.connect(**self._settings, autocommit=True)
        except psycopg.Error as error:
            raise self._sentence(error) from None

    def _sentence(self, error: psycopg.Error) -> OSError:
        """What PostgreSQL says in one line, without a secret; and without its context, which repeats a row of COPY."""
        text = " ".join((error.diag.message_primary or str(error)).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return OSError(f"{type(error).__name__}: {text}")


def _is_there(connection: psycopg.Connection, table: str) -> bool:
    # Not to_regclass: it remembers what was not there until the end of the transaction, whoever made it meanwhile.
    statement = "select exists (select from pg_class where relname = %s and pg_table_is_visible(oid))"
    return connection.execute(statement, (table,)).fetchone() == (True,)


def _lacks_columns(connection: psycopg.Connection, table: str) -> bool:
    """Whether a table that is there was made by a version that knew fewer columns."""
    statement = "select attname from pg_attribute where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped"
    there = {name for (name,) in connection.execute(statement, (table,)).fetchall()}
    return bool(there) and not set(tables.TABLES[table].columns) <= there


def _partitions(connection: psycopg.Connection, table: str) -> list[tuple[str, date]]:
    listed = connection.execute(
        "select inhrelid::regclass::text, relname from pg_inherits join pg_class on pg_class.oid = inhrelid "
        "where inhparent = to_regclass(%s)",
        (table,),
    ).fetchall()
    found = []
    for partition, name in listed:
        with contextlib.suppress(ValueError):  # not of our making
            found.append((partition, datetime.strptime(name, f"{table}_p%Y%m%d").date()))  # noqa: DTZ007
    return found


def _rows(connection: psycopg.Connection, table: str, since: date | None, until: date | None) -> Iterator[pa.Table]:
    """The rows of days, some thousand at a time, in tables with the columns that they were put with."""
    objects = tables.TABLES[table].objects
    statement = f"""select * from {table} where time >= coalesce(%s::date, '-infinity')::timestamptz
        and time < coalesce(%s::date + 1, 'infinity')::timestamptz"""  # noqa: S608
    set_json_loads(_of_json, connection)
    with connection, connection.cursor("tabserve_rows", row_factory=dict_row) as cursor:
        cursor.itersize = ROWS_AT_ONCE
        cursor.execute(statement, (since, until))
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
            for row in rows:
                flat: dict[str, Any] = {**row}
                if "prediction_id" in flat:
                    flat["prediction_id"] = str(flat["prediction_id"])
                for column, start in objects.items():
                    flat |= {f"{start}{name}": value for name, value in flat.pop(column).items()}
                if objects:  # a quantity has a value, a class has a label
                    del flat["value" if flat["value"] is None else "label"]
                alike.setdefault(tuple(flat), []).append(flat)
            for of_one_model in alike.values():
                yield pa.table({name: _alike([row[name] for row in of_one_model]) for name in of_one_model[0]})
    connection.close()


def _alike(values: list[Any]) -> list[Any]:
    """Numbers as fractions where any of them is one: JSON has 44.0 as 44."""
    if any(isinstance(value, float) for value in values):
        return [None if value is None else float(value) for value in values]
    return values


def _of_json(text: str | bytes) -> Any:
    # PostgreSQL writes 1e+300 with all its zeros.
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))


@contextlib.contextmanager
def _deadline(connection: psycopg.Connection) -> Iterator[None]:
    """Cuts the line after a while: a server that is stopped keeps no time-outs, and the kernel answers for it."""

    def cut() -> None:
        with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=connection.fileno()) as line:
            line.shutdown(socket.SHUT_RDWR)
            line.detach()  # the connection's own, which closes it

    timer = threading.Timer(DEADLINE_SECONDS, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
