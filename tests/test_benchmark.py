"""The instrument that measures: it must notice what is wrong, and must not hide what is slow."""

import asyncio
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from alert_programs import serving
from conftest import ROOT

from loadtest import pages
from loadtest.benchmark import basics, candidates
from loadtest.benchmark.candidates import Candidate
from loadtest.benchmark.load import Measured, closed_loop, open_loop, request_bytes
from loadtest.benchmark.models import BenchmarkModel
from loadtest.benchmark.rows import Row
from loadtest.benchmark.side_by_side import Point, Result, Running, wrong_answers
from loadtest.benchmark.soak import Soak
from loadtest.benchmark.targets import Target

REQUEST = request_bytes("/predict", b"{}")


class Stalling(asyncio.Protocol):
    """Answers at once, but for one stall: the tenth request and all after it wait until it is over."""

    SECONDS = 0.4
    seen = 0
    until = 0.0

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        loop, kind = asyncio.get_running_loop(), type(self)
        kind.seen += 1
        if kind.seen == 10:
            kind.until = loop.time() + self.SECONDS
        loop.call_at(kind.until, self.transport.write, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


async def measured(kind: str) -> Measured:
    class OfThisRun(Stalling):
        pass

    server = await asyncio.get_running_loop().create_server(OfThisRun, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        if kind == "closed":
            return await closed_loop(port, [REQUEST], connections=1, seconds=1.0)
        return await open_loop(port, [REQUEST], rate=200, seconds=1.0, seed=1, connections=4)


def test_an_open_loop_sees_everybody_who_would_have_waited_for_a_stall_and_a_closed_one_does_not() -> None:
    closed, opened = asyncio.run(measured("closed")), asyncio.run(measured("open"))

    n_closed, n_opened = (sum(latency > 0.1 for latency in found.latencies) for found in (closed, opened))
    assert n_opened > 30  # 200 a second, for 0.3 s
    assert 1 <= n_closed < n_opened / 10  # one, and what a busy machine adds
    assert max(opened.latencies) > 0.35
    assert opened.failed == closed.failed == 0


def test_refusals_and_hang_ups_are_no_answers() -> None:
    class Refusing(Stalling):
        def data_received(self, data: bytes) -> None:
            if type(self).seen < 3:
                type(self).seen += 1
                self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n")
            else:
                self.transport.close()

    async def ask() -> Measured:
        server = await asyncio.get_running_loop().create_server(Refusing, "127.0.0.1", 0)
        async with server:
            return await closed_loop(
                server.sockets[0].getsockname()[1], [REQUEST], connections=1, seconds=0.2, drain_seconds=0.1
            )

    found = asyncio.run(ask())

    assert (found.refused, found.unanswered, found.latencies) == ({503: 3}, 1, [])
    assert found.without_retry_after == 0


def test_an_answer_that_is_not_scikit_learns_is_wrong() -> None:
    model = BenchmarkModel("m:1", {}, rows=np.zeros((3, 30)), scores=np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]))
    one = Running(Candidate("c", (), candidates.OUR_ROW), None, model)

    def body(*scores: float) -> bytes:
        return json.dumps({"probabilities": dict(enumerate(scores))}).encode()

    found = Measured(bodies=[(0, body(0.1, 0.9)), (1, body(0.1, 0.9)), (2, body(0.300002, 0.699998)), (2, body(0.3))])

    assert wrong_answers(found, one, 1) == 3


def result(name: str, rate: float) -> Result:
    point = Point("p", ())
    return Result(name, point, rate, p50_ms=1, p99_ms=2, cpu_us=rate, memory_mb=1, failed=0, wrong=0, client_cpu=0.1)


def test_a_ratio_is_taken_within_each_round() -> None:
    """The second round fell on a slow minute of the machine."""
    ours = Row([result("a", 900), result("a", 90), result("a", 1000)])
    other = Row([result("b", 100), result("b", 10), result("b", 100)])

    assert ours.times(other) == 9
    assert ours.middle("rate") == 900


@pytest.mark.parametrize(("found", "is_least", "is_met"), [(9.1, True, True), (8.9, True, False), (8.9, False, True)])
def test_a_target_says_whether_it_was_met(found: float, is_least: bool, is_met: bool) -> None:
    target = Target("so many times", found, 9, is_least=is_least)

    assert target.is_met is is_met
    assert ("**no**" in str(target)) is not is_met


def test_a_soak_whose_memory_grows_is_not_good() -> None:
    instants = [float(second) for second in range(100)]
    rising = [100 + second for second in instants]
    flat_in_the_end = [100 + min(second, 15) for second in instants]
    up_and_down = [100 + second % 15 for second in instants]
    up_and_down_and_rising = [100 + second % 15 + second / 10 for second in instants]

    assert not Soak(10, 1000, Measured(), 0, instants, rising).is_good
    assert not Soak(10, 1000, Measured(), 0, instants, up_and_down_and_rising).is_good
    assert Soak(10, 1000, Measured(), 0, instants, flat_in_the_end).is_good
    assert Soak(10, 1000, Measured(), 0, instants, up_and_down).is_good


class OneBatch(BaseHTTPRequestHandler):
    """Puts all callers of a moment into one batch, which a row that is too short sinks."""

    together = threading.Barrier(basics.CALLERS)
    has_bad_row = threading.Event()

    def do_POST(self) -> None:
        row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["features"]
        if len(row) < 3:
            self.has_bad_row.set()
        self.together.wait(20)
        self.send_response(500 if self.has_bad_row.is_set() else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_good_rows_that_go_down_with_a_bad_one_are_counted() -> None:
    endpoint = candidates.FASTAPI_ROW
    with serving(OneBatch) as url:
        lost = basics.lost_beside_a_bad_row(int(url.rpartition(":")[2]), endpoint, [1.0, 2.0, 3.0])

    assert lost == basics.BURSTS * (basics.CALLERS - 1)


def test_only_a_4xx_tells_a_caller_that_the_fault_is_his() -> None:
    answers = [[422] * len(basics.BAD), [500, 200, *[0] * (len(basics.BAD) - 2)]]

    lines = basics.table(["a", "b"], answers, [0, 31]).splitlines()

    assert lines[2:5] == [
        "| a value too few | 422 | **500** |",
        "| `null`, where no value may be missing | 422 | **answered** |",
        "| a text | 422 | **no answer** |",
    ]
    assert lines[-1].endswith("| 0 of 620 | **31 of 620** |")


def test_each_bad_row_is_asked_as_it_was_meant() -> None:
    bodies = [body_of(candidates.QUICKSTART_ROW, [1.0, 2.0]) for body_of in basics.BAD.values()]

    assert bodies[:7] == [
        b'{"rows":[[1.0]]}',
        b'{"rows":[[null,2.0]]}',
        b'{"rows":[["large",2.0]]}',
        b'{"rows":[["17.99",2.0]]}',
        b'{"rows":[[true,2.0]]}',
        b'{"rows":[[NaN,2.0]]}',
        b'{"rows":[[1e999,2.0]]}',
    ]


def test_a_section_of_a_document_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- soak -->\nold\n<!-- end of soak -->\nafter\n")

    pages.replace_section(page, "soak", "new")

    assert page.read_text() == "before\n<!-- soak -->\n\nnew\n\n<!-- end of soak -->\nafter\n"
    with pytest.raises(ValueError, match="no marks <!-- speed -->"):
        pages.replace_section(page, "speed", "new")


@pytest.mark.alone
def test_the_benchmark_starts_its_candidates_and_finds_every_answer_right() -> None:
    command = [sys.executable, "-m", "loadtest.benchmark", "--rounds", "1", "--seconds", "0.5"]
    command += ["--only", "tabserve", "FastAPI", "BentoML", "--points", "32 connections", "16 rows"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    rows = [
        line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| tab", "| Fast", "| Bento"))
    ]
    assert len(rows) == 7 + 3
    for row in rows:
        assert float(row[1]) > 0
        assert [int(cell) for cell in row[-2:]] == [0, 0]
