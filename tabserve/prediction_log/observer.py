"""What the prediction log tells of itself."""

from typing import Protocol


class Observer(Protocol):
    """Told by the writer's and the roller's threads; `tabserve.telemetry` makes metrics of it."""

    def rows_written(self, table: str, n_rows: int) -> None: ...

    def rows_dropped(self, reason: str, n_rows: int) -> None:
        """Rows that are lost: queue_full, write_error, spool_full, removed (their file was), failed (our fault,
        or a database that will never take them).
        """

    def write_failed(self) -> None: ...

    def queue_holds(self, n_rows: int) -> None: ...

    def spool_holds(self, n_bytes: int) -> None:
        """What waits for a bucket or a database, of all workers together."""
