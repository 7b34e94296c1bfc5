"""Starting and stopping: real `bentoml serve` processes that start well, start badly, and end."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import (
    BUILT_IN,
    CUSTOMERS,
    ROOT,
    SPEND,
    Service,
    TrainedModels,
    lines_of,
    running_service,
    start_service,
    stop,
    train,
    wait_for,
    wait_until_ready,
)
from test_http import CUSTOMER, TUTORIAL_ROW

from tabserve.rollout import ROLLOUT_FILE


def refused_start(home: Path, log: Path, **settings: str) -> tuple[int, str]:
    """Exit code and output of a service that is expected not to start."""
    service = start_service(home, log, **settings)
    try:
        code = service.process.wait(60)
    finally:
        stop(service)
    return code, service.log


def copied_home(models: TrainedModels, home: Path, name: str) -> Path:
    """A home with one model only; returns the folder of the model."""
    directory = home / "models" / models.tag(name).replace(":", "/")
    shutil.copytree(models.directory(name), directory)
    return directory


def test_without_a_model_it_does_not_start_and_says_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()

    code, said = refused_start(tmp_path / "home", tmp_path / "log")

    assert code != 0
    assert "tabserve does not start: the model store in" in said
    assert "run `make train` first" in said
    assert "Traceback" not in said


def test_with_one_byte_of_the_pickle_changed_it_does_not_start(models: TrainedModels, tmp_path: Path) -> None:
    pickled = copied_home(models, tmp_path / "home", BUILT_IN) / "pipeline.pkl"
    content = bytearray(pickled.read_bytes())
    content[len(content) // 2] ^= 1
    pickled.write_bytes(content)

    code, said = refused_start(tmp_path / "home", tmp_path / "log")

    assert code != 0
    assert "is damaged, pipeline.pkl is not the file that was saved: restore or delete" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("TABSERVE_MODEL", "nobody", "has no model nobody: it holds"),
        ("TABSERVE_LOG_SUCCESS_SHARE", "2", "TABSERVE_LOG_SUCCESS_SHARE is '2', expected a number from 0 to 1"),
    ],
)
def test_with_a_setting_that_cannot_be_used_it_does_not_start(
    models: TrainedModels, tmp_path: Path, setting: str, value: str, sentence: str
) -> None:
    code, said = refused_start(models.home, tmp_path / "log", **{setting: value})

    assert code != 0
    assert sentence in said
    assert "Traceback" not in said


def test_plain_bentoml_serve_without_configuration_serves_the_newest_model(
    models: TrainedModels, tmp_path: Path
) -> None:
    """What the decorator can carry is carried there: no access log, no tracing headers, our metrics."""
    with running_service(models.home, tmp_path / "log") as service, service.client() as client:
        assert client.get("/ready").json()["model_version"] == models.tag(BUILT_IN)
        response = client.post("/predict", json={"features": TUTORIAL_ROW})
        assert client.post("/bento/predict", json={"rows": [TUTORIAL_ROW]}).status_code == 200
        assert response.status_code == 200
        assert "x-bentoml-request-id" not in response.headers
        assert "bentoml_service_request" not in client.get("/metrics").text
        # Of successes a hundredth has a line of ours, by chance; BentoML's own access log would have one of each.
        assert not [line for line in service.log.splitlines() if "/bento/predict" in line and not line.startswith("{")]


def test_the_champion_of_the_rollout_file_is_served(models: TrainedModels, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in (SPEND, CUSTOMERS):
        copied_home(models, home, name)
    (home / ROLLOUT_FILE).write_text(f"champion: {models.tag(SPEND)}\n")

    with running_service(home, tmp_path / "log") as service, service.client() as client:
        assert client.get("/health").json()["model_version"] == models.tag(SPEND)
        assert client.post("/predict", json={"features": CUSTOMER}).json()["value"] > 0


def test_every_worker_serves_the_same_model_and_metrics_add_up_over_them_dead_ones_too(
    models: TrainedModels, tmp_path: Path
) -> None:
    config = tmp_path / "two.yaml"
    config.write_text((ROOT / "configuration.yaml").read_text().replace("workers: 1 ", "workers: 2 "))
    settings = {"BENTOML_CONFIG": str(config), "TABSERVE_LOG_SUCCESS_SHARE": "1"}
    with running_service(models.home, tmp_path / "log", **settings) as service:
        deadline = time.monotonic() + 60
        while service.log.count(" is in service, on onnxruntime") < 2:
            assert time.monotonic() < deadline, service.log
            time.sleep(0.05)

        def ask(_: int) -> str:
            # A connection each: the kernel deals them out to the workers.
            return httpx.post(f"{service.url}/predict", json={"features": TUTORIAL_ROW}).json()["model_version"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            versions = set(pool.map(ask, range(64)))

        assert versions == {models.tag(BUILT_IN)}
        counted = 'tabserve_requests_total{route="/predict",status="200"} 64.0'
        wait_for(lambda: counted in httpx.get(f"{service.url}/metrics").text)
        workers = {line["process"] for line in lines_of(service) if line.get("route") == "/predict"}
        assert len(workers) == 2

        os.kill(min(workers), signal.SIGKILL)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(16)))
        counted = 'tabserve_requests_total{route="/predict",status="200"} 80.0'
        wait_for(lambda: counted in httpx.get(f"{service.url}/metrics").text)


def test_it_is_alive_before_it_is_ready_and_answers_503_until_then(models: TrainedModels, tmp_path: Path) -> None:
    """A pipeline that takes long to unpickle stands for a large model."""
    home, data = tmp_path / "home", tmp_path / "t.csv"
    (tmp_path / "slow.py").write_text(SLOW_TO_LOAD)
    data.write_text("a,y\n" + "\n".join(f"{number},{int(number > 50)}" for number in range(100)))
    run = train(home, "--data", str(data), "--target", "y", "--estimator", "slow:make", cwd=tmp_path)
    assert run.returncode == 0, run.stderr

    service = start_service(home, tmp_path / "log", TEST_GO_ON=str(tmp_path / "go_on"))
    try:
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, service.log
            try:
                ready = httpx.get(f"{service.url}/ready", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.02)
        health = httpx.get(f"{service.url}/health").json()
        predict = httpx.post(f"{service.url}/predict", json={"features": [1]})
        bento = httpx.post(f"{service.url}/bento/predict", json={"rows": [[1]]})
        readyz = httpx.get(f"{service.url}/readyz")

        assert (ready.status_code, predict.status_code, bento.status_code, readyz.status_code) == (503,) * 4
        assert ready.headers["retry-after"] == "1"
        assert set(ready.json()) == set(predict.json()) == {"error", "detail"}
        assert (health["status"], health["model_loaded"]) == ("alive", False)
        (tmp_path / "go_on").touch()
        wait_until_ready(service)
        assert httpx.post(f"{service.url}/predict", json={"features": [99]}).json()["label"] == 1
    finally:
        stop(service)


SLOW_TO_LOAD = """
import os, pathlib, time
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

class Slow(LogisticRegression):
    def __setstate__(self, state):
        super().__setstate__(state)
        go_on = os.environ.get("TEST_GO_ON")  # set for the service, and not for the training
        deadline = time.monotonic() + 60
        while go_on and not pathlib.Path(go_on).exists() and time.monotonic() < deadline:
            time.sleep(0.01)

def make():
    return Pipeline([("preprocessor", "passthrough"), ("model", Slow())])
"""


def test_health_answers_while_the_server_is_loaded(models: TrainedModels, tmp_path: Path) -> None:
    """32 callers with 512 rows each keep the engine busy; a probe waits for none of them."""
    (tmp_path / "body.json").write_text(json.dumps({"instances": [TUTORIAL_ROW] * 512}))
    with running_service(models.home, tmp_path / "log") as service, service.client() as client:
        address = f"{service.url}/predict/batch"
        command = [
            sys.executable,
            str(Path(__file__).parent / "load.py"),
            address,
            str(tmp_path / "body.json"),
            "32",
            "4",
        ]
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        health = []
        while load.poll() is None:
            started = time.perf_counter()
            client.get("/health").raise_for_status()
            health.append(time.perf_counter() - started)
            time.sleep(0.01)
        batches = json.loads(load.communicate()[0])
        assert load.returncode == 0

    probe = sorted(health)[len(health) // 2]
    assert len(batches) > 32
    assert len(health) > 20
    # Callers, probe and service share two cores: ten times what was measured, and a part of what a batch took.
    assert probe < 0.1
    assert probe < sorted(batches)[len(batches) // 2] / 3


def is_let_in(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_sigterm_lets_the_request_in_flight_finish(models: TrainedModels, tmp_path: Path) -> None:
    body = json.dumps({"features": TUTORIAL_ROW}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with running_service(models.home, tmp_path / "log", TABSERVE_REQUEST_TIMEOUT_MS="60000") as service:
        address = urlsplit(service.url)
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(head.encode() + body[:10])
            httpx.get(f"{service.url}/health")  # sent later and answered, so the half request has arrived
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not is_let_in(service))  # until the signal has arrived too
            connection.sendall(body[10:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert service.process.wait(60) == 0


def test_metrics_of_services_in_one_home_do_not_mix(models: TrainedModels, tmp_path: Path) -> None:
    with running_service(models.home, tmp_path / "one") as one:
        for _ in range(3):
            httpx.post(f"{one.url}/predict", json={"features": TUTORIAL_ROW})
        with running_service(models.home, tmp_path / "two") as two:
            assert 'route="/predict"' not in httpx.get(f"{two.url}/metrics").text
        assert 'tabserve_requests_total{route="/predict",status="200"} 3.0' in httpx.get(f"{one.url}/metrics").text


def test_telemetry_of_bentoml_is_off_whatever_starts_it(tmp_path: Path) -> None:
    code = (
        "import service; from bentoml._internal.utils.analytics.usage_stats import do_not_track; "
        "raise SystemExit(not do_not_track())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "BENTOML_DO_NOT_TRACK"}

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**environment, "BENTOML_HOME": str(tmp_path)})

    assert done.returncode == 0
