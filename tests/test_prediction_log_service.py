"""The prediction log of a real `bentoml serve` with two workers under load: killed, ended, and out of room."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import (
    CUSTOMERS,
    ROOT,
    Service,
    TrainedModels,
    lines_of,
    running_service,
    wait_for,
)
from prediction_log_parts import ids_in, opened, records
from test_http import CUSTOMER, TUTORIAL_ROW
from test_service import refused_start

from tabserve.prediction_log.places import OPEN, place_of
from tabserve.prediction_log.segment import SUFFIX, adopted

ONE_ROW = json.dumps({"features": TUTORIAL_ROW}).encode()
DROPPED = "rows are dropped until it can (No space left on device)"
WRITTEN_AGAIN = "the prediction log is written again"
LOST_SECONDS = 0.5  # at most, of what was answered before a worker was killed


@dataclass
class Load:
    """Callers that ask until they are told to end; each answer's time and ids."""

    url: str
    answered: list[tuple[float, str]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    is_over: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        with contextlib.suppress(OSError, http.client.HTTPException):  # the service ends while it is asked
            while not self.is_over.is_set():
                started = time.monotonic()
                connection.request("POST", "/predict", ONE_ROW, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                now = time.monotonic()
                self.statuses.add(response.status)
                self.took.append(now - started)
                self.answered.append((now, answer["prediction_id"]))

    @property
    def ids(self) -> list[str]:
        return [one for _, one in self.answered]


@contextlib.contextmanager
def load_on(service: Service, callers: int = 6) -> Iterator[Load]:
    load = Load(service.url)
    threads = [threading.Thread(target=load.ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.is_over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def two_workers(models: TrainedModels, folder: Path, **settings: str) -> Iterator[Service]:
    config = folder / "two.yaml"
    config.write_text((ROOT / "configuration.yaml").read_text().replace("workers: 1 ", "workers: 2 "))
    with running_service(models.home, folder / "log", BENTOML_CONFIG=str(config), **settings) as service:
        wait_for(lambda: service.log.count(" is in service, on onnxruntime") == 2)
        yield service


def kill(service: Service) -> float:
    """Kills the service and its two workers; returns when, on the monotonic clock."""
    workers = {line["process"] for line in lines_of(service) if " is in service" in line["message"]}
    assert len(workers) == 2
    killed = time.monotonic()
    for process in (service.process.pid, *workers):  # the parent first, which would start others
        os.kill(process, signal.SIGKILL)
    return killed


def nobody_owns(url: str) -> bool:
    """Whether the kernel has freed the locks of those who were killed, which it does a moment later."""
    place = place_of(url)
    assert place is not None
    with contextlib.ExitStack() as stack:
        return all(stack.enter_context(adopted(path)) for path in place.folder.glob(f"*/{OPEN}/*{SUFFIX}"))


def metric(service: Service, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics").text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_after_a_kill_under_load_at_most_the_last_half_second_is_missing(models: TrainedModels, tmp_path: Path) -> None:
    url = (tmp_path / "place").as_uri()
    with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service:
        with load_on(service) as load:
            wait_for(lambda: len(ids_in(url)) > 500)
            killed = kill(service)
        wait_for(lambda: nobody_owns(url))

    found = ids_in(url)  # no process is there to help
    # A machine that stood still shows in the answers, and may have kept the writer from its work as long.
    limit = killed - LOST_SECONDS - max(load.took)
    missing = [moment for moment, one in load.answered if one not in set(found)]
    assert len(found) == len(set(found))
    assert all(moment > limit for moment in missing), f"lost {killed - min(missing):.3f} s"

    log = opened(url, tmp_path)
    wait_for(lambda: not list((tmp_path / "place/predictions/_open").iterdir()))
    log.close()
    assert sorted(ids_in(url)) == sorted(found)


def test_sigterm_under_load_loses_nothing_that_was_answered(models: TrainedModels, tmp_path: Path) -> None:
    url = (tmp_path / "place").as_uri()
    with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service, load_on(service) as load:
        wait_for(lambda: len(load.answered) > 1000)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0

    found = ids_in(url)
    assert load.statuses == {200}
    assert len(found) == len(set(found))
    assert not set(load.ids) - set(found)
    assert not list((tmp_path / "place/predictions/_open").iterdir())  # all of it is Parquet


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_costs_records_and_no_request_and_is_over_when_there_is_room(
    models: TrainedModels, tmp_path: Path, small_disk: Path
) -> None:
    url = small_disk.as_uri()
    with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service:
        with load_on(service) as load:
            wait_for(lambda: DROPPED in service.log)
            wait_for(lambda: metric(service, "tabserve_prediction_log_dropped_rows_total") > 100)
            assert metric(service, "tabserve_prediction_log_write_errors_total") >= 1
            n_answered = len(load.answered)
            wait_for(lambda: len(load.answered) > n_answered + 500)  # as if nothing was
            subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
            wait_for(lambda: service.log.count(WRITTEN_AGAIN) == service.log.count(DROPPED))
        assert load.statuses == {200}

        def all_is_counted() -> bool:
            written = metric(service, 'tabserve_prediction_log_rows_total{table="predictions"}')
            dropped = metric(service, "tabserve_prediction_log_dropped_rows_total")
            return written + dropped == len(load.answered) and written == len(ids_in(url))

        wait_for(all_is_counted)
        assert 1 <= service.log.count(DROPPED) <= 2  # one line a worker
    assert len(ids_in(url)) == len(set(ids_in(url)))


def test_every_way_of_asking_is_kept_and_what_is_refused_is_counted(models: TrainedModels, tmp_path: Path) -> None:
    url = (tmp_path / "place").as_uri()
    with (
        running_service(models.home, tmp_path / "log", TABSERVE_MODEL=CUSTOMERS, TABSERVE_LOG_URL=url) as service,
        service.client() as client,
    ):
        one = client.post("/predict", json={"features": CUSTOMER}).json()
        many = client.post("/predict/batch", json={"instances": [CUSTOMER] * 3}).json()
        of_bento = client.post("/bento/predict", json={"rows": [CUSTOMER] * 2}).json()
        refused = client.post("/predict", json={"features": {**CUSTOMER, "age": "old", "mine": 1}})
        assert refused.status_code == 422
        assert client.post("/bento/predict", json={"rows": [{**CUSTOMER, "age": "old"}]}).status_code == 400

    by_id = {record["prediction_id"]: record for record in records(url)}
    said = [one, *many["predictions"], *of_bento]
    assert sorted(by_id) == sorted(answer["prediction_id"] for answer in said)
    for answer in said:
        record = by_id[answer["prediction_id"]]
        assert record["label"] == answer["label"]
        assert f"{record['model']}:{record['version']}" == models.tag(CUSTOMERS)
        for key, probability in answer["probabilities"].items():
            assert record[f"probability:{key}"] == probability
        for name, value in CUSTOMER.items():
            assert record[f"feature:{name}"] == value
    rejected = {(record["route"], record["feature"], record["rule"]) for record in records(url, "rejections")}
    assert rejected == {
        ("/predict", "age", "kind"),
        ("/predict", None, "unknown_name"),
        ("/bento/predict", "age", "kind"),
    }


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"TABSERVE_LOG_URL": "file:///proc/nowhere"}, "the predictions cannot be kept in /proc/nowhere ("),
        ({"TABSERVE_LOG_URL": "s3://key:secret@b/p"}, "TABSERVE_LOG_URL: expected s3://bucket/prefix"),
        (
            {"TABSERVE_LOG_KEY_FILE": "/no/such/key"},
            "the key file /no/such/key of TABSERVE_LOG_KEY_FILE cannot be read",
        ),
    ],
)
def test_where_predictions_cannot_be_kept_it_does_not_start_and_says_so(
    models: TrainedModels, tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    code, said = refused_start(models.home, tmp_path / "log", **settings)

    assert code != 0
    assert "tabserve does not start: " in said
    assert sentence in said
    assert "Traceback" not in said
