"""A release by canary, for real: two versions as processes, nginx in front of them, and Prometheus that judges."""

import http.client
import json
import os
import pwd
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import yaml
from alert_programs import program
from api_server import api_server
from conftest import Service, free_port, running_service, stop, wait_for
from rollouts import JSON, ONE_ROW, Versions

from deploy import canary
from deploy.canary import HttpRoute, Nginx, Plan, Prometheus, release
from loadtest.processes import running
from tabserve.lifecycle.canary_judge import Limits

pytestmark = pytest.mark.deploy

A_SECOND = 300
SECONDS = 5.0  # of an observation, in which Prometheus scrapes five times


@dataclass
class Callers:
    """Asks so many times a second through nginx; each request on a connection of its own, as `curl` does."""

    port: int
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    lost: list[BaseException] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def _ask(self, number: int, n_threads: int) -> None:
        step, due = n_threads / A_SECOND, time.monotonic() + number / A_SECOND
        while not self.is_over.wait(max(0.0, due - time.monotonic())):
            due += step
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                connection.request("POST", "/predict", ONE_ROW, JSON)
                response = connection.getresponse()
                version = json.loads(response.read()).get("model_version", "")
                self.answers[response.status, version] += 1
                connection.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.lost.append(error)

    @contextmanager
    def asking(self) -> Iterator["Callers"]:
        threads = [threading.Thread(target=self._ask, args=(number, 12)) for number in range(12)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.is_over.set()
            for thread in threads:
                thread.join()


@dataclass(frozen=True)
class Release:
    """Two versions behind nginx, watched by Prometheus."""

    versions: Versions
    traffic: Nginx
    port: int
    prometheus: Prometheus
    canary: Service
    mood: Path

    def run(self, steps: Sequence[float] = (5, 50, 100), **limits: float) -> tuple[int, Callers]:
        with Callers(self.port).asking() as callers:
            plan = Plan(steps, SECONDS, Limits(fewest_requests=20, **limits))
            code = release(self.traffic, self.prometheus.look, plan, threading.Event())
        return code, callers


@pytest.fixture(scope="module")
def releasing(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    folder = tmp_path_factory.mktemp("release")
    mood, port, prometheus_port = folder / "mood", free_port(), free_port()
    common = {"TEST_MOOD": str(mood), "TABSERVE_LOG_URL": "null:"}
    with (
        running_service(versions.home, folder / "stable.log", TABSERVE_MODEL=versions.first, **common) as stable,
        running_service(versions.home, folder / "canary.log", TABSERVE_MODEL=versions.moody, **common) as new,
    ):
        addresses = [url.removeprefix("http://") for url in (stable.url, new.url)]
        scraped = [
            {"targets": [at], "labels": {"track": track}}
            for at, track in zip(addresses, ("stable", "canary"), strict=True)
        ]
        scrape = {"job_name": "tabserve", "scrape_interval": "1s", "static_configs": scraped}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
        options = ["--config.file=prometheus.yaml", f"--web.listen-address=127.0.0.1:{prometheus_port}"]
        (folder / "nginx.conf").write_text(NGINX.format(user=user(), stable=addresses[0], port=port))
        nginx = [program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        traffic = Nginx(folder / "canary.conf", addresses[1], [*nginx, "-s", "reload"])
        traffic.file.write_text(traffic.configuration(0))
        with (
            running(nginx, port, folder / "nginx.log", cwd=folder, environment={}),
            running(
                [program("prometheus"), *options],
                prometheus_port,
                folder / "prometheus.log",
                cwd=folder,
                environment={},
            ),
        ):
            url = f"http://127.0.0.1:{prometheus_port}"
            up = f"{url}/api/v1/query?query=sum(up) == 2"
            wait_for(lambda: (said := httpx.get(up)).status_code == 200 and said.json()["data"]["result"])
            yield Release(versions, traffic, port, Prometheus(url, "tabserve", 0.15), new, mood)


def user() -> str:
    return f"user {pwd.getpwuid(0).pw_name};" if os.getuid() == 0 else ""


NGINX = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream stable {{ server {stable}; keepalive 64; keepalive_timeout 1s; }}
  include canary.conf;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://$tabserve_upstream;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def wait_until_all_are_answered(releasing: Release) -> None:
    """The workers that nginx had before a reload answer a moment longer."""
    url = f"http://127.0.0.1:{releasing.port}/predict"
    wait_for(lambda: {httpx.post(url, content=ONE_ROW, headers=JSON).status_code for _ in range(100)} == {200})


@pytest.mark.needs_program("nginx", "prometheus")
def test_a_good_canary_gets_all_requests_and_none_is_lost_on_the_way(releasing: Release) -> None:
    releasing.mood.write_text("")

    code, callers = releasing.run(p99_seconds=2.0)

    assert code == 0
    assert callers.lost == []
    assert {status for status, _ in callers.answers} == {200}
    assert callers.answers[200, releasing.versions.moody] > callers.answers[200, releasing.versions.first] * 0.5
    assert "100 % to the canary" in releasing.traffic.file.read_text()
    releasing.traffic.send(0)


@pytest.mark.needs_program("nginx", "prometheus")
def test_a_failing_canary_goes_back_and_the_stable_version_answers_all(
    releasing: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    releasing.mood.write_text("raises")

    code, callers = releasing.run(p99_seconds=2.0)

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["judgement"] == "back"
    assert last["canary"]["n_errors"] > 0 == last["stable"]["n_errors"]

    assert code == canary.GONE_BACK
    assert callers.lost == []
    assert {status for status, _ in callers.answers} == {200, 500}
    assert callers.answers[500, ""] < 0.2 * sum(callers.answers.values()), "only a few saw it"
    wait_until_all_are_answered(releasing)
    assert "0 % to the canary" in releasing.traffic.file.read_text()


@pytest.mark.needs_program("nginx", "prometheus")
def test_a_slow_canary_goes_back(releasing: Release) -> None:
    """It sleeps 0.2 s for each batch; the stable version is far from that."""
    releasing.mood.write_text("slow")

    code, callers = releasing.run(p99_seconds=0.15)

    releasing.mood.write_text("")
    assert code == canary.GONE_BACK
    assert callers.lost == []
    assert "0 % to the canary" in releasing.traffic.file.read_text()


@pytest.mark.needs_program("nginx", "prometheus")
def test_a_canary_that_dies_goes_back_by_itself_and_one_that_is_dead_gets_no_request(
    releasing: Release, caplog: pytest.LogCaptureFixture
) -> None:
    """The last test that asks it: it is not started again."""
    releasing.mood.write_text("")

    def dies() -> None:
        wait_for(lambda: "50 % to the canary" in releasing.traffic.file.read_text(), 60)
        stop(releasing.canary)

    ending = threading.Thread(target=dies)
    ending.start()
    code, callers = releasing.run(p99_seconds=2.0)
    ending.join()
    wait_until_all_are_answered(releasing)
    again, others = releasing.run(p99_seconds=2.0)

    assert code == again == canary.GONE_BACK
    assert "gone back at 50 %: Prometheus sees no canary up" in caplog.text
    assert len(callers.lost) < A_SECOND / 2 * SECONDS, "its share of less than one observation"
    assert others.lost == []
    assert {status for status, _ in others.answers} == {200}


@pytest.mark.needs_program("kubectl")
def test_kubectl_sets_the_weights_of_the_route() -> None:
    with api_server() as server:
        HttpRoute("tabserve", "tabserve", server.kubectl).send(25)

    ((path, patch),) = server.patched
    assert path == "/apis/gateway.networking.k8s.io/v1/namespaces/tabserve/httproutes/tabserve"
    assert patch == [
        {"op": "replace", "path": "/spec/rules/0/backendRefs/0/weight", "value": 75},
        {"op": "replace", "path": "/spec/rules/0/backendRefs/1/weight", "value": 25},
    ]
