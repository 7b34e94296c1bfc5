"""Which trace a request belongs to, as its caller says in the header `traceparent` (W3C Trace Context, level 1).

`tracestate` and `baggage` are not read: nothing is passed on to anybody else, and what strangers write is kept nowhere.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

LONGEST = 256  # bytes; 55 in version 00, later ones may add to that

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


class Caller(NamedTuple):
    """The span of the caller in which a request was sent."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: int
    is_sampled: bool
    """Whether the caller may have recorded it."""


def caller_of(headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
    """The caller's span; None where there is no `traceparent`, several, or one that the standard calls invalid."""
    found = None
    for name, value in headers:
        if name == b"traceparent":
            if found is not None:
                return None
            found = value
    return None if found is None else _read(found)


def _read(traceparent: bytes) -> Caller | None:
    matched = _TRACEPARENT.fullmatch(traceparent) if len(traceparent) <= LONGEST else None
    if matched is None:
        return None
    version, trace_id, span_id, flags, more = matched.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return Caller(trace_id.decode(), int(span_id, 16), bool(int(flags, 16) & 1))
