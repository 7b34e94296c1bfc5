"""The file of API keys as the command `tabserve keys` changes it: whole or not at all, by one at a time."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tabserve.access.api_keys import BadKeysError, KeyFile


def read_keys(path: Path) -> KeyFile:
    """The keys of a file; none where there is no file.

    Raises:
        BadKeysError: for a file that holds something else.
        OSError: for one that cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return KeyFile()
    try:
        return KeyFile.parse(content)
    except BadKeysError as error:
        raise BadKeysError(f"{path} is no file of API keys: {error}") from None


def write_keys(path: Path, keys: KeyFile) -> None:
    """Writes the file in one step; where it is a link, what it leads to."""
    path = path.resolve()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(keys.as_yaml())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keeps other commands from changing the file meanwhile. The lock beside it is freed when the process ends."""
    path = path.resolve()
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
