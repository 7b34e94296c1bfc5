"""Replicas behind a real nginx: killed and restarted while they are asked."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import psutil
import pytest
from conftest import BUILT_IN, ROOT, TrainedModels, environment, free_port, wait_for
from test_http import TUTORIAL_ROW

from loadtest import gateway
from loadtest.errors import BadInputError

pytestmark = pytest.mark.needs_program("nginx")

WRONG = "a wrong answer"


@dataclass
class Fleet:
    """A `python -m loadtest.fleet` that has been started."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def replicas(self) -> dict[str, int]:
        """The process of each replica, by its address; the last that was said."""
        found = re.findall(r"^replica \d+: http://(\S+), process (\d+)$", self.log, re.MULTILINE)
        return {address: int(process) for address, process in found}

    @property
    def is_serving(self) -> bool:
        assert self.process.poll() is None, self.log
        return "serving on" in self.log


def start_fleet(home: Path, folder: Path, *arguments: str, port: int | None = None, **settings: str) -> Fleet:
    """All that it leaves in a temporary folder would be left in `folder/tmp`."""
    (folder / "tmp").mkdir()
    log = folder / "log"
    port = port or free_port()
    command = [sys.executable, "-m", "loadtest.fleet", "--port", str(port), *arguments]
    variables = environment(home, TMPDIR=str(folder / "tmp"), **settings)
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=out, stderr=out)
    return Fleet(process, port, log)


@contextmanager
def running_fleet(home: Path, folder: Path, *arguments: str) -> Iterator[Fleet]:
    fleet = start_fleet(home, folder, *arguments)
    try:
        wait_for(lambda: fleet.is_serving, 60)
        yield fleet
    finally:
        fleet.process.terminate()
        fleet.process.wait(60)


@pytest.fixture(scope="module")
def fleet(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(models.home, tmp_path_factory.mktemp("fleet"), "--replicas", "2") as fleet:
        yield fleet


@dataclass(frozen=True)
class Asked:
    """A request, and what became of it."""

    started: float
    ended: float
    replicas: list[str]
    """Whom nginx asked, in order."""
    failure: str | None


class Callers:
    """Ask again as soon as they have an answer, each on a connection that it keeps and with rows of its own."""

    def __init__(self, fleet: Fleet, models: TrainedModels) -> None:
        self.asked: list[Asked] = []
        self._fleet = fleet
        self._model = models.load(BUILT_IN)
        self._is_enough = False
        rows = [[value * (1 - 0.05 * caller) for value in TUTORIAL_ROW] for caller in range(8)]
        self._threads = [threading.Thread(target=self._ask_on, args=([row],)) for row in rows]
        self._threads.append(threading.Thread(target=self._ask_on, args=(rows * 32,)))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_enough = True
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.failure]

    def wait_for_answers_of(self, addresses: set[str]) -> None:
        """Until each of these replicas has given one from now on."""
        seen = len(self.asked)
        wait_for(lambda: addresses <= {asked.replicas[-1] for asked in self.asked[seen:] if not asked.failure})

    def _ask_on(self, rows: list[list[float]]) -> None:
        is_one = len(rows) == 1
        path, body = ("/predict", {"features": rows[0]}) if is_one else ("/predict/batch", {"instances": rows})
        expected = self._model.engine.predict(np.array(rows))
        connection = http.client.HTTPConnection("127.0.0.1", self._fleet.port, timeout=30)
        while not self._is_enough:
            started, replicas, failure = time.monotonic(), [], None
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                replicas = response.headers["X-Replica"].split(", ")
                content = response.read()
                if response.status != 200:
                    failure = f"{response.status} {content!r}"
                elif not self._is_right(json.loads(content), expected):
                    failure = WRONG
            except (OSError, http.client.HTTPException) as error:
                failure = repr(error)
                connection.close()
            self.asked.append(Asked(started, time.monotonic(), replicas, failure))

    def _is_right(self, content: dict, expected: np.ndarray) -> bool:
        answers = content.get("predictions", [content])
        found = [[answer["probabilities"][f"class_{label}"] for label in (0, 1)] for answer in answers]
        return found == pytest.approx(expected, abs=1e-6)


def kill(process: int) -> tuple[float, float]:
    """Kills a replica with all its processes; returns from when to when that took."""
    replica = psutil.Process(process)
    processes = [replica, *replica.children(recursive=True)]
    assert len(processes) > 1
    started = time.monotonic()
    for one in processes:
        one.kill()
    return started, time.monotonic()


def test_a_killed_replica_loses_no_more_than_its_requests_in_flight_and_is_started_again(
    fleet: Fleet, models: TrainedModels
) -> None:
    with Callers(fleet, models) as callers:
        for address in fleet.replicas:
            callers.wait_for_answers_of(set(fleet.replicas))
            before, failed_before = fleet.replicas, len(callers.failed)

            since, until = kill(before[address])
            wait_for(lambda: fleet.replicas[address] != before[address], 60)  # noqa: B023  # called in this round
            callers.wait_for_answers_of(set(fleet.replicas))

            in_flight = [
                asked
                for asked in callers.asked
                if asked.started < until and asked.ended > since and asked.replicas[:1] == [address]
            ]
            failed = callers.failed[failed_before:]
            sys.stdout.write(f"failed: {failed} of {len(in_flight)} in flight, of {len(callers.asked)} in all\n")
            assert [asked for asked in failed if asked not in in_flight] == []
            assert not [asked for asked in failed if asked.failure == WRONG]
    assert fleet.log.count("died (signal 9) and is started again") == 2


def test_a_replica_whose_worker_dies_is_started_again_at_once(fleet: Fleet) -> None:
    """BentoML would notice ten seconds later, and until then connections would be taken that nobody answers."""
    address, process = next(iter(fleet.replicas.items()))
    (worker,) = psutil.Process(process).children()

    worker.kill()

    wait_for(lambda: fleet.replicas[address] != process, 60)
    assert "died (its worker ended) and is started again" in fleet.log


def test_a_worker_that_is_left_behind_does_not_keep_the_port(fleet: Fleet) -> None:
    """BentoML's worker has a session of its own, and does not notice that its parent was killed."""
    address, process = next(iter(fleet.replicas.items()))
    (worker,) = psutil.Process(process).children()

    os.kill(process, signal.SIGKILL)

    wait_for(lambda: fleet.replicas[address] != process, 60)
    assert not worker.is_running()
    assert httpx.get(f"http://{address}/ready").status_code == 200


def test_a_rolling_restart_loses_no_request(fleet: Fleet, models: TrainedModels) -> None:
    before = fleet.replicas
    with Callers(fleet, models) as callers:
        callers.wait_for_answers_of(set(before))
        fleet.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "all replicas were restarted" in fleet.log, 120)
        callers.wait_for_answers_of(set(before))

    sys.stdout.write(f"failed: {len(callers.failed)} of {len(callers.asked)}\n")
    assert callers.failed == []
    assert {asked.replicas[0] for asked in callers.asked} == set(before)
    # It was out of service before it was stopped: nobody had to be asked a second time.
    assert max(len(asked.replicas) for asked in callers.asked) == 1
    assert fleet.replicas.keys() == before.keys()
    assert not set(fleet.replicas.values()) & set(before.values())


def test_a_body_that_is_too_large_is_refused_in_the_services_own_words(fleet: Fleet) -> None:
    answer = httpx.post(f"{fleet.url}/predict", content=b" " * 3_000_000, headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert answer.json()["error"].startswith("The body is larger than 1048576 bytes")


def test_ctrl_c_ends_all_that_it_started_and_one_replica_alone_is_not_restarted(
    models: TrainedModels, tmp_path: Path
) -> None:
    with running_fleet(models.home, tmp_path, "--replicas", "1") as fleet:
        started = psutil.Process(fleet.process.pid).children(recursive=True)
        fleet.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "no restart: with one replica requests would be lost" in fleet.log)
        assert httpx.get(f"{fleet.url}/ready").status_code == 200

        fleet.process.send_signal(signal.SIGINT)

        assert fleet.process.wait(60) == 0
    assert len(started) == 4  # nginx and its worker, BentoML and its worker
    assert not any(process.is_running() for process in started)
    assert list((tmp_path / "tmp").glob("tabserve-*")) == []


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--replicas", "0"], {}, r"--replicas is 0, expected 1 or more"),
        (["--port", "70000"], {}, r"--port 70000 cannot be used \(.*0-65535.*\); choose another one"),
        ([], {"TABSERVE_MAX_BODY_BYTES": "many"}, r"TABSERVE_MAX_BODY_BYTES is 'many', expected .*"),
        (["--replicas", "2"], {}, r"the service does not start: the model store in .* no model: run `make train` .*"),
    ],
    ids=["replicas", "port", "setting", "no model"],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: list[str], settings: dict, sentence: str) -> None:
    (tmp_path / "home").mkdir()

    fleet = start_fleet(tmp_path / "home", tmp_path, *arguments, **settings)

    assert fleet.process.wait(60) == 2
    assert re.fullmatch(f"fleet: {sentence}\n", fleet.log)
    assert list((tmp_path / "tmp").glob("tabserve-*")) == []


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        fleet = start_fleet(tmp_path, tmp_path, port=port)

        assert fleet.process.wait(60) == 2
    assert re.fullmatch(rf"fleet: --port {port} cannot be used \(.*in use\); choose another one\n", fleet.log)


def test_without_nginx_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_program", lambda _: None)

    with pytest.raises(BadInputError, match=r"^nginx is not installed; .*: apt-get install nginx$"):
        gateway.program()
