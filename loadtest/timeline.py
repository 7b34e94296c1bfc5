"""A run from interval to interval: what Locust counted, and what the service said of itself on /metrics meanwhile."""

import http.client
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

if TYPE_CHECKING:  # it patches the process that imports it
    from locust.env import Environment

SCRAPE_LIMIT_SECONDS = 2.0

# The series of the service that a report shows.
BATCHES, ROWS_OF_BATCHES = "tabserve_batch_rows_count", "tabserve_batch_rows_sum"
QUEUED_ROWS, REFUSED_ROWS = "tabserve_queued_rows", "tabserve_refused_rows_total"
CPU_SECONDS, MEMORY_BYTES = "tabserve_process_cpu_seconds_total", "tabserve_process_resident_memory_bytes"
SHOWN = (BATCHES, ROWS_OF_BATCHES, QUEUED_ROWS, REFUSED_ROWS, CPU_SECONDS, MEMORY_BYTES)


@dataclass(frozen=True)
class Interval:
    """What happened up to `seconds` after the start. What nobody could say is None."""

    seconds: float
    users: int
    requests_per_second: float
    failures_per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    rows_per_batch: float | None
    queued_rows: float | None
    """At its end."""
    refused_rows_per_second: float | None
    cpu_cores: float | None
    """CPU seconds a second, of all processes of the service."""
    memory_mb: float | None
    """At its end, of all processes of the service."""


class Scrape:
    """One reading of /metrics: a value by series, such as `tabserve_refused_rows_total{reason="too_late"}`."""

    def __init__(self, exposition: str, at: float) -> None:
        self.at = at
        self.values: dict[str, float] = {}
        for line in exposition.splitlines():
            if line.startswith(SHOWN):
                series, _, value = line.rpartition(" ")
                self.values[series] = float(value)

    def total(self, name: str) -> float | None:
        """Over all series of a name; None where there is none."""
        found = [value for series, value in self.values.items() if series.partition("{")[0] == name]
        return sum(found) if found else None

    def increase(self, name: str, before: "Scrape") -> float:
        """Of counters, over all series; a series that began anew counts from zero."""
        increases = (
            value - before.values.get(series, 0.0) if value >= before.values.get(series, 0.0) else value
            for series, value in self.values.items()
            if series.partition("{")[0] == name
        )
        return sum(increases)


def scrape(url: str, headers: Mapping[str, str]) -> Scrape | None:
    """What the service at an address says of itself now; None where it does not."""
    try:
        asked = urllib.request.Request(f"{url}/metrics", headers=dict(headers))  # noqa: S310  # target.find has looked
        with urllib.request.urlopen(asked, timeout=SCRAPE_LIMIT_SECONDS) as answer:  # noqa: S310  # as above
            text = answer.read().decode()
        return Scrape(text, time.perf_counter())
    except (OSError, http.client.HTTPException, ValueError):
        return None


class Timeline:
    """Watches a run from its start to its end, in the process that has the statistics of all.

    Args:
        url: of the service.
        headers: what its /metrics is asked with.
    """

    def __init__(
        self, environment: "Environment", url: str, interval_seconds: float, headers: Mapping[str, str]
    ) -> None:
        self.intervals: list[Interval] = []
        self._environment = environment
        self._url = url
        self._headers = headers
        self._interval_seconds = interval_seconds
        self._started = self._last = time.perf_counter()
        self._counted = self._counts()
        self._scraped = scrape(url, headers)
        self._is_over = Event()
        self._watching = gevent.spawn(self._watch)

    def end(self) -> None:
        """Ends with the interval that has begun, where anything has happened in it."""
        self._is_over.set()
        self._watching.join()
        if self._counts() != self._counted or not self.intervals:
            self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval_seconds):
            self._look()

    def _look(self) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        before, self._counted = self._counted, self._counts()
        if self._counted.requests < before.requests:  # --reset-stats
            before = _Counts(0, 0, Counter())
        times = self._counted.times - before.times
        runner = self._environment.runner
        was, self._scraped = self._scraped, scrape(self._url, self._headers)
        self.intervals.append(
            Interval(
                seconds=now - self._started,
                users=runner.user_count if runner else 0,
                requests_per_second=(self._counted.requests - before.requests) / seconds,
                failures_per_second=(self._counted.failures - before.failures) / seconds,
                p50_ms=percentile(times, 0.5),
                p95_ms=percentile(times, 0.95),
                p99_ms=percentile(times, 0.99),
                **_said(was, self._scraped),
            )
        )

    def _counts(self) -> "_Counts":
        total = self._environment.stats.total
        return _Counts(total.num_requests, total.num_failures, Counter(total.response_times))


@dataclass(frozen=True)
class _Counts:
    requests: int
    failures: int
    times: Counter[int]
    """How many answers took so many milliseconds."""


def percentile(times: Mapping[int, int], share: float) -> float | None:
    """The time within which that share of the answers came, 0 to 1; None where there are none."""
    left = share * sum(times.values())
    for milliseconds in sorted(times):
        left -= times[milliseconds]
        if left <= 0:
            return milliseconds
    return None


def _said(before: Scrape | None, now: Scrape | None) -> dict[str, float | None]:
    names = ("rows_per_batch", "queued_rows", "refused_rows_per_second", "cpu_cores", "memory_mb")
    said: dict[str, float | None] = dict.fromkeys(names)
    if now is None:
        return said
    memory = now.total(MEMORY_BYTES)
    said["queued_rows"] = now.total(QUEUED_ROWS)
    said["memory_mb"] = None if memory is None else memory / 1e6
    if before is not None and now.at > before.at:
        batches = now.increase(BATCHES, before)
        said["rows_per_batch"] = now.increase(ROWS_OF_BATCHES, before) / batches if batches else None
        said["refused_rows_per_second"] = now.increase(REFUSED_ROWS, before) / (now.at - before.at)
        if memory is not None:
            said["cpu_cores"] = now.increase(CPU_SECONDS, before) / (now.at - before.at)
    return said
