"""What tests share: models trained for real, and services started for real."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models.model import ModelStore
from stores import postgresql, s3  # noqa: F401  # fixtures
from tables import write_customers, write_spend

from loadtest.processes import find_program
from tabserve import model_store
from tabserve.model_store import LoadedModel

ROOT = Path(__file__).parent.parent
BUILT_IN = "breast_cancer"
CUSTOMERS = "customers"
SPEND = "spend"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a program which is missing is skipped on a person's machine, and fails where CI is set."""
    for mark in item.iter_markers("needs_program"):
        for name in mark.args:
            if find_program(name) is None:
                (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a process of ours: its own home, and nothing of the settings around the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TABSERVE_", "BENTOML_"))}
    return {**kept, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **more}


@contextlib.contextmanager
def home_in_use(home: Path) -> Iterator[Path]:
    """Has this process use a model store; BentoML would look at the environment only once."""
    (home / "models").mkdir(parents=True, exist_ok=True)
    (home / "tmp").mkdir(exist_ok=True)
    before = BentoMLContainer.bentoml_home.get(), BentoMLContainer.model_store.get()
    BentoMLContainer.bentoml_home.set(str(home))
    BentoMLContainer.model_store.set(ModelStore(home / "models"))
    try:
        yield home
    finally:
        BentoMLContainer.bentoml_home.set(before[0])
        BentoMLContainer.model_store.set(before[1])


@pytest.fixture
def empty_home(tmp_path: Path) -> Iterator[Path]:
    with home_in_use(tmp_path / "home") as home:
        yield home


def start_training(home: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment(home), stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(home: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs train.py to its end."""
    return finish(start_training(home, *arguments, cwd=cwd))


@dataclass(frozen=True)
class TrainedModels:
    """A home with the three models that most tests use, and what train.py said."""

    home: Path
    runs: dict[str, subprocess.CompletedProcess[str]]

    def tag(self, name: str) -> str:
        return self.runs[name].stdout.strip()

    def load(self, name: str) -> LoadedModel:
        with home_in_use(self.home):
            return model_store.load(model_store.find(self.tag(name)))

    def directory(self, name: str) -> Path:
        return self.home / "models" / self.tag(name).replace(":", "/")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> TrainedModels:
    """Trained by train.py itself; the built-in one last, so that it is the newest."""
    home, data = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("data")
    customers = write_customers(data / "customers.csv")
    spend = write_spend(data / "spend.parquet")
    started = {
        CUSTOMERS: start_training(home, "--data", str(customers), "--target", "plan", "--id-columns", "customer,since"),
        SPEND: start_training(home, "--data", str(spend), "--target", "spend"),
    }
    runs = {name: finish(process) for name, process in started.items()}
    runs[BUILT_IN] = train(home)
    for run in runs.values():
        assert run.returncode == 0, run.stderr
    return TrainedModels(home, runs)


@dataclass
class Service:
    """A `bentoml serve` of ours that answers at `url`."""

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)


def free_port() -> int:
    """A port below those that the kernel gives to connections, which other tests open by the thousand.

    One of those could be taken again in the seconds until the service that it is meant for listens.
    """
    numbers = random.SystemRandom()  # as every process of the tests must get others
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", numbers.randrange(10_000, 32_768)))
            return int(listener.getsockname()[1])


def start_service(home: Path, log: Path, target: str = ".", cwd: Path = ROOT, **settings: str) -> Service:
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(home, **settings), stdout=out, stderr=out, start_new_session=True
        )
    return Service(f"http://127.0.0.1:{port}", process, log)


def wait_for(condition: Callable[[], object], limit_seconds: float = 90) -> None:
    """Waits until a condition holds; what a service writes after its answer comes a moment later.

    By default three times as long as anything in the product takes to come round again (30 s, the prediction log's
    recovery): what has just been missed comes the next time.
    """
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_seconds} s"
        time.sleep(0.02)


def lines_of(service: Service) -> list[dict]:
    """The JSON lines of a service's log."""
    return [json.loads(line) for line in service.log.splitlines() if line.startswith("{") and line.endswith("}")]


def wait_until_ready(service: Service, limit_seconds: float = 60) -> None:
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        assert service.process.poll() is None, service.log
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{service.url}/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"not ready after {limit_seconds} s:\n{service.log}")


def stop(service: Service) -> None:
    with contextlib.suppress(ProcessLookupError):
        service.process.send_signal(signal.SIGTERM)
    try:
        service.process.wait(60)  # BentoML itself ends its workers after 30
    except subprocess.TimeoutExpired:
        os.killpg(service.process.pid, signal.SIGKILL)
        service.process.wait()


@contextlib.contextmanager
def running_service(home: Path, log: Path, target: str = ".", cwd: Path = ROOT, **settings: str) -> Iterator[Service]:
    service = start_service(home, log, target, cwd, **settings)
    try:
        wait_until_ready(service)
        yield service
    finally:
        stop(service)


@pytest.fixture(scope="session")
def services(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """One running service a model. Every request is logged, and BENTOML_CONFIG is set as `make serve` sets it."""
    logs = tmp_path_factory.mktemp("logs")
    config = str(ROOT / "configuration.yaml")
    started = {
        name: start_service(
            models.home, logs / name, TABSERVE_MODEL=name, TABSERVE_LOG_SUCCESS_SHARE="1", BENTOML_CONFIG=config
        )
        for name in (BUILT_IN, CUSTOMERS, SPEND)
    }
    try:
        for service in started.values():
            wait_until_ready(service)
        yield started
    finally:
        for service in started.values():
            service.process.send_signal(signal.SIGTERM)
        for service in started.values():
            stop(service)


@pytest.fixture
def built_in(services: dict[str, Service]) -> Iterator[httpx.Client]:
    with services[BUILT_IN].client() as client:
        yield client


@pytest.fixture
def customers(services: dict[str, Service]) -> Iterator[httpx.Client]:
    with services[CUSTOMERS].client() as client:
        yield client


@pytest.fixture
def spend(services: dict[str, Service]) -> Iterator[httpx.Client]:
    with services[SPEND].client() as client:
        yield client


from rollouts import versions  # noqa: E402, F401  # a fixture, in a module that needs what is above
