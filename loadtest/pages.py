"""What is written into documents: sections between marks, rows of a table, figures."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabserve.statistics.drawing import drawn


def replace_section(document: Path, name: str, text: str) -> None:
    """Writes a text between the marks `<!-- name -->` and `<!-- end of name -->` of a document.

    Raises:
        ValueError: where the document has no such marks.
    """
    before, _, after = _parted(document, name)
    document.write_text(f"{before}\n{text.strip()}\n\n{after}", encoding="utf-8")


def append_row(document: Path, name: str, row: str) -> None:
    """Adds a line to the table between such marks, below those that are there.

    Raises:
        OSError, ValueError: where the document cannot be written, or has no such marks.
    """
    with document.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two runs that end together both get their line
        before, table, after = _parted(document, name)
        file.seek(0)
        file.write(f"{before}\n{table.strip()}\n{row}\n\n{after}")
        file.truncate()


def _parted(document: Path, name: str) -> tuple[str, str, str]:
    """The document up to the first mark, what stands between them, and the rest; the marks stay where they are."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found_begin, rest = document.read_text(encoding="utf-8").partition(begin)
    between, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{document} has no marks {begin.strip()} and {end}")
    return before + begin, between, end + after


@contextlib.contextmanager
def figure(path: Path) -> Iterator[Any]:
    """Gives matplotlib's pyplot, and writes what was drawn as SVG: the same picture is the same file."""
    with drawn() as (plt, picture):
        yield plt
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(picture.getvalue(), encoding="utf-8")
