"""One rate limit for all replicas, in a real Redis that goes away and comes back."""

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import Iterator

import pytest
from access_parts import Counted, answer_to, door_with
from conftest import free_port

from loadtest.processes import find_program
from tabserve.access import shared_rate_limit
from tabserve.access.gate import Gate
from tabserve.access.rate_limit import RateLimit
from tabserve.access.shared_rate_limit import SharedBuckets

pytestmark = pytest.mark.needs_program("redis-server")

PASSWORD = "hunter2"


@contextlib.contextmanager
def redis(port: int) -> Iterator[None]:
    program = find_program("redis-server")
    assert program is not None
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        yield
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture
def patient(monkeypatch) -> None:
    """A busy machine may keep Redis from answering in 50 ms, which is not what these tests are about."""
    monkeypatch.setattr(shared_rate_limit, "TIMEOUT_SECONDS", 2.0)


def url_of(port: int) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"


def test_replicas_share_one_bucket_of_each_caller(patient) -> None:
    port, limit, observer = free_port(), RateLimit.parse("1/m:12"), Counted()

    async def ask_all() -> tuple[list[float], float]:
        replicas = [SharedBuckets(url_of(port), limit, observer) for _ in range(3)]
        waits = await asyncio.gather(*(replicas[n % 3].take("shop") for n in range(40)))
        return waits, await replicas[0].take("other")

    with redis(port):
        waits, of_other = asyncio.run(ask_all())

    assert len([wait for wait in waits if wait == 0]) == 12
    assert all(0 < wait <= 60 for wait in waits if wait)
    assert of_other == 0
    assert observer.alone == 0


def test_the_highest_rate_that_there_may_be_is_one_that_redis_can_count(patient) -> None:
    port, limit, observer = free_port(), RateLimit.parse("100000/s:9999999"), Counted()

    with redis(port):
        assert asyncio.run(SharedBuckets(url_of(port), limit, observer).take("shop")) == 0

    assert observer.alone == 0


def test_a_bucket_fills_again_and_then_redis_forgets_it(patient) -> None:
    port, limit = free_port(), RateLimit.parse("20/s:2")

    async def ask() -> list[float]:
        buckets = SharedBuckets(url_of(port), limit, Counted())
        waits = [await buckets.take("shop") for _ in range(3)]
        await asyncio.sleep(waits[-1])
        waits.append(await buckets.take("shop"))
        await asyncio.sleep(0.2)
        connection = buckets._redis
        assert await connection.dbsize() == 0
        return waits

    with redis(port):
        waits = asyncio.run(ask())

    assert [wait == 0 for wait in waits] == [True, True, False, True]


def test_without_redis_each_limits_alone_says_so_once_and_comes_back(patient, monkeypatch, caplog) -> None:
    monkeypatch.setattr(shared_rate_limit, "RETRY_SECONDS", 0.05)
    port, limit, observer = free_port(), RateLimit.parse("1/h:3"), Counted()
    caplog.set_level(logging.WARNING)

    async def ask() -> None:
        shared = SharedBuckets(url_of(port), limit, observer)
        gate = Gate(observer, limit=limit, shared=shared)

        async def is_let_in(address: str) -> bool:
            scope = {"path": "/predict", "headers": [], "client": (address, 1)}
            return gate.refusal(scope) is None and await gate.refusal_by_all(scope) is None

        assert [await is_let_in("192.0.2.1") for _ in range(5)] == [True] * 3 + [False] * 2  # its own bucket
        assert observer.alone == 3
        with redis(port):
            while shared._is_away:  # who asks has it tried again, and does not wait for it
                assert await is_let_in(f"192.0.3.{observer.alone}")
                await asyncio.sleep(0.05)
            alone = observer.alone
            assert await is_let_in("192.0.2.2")
            elsewhere = SharedBuckets(url_of(port), limit, observer)
            assert [await elsewhere.take(who) for who in ["192.0.2.2"] * 2] == [0.0, 0.0]
            assert not await is_let_in("192.0.2.2")  # what others let in counts
            assert observer.alone == alone
        assert await is_let_in("192.0.2.3")
        assert observer.alone == alone + 1

    asyncio.run(ask())

    said = [record.getMessage() for record in caplog.records if record.name == "tabserve.access.shared_rate_limit"]
    assert ["cannot be asked" in line for line in said] == [True, False, True]
    assert PASSWORD not in caplog.text


def test_a_redis_to_which_connecting_takes_longer_than_a_question_may_is_shared_from_the_first_caller_on(
    monkeypatch,
) -> None:
    """As on a busy machine; a worker connects when it starts."""
    port, limit, observer = free_port(), RateLimit.parse("1/h:3"), Counted()

    async def ask() -> list[float]:
        buckets = SharedBuckets(url_of(port), limit, observer)
        load = buckets._redis.script_load

        async def slowly(script: str) -> str:
            await asyncio.sleep(0.1)  # twice what a question may take
            return await load(script)

        monkeypatch.setattr(buckets._redis, "script_load", slowly)
        Gate(observer, limit=limit, shared=buckets).start()
        await buckets._connecting
        monkeypatch.setattr(shared_rate_limit, "TIMEOUT_SECONDS", 2.0)
        await buckets.take("a")
        buckets._is_away = True  # as when a question had taken too long
        while buckets._is_away:
            await buckets.take("b")
            await asyncio.sleep(0.01)
        return [await buckets.take("a") for _ in range(3)]

    with redis(port):
        waits = asyncio.run(ask())

    assert [wait > 0 for wait in waits] == [False, False, True]


def test_a_redis_that_hangs_costs_one_caller_its_timeout_and_the_others_nothing() -> None:
    async def ask() -> tuple[float, float]:
        async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)
            writer.close()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        buckets = SharedBuckets(url_of(port), RateLimit.parse("1/s"), Counted())
        began = time.perf_counter()
        await buckets.take("a")
        first = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(100):
            await buckets.take("a")
        server.close()
        return first, time.perf_counter() - began

    first, hundred = asyncio.run(ask())

    assert first < 1  # 50 ms, on a machine that does something else too
    assert hundred < first


def test_a_refusal_by_all_takes_nothing_from_the_own_bucket() -> None:
    limit, observer = RateLimit.parse("1/h:2"), Counted()

    class Full:
        async def take(self, who: str) -> float:
            return 7.0

    gate = Gate(observer, limit=limit, shared=Full())
    answers = [answer_to(door_with(gate), "/metadata") for _ in range(5)]

    assert {status for status, _, _ in answers} == {429}
    assert {headers[b"retry-after"] for _, headers, _ in answers} == {b"7"}
