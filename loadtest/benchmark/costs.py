"""What the prediction log and tracing cost, in rounds that are long enough for what they do beside the requests.

A segment of the log is rolled to Parquet every hundred thousand rows, which rounds of three seconds may not see.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import uvloop

from loadtest import pages
from loadtest.benchmark import candidates, models, report
from loadtest.benchmark.__main__ import DOCUMENT, LOAD_CORE, say, serving
from loadtest.benchmark.load import closed_loop
from loadtest.benchmark.side_by_side import Running, wait_until_it_answers
from loadtest.processes import free_port, running

CONNECTIONS = 32
PIECE_SECONDS = 5.0  # all answers of a longer one would fill the load generator's memory
LOG_OFF = candidates.NO_LOG.name
TRACED_SHARES = {"tabserve, 1 % traced": "0.01", "tabserve, every request traced": "1"}

# Takes spans, and says that it has them. It shares the load generator's core.
RECEIVER = """
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
"""


class Round(NamedTuple):
    """One candidate in one round."""

    rate: float
    cpu_us: float
    p99_ms: float
    memory_mb: float


def measure(one: Running, seconds: float) -> Round:
    """A closed loop in pieces; every answer is a 200."""
    uvloop.run(wait_until_it_answers(one.server, one.requests()))
    cpu_before = one.server.cpu_seconds()
    n_answers, took, p99_ms = 0, 0.0, []
    while took < seconds:
        piece = uvloop.run(closed_loop(one.server.port, one.requests(), connections=CONNECTIONS, seconds=PIECE_SECONDS))
        if piece.failed:
            raise RuntimeError(f"{one.candidate.name}: {piece.failed} requests failed")
        n_answers += piece.in_time
        took += piece.duration
        p99_ms.append(piece.quantile_ms(0.99))
    cpu = one.server.cpu_seconds() - cpu_before
    return Round(n_answers / took, cpu / n_answers * 1e6, median(p99_ms), one.server.memory_bytes() / 1e6)


def table(found: Mapping[str, Sequence[Round]]) -> str:
    lines = [
        "| | requests a second | × log off, round by round | CPU µs a request | × log off | p99 ms | memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    without = found[LOG_OFF]
    for name, rounds in found.items():
        middle = [median(values) for values in zip(*rounds, strict=True)]
        rates = ", ".join(f"{one.rate / other.rate:.3f}" for one, other in zip(rounds, without, strict=True))
        cpu = ", ".join(f"{other.cpu_us / one.cpu_us:.3f}" for one, other in zip(rounds, without, strict=True))
        numbers = f"{middle[0]:.0f} | {rates} | {middle[1]:.1f} | {cpu} | {middle[2]:.2f} | {middle[3]:.0f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def main() -> int:
    """Measures, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmark.costs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each candidate in a round (default 30)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved, every second one in reverse (default 3)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [LOAD_CORE])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tabserve-costs-")))
        receiver = free_port()
        command = [sys.executable, "-c", RECEIVER, str(receiver)]
        log = folder / "receiver.log"
        stack.enter_context(running(command, receiver, log, cwd=folder, environment=os.environ, cores=[LOAD_CORE]))
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver}"}
        delivered = candidates.TABSERVE
        wanted = [candidates.NO_LOG, delivered]
        for name, share in TRACED_SHARES.items():
            settings = {**delivered.settings, **traced, "OTEL_TRACES_SAMPLER_ARG": share}
            wanted.append(replace(delivered, name=name, settings=settings))
        model = models.train(folder / "built-in")
        all_of_them = [Running(one, stack.enter_context(serving(folder, one, model)), model) for one in wanted]
        found: dict[str, list[Round]] = {one.name: [] for one in wanted}
        for number in range(arguments.rounds):
            for one in all_of_them if number % 2 == 0 else reversed(all_of_them):
                measured = measure(one, arguments.seconds)
                say(f"{one.candidate.name:34} {measured}")
                found[one.candidate.name].append(measured)
    asked = f"{arguments.rounds} interleaved rounds of {arguments.seconds:g} s, {CONNECTIONS} connections, one row each"
    text = f"{report.machine()} {asked}.\n\n{table(found)}"
    say(text)
    if arguments.write:
        pages.replace_section(DOCUMENT, "costs", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
