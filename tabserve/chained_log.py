"""Lines that are only ever appended, each with the hash of the one before it, so that tampering shows.

A line is a JSON object: `time` (UTC), `who`, `action`, whatever the action says, and last `previous` and `hash`: the
SHA-256 (hex) of the line before, and of this one without its own hash. Several processes may append to one file. Who
can write to the file can write the chain anew from a line on: keep the newest hash elsewhere to see that too.
"""

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

FIRST = "0" * 64  # what stands before the first line
_LINE_BYTES = 65_536  # that a line may have
_TAIL_BYTES = 2 * _LINE_BYTES  # of a file that are read to find its last line: one that was never finished may follow


class BrokenChainError(Exception):
    """Lines that are not as they were written; the message names file and line."""


@dataclass(frozen=True)
class ChainedLog:
    """The lines of one file."""

    path: Path

    def append(self, action: str, *, who: str | None = None, **said: Any) -> dict[str, Any]:
        """Writes a line, forced to the disk, and returns it. Blocks while another process writes one.

        Args:
            action: what was done, such as `promote`.
            who: did it; None for the user of this process.
            said: of the action; JSON values.

        Raises:
            OSError: where the file cannot be written.
            BrokenChainError: where its last line is none of ours.
            ValueError: for more than 64 KiB.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "who": who or user(),
                "action": action,
                **said,
                "previous": self._last_hash(file),
            }
            line["hash"] = _hash(line)
            text = _text(line)
            if len(text) > _LINE_BYTES:
                raise ValueError(f"a line of {self.path} would have {len(text)} bytes, expected at most {_LINE_BYTES}")
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return line

    def check(self) -> None:
        """Whether a line could be appended; makes the file where there is none.

        Raises:
            OSError, BrokenChainError: as `append`.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            self._last_hash(file)

    def size(self) -> int:
        """In bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> list[dict[str, Any]]:
        """Every line, oldest first, checked; none where there is no file.

        Raises:
            BrokenChainError: for the first line that was changed, or stands where it was not written.
        """
        return list(self.checked())

    def checked(self) -> Iterator[dict[str, Any]]:
        """The same one by one, for a file that is large. A last line without an end was never finished, and is none."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        previous = FIRST
        with file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    return
                try:
                    line = json.loads(text)
                    # As bytes too: a key that stands there twice, or a space more, is not in what JSON says.
                    is_whole = line["previous"] == previous and line["hash"] == _hash(line) and text == _text(line)
                except (ValueError, KeyError, TypeError, RecursionError):
                    is_whole = False
                if not is_whole:
                    raise BrokenChainError(f"line {number} of {self.path} is not as written, or one before it is gone")
                previous = line["hash"]
                yield line

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed by the kernel when a process dies
            yield file

    def _last_hash(self, file: BinaryIO) -> str:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _TAIL_BYTES))
        tail = file.read()
        if not tail:
            return FIRST
        if not tail.endswith(b"\n"):
            # A process died while it wrote, before anybody was told that it had: its piece is no line.
            keep = tail.rfind(b"\n") + 1
            file.truncate(end - len(tail) + keep)
            tail = tail[:keep]
            if not tail:
                return FIRST
        try:
            return str(json.loads(tail.splitlines()[-1])["hash"])
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenChainError(f"the last line of {self.path} is not as it was written") from error


def user() -> str:
    """Who runs this process, and where: `user@host`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _text(line: dict[str, Any]) -> bytes:
    return _encoded(json.dumps(line, ensure_ascii=False)) + b"\n"


def _hash(line: dict[str, Any]) -> str:
    said = {key: value for key, value in line.items() if key != "hash"}
    return hashlib.sha256(_encoded(json.dumps(said, sort_keys=True, ensure_ascii=False))).hexdigest()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # half a character is spelt as JSON does
