"""What is told of the access to the service."""

from typing import Literal, Protocol, get_args

Reason = Literal["no_key", "unknown_key", "expired", "missing_scope", "too_many"]
"""Why a request was not let in."""

REASONS: tuple[Reason, ...] = get_args(Reason)


class Observer(Protocol):
    """Whoever counts. Called on the event loop and from threads."""

    def access_refused(self, reason: Reason) -> None: ...

    def file_is_stale(self, source: str, *, is_stale: bool) -> None: ...

    def limited_alone(self) -> None: ...
