"""Locust as a process of its own, because gevent patches the standard library of the one that it is in; and fakes."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conftest import ROOT, environment, free_port


@dataclass
class Done:
    """A run of Locust that has ended."""

    code: int
    log: str
    stats: list[dict[str, Any]]

    @property
    def requests(self) -> int:
        return sum(entry["num_requests"] for entry in self.stats)

    @property
    def failures(self) -> int:
        return sum(entry["num_failures"] for entry in self.stats)

    @property
    def names(self) -> set[str]:
        return {entry["name"] for entry in self.stats}

    def slower_than(self, milliseconds: float) -> int:
        times = [item for entry in self.stats for item in entry["response_times"].items()]
        return sum(count for key, count in times if float(key) > milliseconds)

    @property
    def last_line(self) -> str:
        return self.log.strip().splitlines()[-1]


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary", "--json"]
    if "--results" not in arguments:
        command.append("--no-results")
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=environment(home), stdout=pipe, stderr=pipe, text=True
    )


def finish(process: subprocess.Popen[str]) -> Done:
    try:
        out, log = process.communicate(timeout=240)
    finally:
        process.kill()
    assert "Traceback" not in log, log
    *_, stats = out.strip().split("\n[\n") if out.strip() else ("[]",)  # of several processes the last
    return Done(process.returncode, log, json.loads(stats if stats.startswith("[") else f"[{stats}"))


def locust(home: Path, *arguments: str) -> Done:
    return finish(start(home, *arguments))


def ports() -> list[str]:
    """Of a master, for itself and its workers."""
    port = str(free_port())
    return ["--master-bind-port", port, "--master-port", port]


# --- fakes


Answer = Callable[[str, bytes], tuple[int, bytes]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # head and body in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.reply(*self.server.answer(self.path, b""))

    def do_POST(self) -> None:
        self.reply(*self.server.answer(self.path, self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Fake(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1000
    answer: Answer

    def handle_error(self, *_: object) -> None:
        pass  # callers that are gone


@contextmanager
def faking(answer: Answer) -> Iterator[str]:
    with Fake(("127.0.0.1", 0), Handler) as server:
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


METADATA = {
    "model_version": "nobodys:1.0.0-abcdef",
    "contract": {
        "features": [{"name": "x", "kind": "number", "minimum": 0.0, "maximum": 1.0}],
        "task": "regression",
        "target": "y",
    },
}
