"""How often somebody may ask: a token bucket for each caller, which holds `burst` requests and fills at a rate.

A bucket is one number, the moment at which it will be full again (the generic cell rate algorithm, ITU-T I.371): each
request moves it by 1/rate, and a request that would move it further ahead than `burst` of them is refused.
"""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

_SECONDS = {"s": 1, "m": 60, "h": 3600}

# Callers that are remembered, 200 bytes each. Who has not asked for longest is forgotten first, and begins with a full
# bucket: wrong only for one who comes back before it would have been full.
MOST_CALLERS = 50_000

MOST_A_SECOND = 100_000  # more than a worker answers; the clock of Redis counts microseconds

_ROUNDING_SECONDS = 1e-6  # sums of fractions come out a little above what they are compared with


@dataclass(frozen=True)
class RateLimit:
    """So many requests in so many seconds, and so many at once."""

    requests: int
    seconds: int
    burst: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `10/s:20`, ten a second and twenty at once; `/m` and `/h` for a minute and an hour.

        Raises:
            ValueError: for another text; says what was expected.
        """
        found = re.fullmatch(r"([1-9][0-9]{0,6})/([smh])(?::([1-9][0-9]{0,6}))?", text)
        if found is None or int(found[1]) > MOST_A_SECOND * _SECONDS[found[2]]:
            raise ValueError(
                "requests a second, minute or hour, and how many at once, such as 10/s:20 or 600/m, 100000/s at most"
            )
        requests = int(found[1])
        return cls(requests, _SECONDS[found[2]], int(found[3]) if found[3] else requests)

    @property
    def interval(self) -> float:
        """Seconds in which one request comes back."""
        return self.seconds / self.requests

    @property
    def ahead(self) -> float:
        """Seconds by which a bucket may be from full, for one more request."""
        return (self.burst - 1) * self.interval + _ROUNDING_SECONDS

    def headers(self, wait: float) -> dict[str, str]:
        """Of a refusal: draft-ietf-httpapi-ratelimit-headers-10, and Retry-After (RFC 9110), in whole seconds."""
        seconds = str(max(1, math.ceil(wait)))
        window = math.ceil(self.burst * self.interval)
        return {
            "retry-after": seconds,
            "ratelimit-policy": f'"default";q={self.burst};w={window}',
            "ratelimit": f'"default";r=0;t={seconds}',
        }


def taken(full_at: float, now: float, interval: float, ahead: float) -> tuple[float, float]:
    """One request from a bucket. When it is full again, and the seconds to wait where it has none to give; else 0.

    The same stands in Redis's language in `tabserve.access.shared_rate_limit`.
    """
    full_at = max(full_at, now)
    wait = full_at - now - ahead
    return (full_at, wait) if wait > 0 else (full_at + interval, 0.0)


class Buckets:
    """The buckets of one process."""

    def __init__(
        self, limit: RateLimit, *, most_callers: int = MOST_CALLERS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self._interval = limit.interval
        self._ahead = limit.ahead
        self._most_callers = most_callers
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, who: str) -> float:
        """Takes a request from a bucket. The seconds to wait until there is one, where there is none; else 0."""
        full_at = self._full_at.get(who, 0.0)
        self._full_at[who], wait = taken(full_at, self._clock(), self._interval, self._ahead)
        self._full_at.move_to_end(who)
        if len(self._full_at) > self._most_callers:
            self._full_at.popitem(last=False)
        return wait

    def give_back(self, who: str) -> None:
        """The request that was taken was not answered after all."""
        if who in self._full_at:
            self._full_at[who] -= self._interval
