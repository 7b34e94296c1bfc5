"""What is in a place now: Parquet files and open segments, each record once, while others write and roll."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tabserve.prediction_log.places import Place
from tabserve.prediction_log.segment import SUFFIX, WholeBatches


@dataclass(frozen=True)
class Snapshot:
    """The files of a table and, in memory, what is not in one of them yet.

    DuckDB and others read `files` themselves; `tables` is for those who want all of it as Arrow.
    """

    files: tuple[Path, ...]
    open: tuple[pa.Table, ...]

    def tables(self) -> Iterator[pa.Table]:
        """A table for each file and segment. Schemas differ where the contracts do."""
        for path in self.files:
            with suppress(FileNotFoundError):  # its days of retention are over
                yield pq.ParquetFile(path).read()
        yield from self.open

    @property
    def n_rows(self) -> int:
        return sum(table.num_rows for table in self.tables())


def read(place: Place, table: str, *, since: date | None = None, until: date | None = None) -> Snapshot:
    """What a local place holds of a table.

    Args:
        since: the first day, in UTC.
        until: the last day, which is included.
    """
    # Segments first, and opened before the files are listed: one that is rolled meanwhile is among the files, under the
    # same name, and then its segment is left out; and what was open before stays readable after it is removed.
    segments = list(_opened(place.open_segments(table)))
    rolled = list(_parquet_files(place.folder / table))
    names = {path.stem for path in rolled}
    found: list[pa.Table] = []
    for name, batches in segments:
        if name not in names and _is_within(batches.partition.rpartition("/")[2], since, until):
            found += batches.tables()
        batches.close()
    files = sorted(path for path in rolled if _is_within(path.parent.name, since, until))
    return Snapshot(tuple(files), tuple(found))


def _opened(folder: Path) -> Iterator[tuple[str, WholeBatches]]:
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(FileNotFoundError, ValueError):  # removed, or of another version, which will roll it
            yield path.stem, WholeBatches(path)


def _parquet_files(folder: Path) -> Iterator[Path]:
    for pattern in ("date=*/*.parquet", "model=*/version=*/date=*/*.parquet"):
        yield from folder.glob(pattern)


def _is_within(folder: str, since: date | None, until: date | None) -> bool:
    try:
        day = date.fromisoformat(folder.removeprefix("date="))
    except ValueError:
        return False
    return (since is None or since <= day) and (until is None or day <= until)
