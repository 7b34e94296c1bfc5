"""Callers, time and failures in any order: every request ends once, with its own rows or an error of its own."""

import asyncio
import math
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loadtest.simulation import CLOCK_RESOLUTION, VirtualLoop, VirtualThread
from tabserve.batcher import Batcher, CallerGoneError, DeadlineExceededError, RefusedError

ROWS_APART = 1000  # between the numbers of two requests' first rows: a row tells whose it is
MODELS = {"on the loop": (1e-5, 1e-6), "in the thread": (2e-3, 1e-4)}  # seconds of a batch, and of a row
SHORT, LONG = 0.004, 0.2  # seconds: a batch or two in the thread, and more than all rows of a run usually take
FOR_EVER = 1e6  # seconds after which nothing can still be under way


class PoisonError(Exception):
    """What the engine raises for a batch with a poisoned row; says whose."""


class BrokenEngineError(Exception):
    """What the engine raises once, whatever the batch."""


@dataclass(eq=False)
class Request:
    rows: np.ndarray
    is_poisoned: bool
    timeout: float
    is_wanted: bool = True
    is_cancelled: bool = False
    asked_at: float = math.nan
    queued_before: int = 0
    outcome: object = None
    task: asyncio.Task | None = None


class Seen:
    """The observer, which believes what it is told only where it can be true."""

    def __init__(self, broken: list[str]) -> None:
        self._broken = broken
        self.refusals = 0

    def queue_left(self, n_rows: int) -> None:
        if n_rows < 0:
            self._broken.append(f"{n_rows} rows are left in the queue")

    def request_split(self) -> None:
        pass

    def batch_failed(self, reason: str) -> None:
        pass

    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices) -> None:
        if longest_wait_seconds < 0:
            self._broken.append(f"somebody waited {longest_wait_seconds} s")

    def batch_done(self, n_rows: int, service_seconds: float) -> None:
        pass

    def refused(self, reason: str, n_rows: int) -> None:
        self.refusals += 1


class WatchedThread(VirtualThread):
    is_working = False

    def submit(self, work, /, *args, **kwargs):
        self.is_working = True
        try:
            return super().submit(work, *args, **kwargs)
        finally:
            self.is_working = False


class BatcherMachine(RuleBasedStateMachine):
    """Callers, their clock and an engine with moods around the real batcher."""

    @initialize(
        model=st.sampled_from(sorted(MODELS)),
        max_rows=st.integers(1, 50),
        max_queued_rows=st.integers(10, 200),
        is_warm=st.booleans(),
    )
    def start(self, model: str, max_rows: int, max_queued_rows: int, is_warm: bool) -> None:
        self.cost, self.max_rows, self.max_queued_rows = MODELS[model], max_rows, max_queued_rows
        self.requests: list[Request] = []
        self.broken: list[str] = []
        self.moods: list[str] = []
        self.engine_free_at = 0.0
        self.has_held_up_the_loop = False
        self.to_try_again: set[float] = set()  # rows of a batch that failed: they come again, in smaller ones
        self.failed_alone: set[Request] = set()
        self.miscounted: set[Request] = set()
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(lambda _, context: self.broken.append(f"a callback raised: {context}"))
        self.thread = WatchedThread(self.loop)
        self.batcher = Batcher(
            self.predict,
            self.thread,
            Seen(self.broken),
            max_rows=max_rows,
            max_queued_rows=max_queued_rows,
            clock=self.loop.time,
        )
        if is_warm:
            for n_rows in (1, 8, 64):
                self.batcher.service_time.observe(n_rows, self.cost[0] + self.cost[1] * n_rows)

    # --- the engine

    def predict(self, rows: np.ndarray) -> np.ndarray:
        owners = sorted({int(value) // ROWS_APART for value in rows[:, 0]})
        inside = [self.requests[number] for number in owners]
        self.look_at_batch(rows, inside)
        mood = self.moods.pop() if self.moods else ""
        seconds = (self.cost[0] + self.cost[1] * len(rows)) * (100 if mood == "slow" else 1)
        self.loop.now += seconds
        self.has_held_up_the_loop |= not self.thread.is_working
        self.engine_free_at = self.loop.now
        poisoned = [number for number, request in zip(owners, inside, strict=True) if poison_of(request) in rows[:, 0]]
        if mood == "broken" or poisoned:
            if len(inside) > 1:
                self.to_try_again.update(rows[:, 0])
            elif mood == "broken":
                self.failed_alone.add(inside[0])
            raise BrokenEngineError if mood == "broken" else PoisonError(poisoned)
        if mood in ("one too few", "one too many"):
            self.miscounted.update(inside)
            return np.resize(2 * rows, (len(rows) + (1 if mood == "one too many" else -1), 1))
        return 2 * rows

    def look_at_batch(self, rows: np.ndarray, inside: list[Request]) -> None:
        started = self.loop.now
        if started < self.engine_free_at - CLOCK_RESOLUTION:
            self.broken.append("two batches are in the engine at once")
        if len(rows) > min(self.max_rows, self.batcher.cap()):
            self.broken.append(f"{len(rows)} rows in a batch of at most {min(self.max_rows, self.batcher.cap())}")
        if rows[0, 0] in self.to_try_again:
            self.to_try_again.difference_update(rows[:, 0])
            return
        for request in inside:
            if started > request.asked_at + request.timeout + CLOCK_RESOLUTION:
                self.broken.append("rows went into the engine after their deadline")
            if not request.is_wanted:
                self.broken.append("rows went into the engine that nobody wants")
            if request.outcome is not None:
                self.broken.append(f"rows of a request went into the engine that had ended with {request.outcome!r}")

    # --- the callers

    @rule(
        n_rows=st.integers(1, 40),
        is_poisoned=st.sampled_from([False, False, False, True]),
        timeout=st.sampled_from([math.inf, math.inf, LONG, SHORT]),
    )
    def submit(self, n_rows: int, is_poisoned: bool, timeout: float) -> None:
        first = ROWS_APART * len(self.requests)
        rows = np.arange(first, first + n_rows, dtype=float)[:, None]
        request = Request(rows, is_poisoned, timeout)
        self.requests.append(request)
        request.task = self.loop.create_task(self.ask(request))

    async def ask(self, request: Request) -> None:
        request.asked_at, request.queued_before = self.loop.now, self.batcher.queued_rows
        try:
            request.outcome = await self.batcher.submit(
                request.rows, timeout_seconds=request.timeout, is_wanted=lambda: request.is_wanted
            )
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # judged below
            request.outcome = error
        why_not = self.what_is_wrong_with(request)
        if why_not:
            self.broken.append(f"{why_not}: {request}")

    def what_is_wrong_with(self, request: Request) -> str:
        outcome = request.outcome
        if isinstance(outcome, np.ndarray):
            if request.is_poisoned:
                return "a poisoned request was answered"
            return "" if np.array_equal(outcome, 2 * request.rows) else "not the request's own rows"
        if isinstance(outcome, RefusedError):
            if self.loop.now != request.asked_at:
                return "refused, and not at once"
            is_full = 0 < request.queued_before > self.max_queued_rows - len(request.rows)
            is_right = is_full if outcome.reason == "queue_full" else request.timeout < math.inf
            return "" if is_right else "refused without a reason"
        reasons = {
            PoisonError: request.is_poisoned,
            BrokenEngineError: request in self.failed_alone,
            RuntimeError: request in self.miscounted,
            DeadlineExceededError: self.is_just_over(request.asked_at + request.timeout),
            CallerGoneError: not request.is_wanted,
            asyncio.CancelledError: request.is_cancelled,
        }
        return "" if reasons.get(type(outcome), False) else "an error that is not its own"

    def is_just_over(self, deadline: float) -> bool:
        """A loop that no batch held up says so at that instant, also where the engine is not back yet."""
        return deadline <= self.loop.now and (self.has_held_up_the_loop or self.loop.now <= deadline + CLOCK_RESOLUTION)

    def waiting(self) -> list[Request]:
        return [request for request in self.requests if request.outcome is None]

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting()))
        request.is_cancelled = True
        request.task.cancel()

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting())).is_wanted = False

    # --- time, and the engine's moods

    @rule()
    def let_the_loop_turn_once(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([1e-5, 1e-3, 5e-3, 0.05, 0.5]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(mood=st.sampled_from(["slow", "broken", "one too few", "one too many"]))
    def have_a_mood_for_one_batch(self, mood: str) -> None:
        self.moods.append(mood)

    # --- what holds at any time

    @invariant()
    def nothing_is_broken(self) -> None:
        assert self.broken == []

    @invariant()
    def the_queue_keeps_its_bound(self) -> None:
        assert self.batcher.queued_rows >= 0
        # A single request larger than the bound may have entered an empty queue.
        assert self.batcher.queued_rows <= self.max_queued_rows or len(self.batcher._queue) == 1

    def teardown(self) -> None:
        if not hasattr(self, "loop"):  # it was not even started
            return
        try:
            self.loop.run_until_complete(asyncio.sleep(FOR_EVER))
            assert self.broken == []
            assert all(request.task.done() for request in self.requests)
            assert self.batcher.queued_rows == 0
            assert not self.batcher._queue
            assert not self.batcher._is_busy
        finally:
            self.loop.close()


def poison_of(request: Request) -> float:
    """Its last row, so that earlier slices of a large request may have been answered."""
    return request.rows[-1, 0] if request.is_poisoned else math.nan


BatcherMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
test_every_request_ends_once_with_its_own_rows_or_its_own_error = BatcherMachine.TestCase
