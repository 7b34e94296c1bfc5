"""What the tests of the rollout share: versions of one model, a service of two workers, its callers."""

import http.client
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from conftest import (
    BUILT_IN,
    CUSTOMERS,
    ROOT,
    Service,
    TrainedModels,
    finish,
    home_in_use,
    lines_of,
    running_service,
    start_training,
    wait_for,
)
from test_http import TUTORIAL_ROW

from tabserve import model_store
from tabserve.rollout_state import ROLLOUT_FILE, RolloutState
from tabserve.served_model import ServedModel, made_ready
from tabserve.settings import Settings

ONE_ROW = json.dumps({"features": TUTORIAL_ROW}).encode()
JSON = {"Content-Type": "application/json"}

# `moody` answers as it was trained, until the file that TEST_MOOD names says otherwise.
ESTIMATORS = """
import os, pathlib, time
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

class Moody(LogisticRegression):
    def predict_proba(self, rows):
        path = pathlib.Path(os.environ.get("TEST_MOOD", "/nowhere"))
        mood = path.read_text() if path.exists() else ""
        if mood == "raises":
            raise RuntimeError("in no mood")
        if mood == "slow":
            time.sleep(0.2)
        while mood == "hangs" and path.read_text() == "hangs":
            time.sleep(0.01)
        scores = super().predict_proba(rows)
        if mood == "no number":
            scores[:, 0] = float("nan")
        return scores[:, ::-1] if mood == "lies" else scores

def small():
    return Pipeline([("preprocessor", StandardScaler()), ("model", GradientBoostingClassifier(n_estimators=20))])

def moody():
    return Pipeline([("preprocessor", StandardScaler()), ("model", Moody())])
"""


@dataclass(frozen=True)
class Versions:
    """Three versions of the built-in model under one contract, and a model under another one, in a home."""

    home: Path
    first: str
    small: str
    moody: str
    other: str

    def directory(self, tag: str) -> Path:
        return self.home / "models" / tag.replace(":", "/")

    def load(self, tag: str) -> ServedModel:
        with home_in_use(self.home):
            return made_ready(model_store.load(model_store.find(tag)), Settings())


@pytest.fixture(scope="session")
def versions(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    home, code = tmp_path_factory.mktemp("versions"), tmp_path_factory.mktemp("estimators")
    for name in (BUILT_IN, CUSTOMERS):
        shutil.copytree(models.directory(name), home / "models" / models.tag(name).replace(":", "/"))
    (code / "mine.py").write_text(ESTIMATORS)
    runs = [
        finish(process)
        for process in [start_training(home, "--estimator", f"mine:{name}", cwd=code) for name in ("small", "moody")]
    ]
    small, moody = (run.stdout.strip() for run in runs)
    assert all(run.returncode == 0 for run in runs), [run.stderr for run in runs]
    return Versions(home, models.tag(BUILT_IN), small, moody, models.tag(CUSTOMERS))


@dataclass
class Following:
    """A service that follows a rollout file."""

    service: Service
    versions: Versions
    mood: Path

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def file(self) -> Path:
        return self.versions.home / ROLLOUT_FILE

    def say(self, champion: str, challenger: dict | None = None, paused: str | None = None) -> None:
        RolloutState.model_validate({"champion": champion, "challenger": challenger, "paused": paused}).save(self.file)

    def write(self, content: str) -> None:
        """In one step, as everybody should: a worker that looks meanwhile would refuse half of it."""
        beside = self.file.with_suffix(".new")
        beside.write_text(content)
        beside.replace(self.file)

    def put(self, champion: str, challenger: dict | None = None, paused: str | None = None) -> None:
        """Says it, and waits until both workers do it."""
        self.say(champion, challenger, paused)
        expected = f"model {champion} is in service, on (onnxruntime|scikit-learn)"
        if challenger:
            expected += f"; {challenger['mode']} of {challenger['model']} for {challenger['share']} % of the requests"
        expected += "; paused" if paused else ""
        wait_for(lambda: all(re.fullmatch(expected, said) for said in self.in_service().values()))

    def in_service(self) -> dict[int, str]:
        """What each worker that lives said last of what is in service in it."""
        lines = [line for line in lines_of(self.service) if " is in service, on " in line["message"]]
        said = {line["process"]: line["message"] for line in lines}
        return {process: message for process, message in said.items() if Path(f"/proc/{process}/stat").exists()}

    def refusals(self) -> list[str]:
        """The sentences of all workers."""
        return [
            line["message"].removeprefix("the rollout is refused: ")
            for line in lines_of(self.service)
            if line["message"].startswith("the rollout is refused: ")
        ]

    def metadata(self) -> dict:
        return httpx.get(f"{self.url}/metadata").json()["rollout"]

    def metric(self, line: str) -> float | None:
        """The value of a metric, with its labels as they are written."""
        for found in httpx.get(f"{self.url}/metrics").text.splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return None


@contextmanager
def following(versions: Versions, folder: Path) -> Iterator[Following]:
    config = folder / "two.yaml"
    config.write_text((ROOT / "configuration.yaml").read_text().replace("workers: 1 ", "workers: 2 "))
    mood = folder / "mood"
    RolloutState(champion=versions.first).save(versions.home / ROLLOUT_FILE)
    with running_service(
        versions.home, folder / "log", BENTOML_CONFIG=str(config), TEST_MOOD=str(mood), TABSERVE_LOG_SUCCESS_SHARE="0"
    ) as service:
        found = Following(service, versions, mood)
        wait_for(lambda: len(found.in_service()) == 2)
        yield found


@dataclass
class Callers:
    """Connections that ask at fixed times, as many in a second as is said, until they are told to end."""

    url: str
    a_second: int
    connections: int = 16
    headers: Sequence[dict[str, str]] = ({},)
    answers: list[tuple[float, int, dict]] = field(default_factory=list)
    """When each answer came (monotonic), its status and its body."""
    faults: list[BaseException] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        step = self.connections / self.a_second
        due = time.monotonic() + step * number / self.connections
        try:
            while not self.is_over.wait(max(0.0, due - time.monotonic())):
                due += step
                connection.request("POST", "/predict", ONE_ROW, JSON)
                response = connection.getresponse()
                body = json.loads(response.read())
                self.answers.append((time.monotonic(), response.status, body))
        except BaseException as fault:
            self.faults.append(fault)
            raise

    @contextmanager
    def asking(self) -> Iterator["Callers"]:
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.connections)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.is_over.set()
            for thread in threads:
                thread.join()


def ask_many(url: str, headers: Sequence[dict[str, str]], path: str = "/predict", body: bytes = ONE_ROW) -> list[dict]:
    """One request with each of these headers, on four connections, so that all workers are asked."""
    answers: dict[int, dict] = {}

    def ask(start: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        for number in range(start, len(headers), 4):
            connection.request("POST", path, body, {**JSON, **headers[number]})
            response = connection.getresponse()
            answers[number] = {**json.loads(response.read()), "status": response.status}

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(headers))]


def scores_of(model: ServedModel, rows: Sequence[Sequence[float]]) -> np.ndarray:
    return model.loaded.engine.predict(np.array(rows, dtype=np.float64))


def statuses(answers: Sequence[dict]) -> Counter[int]:
    return Counter(answer["status"] for answer in answers)
