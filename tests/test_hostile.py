"""What a hostile caller sends, over raw sockets to a real service: never a 5xx, never a hang, and it lives on."""

import asyncio
import contextlib
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import uvicorn
from conftest import BUILT_IN, Service, TrainedModels, free_port, running_service, wait_for
from hostile_requests import CLOSED, GROUPS, JSON, LAST, ONE, POSTS, Case, chunk, head, in_chunks, pieces_of, post

from tabserve import connections
from tabserve.settings import Settings

TIMEOUT_SECONDS = 2
MOST_CONNECTIONS = 60


@pytest.fixture(scope="module")
def service(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("hostile") / "log"
    settings = {
        "TABSERVE_MODEL": BUILT_IN,
        "TABSERVE_REQUEST_TIMEOUT_MS": str(TIMEOUT_SECONDS * 1000),
        "TABSERVE_MAX_CONNECTIONS": str(MOST_CONNECTIONS),
    }
    with running_service(models.home, log, **settings) as running:
        yield running


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0), timeout=10)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(service: Service, sent: bytes) -> list[Answer]:
    """All answers on a new connection; none where it ends without one."""
    with connect(service) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # refused before it was all sent
            connection.sendall(sent)
        return list(answers_on(connection, has_bodies=not sent.startswith(b"HEAD ")))


def answers_on(connection: socket.socket, *, has_bodies: bool = True) -> Iterator[Answer]:
    """What a connection says until it ends, or after its first answer says no more."""
    received = connection.makefile("rb")
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while line := received.readline():
            status = int(line.split()[1])
            headers = dict(iter(lambda: tuple(received.readline().decode().rstrip().split(": ", 1)), ("",)))
            if status == 100:
                continue
            yield Answer(status, headers, received.read(int(headers["content-length"])) if has_bodies else b"")
            connection.settimeout(0.05)  # for a second answer, which there must not be


def fault_of(service: Service, case: Case) -> str | None:
    """What is wrong with the answer to a request; None where nothing is."""
    started = time.monotonic()
    answers = ask(service, case.sent)
    took = time.monotonic() - started
    statuses = [answer.status for answer in answers] or [CLOSED]
    if len(statuses) != 1 or statuses[0] not in case.statuses:
        return f"{case.name}: answered {statuses}, expected one of {case.statuses}: {answers}"[:500]
    if took > TIMEOUT_SECONDS + 5:
        return f"{case.name}: took {took:.1f} s"
    for answer in answers:
        if answer.headers.get("x-content-type-options") != "nosniff":
            return f"{case.name}: {answer}"
        is_ours = not case.is_bentomls and answer.body
        if answer.status >= 400 and is_ours and set(json.loads(answer.body)) != {"error", "detail"}:
            return f"{case.name}: its error has another shape: {answer.body!r}"
    return None


@pytest.mark.parametrize("group", GROUPS)
def test_each_hostile_request_is_answered_as_expected_and_the_service_lives_on(service: Service, group: str) -> None:
    workers = {child.pid for child in psutil.Process(service.process.pid).children(recursive=True)}

    with ThreadPoolExecutor(8) as pool:
        faults = [fault for fault in pool.map(lambda case: fault_of(service, case), GROUPS[group]) if fault]

    assert not faults, "\n".join(faults)
    assert httpx.post(f"{service.url}/predict", content=ONE, headers={"content-type": "application/json"}).is_success
    assert {child.pid for child in psutil.Process(service.process.pid).children(recursive=True)} == workers
    assert '"status":5' not in service.log
    assert "Traceback" not in service.log


def test_there_are_enough_of_them_and_no_two_are_alike() -> None:
    names = [case.name for group in GROUPS.values() for case in group]

    assert len(names) >= 300
    assert len({case.sent for group in GROUPS.values() for case in group}) == len(names) == len(set(names))
    assert all(status < 500 for group in GROUPS.values() for case in group for status in case.statuses)


def test_bombs_of_200_mb_at_once_cost_a_worker_a_few_megabytes(service: Service) -> None:
    """As long as a body may be, in chunks and with a length, on each route that takes one."""
    shrinking = zlib.compressobj(9, wbits=31)
    zeros = bytes(2**20)
    bomb = b"".join(shrinking.compress(zeros) for _ in range(200)) + shrinking.flush()
    assert len(bomb) < 2**20
    gz = JSON + b"content-encoding: gzip\r\n"
    sent = [post(path, bomb, gz) for path in POSTS]
    sent += [in_chunks(path, *map(chunk, pieces_of(bomb)), LAST, headers=gz) for path in POSTS]
    workers = psutil.Process(service.process.pid).children(recursive=True)
    before = sum(worker.memory_info().rss for worker in workers)
    most, is_over = before, threading.Event()

    def look() -> None:
        nonlocal most
        while not is_over.wait(0.005):
            most = max(most, sum(worker.memory_info().rss for worker in workers))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            statuses = [[answer.status for answer in answers] for answers in pool.map(partial(ask, service), sent * 4)]
    finally:
        is_over.set()
        looking.join()

    assert statuses == [[413]] * len(sent) * 4
    assert most - before < 100 * 2**20  # 16 at once have 16 MB of theirs and 16 that are inflated; one bomb has 200


def test_requests_that_do_not_wait_for_answers_are_answered_in_order_and_too_many_of_them_end_the_connection(
    service: Service,
) -> None:
    """As many as a megabyte has would cost a worker 150 MB, each time that somebody sends one."""
    few = [head("GET", f"/nothing/{number}") for number in range(connections.WAITING + 1)]
    with connect(service) as connection:
        connection.sendall(b"".join(few))
        answers = list(answers_on(connection))
    assert [json.loads(answer.body)["error"].split()[4] for answer in answers] == [
        f'"/nothing/{number}";' for number in range(len(few))
    ]
    workers = psutil.Process(service.process.pid).children(recursive=True)
    before = sum(worker.memory_info().rss for worker in workers)

    flood = b"GET / HTTP/1.1\r\n\r\n" * 60_000
    for _ in range(5):
        assert not ask(service, flood)

    assert sum(worker.memory_info().rss for worker in workers) - before < 30 * 2**20
    assert 'tabserve_refused_connections_total{reason="pipeline"} 5.0' in httpx.get(f"{service.url}/metrics").text


# --- callers that are slow, or many


def test_a_head_or_a_body_that_does_not_come_is_408_however_it_trickles(service: Service) -> None:
    half = head("GET", "/health", b"x: y")[:-4]
    unfinished = {
        "nothing": (b"", b""),
        "half a head": (half, b"a"),
        "newlines": (b"\r\n", b"\r\n"),
        "half a body": (post("/predict", ONE)[:-9], b""),
        "chunks": (in_chunks("/predict"), chunk(b" ")),
        "a body that a GET does not need": (head("GET", "/health", b"transfer-encoding: chunked"), chunk(b" ")),
        "half a head after an answer": (head("GET", "/health") + half, b"a"),
        "half a body after an answer": (head("GET", "/health") + post("/predict", ONE)[:-9], b""),
    }
    of_two = {name for name in unfinished if "GET" in name or "after an answer" in name}
    connections = {name: connect(service) for name in unfinished}
    for name, connection in connections.items():
        connection.sendall(unfinished[name][0])
    ends: dict[str, list[int]] = {}
    deadline = time.monotonic() + TIMEOUT_SECONDS + 30
    while connections and time.monotonic() < deadline:
        for name, connection in list(connections.items()):
            connection.settimeout(0.01)
            answers = [answer.status for answer in answers_on(connection)]
            if answers:
                ends.setdefault(name, []).extend(answers)
            if 408 in ends.get(name, []):
                connections.pop(name).close()
                continue
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(unfinished[name][1])
        time.sleep(0.2)

    assert ends == {name: [200, 408] if name in of_two else [408] for name in unfinished}
    assert 'tabserve_refused_connections_total{reason="slow_head"}' in httpx.get(f"{service.url}/metrics").text


def test_connections_beyond_the_most_get_503_where_it_is_no_probe_and_room_when_others_end(service: Service) -> None:
    def status(connection: socket.socket, sent: bytes) -> list[int]:
        connection.sendall(sent)
        return [answer.status for answer in answers_on(connection)]

    idle = [connect(service) for _ in range(MOST_CONNECTIONS)]
    with connect(service) as one, connect(service) as other:
        assert status(one, head("GET", "/ready")) == [200]
        assert status(other, post("/predict", ONE)) == [503]
        assert other.recv(1) == b""
        far_too_many = [connect(service) for _ in range(MOST_CONNECTIONS)]
        assert status(far_too_many[-1], head("GET", "/ready")) == []
    for connection in [*idle, *far_too_many]:
        connection.close()

    wait_for(lambda: ask(service, post("/predict", ONE))[0].status == 200)
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'tabserve_refused_connections_total{reason="too_many"}' in metrics


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.5)
    refused: list[str] = []

    async def app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            app.watch = connections.bound(receive, connections.limits_of(Settings()), refused.append)
            await send({"type": "lifespan.startup.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50000000")]})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})

    async def ask_and_read_nothing() -> None:
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="on", log_config=None))
        serving = asyncio.create_task(server.serve())
        await asyncio.to_thread(wait_for, lambda: server.started)
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(head("GET", "/"))
        await asyncio.to_thread(wait_for, lambda: refused)
        assert not server.server_state.connections
        writer.transport.abort()
        server.should_exit = True
        await serving

    asyncio.run(ask_and_read_nothing())

    assert refused == ["slow_reader"]


def test_a_flood_of_bytes_that_are_no_request_is_not_a_flood_of_lines(service: Service) -> None:
    before = service.log.count("Invalid HTTP request received.")
    started = time.monotonic()

    for _ in range(100):
        assert ask(service, b"nonsense\r\n\r\n")[0].status == 400

    assert service.log.count("Invalid HTTP request received.") - before <= time.monotonic() - started + 2
