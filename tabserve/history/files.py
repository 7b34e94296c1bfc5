"""The records of a place, asked by DuckDB: Parquet files where they lie, open segments in memory.

What is in a bucket or a database is copied to files first, of the days that are asked for: DuckDB reads either only
with extensions that it would download.

DuckDB reads the columns that a question names, of the files whose folder can matter, and little more at a time than
its threads need; what it cannot keep in memory while it joins it puts into a temporary folder.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tabserve.history.records import ROWS_AT_ONCE, Records, UnreadableError
from tabserve.history.sql import text
from tabserve.history.window import Which, Window
from tabserve.prediction_log.labels import LABELS
from tabserve.prediction_log.places import Place
from tabserve.prediction_log.predictions import SHADOW
from tabserve.prediction_log.reading import Snapshot, read
from tabserve.prediction_log.rejections import REJECTIONS
from tabserve.prediction_log.sources import PREDICTIONS

logger = logging.getLogger(__name__)

# A join of a million predictions takes 300 MB; beyond this DuckDB uses the disk, in place of what the service needs.
MEMORY = "1GB"

RECORDED = "recorded"  # the view of all predictions, those of shadows included, which nobody was told

# The columns that a view has even where no record has them; `label` is of the type that the records have.
_COLUMNS = {
    RECORDED: "prediction_id VARCHAR, time TIMESTAMPTZ, model VARCHAR, version VARCHAR, contract_hash VARCHAR, "
    "variant VARCHAR, latency_ms DOUBLE, weight DOUBLE",
    LABELS: "prediction_id VARCHAR, time TIMESTAMPTZ, label VARCHAR, value DOUBLE, source VARCHAR, "
    "business_value DOUBLE",
    REJECTIONS: "time TIMESTAMPTZ, route VARCHAR, feature VARCHAR, rule VARCHAR, count BIGINT, "
    "model VARCHAR, version VARCHAR",
}
_PREDICTED = {"label": "VARCHAR", "value": "DOUBLE"}

# By the ids as they stand: made 16 bytes of them first, the join takes a third longer (docs/decisions.md). A label and
# a business value may come apart: arg_max passes over those that are null, so that the last one of each counts.
_LATEST = """
CREATE VIEW latest AS
SELECT prediction_id, arg_max(label, time) AS true_label, arg_max(value, time) AS true_value,
       arg_max(business_value, time) AS business_value,
       max(time) FILTER (label IS NOT NULL OR value IS NOT NULL) AS labelled_at,
       count(*) FILTER (label IS NOT NULL OR value IS NOT NULL) AS n_labels
FROM labels GROUP BY prediction_id
"""
_BY_ROLE = f"""
CREATE VIEW {PREDICTIONS} AS SELECT * FROM {RECORDED} WHERE variant <> '{SHADOW}';
CREATE VIEW shadows AS SELECT * FROM {RECORDED} WHERE variant = '{SHADOW}'
"""
_JOINED = """
CREATE VIEW {joined} AS
SELECT {rows}.*, true_label, true_value, labelled_at, CAST(label AS VARCHAR) = true_label AS is_correct,
       business_value
FROM {rows} LEFT JOIN latest USING (prediction_id)
"""


@contextlib.contextmanager
def opened_files(place: Place, window: Window, of: Which) -> Iterator[Records]:
    """The records of a place, as they are now.

    Raises:
        OSError: where a bucket or a database cannot be read.
        UnreadableError: where files are there and DuckDB cannot read them.
    """
    first_day, last_day = window.since.date(), window.until.date()
    with tempfile.TemporaryDirectory(prefix="tabserve-join-") as spill, duckdb.connect() as connection:
        # Labels first: what came between the two looks is then a prediction without its label, and no label without
        # one. A label comes after its prediction, so those of earlier days can be none of this window's.
        labels = _here(read(place, LABELS, since=first_day), Path(spill) / LABELS)
        predictions, rejections = (
            _of(_here(read(place, table, since=first_day, until=last_day), Path(spill) / table), of)
            for table in (PREDICTIONS, REJECTIONS)
        )
        for setting, value in (("TimeZone", "UTC"), ("memory_limit", MEMORY), ("temp_directory", spill)):
            connection.execute(f"SET {setting} = {text(value)}")
        connection.execute("SET preserve_insertion_order = false")  # an order costs memory; who wants one asks for it
        connection.execute("SET parquet_metadata_cache = true")
        connection.execute("SET enable_progress_bar = false")  # it would write into our output
        in_window = f"time >= {_moment(window.since)} AND time < {_moment(window.until)}"
        meant = f"{in_window}{_meant(of)}"
        found = Files(connection)
        with _faults_named():  # a file that was found may be gone already
            found.add_view(RECORDED, predictions, meant)
            found.add_view(LABELS, labels, f"time >= {_moment(window.since)}")
            found.add_view(REJECTIONS, rejections, meant)
            found.connection.execute(_LATEST)
            found.connection.execute(_BY_ROLE)
            for joined, rows in (("joined", PREDICTIONS), ("joined_shadows", "shadows")):
                found.connection.execute(_JOINED.format(joined=joined, rows=rows))
        yield found


class Files:
    """A connection with the views. `Records`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """As `Records.rows`."""
        with _faults_named():
            # By Arrow: DuckDB itself makes times with a zone only where pytz is, which nothing brings.
            columns = [column.to_pylist() for column in self.connection.execute(sql).to_arrow_table().columns]
        return list(zip(*columns, strict=True))

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """As `Records.batches`."""
        with _faults_named():
            reader = self.connection.execute(sql).to_arrow_reader(ROWS_AT_ONCE)
        yield pa.RecordBatch.from_pylist([], reader.schema)
        with _faults_named():
            yield from reader

    def add_view(self, table: str, snapshot: Snapshot, condition: str) -> None:
        """Makes the view of a table. A file that is not whole is left out, and said."""
        try:
            self._add_view(table, snapshot.files, snapshot.open, condition)
        except duckdb.Error:
            whole = [path for path in snapshot.files if _is_whole(path)]
            with _faults_named():
                self._add_view(table, whole, snapshot.open, condition)

    def _add_view(self, table: str, files: Sequence[Path], segments: Sequence[pa.Table], condition: str) -> None:
        columns = ", ".join(
            f"CAST(NULL AS {kind}) AS {name}" for name, kind in map(str.split, _COLUMNS[table].split(", "))
        )
        parts = [f"SELECT {columns} WHERE false"]
        if files:
            # The folders say nothing that the columns do not, and would make a number of the version `1`.
            paths = ", ".join(text(str(path)) for path in files)
            parts.append(f"SELECT * FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false)")
        for position, segment in enumerate(segments):
            # Tables of DuckDB's own: a join makes a Bloom filter of one side for the scan of the other, and a scan of
            # Arrow then fails (1.5.6). They are the rows of a minute.
            self.connection.register("segment", segment)
            self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {table}_{position} AS SELECT * FROM segment")
            self.connection.unregister("segment")
            parts.append(f"SELECT * FROM {table}_{position}")
        everything = " UNION ALL BY NAME ".join(parts)
        described = self.connection.execute(f"DESCRIBE {everything}").fetchall()
        known = {name for name, *_ in described}
        more = "".join(
            f", CAST(NULL AS {kind}) AS {name}"
            for name, kind in _PREDICTED.items()
            if table == RECORDED and name not in known
        )
        self.connection.execute(f"CREATE VIEW {table} AS SELECT *{more} FROM ({everything}) WHERE {condition}")


def _here(snapshot: Snapshot, folder: Path) -> Snapshot:
    """With what is elsewhere copied to files of a folder, a piece at a time."""
    files = list(snapshot.files)
    folder.mkdir()
    for number, table in enumerate(snapshot.elsewhere.tables()):
        files.append(folder / f"{number}.parquet")
        pq.write_table(table, files[-1])
    return Snapshot(tuple(files), snapshot.open)


def _of(snapshot: Snapshot, of: Which) -> Snapshot:
    """Without the files of other models, where their folder says whose they are."""
    wanted = [
        f"{key}={quote(value, safe='')}" for key, value in (("model", of.model), ("version", of.version)) if value
    ]
    files = tuple(
        path
        for path in snapshot.files
        if not path.parent.name.startswith("date=") or set(wanted) <= set(path.parts[-4:])
    )
    return Snapshot(files, snapshot.open)


def _meant(of: Which) -> str:
    """Of open segments the columns say it."""
    return "".join(
        f" AND {key} = {text(value)}" for key, value in (("model", of.model), ("version", of.version)) if value
    )


def _is_whole(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        if not isinstance(error, FileNotFoundError):  # its days of retention are over, nothing to say
            logger.warning("%s is no whole Parquet file and was left out: remove it, or mend it", path)
        return False
    return True


@contextlib.contextmanager
def _faults_named() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise UnreadableError(f"the prediction log cannot be read: {str(error).splitlines()[0]}") from error


def _moment(moment: datetime) -> str:
    return f"TIMESTAMPTZ '{moment.isoformat()}'"
