"""What this project promises of its speed, and whether a run of the benchmark kept it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loadtest.benchmark import candidates
from loadtest.benchmark.rows import Row

OURS, NO_LOG, PLAIN, CAREFUL, QUICKSTART = (
    one.name
    for one in (
        candidates.TABSERVE,
        candidates.NO_LOG,
        candidates.PLAIN,
        candidates.CAREFUL,
        candidates.QUICKSTART,
    )
)


@dataclass(frozen=True)
class Target:
    """A promise, and what was found."""

    promise: str
    found: float
    limit: float
    is_least: bool = False
    """Whether `limit` is the least that will do; else it is the most."""

    @property
    def is_met(self) -> bool:
        return self.found >= self.limit if self.is_least else self.found <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.is_least else "≤"
        return f"| {self.promise} | {sign} {self.limit:g} | {self.found:.3g} | {'yes' if self.is_met else '**no**'} |"


def under_load(connections: int, rows: Mapping[str, Row]) -> Iterator[Target]:
    ours = rows[OURS]
    for name, least in ((PLAIN, 9.0), (CAREFUL, 1.4), (QUICKSTART, 10.0), (NO_LOG, 0.93)):
        yield Target(f"{connections} connections: × {name}", ours.times(rows[name]), least, is_least=True)
    yield Target(f"{connections} connections: CPU µs a request", ours.middle("cpu_us"), 110)
    if connections == 32:
        p99 = rows[CAREFUL].middle("p99_ms")
        yield Target("32 connections: p99 in ms, against that of the careful one", ours.middle("p99_ms"), round(p99, 2))


def of_one_connection(rows: Mapping[str, Row]) -> Iterator[Target]:
    more = rows[OURS].middle("p50_ms") - rows[CAREFUL].middle("p50_ms")
    yield Target("1 connection: p50 in ms above that of the careful one", more, 0.3)


def of_open_loop(rows: Mapping[str, Row]) -> Iterator[Target]:
    yield Target("1000 a second, open loop: p99 in ms", rows[OURS].middle("p99_ms"), 5)
    yield Target("1000 a second, open loop: failed", sum(result.failed for result in rows[OURS].results), 0)


def of_batches(rows: Mapping[str, Row]) -> Iterator[Target]:
    yield Target(f"16 rows a request: × {PLAIN}", rows[OURS].times(rows[PLAIN]), 4, is_least=True)


def of_forest(rows: Mapping[str, Row]) -> Iterator[Target]:
    yield Target(f"forest: × {PLAIN}", rows[OURS].times(rows[PLAIN]), 15, is_least=True)
