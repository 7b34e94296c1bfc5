"""A bucket as a place: each rolled file becomes an object, in the folders that it would have on a disk.

Arrow's own S3 is used, which is in pyarrow already: credentials come from where AWS's tools take them. It is loaded
with the first delivery, in the roller's thread.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tabserve.prediction_log.elsewhere import Elsewhere, day_of, is_within
from tabserve.prediction_log.predictions import CannotKeepError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 5.0  # without a byte in either direction, then a request has failed; an upload seven seconds later
ATTEMPTS = 1  # of a request; the roller tries again, with a back-off
EXPECTED = (
    "TABSERVE_LOG_URL: expected s3://bucket/prefix, then perhaps ?endpoint=http://host:port&region=name; "
    "credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE and the like), not from the address"
)


class S3Sink:
    """Parquet files as objects: `<prefix>/<table>/model=…/version=…/date=…/<name>.parquet`.

    Raises:
        CannotKeepError: for an address that cannot be understood.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        endpoint = query.pop("endpoint", None) or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        self._region = query.pop("region", None) or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
        self._endpoint = urlsplit(endpoint) if endpoint else None
        is_endpoint = self._endpoint is None or (self._endpoint.scheme in ("http", "https") and self._endpoint.netloc)
        if query or "@" in parts.netloc or not parts.netloc or not is_endpoint or parts.fragment:
            raise CannotKeepError(EXPECTED)
        self._base = f"{parts.netloc}/{unquote(parts.path).strip('/')}".rstrip("/")
        self._opened: S3FileSystem | None = None

    def __str__(self) -> str:
        return f"s3://{self._base}"

    def has(self, table: str, partition: str, name: str) -> bool:
        return bool(self._s3().get_file_info(f"{self._base}/{table}/{partition}/{name}").is_file)

    def deliver(self, table: str, partition: str, name: str, rolled: Path) -> None:
        # All of it is read before anything is sent, and it is seen when all of it is there. A second time replaces it.
        content = rolled.read_bytes()
        stream = self._s3().open_output_stream(f"{self._base}/{table}/{partition}/{name}")
        stream.write(content)
        stream.close()

    def expire(self, before: date) -> None:
        for table in self._folders(self._base):
            for folder in self._dates(table):
                if (day_of(folder) or date.max) < before:
                    with suppress(FileNotFoundError):  # another worker was quicker
                        self._s3().delete_dir(folder)

    def find(self, table: str, since: date | None, until: date | None, names: Collection[str]) -> Elsewhere:
        objects = [
            info.path
            for folder in self._dates(f"{self._base}/{table}")
            if is_within(folder, since, until)
            for info in self._list(folder)
            if info.path.endswith(".parquet")
        ]
        return Elsewhere({path.rpartition("/")[2] for path in objects} & {*names}, lambda: self._tables(objects))

    def _tables(self, objects: list[str]) -> Iterator[pa.Table]:
        for path in sorted(objects):
            table = self._table(path)
            if table is not None:
                yield table

    def _table(self, path: str) -> pa.Table | None:
        try:
            with self._s3().open_input_file(path) as file:
                return pq.ParquetFile(file).read()
        except OSError:
            if self._s3().get_file_info(path).is_file:
                raise
            return None  # its days of retention are over

    def _dates(self, table: str) -> Iterator[str]:
        yield from self._folders(table, "date=")
        for model in self._folders(table, "model="):
            for version in self._folders(model, "version="):
                yield from self._folders(version, "date=")

    def _folders(self, folder: str, start: str = "") -> list[str]:
        found = [info.path for info in self._list(folder) if not info.is_file]
        return [path for path in found if path.rpartition("/")[2].startswith(start)]

    def _list(self, folder: str) -> "list[FileInfo]":
        from pyarrow.fs import FileSelector

        return list(self._s3().get_file_info(FileSelector(folder, allow_not_found=True)))

    def _s3(self) -> "S3FileSystem":
        if self._opened is None:
            from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

            endpoint = self._endpoint
            self._opened = S3FileSystem(
                region=self._region or ("us-east-1" if endpoint else None),  # other servers know no regions
                scheme=endpoint.scheme if endpoint else "https",
                endpoint_override=endpoint.netloc if endpoint else None,
                connect_timeout=CONNECT_SECONDS,
                request_timeout=SILENCE_SECONDS,
                retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
                background_writes=False,
                allow_delayed_open=True,  # one PUT for a file of less than ten megabytes, in place of three requests
            )
        return self._opened


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
