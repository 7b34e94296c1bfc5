"""What the demo starts: the service, the monitor, and the programs that ring; each ends with its block."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import yaml

from loadtest.processes import NotStartedError, Server, find_program, free_port, running

ROOT = Path(__file__).parent.parent.parent
ALERTS = ROOT / "monitoring/alerts"
WINDOW_SECONDS = 15
READY_SECONDS = 60.0  # of a service that listens, until it has its model


@dataclass
class Rung:
    """What Alertmanager told: the alerts that fire, and those that have ended."""

    started: float = field(default_factory=time.monotonic)
    fired: dict[str, str] = field(default_factory=dict)
    """By the alert's name: its severity."""

    def told(self, alert: dict[str, dict[str, str]], status: str) -> None:
        labels, annotations = alert["labels"], alert["annotations"]
        if status == "firing":
            self.fired.setdefault(labels["alertname"], labels.get("severity", ""))
        say(self.started, f"{labels.get('severity', '')} {status}: {annotations.get('summary', labels['alertname'])}")


@contextlib.contextmanager
def serving(kept: Path) -> Iterator[Server]:
    """The service, with a model and a prediction log of its own."""
    environment = demo_environment(kept)
    command = [sys.executable, "train.py"]
    trained = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if trained.returncode:
        raise NotStartedError(f"no model could be trained:\n{trained.stderr[-2000:]}")
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment["BENTOML_CONFIG"] = str(ROOT / "configuration.yaml")
    with running(command, port, kept / "service.log", cwd=ROOT, environment=environment) as server:
        until = time.monotonic() + READY_SECONDS
        while not is_ready(port):
            if time.monotonic() > until or server.has_ended:
                raise NotStartedError(
                    f"the service is not ready; the end of its log:\n{server.log.read_text()[-2000:]}"
                )
            time.sleep(0.1)
        yield server


def is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == httpx.codes.OK
    return False


@contextlib.contextmanager
def watching(kept: Path) -> Iterator[Server]:
    """The monitor, which looks each window."""
    port = free_port()
    every = ("--every", f"{WINDOW_SECONDS}s", "--window", f"{WINDOW_SECONDS}s", "--quality-window", "5m")
    command = [
        sys.executable,
        "-m",
        "monitoring.watch",
        *every,
        "--port",
        str(port),
        "--reports",
        str(kept / "reports"),
    ]
    with running(command, port, kept / "monitor.log", cwd=ROOT, environment=demo_environment(kept)) as server:
        yield server


def demo_environment(kept: Path) -> dict[str, str]:
    return {
        **os.environ,
        "BENTOML_HOME": str(kept / "home"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "TABSERVE_LOG_URL": (kept / "prediction_log").as_uri(),
    }


@contextlib.contextmanager
def alerting(kept: Path, service: Server, monitor: Server, rung: Rung) -> Iterator[dict[str, Server]]:
    """Prometheus and Alertmanager with the rules that production has, their waiting times shortened."""
    prometheus, alertmanager = free_port(), free_port()
    folder = kept / "alerting"
    folder.mkdir()
    with told_by_webhook(rung) as webhook:
        rules = re.sub(r"^(\s+for:) .*$", r"\1 6s", (ALERTS / "rules.yaml").read_text(), flags=re.MULTILINE)
        (folder / "rules.yaml").write_text(rules)
        (folder / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
                    "rule_files": ["rules.yaml"],
                    "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]},
                    "scrape_configs": [
                        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}
                        for job, server in (("tabserve", service), ("tabserve_monitor", monitor))
                    ],
                }
            )
        )
        ours = yaml.safe_load((ALERTS / "alertmanager.yaml").read_text())
        at_once = {"group_wait": "1s", "group_interval": "3s", "repeat_interval": "1h"}
        receiver = {"name": "demo", "webhook_configs": [{"url": webhook, "send_resolved": True}]}
        (folder / "alertmanager.yaml").write_text(
            yaml.safe_dump(
                {
                    "route": {"receiver": "demo", "group_by": ours["route"]["group_by"], **at_once},
                    "receivers": [receiver],
                    "inhibit_rules": ours["inhibit_rules"],
                }
            )
        )
        environment = dict(os.environ)
        of_alertmanager = [
            find_program("prometheus-alertmanager") or "",
            f"--config.file={folder}/alertmanager.yaml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
            "--cluster.listen-address=",  # one of them alone
        ]
        of_prometheus = [
            find_program("prometheus") or "",
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ]
        with (
            running(
                of_alertmanager, alertmanager, folder / "alertmanager.log", cwd=folder, environment=environment
            ) as a,
            running(of_prometheus, prometheus, folder / "prometheus.log", cwd=folder, environment=environment) as p,
        ):
            yield {"prometheus": p, "alertmanager": a}


@contextlib.contextmanager
def told_by_webhook(rung: Rung) -> Iterator[str]:
    """The address where Alertmanager tells what rings."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in message["alerts"]:
                rung.told(alert, alert["status"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing: what rings is said already."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def say(started: float, text: str) -> None:
    seconds = int(time.monotonic() - started)
    sys.stdout.write(f"{seconds // 60}:{seconds % 60:02d}  {text}\n")
    sys.stdout.flush()
