"""Requests at instants that do not depend on the answers, with latencies that count from those instants.

A caller that waits for its answer before it asks again, as Locust's users do, stops asking where the server stalls: of
all who would have waited it sees one (coordinated omission). Here each of Locust's users is a source of arrivals
instead, with its part of the rate; what arrives is asked at once, beside what is still under way.
"""

import random
import time
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
from gevent.pool import Group
from locust.env import Environment
from locust.exception import CatchResponseError

DRAIN_SECONDS = 10.0  # for what is under way when a run ends; `--stop-timeout` says another time


class Source(Protocol):
    """One of Locust's users, as far as it is a source of arrivals."""

    label: str
    under_way: int

    def ask_once(self, due: float | None) -> None:
        """Makes one request and reports it, with a latency that counts from `due`."""


@dataclass(frozen=True)
class Rate:
    """What one user brings: its arrivals a second, and how many of its requests may be under way."""

    per_second: float
    most_under_way: int
    is_poisson: bool = True


class Arrivals:
    """The instants of one user, by time.perf_counter()."""

    def __init__(self, rate: Rate, random_numbers: random.Random) -> None:
        self._rate = rate
        self._random = random_numbers
        # Of users that start together not all may begin together.
        first = self._gap() if rate.is_poisson else self._random.random() / rate.per_second
        self.due = time.perf_counter() + first

    def advance(self) -> None:
        self.due += self._gap()

    def seconds_left(self) -> float:
        return max(0.0, self.due - time.perf_counter())

    def _gap(self) -> float:
        """Seconds to the next one: from the instant that was due, so that being late once does not slow the rate."""
        if self._rate.is_poisson:
            return self._random.expovariate(self._rate.per_second)
        return 1 / self._rate.per_second


class OpenLoop:
    """The requests of this process that are under way, and the end of them."""

    def __init__(self, environment: Environment, rate: Rate) -> None:
        self.rate = rate
        self._environment = environment
        self._group = Group()
        self._waiting: dict[Any, tuple[Source, float]] = {}
        self._is_over = False

    def arrive(self, source: Source, due: float) -> None:
        """Asks beside whatever else is under way, or reports a failure where too much is."""
        if self._is_over:
            return
        if source.under_way >= self.rate.most_under_way:
            report(self._environment, source.label, None, f"not sent: {source.under_way} of its user were under way")
            return
        source.under_way += 1
        request = self._group.spawn(self._ask, source, due)
        self._waiting[request] = source, due

    def drain(self) -> None:
        """Ends arrivals, waits for what is under way, and reports what has no answer even then."""
        self._is_over = True
        limit_seconds = self._environment.stop_timeout or DRAIN_SECONDS
        self._group.join(timeout=limit_seconds)
        unanswered = list(self._waiting.values())
        self._waiting.clear()
        self._group.kill()
        for source, due in unanswered:
            waited_ms = (time.perf_counter() - due) * 1000
            report(
                self._environment,
                source.label,
                waited_ms,
                f"no answer within {limit_seconds:g} s after the end of the run",
            )

    def _ask(self, source: Source, due: float) -> None:
        try:
            source.ask_once(due)
        except Exception as error:  # noqa: BLE001  # as Locust does with what a task raises: shown, and the run goes on
            self._environment.events.user_error.fire(user_instance=source, exception=error, tb=error.__traceback__)
        finally:
            source.under_way -= 1
            self._waiting.pop(gevent.getcurrent(), None)


def report(environment: Environment, name: str, response_time: float | None, failure: str | None) -> None:
    """Tells Locust of a request that its HTTP client did not make; without a time it counts in no percentile."""
    environment.events.request.fire(
        request_type="POST",
        name=name,
        response_time=response_time,
        response_length=0,
        response=None,
        context={},
        exception=CatchResponseError(failure) if failure else None,
        start_time=time.time(),
        url=None,
    )
