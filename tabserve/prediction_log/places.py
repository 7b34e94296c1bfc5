"""Places that tables are kept in: which ones there are, and whether one can be used."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from uuid_utils import uuid7

from tabserve.prediction_log.predictions import CannotKeepError

logger = logging.getLogger(__name__)

OPEN = "_open"  # the folder of a table's open segments; no partition is called so
EXPECTED = "file:///a/folder, s3://bucket/prefix, postgresql://user@host/database, or null: to keep nothing"


class Sink(Protocol):
    """What takes rolled files over. Called by one thread of each process, which waits and asks again where it raises.

    The name of a rolled file is unique and stays the same when it is delivered again: after a crash between delivering
    it and forgetting its segment, the second delivery must change nothing.
    """

    def has(self, table: str, partition: str, name: str) -> bool:
        """Whether a file was delivered already. May say False where it does not know."""

    def deliver(self, table: str, partition: str, name: str, rolled: Path) -> None:
        """Takes a Parquet file over: afterwards it is in the place under its name, and `rolled` may be gone.

        Raises:
            OSError: where that is not possible now.
        """

    def expire(self, before: date) -> None:
        """Deletes what is of days before this one."""


@dataclass(frozen=True)
class Place:
    """A local folder with the open segments of each table, and the sink of their rolled files."""

    url: str
    folder: Path
    sink: Sink

    def open_segments(self, table: str) -> Path:
        return self.folder / table / OPEN


class FolderSink:
    """Parquet files in the folder itself: `<folder>/<table>/model=…/version=…/date=…/<name>.parquet`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, table: str, partition: str, name: str) -> bool:
        return (self._folder / table / partition / name).exists()

    def deliver(self, table: str, partition: str, name: str, rolled: Path) -> None:
        target = self._folder / table / partition
        target.mkdir(parents=True, exist_ok=True)
        rolled.replace(target / name)

    def expire(self, before: date) -> None:
        for folder in self._dates():
            if _date(folder) < before:
                shutil.rmtree(folder, ignore_errors=True)  # another worker may be at it
                for parent in list(folder.parents)[:2]:  # of version and model, where nothing else is left in them
                    if "=" in parent.name:
                        with suppress(OSError):
                            parent.rmdir()

    def _dates(self) -> Iterator[Path]:
        for pattern in ("*/date=????-??-??/", "*/model=*/version=*/date=????-??-??/"):
            yield from self._folder.glob(pattern)


def _date(folder: Path) -> date:
    try:
        return date.fromisoformat(folder.name.removeprefix("date="))
    except ValueError:
        return date.max  # not ours


def place_of(url: str) -> Place | None:
    """The place of an address; None where nothing is kept. Nothing is made or written yet.

    Raises:
        CannotKeepError: for an address that is of no known kind.
    """
    parts = urlsplit(url)
    if parts.scheme == "null":
        return None
    if parts.scheme in ("s3", "postgresql"):
        raise CannotKeepError(f"TABSERVE_LOG_URL: {parts.scheme}:// is not there yet, use file:// or null:")
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise CannotKeepError(f"TABSERVE_LOG_URL is no address of a place, expected {EXPECTED}")
    return _folder_place(url)


def _folder_place(url: str) -> Place:
    folder = Path(unquote(urlsplit(url).path))
    return Place(url, folder, FolderSink(folder))


def check(place: Place) -> None:
    """Whether segments can be made there: the folder is made, and a file in it written, locked and removed.

    Raises:
        CannotKeepError: where not.
    """
    probe = place.folder / f".{uuid7()}"
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(b"1")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise CannotKeepError(
            f"the predictions cannot be kept in {place.folder} ({error.strerror}): "
            "make the folder writable, or set TABSERVE_LOG_URL to another one (null: keeps nothing)"
        ) from error


def default_url(home: Path) -> str:
    """Where predictions are kept when nobody said where: in BentoML's home, where the models are.

    Where that cannot be written, as in a container with a read-only root, in the folder for temporary files, which is
    better than not to start, and said in the log.

    Raises:
        CannotKeepError: where neither can be used.
    """
    url = (home.resolve() / "prediction_log").as_uri()
    try:
        check(_folder_place(url))
    except CannotKeepError as error:
        url = _last_resort().as_uri()
        check(_folder_place(url))
        logger.warning("%s; until then they are in %s, and are gone when that is: in a container with it", error, url)
    return url


def _last_resort() -> Path:
    """A folder of this user's below that for temporary files.

    Raises:
        CannotKeepError: where somebody else made it, who could read what is written.
    """
    folder = Path(tempfile.gettempdir()) / f"tabserve-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise CannotKeepError(f"{folder} cannot be made ({error.strerror}): set TABSERVE_LOG_URL") from error
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise CannotKeepError(f"{folder} is not a folder of this user alone: set TABSERVE_LOG_URL")
    return folder / "prediction_log"
