"""A load generator light enough for one core: raw HTTP/1.1 on asyncio, answers kept and checked after the measurement.

Locust and its like cost more per request than the servers measured here, and would measure themselves.
"""

import asyncio
import gc
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

HEADER_END = b"\r\n\r\n"
CONTENT_LENGTH = b"content-length:"
RETRY_AFTER = b"retry-after:"


class BrokenAnswerError(Exception):
    """An answer that this generator cannot read: without a Content-Length, or on a closed connection."""


@dataclass
class Measured:
    """What one run of load gave. Times in seconds."""

    kept: int = 1
    """Of so many answers of 200 one is kept to be checked."""
    duration: float = 0.0
    in_time: int = 0
    """Answers of 200 within the duration; in an open loop some come after it."""
    latencies: list[float] = field(default_factory=list)
    """Of the answers of 200; in an open loop from the instant at which the request was due."""
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    """Of the kept answers of 200, each with the number of the request that it answers."""
    refused: dict[int, int] = field(default_factory=dict)
    """Answers that are not 200, by status."""
    refusal_latencies: list[float] = field(default_factory=list)
    """Of the 503, from the instant at which the request was sent."""
    without_retry_after: int = 0
    """How many 503 did not say when to come back."""
    unanswered: int = 0
    client_cpu: float = 0.0
    """The share of a core that this load generator used: where it is near 1, it measured itself."""

    @property
    def rate(self) -> float:
        """Answers of 200 a second."""
        return self.in_time / self.duration

    @property
    def failed(self) -> int:
        return sum(self.refused.values()) + self.unanswered

    def quantile_ms(self, q: float) -> float:
        return _quantile_ms(self.latencies, q)

    def refusal_quantile_ms(self, q: float) -> float:
        return _quantile_ms(self.refusal_latencies, q)

    def end(self, started: float, cpu_before: float) -> None:
        self.duration = time.perf_counter() - started
        self.in_time = len(self.latencies)
        self.client_cpu = (time.process_time() - cpu_before) / self.duration

    def record(self, asked: "_Connection", status: int, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        if status == 200:
            self.latencies.append(now - asked.due)
            if len(self.latencies) % self.kept == 0:
                self.bodies.append((asked.number, body))
        else:
            self.refused[status] = self.refused.get(status, 0) + 1
        if status == 503:
            self.refusal_latencies.append(now - asked.sent)
            self.without_retry_after += RETRY_AFTER not in head


def _quantile_ms(seconds: Sequence[float], q: float) -> float:
    return float(np.quantile(seconds, q)) * 1000 if seconds else float("nan")


def request_bytes(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + HEADER_END + body


class _Connection(asyncio.Protocol):
    """One connection with one request under way at most; tells its load when the answer is there."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._received = b""
        self._transport: Any = None  # uvloop's own, which is no asyncio.Transport
        self.number = 0
        self.due = 0.0
        self.sent = 0.0
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, number: int, due: float | None = None) -> None:
        self.sent = time.perf_counter()
        self.number, self.due, self.is_waiting = number, self.sent if due is None else due, True
        self._transport.write(self._load.requests[number])

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        end = self._received.find(HEADER_END)
        if end < 0:
            return
        head = self._received[:end].lower()
        at = head.find(CONTENT_LENGTH)
        if at < 0:
            raise BrokenAnswerError(f"no Content-Length in {head!r}")
        start = at + len(CONTENT_LENGTH)
        stop = head.find(b"\r", start)
        length = int(head[start : stop if stop >= 0 else None])
        body = self._received[end + len(HEADER_END) :]
        if len(body) < length:
            return
        self._received = b""
        self.is_waiting = False
        self._load.answered(self, int(head[9:12]), head, body)

    def close(self) -> None:
        self._transport.close()


class _Load(ABC):
    """Requests in turn, over some connections, until a time."""

    def __init__(self, requests: Sequence[bytes], kept: int = 1) -> None:
        self.requests = requests
        self.measured = Measured(kept)
        self._next = 0

    def next_number(self) -> int:
        number = self._next
        self._next = (number + 1) % len(self.requests)
        return number

    @abstractmethod
    def answered(self, connection: _Connection, status: int, head: bytes, body: bytes) -> None:
        """Records an answer, and has the connection ask again or wait."""

    async def connect(self, port: int) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", port)
        return connection


class _ClosedLoop(_Load):
    """Each connection asks again when it has its answer."""

    is_over = False

    def answered(self, connection: _Connection, status: int, head: bytes, body: bytes) -> None:
        if not self.is_over:  # later answers would count for more than the time that was measured
            self.measured.record(connection, status, head, body)
            connection.ask(self.next_number())


class _OpenLoop(_Load):
    """Requests at instants that do not depend on the answers; a latency counts from its instant, waiting included."""

    def __init__(self, requests: Sequence[bytes], kept: int) -> None:
        super().__init__(requests, kept)
        self.idle: deque[_Connection] = deque()
        self.due: deque[float] = deque()

    def answered(self, connection: _Connection, status: int, head: bytes, body: bytes) -> None:
        self.measured.record(connection, status, head, body)
        self.idle.append(connection)
        self.send()

    def send(self) -> None:
        while self.due and self.idle:
            self.idle.popleft().ask(self.next_number(), self.due.popleft())


async def closed_loop(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float, drain_seconds: float = 15
) -> Measured:
    """Asks from so many connections, each with one request at a time.

    Args:
        drain_seconds: how long the last answers are waited for; what has not come then counts as unanswered.
    """
    load = _ClosedLoop(requests)
    opened = [await load.connect(port) for _ in range(connections)]
    with _QuietCollector():
        started, cpu = time.perf_counter(), time.process_time()
        for connection in opened:
            connection.ask(load.next_number())
        await asyncio.sleep(seconds)
        load.is_over = True
        load.measured.end(started, cpu)
        await _drained(opened, drain_seconds)
        _close(opened, load.measured)
    return load.measured


async def open_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    seed: int,
    connections: int = 256,
    kept: int = 1,
) -> Measured:
    """Poisson arrivals at a mean rate. Where all connections are busy an arrival waits here, and its time counts."""
    load = _OpenLoop(requests, kept)
    opened = [await load.connect(port) for _ in range(connections)]
    load.idle.extend(opened)
    gaps: npt.NDArray[np.float64] = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.5) + 100)
    with _QuietCollector():
        started, cpu = time.perf_counter(), time.process_time()
        instants = deque(float(instant) for instant in started + np.cumsum(gaps) if instant < started + seconds)
        while instants:
            now = time.perf_counter()
            while instants and instants[0] <= now:
                load.due.append(instants.popleft())
            load.send()
            await asyncio.sleep(0)  # timers are as coarse as a millisecond; this core has nothing else to do
        load.measured.end(started, cpu)
        await _drained(opened, 15, load.due)
        load.measured.unanswered += len(load.due)
        _close(opened, load.measured)
    return load.measured


async def _drained(opened: Sequence[_Connection], limit_seconds: float, due: Collection[float] = ()) -> None:
    """Waits for the answers that are still under way."""
    until = time.perf_counter() + limit_seconds
    while (due or any(connection.is_waiting for connection in opened)) and time.perf_counter() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # answers tell their load, and not this


def _close(opened: Sequence[_Connection], measured: Measured) -> None:
    measured.unanswered += sum(connection.is_waiting for connection in opened)
    for connection in opened:
        connection.close()


class _QuietCollector:
    """Keeps this process's own collector out of the latencies that it measures."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
