"""The real batcher under simulated time: seconds of load in a fraction of one, and the same numbers in every run.

    arrivals, keen clients → Batcher → SimulatedModel, on the loop or in a VirtualThread
                       all on a VirtualLoop, whose clock jumps to what comes next

What Python itself costs is not in it: a request, a thread and a turn of the loop take no time.
"""

import asyncio
import heapq
import itertools
import math
import selectors
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tabserve.batcher import Batcher, DeadlineExceededError, RefusedError, Slice
from tabserve.contract import MAX_ROWS, Rows
from tabserve.engine import Scores

WARM_UP_ROWS = (1, 8, 64, MAX_ROWS)  # as the service does
CLOCK_RESOLUTION = 1e-9  # seconds; asyncio too calls a timer as much too early
MOST_TURNS = 10_000  # of the loop at one instant; a handful is usual
ANSWERED = "answered"
DEADLINE = "deadline"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: where nothing is ready, its clock jumps to what comes next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._incoming: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now

    def receive_at(self, at: float, callback: Callable[[], object]) -> None:
        """Calls back as for data on a socket: while the loop polls, as uvloop does. asyncio's own does a turn later."""
        heapq.heappush(self._incoming, (at, next(self._numbers), callback))
        self.call_at(at, lambda: None)  # to be awake then

    def poll(self) -> None:
        while self._incoming and self._incoming[0][0] <= self.now + CLOCK_RESOLUTION:
            heapq.heappop(self._incoming)[-1]()


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._n_turns = 0
        self._since = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("somebody waits, and neither a callback nor a timer is left: it would be for ever")
        self._loop.now += timeout
        self._n_turns = self._n_turns + 1 if self._loop.now == self._since else 0
        if self._n_turns > MOST_TURNS:
            raise RuntimeError(f"{MOST_TURNS} turns of the loop, and still {self._loop.now} s: it would be for ever")
        self._since = self._loop.now
        self._loop.poll()
        return super().select(0)  # the loop's own wake-ups


class VirtualThread(Executor):
    """Does its work at once, in a time of its own; the result is there when the loop's clock has come as far."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        started = self._loop.now
        result = work(*args, **kwargs)
        ended, self._loop.now = self._loop.now, started
        self._loop.call_at(ended, future.set_result, result)
        return future


@dataclass(kw_only=True)
class SimulatedModel:
    """Doubles its rows, in `fixed + per_row` · rows seconds.

    Args:
        slowness: a factor for the batches that start at an instant.
        slow_batches: factors of single batches, by their number.
        noise: the sigma of a lognormal factor with median 1.
    """

    fixed: float
    per_row: float
    slowness: Callable[[float], float] = lambda _: 1.0
    slow_batches: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def seconds(self, n_rows: int, *, started: float = 0.0, number: int | None = None) -> float:
        factor = self.slowness(started) * (1.0 if number is None else self.slow_batches.get(number, 1.0))
        return float((self.fixed + self.per_row * n_rows) * factor * self._generator.lognormal(sigma=self.noise))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes at its instant, whatever became of the others."""

    at: float
    n_rows: int = 1
    timeout_seconds: float = math.inf


def poisson(rate: float, until: float, *, seed: int, timeout_seconds: float = math.inf) -> list[Arrival]:
    """Requests of one row, of many independent callers: so many a second."""
    generator = np.random.default_rng(seed)
    instants = np.sort(generator.uniform(0.0, until, generator.poisson(rate * until)))
    return [Arrival(float(at), timeout_seconds=timeout_seconds) for at in instants]


@dataclass(frozen=True, slots=True)
class KeenClient:
    """Asks again as soon as it has its answer."""

    n_rows: int
    until: float
    timeout_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """`outcome` is ANSWERED, DEADLINE where the time passed in the queue, or the reason of the refusal."""

    caller: Arrival | KeenClient
    arrived: float
    done: float
    outcome: str


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """`cap` is what the batcher allowed when it took the rows."""

    started: float
    n_rows: int
    cap: int
    seconds: float


class Simulation:
    """One batcher, its callers, and what became of them: requests in the order of their ends, batches of their starts.

    Args:
        warm_up: rows of the batches whose times the batcher is told before the first request.
        settings: further arguments of the batcher.
    """

    def __init__(self, model: SimulatedModel, *, warm_up: Sequence[int] = WARM_UP_ROWS, **settings: Any) -> None:
        self.requests: list[RequestRecord] = []
        self.batches: list[BatchRecord] = []
        self._model = model
        self._n_asked_rows = 0
        self._loop = VirtualLoop()
        thread = VirtualThread(self._loop)
        self.batcher = Batcher(self._predict, thread, _NobodyObserves(), clock=self._loop.time, **settings)
        for n_rows in warm_up:
            self.batcher.service_time.observe(n_rows, model.seconds(n_rows))

    def run(self, arrivals: Sequence[Arrival] = (), clients: Iterable[KeenClient] = ()) -> Self:
        """Until all of them are answered; once."""
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._let_in(arrivals, clients))
        return self

    def rows_per_second(self, since: float, until: float) -> float:
        """Rows answered in time, of all callers."""
        in_time = [
            request.caller.n_rows
            for request in self.requests
            if request.outcome == ANSWERED
            and since <= request.done < until
            and request.done - request.arrived <= request.caller.timeout_seconds
        ]
        return sum(in_time) / (until - since)

    def latencies(self) -> npt.NDArray[np.float64]:
        """Seconds that the answered arrivals waited; those of keen clients are not among them."""
        answered = [request for request in self.requests if request.outcome == ANSWERED]
        return np.array([found.done - found.arrived for found in answered if isinstance(found.caller, Arrival)])

    async def _let_in(self, arrivals: Sequence[Arrival], clients: Iterable[KeenClient]) -> None:
        async with asyncio.TaskGroup() as callers:
            for client in clients:
                callers.create_task(self._keep_asking(client))
            for arrival in arrivals:
                self._loop.receive_at(arrival.at, partial(self._let_one_in, callers, arrival))
            await asyncio.sleep(max((arrival.at for arrival in arrivals), default=0.0))

    def _let_one_in(self, callers: asyncio.TaskGroup, arrival: Arrival) -> None:
        callers.create_task(self._ask(arrival, arrival.at))

    async def _keep_asking(self, client: KeenClient) -> None:
        while self._loop.now < client.until:
            await self._ask(client, self._loop.now)

    async def _ask(self, caller: Arrival | KeenClient, arrived: float) -> None:
        rows = np.arange(self._n_asked_rows, self._n_asked_rows + caller.n_rows, dtype=np.float64)[:, None]
        self._n_asked_rows += caller.n_rows
        outcome = ANSWERED
        try:
            scores = await self.batcher.submit(rows, timeout_seconds=caller.timeout_seconds)
        except RefusedError as error:
            outcome = error.reason
        except DeadlineExceededError:
            outcome = DEADLINE
        else:
            if not np.array_equal(scores, 2 * rows):
                raise AssertionError(f"the caller of rows {rows[0, 0]:.0f} to {rows[-1, 0]:.0f} got {scores.tolist()}")
        self.requests.append(RequestRecord(caller, arrived, self._loop.now, outcome))

    def _predict(self, rows: Rows) -> Scores:
        started = self._loop.now
        seconds = self._model.seconds(len(rows), started=started, number=len(self.batches))
        self.batches.append(BatchRecord(started, len(rows), self.batcher.cap(), seconds))
        self._loop.now += seconds
        return 2 * rows


class _NobodyObserves:
    def queue_left(self, n_rows: int) -> None: ...
    def request_split(self) -> None: ...
    def batch_failed(self, reason: str) -> None: ...
    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices: Sequence[Slice]) -> None: ...
    def batch_done(self, n_rows: int, service_seconds: float) -> None: ...
    def refused(self, reason: str, n_rows: int) -> None: ...
