"""What is told of the access to the service."""

from typing import Protocol


class Observer(Protocol):
    """Whoever counts. Called on the event loop and from threads."""

    def access_refused(self, reason: str) -> None: ...

    def file_is_stale(self, source: str, *, is_stale: bool) -> None: ...

    def limited_alone(self) -> None: ...
