"""The concurrency contract: every request is answered once, with its own rows in order, or refused; nothing leaks."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tabserve.batcher import Batcher, CallerGoneError, DeadlineExceededError, RefusedError
from tabserve.service_time import REMEMBERED_BATCHES, ServiceTime


class Seen:
    """What the batcher told about its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.refusals: list[str] = []
        self.failures: list[str] = []
        self.splits = 0

    def batch_done(self, n_rows: int, service_seconds: float) -> None:
        self.batches.append(n_rows)

    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices) -> None:
        pass

    def batch_failed(self, reason: str) -> None:
        self.failures.append(reason)

    def request_split(self) -> None:
        self.splits += 1

    def refused(self, reason: str, n_rows: int) -> None:
        self.refusals.append(reason)

    def queue_left(self, n_rows: int) -> None:
        pass


def rows_of(first: int, n_rows: int = 1) -> np.ndarray:
    """Rows that tell themselves apart: each holds its own number."""
    return np.arange(first, first + n_rows, dtype=float)[:, None]


def doubled(rows: np.ndarray) -> np.ndarray:
    return np.column_stack([rows[:, 0] * 2, rows[:, 0] * 3])


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_lone_request_is_a_batch_of_its_own_at_once(thread) -> None:
    seen = Seen()

    scores = run(Batcher(doubled, thread, seen).submit(rows_of(5)))

    assert scores.tolist() == [[10, 15]]
    assert seen.batches == [1]


def test_requests_that_are_there_together_go_together_and_get_their_own_rows(thread) -> None:
    seen = Seen()

    async def ask() -> list[np.ndarray]:
        batcher = Batcher(doubled, thread, seen)
        return await asyncio.gather(*(batcher.submit(rows_of(10 * i, 1 + i % 3)) for i in range(20)))

    for i, scores in enumerate(run(ask())):
        assert scores.tolist() == doubled(rows_of(10 * i, 1 + i % 3)).tolist()
    assert seen.batches == [sum(1 + i % 3 for i in range(20))]


def test_what_arrives_while_the_engine_works_is_the_next_batch(thread) -> None:
    seen = Seen()

    def slow(rows: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return doubled(rows)

    async def ask() -> None:
        batcher = Batcher(slow, thread, seen)
        batcher.service_time.observe(1, 0.02)
        batcher.service_time.observe(2, 0.0201)
        first = asyncio.ensure_future(batcher.submit(rows_of(0)))
        await asyncio.sleep(0.005)
        await asyncio.gather(first, *(batcher.submit(rows_of(i)) for i in range(1, 9)))

    run(ask())

    assert seen.batches == [1, 8]


def test_a_request_larger_than_a_batch_is_split_and_put_together_again(thread) -> None:
    seen = Seen()

    scores = run(Batcher(doubled, thread, seen, max_rows=7).submit(rows_of(0, 40)))

    assert scores.tolist() == doubled(rows_of(0, 40)).tolist()
    assert seen.batches == [7, 7, 7, 7, 7, 5]
    assert seen.splits == 1


def test_a_large_request_takes_turns_with_small_ones(thread) -> None:
    """A caller of one row behind a caller of 512 waits for one slice of it, and not for all."""
    answered: list[str] = []

    async def ask() -> None:
        batcher = Batcher(doubled, thread, Seen(), max_rows=64)

        async def one(name: str, rows: np.ndarray) -> None:
            await batcher.submit(rows)
            answered.append(name)

        await asyncio.gather(one("large", rows_of(0, 512)), one("small", rows_of(1000)))

    run(ask())

    assert answered == ["small", "large"]


@pytest.mark.parametrize("raises", [True, False])
def test_one_poisoned_row_among_64_requests_fails_its_caller_alone(thread, raises: bool) -> None:
    def poisoned(rows: np.ndarray) -> np.ndarray:
        if raises and (rows == 13).any():
            raise RuntimeError("thirteen is no finite number")
        return np.where(rows == 13, np.nan, doubled(rows))

    seen = Seen()

    async def ask() -> list:
        batcher = Batcher(poisoned, thread, seen)
        return await asyncio.gather(*(batcher.submit(rows_of(i)) for i in range(64)), return_exceptions=True)

    found = run(ask())

    assert seen.failures == ["raised"]
    assert "is no finite number" in str(found[13])
    for i in set(range(64)) - {13}:
        assert found[i].tolist() == doubled(rows_of(i)).tolist()


def test_an_engine_that_gives_too_few_scores_answers_nobody_with_them(thread) -> None:
    seen = Seen()

    async def ask() -> list:
        batcher = Batcher(lambda rows: doubled(rows)[:-1], thread, seen)
        return await asyncio.gather(*(batcher.submit(rows_of(i)) for i in range(4)), return_exceptions=True)

    assert all("gave 3 scores for 4 rows" in str(error) for error in run(ask()))
    assert seen.failures == ["wrong_length"]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(thread) -> None:
    seen = Seen()

    async def ask() -> list:
        batcher = Batcher(doubled, thread, seen, max_queued_rows=10)
        asked = asyncio.gather(*(batcher.submit(rows_of(i)) for i in range(15)), return_exceptions=True)
        await asyncio.sleep(0)
        assert batcher.queued_rows == 10
        return await asked

    found = run(ask())

    refused = [error for error in found if isinstance(error, RefusedError)]
    assert len(refused) == 5
    assert all(error.reason == "queue_full" and error.retry_after >= 1 for error in refused)
    assert seen.refusals == ["queue_full"] * 5


def test_a_request_that_cannot_make_its_time_is_refused_at_once_and_not_after_it(thread) -> None:
    async def ask() -> None:
        batcher = Batcher(doubled, thread, Seen())
        for _ in range(4):
            batcher.service_time.observe(1, 25.0)
        first = asyncio.ensure_future(batcher.submit(rows_of(0)))
        await asyncio.sleep(0)
        try:
            await batcher.submit(rows_of(1), timeout_seconds=20.0)
        finally:
            await first

    started = time.perf_counter()
    with pytest.raises(RefusedError, match=r"would take 25\.000 s and has 20\.000 s"):
        run(ask())
    assert time.perf_counter() - started < 10


def test_an_idle_engine_is_tried_however_slow_it_was_the_last_time(thread) -> None:
    """Else one slow phase could have everything refused for ever: nothing would be measured any more."""

    async def ask() -> np.ndarray:
        batcher = Batcher(doubled, thread, Seen())
        for _ in range(4):
            batcher.service_time.observe(1, 30.0)
        return await batcher.submit(rows_of(1), timeout_seconds=1)

    assert run(ask()).tolist() == [[2, 3]]


def test_a_request_whose_time_passed_in_the_queue_costs_no_batch(thread) -> None:
    seen, now = Seen(), [0.0]

    async def ask() -> None:
        batcher = Batcher(doubled, thread, seen, clock=lambda: now[0])
        task = asyncio.ensure_future(batcher.submit(rows_of(0), timeout_seconds=1))
        await asyncio.sleep(0)  # it is queued, and its batch starts in the next turn of the loop
        now[0] = 2.0
        await task

    with pytest.raises(DeadlineExceededError):
        run(ask())
    assert seen.batches == []
    assert seen.refusals == ["deadline"]


def test_nobody_waits_longer_than_his_time_for_an_engine_that_does_not_come_back(thread) -> None:
    seen, go_on = Seen(), threading.Event()

    def stuck(rows: np.ndarray) -> np.ndarray:
        go_on.wait(60)
        return doubled(rows)

    async def ask() -> list:
        batcher = Batcher(stuck, thread, seen)
        batcher.service_time.observe(1, 0.01)
        in_engine = asyncio.ensure_future(batcher.submit(rows_of(0), timeout_seconds=0.1))
        while not batcher._in_thread.slices:  # noqa: ASYNC110  # it comes to that in a few turns, or the test times out
            await asyncio.sleep(0)
        queued = asyncio.ensure_future(batcher.submit(rows_of(1), timeout_seconds=0.15))
        patient = asyncio.ensure_future(batcher.submit(rows_of(2), timeout_seconds=15))
        found = await asyncio.gather(in_engine, queued, return_exceptions=True)
        go_on.set()
        found.append(await patient)
        assert batcher.queued_rows == 0
        return found

    late, also_late, answer = run(ask())

    assert isinstance(late, DeadlineExceededError)
    assert isinstance(also_late, DeadlineExceededError)
    assert answer.tolist() == [[4, 6]]
    assert seen.refusals == ["deadline", "deadline"]


def test_a_request_that_comes_while_a_patient_one_is_in_the_engine_waits_no_longer_than_its_time(thread) -> None:
    go_on = threading.Event()

    def stuck(rows: np.ndarray) -> np.ndarray:
        go_on.wait(60)
        return doubled(rows)

    async def ask() -> np.ndarray:
        batcher = Batcher(stuck, thread, Seen())
        batcher.service_time.observe(1, 0.01)
        patient = asyncio.ensure_future(batcher.submit(rows_of(0)))
        while not batcher._in_thread.slices:  # noqa: ASYNC110  # it comes to that in a few turns, or the test times out
            await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError):
            await batcher.submit(rows_of(1), timeout_seconds=0.15)
        assert not patient.done()
        go_on.set()
        return await patient

    assert run(ask()).tolist() == [[0, 0]]


def test_a_request_whose_caller_has_gone_costs_no_batch(thread) -> None:
    seen = Seen()

    async def ask() -> list:
        batcher = Batcher(doubled, thread, seen)
        wanted = [batcher.submit(rows_of(i), is_wanted=lambda i=i: i % 2 == 0) for i in range(6)]
        cancelled = asyncio.ensure_future(batcher.submit(rows_of(9)))
        gathered = asyncio.gather(*wanted, return_exceptions=True)
        await asyncio.sleep(0)
        cancelled.cancel()
        found = await gathered
        assert batcher.queued_rows == 0
        return found

    found = run(ask())

    assert [isinstance(answer, CallerGoneError) for answer in found] == [False, True] * 3
    assert seen.batches == [3]
    assert seen.refusals == ["client_gone"] * 3


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple]:
    """Requests: when, how many rows, poisoned or not, cancelled or not, and how long they wait."""
    one = st.tuples(
        st.integers(0, 6), st.integers(1, 40), st.booleans(), st.integers(0, 9), st.sampled_from([0.0, 0.001, 10.0])
    )
    return draw(st.lists(one, min_size=1, max_size=25))


@settings(max_examples=120, deadline=None)
@given(arrivals(), st.integers(1, 50), st.integers(10, 200))
def test_every_request_is_answered_once_with_its_own_rows_or_refused(
    requests: list[tuple], max_rows: int, max_queued_rows: int
) -> None:
    """Random arrivals, sizes, failures, cancellations and deadlines."""
    seen, in_engine = Seen(), [0]

    def engine(rows: np.ndarray) -> np.ndarray:
        in_engine[0] += 1
        assert in_engine[0] == 1  # never two batches at a time
        try:
            assert len(rows) <= max_rows
            if (rows[:, 0] % 1 == 0.5).any():
                raise ValueError("poisoned")
            return doubled(rows)
        finally:
            in_engine[0] -= 1

    async def ask() -> None:
        batcher = Batcher(engine, executor, seen, max_rows=max_rows, max_queued_rows=max_queued_rows)

        largest = max(n_rows for _, n_rows, *_ in requests)

        async def one(number: int, delay: int, n_rows: int, is_poisoned: bool, cancel: int, timeout: float) -> None:
            for _ in range(delay):
                await asyncio.sleep(0)
            rows = rows_of(1000 * number, n_rows) + (0.5 if is_poisoned else 0.0)
            task = asyncio.ensure_future(batcher.submit(rows, timeout_seconds=timeout))
            assert 0 <= batcher.queued_rows <= max(max_queued_rows, largest)
            if cancel == 0:
                await asyncio.sleep(0)
                task.cancel()
            try:
                scores = await task
            except (RefusedError, DeadlineExceededError, asyncio.CancelledError):
                return
            except ValueError:
                assert is_poisoned
                return
            assert not is_poisoned
            assert scores.tolist() == doubled(rows).tolist()

        await asyncio.gather(*(one(number, *request) for number, request in enumerate(requests)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert batcher.queued_rows == 0
        assert not batcher._queue
        assert not batcher._is_busy

    with ThreadPoolExecutor(1) as executor:
        run(ask())


# --- the cost of a batch, and how large it gets


def test_the_service_time_is_fitted_whatever_one_slow_batch_says() -> None:
    cost = ServiceTime()
    for n_rows in (1, 4, 16, 64, 2, 8, 32, 128):
        cost.observe(n_rows, 0.001 + 0.0001 * n_rows)
    cost.observe(8, 3.0)

    assert cost.fixed == pytest.approx(0.001, rel=0.05)
    assert cost.per_row == pytest.approx(0.0001, rel=0.05)


def test_the_noise_of_batches_of_about_one_size_is_no_slope() -> None:
    """Under overload batches differ by a few rows and by milliseconds: nobody may conclude milliseconds a row."""
    cost = ServiceTime()
    noise = np.random.default_rng(7)
    for n_rows in (1, 8, 64, 512):
        cost.observe(n_rows, 0.020 + 0.00001 * n_rows)
    for _ in range(200):
        n_rows = int(noise.integers(500, 513))
        cost.observe(n_rows, (0.020 + 0.00001 * n_rows) * noise.lognormal(0, 0.3))

    assert cost.per_row < 0.00005
    assert cost.of(512) == pytest.approx(0.025, rel=0.3)


def test_batches_of_one_size_alone_do_not_make_large_ones_look_expensive() -> None:
    """Where only single rows came, the cost is taken for fixed: the next batch will tell."""
    cost = ServiceTime()
    for _ in range(10):
        cost.observe(1, 0.03)

    assert cost.of(32) == pytest.approx(0.03)


def simulated_cap(fixed: float, per_row: float, budget: float) -> int:
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(doubled, executor, Seen(), budget_seconds=budget)
        for n_rows in (1, 8, 64, 256):
            batcher.service_time.observe(n_rows, fixed + per_row * n_rows)
        return batcher.cap()


def test_the_cap_is_what_fits_the_budget_and_no_more_than_helps() -> None:
    assert simulated_cap(0.010, 0.0001, budget=0.02) == pytest.approx(100, abs=1)
    assert simulated_cap(0.0001, 0.0001, budget=1.0) == pytest.approx(20, abs=1)
    assert simulated_cap(0.0, 0.001, budget=1.0) == 1
    assert simulated_cap(0.010, 0.0, budget=0.02) == 512
    assert simulated_cap(0.5, 0.001, budget=0.1) == 1


def test_the_cap_recovers_after_a_slow_phase(thread) -> None:
    batcher = Batcher(doubled, thread, Seen(), budget_seconds=0.02)
    sizes = (1, 8, 64, 128)
    for speed, expected in ((1, 100), (10, 1), (1, 100)):
        for _ in range(REMEMBERED_BATCHES // len(sizes)):
            for n_rows in sizes:
                batcher.service_time.observe(n_rows, speed * (0.010 + 0.0001 * n_rows))
        assert batcher.cap() == pytest.approx(expected, abs=1)
