"""What a sink that is not the local folder holds of a table, as a reader of Arrow sees it."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who only opens a place does without it
    import pyarrow as pa


@dataclass(frozen=True)
class Elsewhere:
    """The rows of a table at one moment.

    Args:
        names: of the files that were asked for, those which are there: their segments must not be read too.
        tables: reads the rows; called at most once.
    """

    names: Collection[str] = frozenset()
    tables: "Callable[[], Iterator[pa.Table]]" = lambda: iter(())


class RefusedError(Exception):
    """A sink will never take this file, whatever the weather."""


def day_of(folder: str) -> date | None:
    """The day of a folder `…/date=2026-11-21`; None where it is of none."""
    try:
        return date.fromisoformat(folder.rpartition("/")[2].removeprefix("date="))
    except ValueError:
        return None


def is_within(folder: str, since: date | None, until: date | None) -> bool:
    """Whether the day of a folder is one of these; both are included."""
    day = day_of(folder)
    return day is not None and (since is None or since <= day) and (until is None or day <= until)
