"""All candidates under the same load in interleaved rounds, each answer compared with scikit-learn's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import uvloop

from loadtest.benchmark import candidates
from loadtest.benchmark.candidates import Candidate, Endpoint
from loadtest.benchmark.load import Measured, closed_loop, open_loop
from loadtest.benchmark.models import BenchmarkModel
from loadtest.processes import NotStartedError, Server

LARGEST_DIFFERENCE = 1e-6  # of a probability, from scikit-learn's
WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Point:
    """Under what load a candidate is measured."""

    name: str
    candidates: tuple[Candidate, ...]
    connections: int = 32
    rate: float | None = None
    """Requests a second of an open loop; None for a closed one."""
    rows: int = 1
    forest: bool = False
    longer: int = 1
    """How many times as long as at the other points, where an answer takes seconds."""


@dataclass(frozen=True)
class Result:
    """One candidate at one point in one round."""

    candidate: str
    point: Point
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    memory_mb: float
    failed: int
    wrong: int
    client_cpu: float

    def __str__(self) -> str:
        times = f"p50 {self.p50_ms:8.2f}  p99 {self.p99_ms:8.2f}  {self.cpu_us:7.0f} µs"
        checks = f"failed {self.failed}  wrong {self.wrong}  load {self.client_cpu:.0%}"
        return f"{self.point.name:36} {self.candidate:32} {self.rate:8.0f}/s  {times}  {checks}"


@dataclass(frozen=True)
class Running:
    """A candidate that listens."""

    candidate: Candidate
    server: Server
    model: BenchmarkModel

    def requests(self, n_rows: int = 1) -> list[bytes]:
        """A request for each place in the table at which so many rows begin."""
        endpoint = self.endpoint(n_rows)
        starts = range(len(self.model.rows) - n_rows + 1)
        return [endpoint.request(self.model.rows[start : start + n_rows].tolist()) for start in starts]

    def endpoint(self, n_rows: int) -> Endpoint:
        endpoint = self.candidate.one_row if n_rows == 1 else self.candidate.many_rows
        if endpoint is None:
            raise ValueError(f"{self.candidate.name} takes one row at a time")
        return endpoint


def measured_rounds(
    running: Mapping[tuple[bool, str], Running], points: Sequence[Point], *, rounds: int, seconds: float
) -> Iterator[Result]:
    """In each round every candidate at every point, so that a slow minute of the machine falls on all of them."""
    for number in range(rounds):
        for point in points:
            for candidate in point.candidates:
                one = running.get((point.forest, candidate.name))
                if one is not None:
                    yield uvloop.run(_measure(one, point, seconds * point.longer, seed=number))


async def _measure(one: Running, point: Point, seconds: float, seed: int) -> Result:
    server, requests = one.server, one.requests(point.rows)
    await wait_until_it_answers(server, requests)
    await closed_loop(server.port, requests, connections=point.connections, seconds=WARM_UP_SECONDS)
    cpu = server.cpu_seconds()
    if point.rate is not None:
        measured = await open_loop(server.port, requests, rate=point.rate, seconds=seconds, seed=seed)
    else:
        measured = await closed_loop(server.port, requests, connections=point.connections, seconds=seconds)
    cpu = server.cpu_seconds() - cpu
    return Result(
        candidate=one.candidate.name,
        point=point,
        rate=measured.rate,
        p50_ms=measured.quantile_ms(0.5),
        p99_ms=measured.quantile_ms(0.99),
        cpu_us=cpu / max(1, len(measured.latencies)) * 1e6,
        memory_mb=server.memory_bytes() / 1e6,
        failed=measured.failed,
        wrong=wrong_answers(measured, one, point.rows),
        client_cpu=measured.client_cpu,
    )


async def wait_until_it_answers(server: Server, requests: Sequence[bytes], limit_seconds: float = 60) -> None:
    """Listening is not answering: a model may still be loading.

    Raises:
        NotStartedError: where no answer is a 200 in time.
    """
    for _ in range(int(limit_seconds / 0.5)):
        # Long enough for BentoML's dispatcher, which has a lone request wait for company after it was under load.
        tried = await closed_loop(server.port, requests[:1], connections=1, seconds=0.5)
        if tried.latencies:
            return
    raise NotStartedError(f"no answer of 200; the end of its log:\n{server.log.read_text()[-2000:]}")


def wrong_answers(measured: Measured, one: Running, n_rows: int) -> int:
    """How many answers are not what scikit-learn says of the rows that were sent."""
    endpoint = one.endpoint(n_rows)
    if endpoint is candidates.BARE_ROW:
        return 0
    wrong = 0
    for number, body in measured.bodies:
        scores = np.array(endpoint.scores(msgspec.json.decode(body)))
        expected = one.model.scores[number : number + n_rows]
        wrong += scores.shape != expected.shape or not (np.abs(scores - expected) <= LARGEST_DIFFERENCE).all()
    return wrong
