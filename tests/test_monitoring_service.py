"""Drift and quality of what a real service logged: ordinary rows, a column shifts, and is again as it was; then labels.

The whole way is here: from rows that a caller sends to the message that somebody gets, and the one that it is over.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from alert_programs import SOON, alertmanager, exposing, prometheus, receiving
from conftest import BUILT_IN, TrainedModels, home_in_use, running_service, wait_for
from prometheus_client import generate_latest

from monitoring import models as stored_models
from monitoring.drift import find_drift
from monitoring.live.version_quality import find_quality
from monitoring.metrics import registry_of
from monitoring.models import MonitoredModel, log_place
from monitoring.results import DriftResult
from monitoring.soundness.populations import built_in
from tabserve.history.window import Window

WINDOW = timedelta(seconds=4)
N_ROWS, AT_ONCE = 800, 100  # of a window, of a request
SHIFTED = "worst texture"
SHIFTS = (0.0, 0.0, 1.0, 1.0, 0.0)  # of each window, in standard deviations


@dataclass
class Asked:
    """Rows that a service answered: their ids and what is true of them."""

    ids: list[str]
    truth: npt.NDArray[np.int64]


def ask(client: httpx.Client, random: np.random.Generator, shift: float = 0.0) -> Asked:
    """Sends fresh rows, one column shifted by so many standard deviations; and a row that is refused."""
    population = built_in()
    rows, truth = population.draw(random, N_ROWS)
    rows = np.abs(rows)  # the noise makes a few of the areas negative
    rows[:, population.contract.names.index(SHIFTED)] += shift * rows[:, population.contract.names.index(SHIFTED)].std()
    ids: list[str] = []
    for start in range(0, N_ROWS, AT_ONCE):
        instances = [{"features": row} for row in rows[start : start + AT_ONCE].tolist()]
        answer = client.post("/predict/batch", json={"instances": instances})
        assert answer.status_code == 200, answer.text
        ids += [one["prediction_id"] for one in answer.json()["predictions"]]
    assert client.post("/predict", json={"features": ["no number", *rows[0, 1:].tolist()]}).status_code == 422
    return Asked(ids, truth)


@dataclass
class Watched:
    """Five windows of a service's log, the third and the fourth with the shift."""

    url: str
    model: MonitoredModel
    windows: list[Window]
    labels: list[dict]
    client: httpx.Client

    def drift(self, number: int) -> DriftResult:
        return find_drift(log_place(self.url), self.model, self.windows[number], "training")


@pytest.fixture(scope="module")
def watched(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("watched")
    url = (folder / "place").as_uri()
    random = np.random.default_rng(7)
    settings = {"TABSERVE_LOG_URL": url, "TABSERVE_MODEL": BUILT_IN}
    with (
        running_service(models.home, folder / "log", **settings) as service,
        service.client() as client,
        home_in_use(models.home),
    ):
        started = datetime.now(UTC)
        windows = [Window(started + n * WINDOW, started + (n + 1) * WINDOW) for n in range(len(SHIFTS))]
        asked = []
        for window, shift in zip(windows, SHIFTS, strict=True):
            while datetime.now(UTC) < window.since:  # the clock decides which window a row is in
                time.sleep(0.01)
            asked.append(ask(client, random, shift))
            assert datetime.now(UTC) < window.until, "the machine is too slow for these windows"
        labels = [
            {"prediction_id": an_id, "label": int(label)}
            for one in asked
            for an_id, label in zip(one.ids, one.truth, strict=True)
        ]
        yield Watched(url, stored_models.load(BUILT_IN), windows, labels, client)


def test_ordinary_traffic_is_quiet_and_a_shift_warns_at_first_and_then_is_an_alarm(watched: Watched) -> None:
    wait_for(lambda: watched.drift(4).windows[-1].n_rows == N_ROWS)  # the log is written a moment later

    ordinary, first, second, after = (watched.drift(number) for number in (1, 2, 3, 4))

    assert ordinary.level == "quiet"
    assert [window.n_rows for window in ordinary.windows] == [N_ROWS, N_ROWS]
    assert first.level == "warning"
    assert [column.name for column in first.columns if column.level == "warning"] == [SHIFTED]
    assert second.level == "alarm"
    assert [column.name for column in second.columns if column.level == "alarm"] == [SHIFTED]
    assert second.windows[-1].rejected_share == pytest.approx(1 / (N_ROWS + 1))
    assert second.windows[-1].rows_a_second == pytest.approx(N_ROWS / WINDOW.total_seconds())
    assert 0.9 < (second.windows[-1].confidence or 0) < 1
    assert after.level == "quiet"


@pytest.mark.needs_program("prometheus", "prometheus-alertmanager")
def test_shifted_traffic_rings_the_pager_and_ordinary_traffic_after_it_is_told_as_the_end(
    watched: Watched, tmp_path: Path
) -> None:
    wait_for(lambda: watched.drift(4).windows[-1].n_rows == N_ROWS)
    shown = watched.drift(1)

    def exposition() -> bytes:
        return generate_latest(registry_of([shown.model_copy(update={"made_at": datetime.now(UTC)})]))

    service = urlsplit(str(watched.client.base_url)).netloc
    with (
        receiving() as rung,
        alertmanager(tmp_path, rung) as to,
        exposing(exposition) as monitor,
        prometheus(tmp_path, to, tabserve=service, tabserve_monitor=monitor) as found,
    ):
        found.wait_for_rules()
        assert found.has("tabserve_ready == 1")
        assert found.alerts() == set()

        shown = watched.drift(3)
        wait_for(lambda: rung.pager, SOON)
        (fired,) = rung.said(resolved=False)
        assert f"feature {SHIFTED} of {watched.model.name}:{watched.model.version} has drifted: KL" in fired

        shown = watched.drift(4)
        wait_for(lambda: rung.said(resolved=True), SOON)
        assert found.alerts() == set()
        assert (len(rung.pager), rung.chat) == (2, [])


def test_labels_that_callers_send_become_the_quality_and_wrong_ones_an_alarm(watched: Watched) -> None:
    everything = Window(watched.windows[0].since, watched.windows[-1].until)

    def label(labels: list[dict]) -> None:
        for start in range(0, len(labels), 400):
            answer = watched.client.post("/feedback", json={"labels": labels[start : start + 400]})
            assert answer.status_code == 200, answer.text

    def quality(n_labelled: int):
        wait_for(
            lambda: find_quality(log_place(watched.url), watched.model, everything).result.n_labelled == n_labelled
        )
        return find_quality(log_place(watched.url), watched.model, everything).result

    label(watched.labels[:200])
    assert quality(200).level == "too few rows"

    label(watched.labels[200:2000])
    honest = quality(2000)
    accuracy = next(metric for metric in honest.segments[0].metrics if metric.name == "accuracy")
    assert honest.level in ("quiet", "warning")
    assert honest.coverage == pytest.approx(2000 / (len(SHIFTS) * N_ROWS))
    assert accuracy.low < accuracy.value < accuracy.high
    assert accuracy.value > 0.85

    label([{**one, "label": 1 - one["label"]} for one in watched.labels[:700]])  # the last one wins
    label(watched.labels[2000:2001])  # so that it shows that all of them came
    wrong = quality(2001)
    assert wrong.level == "alarm"
    value = next(metric.value for metric in wrong.segments[0].metrics if metric.name == "accuracy")
    of_all = {"model": watched.model.name, "model_version": watched.model.version, "segment": "", "segment_value": ""}
    gauges = registry_of([watched.drift(3), wrong])
    assert gauges.get_sample_value("tabserve_quality", {"metric": "accuracy", **of_all}) == pytest.approx(value)
