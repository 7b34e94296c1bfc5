"""What a place holds of a window, to be asked in SQL.

    predictions   of the window and of the models that are meant; one row each, which a caller was told
    shadows       what challengers in the shadow said of the same: other rows with the same ids, which nobody was told
    labels        that came since the window began, whatever prediction they are of
    latest        the last one of these for each prediction, and how many there were
    joined        predictions, with true_label, true_value, labelled_at and is_correct; null where no label came; and
                  with business_value, which may come without a label
    joined_shadows  the same of shadows
    rejections    of the window and of the models that are meant

`label` and `value` are always among the columns of predictions, `feature:<name>` and `probability:<class>` where the
models of the window have them, null in the rows of a model that does not. Rows count `weight` times.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa

from tabserve.history.window import BadQuestionError, Which, Window
from tabserve.prediction_log import CannotKeepError
from tabserve.prediction_log.places import Place, place_of

ROWS_AT_ONCE = 32_768  # of an answer in memory


class UnreadableError(Exception):
    """The place cannot be read now; the message says why."""


class Records(Protocol):
    """The views above, in a place of some kind.

    DuckDB answers for files. The tables of a database answer the same questions themselves: whoever reads these has to
    say what the views are there, and to write `quantile`, `epoch` and the like as that database does.
    """

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """A small answer, whole.

        Raises:
            UnreadableError: where it cannot be read.
        """

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """An answer of any size, in pieces; at least one, which may be empty.

        Raises:
            UnreadableError: as `rows`.
        """


def readable_place(url: str) -> Place:
    """The place at an address, where it can be read.

    Raises:
        BadQuestionError: where it cannot.
    """
    try:
        place = place_of(url)
    except CannotKeepError as error:
        raise BadQuestionError(str(error)) from error
    if place is None:
        raise BadQuestionError("nothing is kept: the address of the prediction log is null:")
    return place


def opened(place: Place, window: Window, of: Which | None = None) -> AbstractContextManager[Records]:
    """The records of a place.

    Raises:
        BadQuestionError: where DuckDB is missing.
        UnreadableError: where they cannot be read.
    """
    try:
        from tabserve.history.files import opened_files  # here, because DuckDB comes with an extra
    except ModuleNotFoundError as error:
        if error.name != "duckdb":
            raise
        raise BadQuestionError(
            "reading the prediction log needs DuckDB, which comes with the extra `monitoring`: "
            "make .venv/monitoring.installed, or pip install tabserve[monitoring]"
        ) from error
    return opened_files(place, window, of or Which())
