"""Prometheus, Alertmanager and a Pushgateway with our own rules, in a hurry: a second for each minute."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import yaml
from conftest import ROOT, free_port, wait_for

from loadtest.processes import Server, find_program, running

ALERTS = ROOT / "monitoring" / "alerts"
SOON = 60  # seconds that something may take on a busy machine
KEY = "the-key-of-a-pager"


def program(name: str) -> str:
    found = find_program(name)
    assert found is not None
    return found


@dataclass
class Rung:
    """What came to the chat and to the pager, oldest first."""

    url: str
    chat: list[dict] = field(default_factory=list)
    pager: list[dict] = field(default_factory=list)

    def said(self, *, resolved: bool) -> list[str]:
        """What the pager was told."""
        action = "resolve" if resolved else "trigger"
        return [event["payload"]["summary"] for event in self.pager if event["event_action"] == action]

    def written(self) -> str:
        """What can be read in the chat."""
        return "\n".join(attachment["text"] for message in self.chat for attachment in message["attachments"])


@contextlib.contextmanager
def receiving() -> Iterator[Rung]:
    """A real server that takes a chat's and a pager's messages."""
    rung = Rung("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["content-length"])))
            (rung.chat if self.path == "/chat" else rung.pager).append(message)
            self.send_response(200 if self.path == "/chat" else 202)
            self.end_headers()
            self.wfile.write(b"ok" if self.path == "/chat" else b'{"status": "success"}')

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        rung.url = url
        yield rung


@contextlib.contextmanager
def exposing(exposition: Callable[[], bytes], port: int = 0) -> Iterator[str]:
    """A real server with /metrics, on any port where none is named; gives its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition()
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler, port) as url:
        yield url.removeprefix("http://")


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Prometheus:
    url: str

    def ask(self, path: str, **parameters: str) -> dict:
        return httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).raise_for_status().json()["data"]

    def has(self, expression: str) -> bool:
        return bool(self.ask("query", query=expression)["result"])

    def alerts(self) -> set[str]:
        """The alerts that fire, or would if they went on."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"]}

    def wait_for_rules(self) -> None:
        """Until every rule has seen a scrape of each target that was made from now on."""
        now = time.time()
        wait_for(lambda: self.has(f"min(timestamp(up)) > {now}"), SOON)
        scraped = time.time()
        wait_for(lambda: min(self._evaluated()) > scraped, SOON)

    def _evaluated(self) -> list[float]:
        found = [group["lastEvaluation"] for group in self.ask("rules")["groups"]]
        return [_seconds(text) for text in found]


def _seconds(text: str) -> float:
    """Of an RFC 3339 time with nanoseconds, in UTC or another zone."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()


def hurried(text: str) -> str:
    """The rules, with a second for each minute that an alert has to hold; four at the least, or none."""
    seconds = {"m": 1, "h": 60}
    return re.sub(
        r"for: ([1-9]\d*)([mh])$", lambda m: f"for: {max(4, int(m[1]) * seconds[m[2]])}s", text, flags=re.MULTILINE
    )


@contextlib.contextmanager
def alertmanager(folder: Path, rung: Rung, guard: str | None = None) -> Iterator[str]:
    """With monitoring/alerts/alertmanager.yaml, but for secrets, addresses and times; gives host and port.

    Args:
        guard: the address of a `tabserve guard`, for which the optional lines are taken.
    """
    (folder / "chat-url").write_text(f"{rung.url}/chat\n")
    (folder / "pager-key").write_text(f"{KEY}\n")
    text = (ALERTS / "alertmanager.yaml").read_text()
    text = text.replace("/run/secrets/tabserve-chat-url", str(folder / "chat-url"))
    text = text.replace("/run/secrets/tabserve-pager-key", str(folder / "pager-key"))
    text = text.replace("https://events.pagerduty.com/v2/enqueue", f"{rung.url}/pager")
    text = re.sub(r"group_(wait|interval): \d+[sm]", r"group_\1: 1s", text)
    if guard is not None:
        text = text.replace("#guard ", "").replace("http://127.0.0.1:9099/", guard)
    (folder / "alertmanager.yaml").write_text(text)
    port = free_port()
    command = [program("prometheus-alertmanager"), f"--config.file={folder}/alertmanager.yaml"]
    command += [f"--storage.path={folder}/alertmanager", f"--web.listen-address=127.0.0.1:{port}"]
    command += ["--cluster.listen-address="]
    with _started(command, port, folder, "alertmanager.log"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def prometheus(folder: Path, to: str, **targets: str) -> Iterator[Prometheus]:
    """With monitoring/alerts/prometheus.yaml, of which the jobs stay that have a target here; tells the one at `to`."""
    config = yaml.safe_load((ALERTS / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [to]}]}]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    rules = folder / "rules.yaml"
    rules.write_text("groups: []\n")
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yaml"]
    command += [f"--storage.tsdb.path={folder}/prometheus", f"--web.listen-address=127.0.0.1:{port}"]
    command += ["--rules.alert.resend-delay=1s"]
    with _started(command, port, folder, "prometheus.log") as server:
        found = Prometheus(f"http://127.0.0.1:{port}")
        # It looks at rules at once and at targets after up to five seconds, in which they are absent.
        wait_for(lambda: found.has(f"count(up == 1) == {len(targets)}"), SOON)
        rules.write_text(hurried((ALERTS / "rules.yaml").read_text()))
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: found.ask("rules")["groups"], SOON)
        yield found


@contextlib.contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """Gives its host and port."""
    port = free_port()
    command = [program("prometheus-pushgateway"), f"--web.listen-address=127.0.0.1:{port}"]
    with _started(command, port, folder, "pushgateway.log"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _started(command: list[str], port: int, folder: Path, log: str) -> Iterator[Server]:
    # prometheus-common's HTTP clients go through a proxy where one is set, Alertmanager's too.
    variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with running(command, port, folder / log, cwd=folder, environment=variables) as server:
        wait_for(lambda: _is_ready(port), SOON)
        yield server


def _is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5, trust_env=False).status_code == 200
    return False
