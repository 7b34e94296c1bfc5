"""Adaptive batching of rows: an idle engine starts at once, and what arrives while it works goes together next.

    submit → queue, bounded in rows → batch of at most `cap` rows → engine

Nothing here waits for more rows to come: a lone request pays for no batching, under load batches grow by themselves.
All state belongs to the event loop; only the engine may run in a thread. Nothing wakes up while there is nothing to do.
"""

import asyncio
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from tabserve.contract import MAX_ROWS, Rows
from tabserve.engine import Scores, finite
from tabserve.service_time import ServiceTime

Predict = Callable[[Rows], Scores]

WORTHWHILE = 0.05  # a batch grows while the fixed cost is still more than this share of the cost of its rows
SURE_SHARE = 0.8  # of the time that a caller has: what is expected to take longer is refused
TURN_SECONDS = 0.0003  # of the event loop for batches, until it has to read and write again
INLINE_SECONDS = 0.002  # a batch that is over sooner runs on the event loop; docs/decisions.md has the crossover


class RefusedError(Exception):
    """A request that could not be answered in time, refused before it cost anything. `retry_after` is in seconds."""

    def __init__(self, reason: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class DeadlineExceededError(Exception):
    """A request whose time passed while it waited: slower batches than foreseen went before it."""


class CallerGoneError(Exception):
    """A request that nobody waits for any more; it cost no batch."""


class Observer(Protocol):
    """What is told about batches; the metrics of the service, or nothing."""

    def queue_left(self, n_rows: int) -> None: ...
    def request_split(self) -> None: ...
    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices: "Sequence[Slice]") -> None: ...
    def batch_done(self, n_rows: int, service_seconds: float) -> None: ...
    def batch_failed(self, reason: str) -> None: ...
    def refused(self, reason: str, n_rows: int) -> None: ...


@dataclass(slots=True, eq=False)
class _Job:
    """One request: its rows, and the scores of those that were answered, by position."""

    rows: Rows
    future: "asyncio.Future[Scores]"
    deadline: float
    enqueued: float
    is_wanted: Callable[[], bool] | None
    n_taken: int = 0
    n_open: int = 0
    scores: Scores | None = None
    trace: Any = None


Slice = tuple[_Job, int, int]
"""Rows of a job in a batch, from and to."""


@dataclass(slots=True)
class _Batch:
    """Slices of jobs, in the order in which their rows stand in the batch."""

    cap: int = 0
    slices: list[Slice] = field(default_factory=list)
    n_rows: int = 0


class Batcher:
    """Merges the rows of concurrent requests into batches for one engine.

    Args:
        predict: rows of shape (n, features) to scores of n rows, in order.
        executor: where batches run that would block the event loop.
        max_rows: the largest batch.
        max_queued_rows: rows that may wait; more are refused.
        budget_seconds: what a batch may take, so that nobody waits long behind it.
        merges: whether a batch may hold rows of several requests.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        predict: Predict,
        executor: Executor,
        observer: Observer,
        *,
        max_rows: int = MAX_ROWS,
        max_queued_rows: int = 65536,
        budget_seconds: float = 0.05,
        merges: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._predict = predict
        self._executor = executor
        self._observer = observer
        self._max_rows = max_rows
        self._max_queued_rows = max_queued_rows
        self._budget_seconds = budget_seconds
        self._merges = merges
        self._clock = clock
        self._queue: deque[_Job] = deque()
        self._queued_rows = 0
        self._is_busy = False
        self._busy_until = 0.0
        self._in_thread = _Batch()
        self._wake_up: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self.service_time = ServiceTime()

    @property
    def queued_rows(self) -> int:
        return self._queued_rows

    def cap(self) -> int:
        """The rows that the next batch may have: what the budget allows, and no more than helps."""
        fixed, per_row = self.service_time.fixed, self.service_time.per_row
        if per_row == 0.0:
            return self._max_rows
        within_budget = (self._budget_seconds - fixed) / per_row
        # Twice as many rows a batch save half of the fixed cost; where that is nothing, they only make others wait.
        helpful = fixed / (WORTHWHILE * per_row)
        return int(min(self._max_rows, max(1.0, min(within_budget, helpful))))

    def _rows_of_a_turn(self) -> int:
        """The most rows of one request in a batch: at most doubling its cost, or a turn's time where that is more.

        Also where nobody else waits: who comes next would wait for all of it.
        """
        fixed, per_row = self.service_time.fixed, self.service_time.per_row
        if per_row == 0.0:
            return self._max_rows
        return max(1, int(max(fixed, TURN_SECONDS - fixed) / per_row))

    async def submit(
        self,
        rows: Rows,
        *,
        timeout_seconds: float = math.inf,
        is_wanted: Callable[[], bool] | None = None,
        trace: Any = None,
    ) -> Scores:
        """The scores of one request's rows, shape (n, features), n at least 1, in order.

        Args:
            timeout_seconds: how long the caller waits.
            is_wanted: whether somebody still waits; asked before the rows cost a batch.
            trace: what the observer knows the request by, where it is recorded.

        Raises:
            RefusedError: at once, where the queue is full or the time would not suffice.
            DeadlineExceededError: where the time passed in the queue.
            CallerGoneError: where `is_wanted` said no.
            Exception: whatever the engine raised for these rows; other requests of the same batch are not concerned.
        """
        self.admit(len(rows), timeout_seconds)
        now = self._clock()
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        job = _Job(rows, future, now + timeout_seconds, now, is_wanted, n_open=len(rows), trace=trace)
        self._queue.append(job)
        self._queued_rows += len(rows)
        if not self._is_busy:
            self._is_busy = True
            asyncio.get_running_loop().call_soon(self._start_when_read, 0)
        elif self._in_thread.slices:
            self._wake_by(job.deadline)
        return await future

    def admit(self, n_rows: int, timeout_seconds: float) -> None:
        """Whether so many more rows could be answered in time; also worth asking before a body is read for them.

        Raises:
            RefusedError: where they could not.
        """
        if not self._is_busy:
            return  # what is known of an idle engine may be out of date, and only a batch can tell
        queued = self._queued_rows
        if queued and queued + n_rows > self._max_queued_rows:
            message = f"{queued} rows are waiting, {self._max_queued_rows} may; try again in a moment"
            self._refuse("queue_full", n_rows, message)
        expected = self._expected_seconds(queued + n_rows)
        # Nobody knows to the millisecond: without a margin half of those that just fit would be too late after all.
        if expected > SURE_SHARE * timeout_seconds:
            message = f"the answer would take {expected:.3f} s and has {timeout_seconds:.3f} s; try again in a moment"
            self._refuse("too_late", n_rows, message)

    def _expected_seconds(self, n_rows: int) -> float:
        """How long it takes until the engine has done so many rows, and the batch that it is at."""
        cap = self.cap()
        batches = -(-n_rows // cap)
        return batches * self.service_time.of(min(cap, n_rows)) + max(0.0, self._busy_until - self._clock())

    def _refuse(self, reason: str, n_rows: int, message: str) -> None:
        self._observer.refused(reason, n_rows)
        raise RefusedError(reason, message, retry_after=max(1.0, self._expected_seconds(self._queued_rows)))

    def _start_when_read(self, queued_rows_before: int) -> None:
        """Starts a batch when the event loop has read all requests that came: it is the faster the more go together.

        A turn of the loop that brings no more rows takes microseconds; a lone request waits for one.
        """
        if queued_rows_before < self._queued_rows < self.cap():
            asyncio.get_running_loop().call_soon(self._start_when_read, self._queued_rows)
        else:
            self._start_next()

    def _start_next(self) -> None:
        """Starts the next batch; batches that take next to nothing one after the other, until it is the loop's turn."""
        now = self._clock()
        until = now + TURN_SECONDS
        while (batch := self._take(now)).slices:
            longest_wait = now - min(job.enqueued for job, _, _ in batch.slices)
            self._observer.batch_started(batch.cap, longest_wait, batch.slices)
            self._observer.queue_left(self._queued_rows)
            parts = [job.rows[start:stop] for job, start, stop in batch.slices]
            expected = self.service_time.of(batch.n_rows)
            self._busy_until = now + expected
            if expected > INLINE_SECONDS:
                running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, parts)
                running.add_done_callback(functools.partial(self._finish_and_go_on, batch))
                self._in_thread = batch
                self._wake_by(self._next_deadline())
                return
            self._finish(batch, self._run(parts))
            now = self._clock()
            if self._queue and now >= until:
                asyncio.get_running_loop().call_soon(self._start_when_read, -1)
                return
        self._observer.queue_left(0)
        self._is_busy = False

    def _next_deadline(self) -> float:
        waiting = itertools.chain((job for job, _, _ in self._in_thread.slices), self._queue)
        return min((job.deadline for job in waiting if not job.future.done()), default=math.inf)

    def _wake_by(self, deadline: float) -> None:
        """While a batch is in the thread nothing else looks at deadlines, and it may never come back."""
        if deadline < self._wakes_at:
            self._sleep_on()
            seconds = max(0.0, deadline - self._clock())
            self._wake_up = asyncio.get_running_loop().call_later(seconds, self._give_up_who_is_late)
            self._wakes_at = deadline

    def _sleep_on(self) -> None:
        if self._wake_up is not None:
            self._wake_up.cancel()
        self._wake_up, self._wakes_at = None, math.inf

    def _give_up_who_is_late(self) -> None:
        self._sleep_on()
        now = self._clock()
        for job in itertools.chain([job for job, _, _ in self._in_thread.slices], self._queue):
            if now >= job.deadline and not job.future.done():
                self._give_up(job, "deadline", _late(job))
        self._wake_by(self._next_deadline())

    def _finish_and_go_on(self, batch: _Batch, done: "asyncio.Future[_Outcome]") -> None:
        self._sleep_on()
        self._in_thread = _Batch()
        self._finish(batch, done.result())
        self._start_next()

    def _take(self, now: float) -> _Batch:
        """The next batch: whoever came first first, and large requests by turns."""
        batch, turn = _Batch(self.cap()), self._rows_of_a_turn()
        for _ in range(len(self._queue)):
            if batch.n_rows >= batch.cap or (batch.slices and not self._merges):
                break
            job = self._queue.popleft()
            if not self._is_due(job, now):
                continue
            left = len(job.rows) - job.n_taken
            n_rows = min(left, turn, batch.cap - batch.n_rows)
            if n_rows < left and job.n_taken == 0:
                self._observer.request_split()
            batch.slices.append((job, job.n_taken, job.n_taken + n_rows))
            batch.n_rows += n_rows
            job.n_taken += n_rows
            self._queued_rows -= n_rows
            if job.n_taken < len(job.rows):
                self._queue.append(job)
        return batch

    def _is_due(self, job: _Job, now: float) -> bool:
        """Whether a job still wants its rows answered; where not, it leaves the queue."""
        if not job.future.done():  # else its task was cancelled, its time is over, or another of its slices failed
            if now > job.deadline:
                self._give_up(job, "deadline", _late(job))
            elif job.is_wanted is not None and not job.is_wanted():
                self._give_up(job, "client_gone", CallerGoneError("the caller has gone"))
            else:
                return True
        self._queued_rows -= len(job.rows) - job.n_taken
        return False

    def _give_up(self, job: _Job, reason: str, error: Exception) -> None:
        self._observer.refused(reason, len(job.rows))
        job.future.set_exception(error)

    def _run(self, parts: Sequence[Rows]) -> "_Outcome":
        """The engine's answer to each part of a batch, or what it raised for it. May run in a thread."""
        started = self._clock()
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        try:
            scores = finite(self._predict(rows))
        except Exception as error:  # noqa: BLE001  # it belongs to the callers at fault
            if len(parts) == 1:
                return _Outcome([error], failure="raised")
            # Halves, until only the requests at fault fail.
            middle = len(parts) // 2
            answers = self._run(parts[:middle]).answers + self._run(parts[middle:]).answers
            return _Outcome(answers, failure="raised")
        seconds = self._clock() - started
        if len(scores) != len(rows):
            wrong = RuntimeError(f"the engine gave {len(scores)} scores for {len(rows)} rows")
            return _Outcome([wrong] * len(parts), failure="wrong_length")
        return _Outcome([scores] if len(parts) == 1 else _split(scores, parts), seconds)

    def _finish(self, batch: _Batch, outcome: "_Outcome") -> None:
        if outcome.failure is not None:
            self._observer.batch_failed(outcome.failure)
        elif outcome.seconds is not None:
            self.service_time.observe(batch.n_rows, outcome.seconds)
            self._observer.batch_done(batch.n_rows, outcome.seconds)
        for (job, start, stop), answer in zip(batch.slices, outcome.answers, strict=True):
            _answer(job, start, stop, answer)


class _Outcome(NamedTuple):
    """An answer a part, and the seconds that the engine took or what went wrong with the batch as a whole."""

    answers: list[Scores | Exception]
    seconds: float | None = None
    failure: str | None = None


def _split(scores: Scores, parts: Sequence[Rows]) -> list[Scores | Exception]:
    """The scores of each part. numpy's own split takes five times as long."""
    answers: list[Scores | Exception] = []
    start = 0
    for part in parts:
        stop = start + len(part)
        answers.append(scores[start:stop])
        start = stop
    return answers


def _late(job: _Job) -> DeadlineExceededError:
    return DeadlineExceededError(f"no answer within {job.deadline - job.enqueued:.3f} s")


def _answer(job: _Job, start: int, stop: int, answer: Scores | Exception) -> None:
    """Hands a job the scores of its rows start to stop; its caller gets them when all are there."""
    if job.future.done():
        return
    if isinstance(answer, Exception):
        job.future.set_exception(answer)
        return
    if stop - start == len(job.rows):
        job.future.set_result(answer)
        return
    if job.scores is None:
        job.scores = np.empty((len(job.rows), *answer.shape[1:]))
    job.scores[start:stop] = answer
    job.n_open -= stop - start
    if job.n_open == 0:
        job.future.set_result(job.scores)
