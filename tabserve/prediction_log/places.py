"""Places that tables are kept in: which ones there are, and whether one can be used."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from uuid_utils import uuid7

from tabserve.prediction_log.elsewhere import Elsewhere
from tabserve.prediction_log.predictions import CannotKeepError
from tabserve.prediction_log.spool import folder_name, with_spool, without_spool

logger = logging.getLogger(__name__)

OPEN = "_open"  # the folder of a table's open segments; no partition is called so
EXPECTED = "file:///a/folder, s3://bucket/prefix, postgresql://user@host/database, or null: to keep nothing"


REMOTE = ("s3", "postgresql")
# A copy of a few rows costs a database little, and then they are seen from everywhere within two seconds.
POSTGRESQL_ROLL_SECONDS = 1.0


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
            RefusedError: where it never will be.
        """

    def expire(self, before: date) -> None:
        """Deletes what is of days before this one.

        Raises:
            OSError: where that is not possible now.
        """

    def find(self, table: str, since: date | None, until: date | None, names: Collection[str]) -> Elsewhere:
        """What it holds of a table beside the files in the folder, from one day to another, both included.

        Args:
            names: files of which it should say whether they were delivered.

        Raises:
            OSError: where it cannot be read.
        """


@dataclass(frozen=True)
class Place:
    """A local folder with the open segments of each table, and the sink of their rolled files.

    Args:
        roll_seconds: the age at which a segment is rolled: what a reader elsewhere waits for.
    """

    url: str = field(repr=False)  # there may be a password in it
    folder: Path
    sink: Sink
    roll_seconds: float = 60.0

    @property
    def name(self) -> str:
        """What may be shown: the address where it is a folder's, else that without user, password and options."""
        return str(self.sink) if self.is_remote else self.url

    @property
    def is_remote(self) -> bool:
        """Whether the folder is only a spool."""
        return not isinstance(self.sink, FolderSink)

    def open_segments(self, table: str) -> Path:
        return self.folder / table / OPEN


class FolderSink:
    """Parquet files in the folder itself: `<folder>/<table>/model=…/version=…/date=…/<name>.parquet`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

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

    def find(self, table: str, since: date | None, until: date | None, names: Collection[str]) -> Elsewhere:  # noqa: ARG002
        return Elsewhere()  # it is all in the folder

    def _dates(self) -> Iterator[Path]:
        for pattern in ("*/date=????-??-??/", "*/model=*/version=*/date=????-??-??/"):
            yield from self._folder.glob(pattern)


def _date(folder: Path) -> date:
    try:
        return date.fromisoformat(folder.name.removeprefix("date="))
    except ValueError:
        return date.max  # not ours


def place_of(url: str, home: Path | None = None) -> Place | None:
    """The place of an address; None where nothing is kept. Nothing is made, written or asked yet.

    Args:
        home: where the spool of a bucket or a database is, unless the address names a folder for it.

    Raises:
        CannotKeepError: for an address that cannot be understood, or of a kind whose packages are not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise CannotKeepError(f"TABSERVE_LOG_URL is no address of a place, expected {EXPECTED}") from None
    if parts.scheme == "null":
        return None
    if parts.scheme in REMOTE:
        return _remote_place(url, home)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise CannotKeepError(f"TABSERVE_LOG_URL is no address of a place, expected {EXPECTED}")
    return _folder_place(url)


def _remote_place(url: str, home: Path | None) -> Place:
    address, folder = without_spool(url)
    if folder is None and home is not None:
        folder = home.resolve() / folder_name(address)
    if folder is None or not folder.is_absolute():
        raise CannotKeepError("TABSERVE_LOG_URL: expected ?spool=/a/folder, where records wait to be delivered")
    if urlsplit(address).scheme == "s3":
        from tabserve.prediction_log.s3 import S3Sink

        return Place(url, folder, S3Sink(address))
    try:
        from tabserve.prediction_log.postgresql import PostgresqlSink
    except ImportError as error:  # only those who use it need the package
        raise CannotKeepError(
            f"TABSERVE_LOG_URL: postgresql:// needs packages that are not installed ({error}): "
            "pip install -r requirements/postgresql.txt"
        ) from error
    return Place(url, folder, PostgresqlSink(address), POSTGRESQL_ROLL_SECONDS)


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

    Raises:
        CannotKeepError: where that cannot be used, nor the folder for temporary files.
    """
    return _usable_folder(home, "prediction_log").as_uri()


def with_usable_spool(url: str, home: Path) -> str:
    """The address of a bucket or a database with a folder for its spool that can be used; any other as it is.

    Raises:
        CannotKeepError: for an address that cannot be understood, or where no folder can be used.
    """
    place = place_of(url, home)
    if place is None or not place.is_remote or without_spool(url)[1] is not None:
        return url
    return with_spool(url, _usable_folder(home, folder_name(url)))


def _usable_folder(home: Path, name: str) -> Path:
    """A folder in the home; where that cannot be written, as in a container with a read-only root, in the folder for
    temporary files, which is better than not to start, and said in the log.
    """
    folder = home.resolve() / name
    try:
        check(_folder_place(folder.as_uri()))
    except CannotKeepError as error:
        folder = _last_resort() / name
        check(_folder_place(folder.as_uri()))
        logger.warning(
            "%s; until then they are in %s, and are gone when that is: in a container with it", error, folder.as_uri()
        )
    return folder


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
    return folder
