"""Going back by itself where an alert says so: what asks for it, what does not, and never twice."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from alert_programs import program
from conftest import ROOT, free_port, wait_for
from rollouts import Versions
from test_rollout_changes import home  # noqa: F401  # a fixture

from loadtest.processes import running
from tabserve import deployments
from tabserve.lifecycle import changes
from tabserve.lifecycle.guard import ALERTS, MOST_BYTES, Guard, server

DAY = timedelta(days=1)


def message(alertname: str, *, status: str = "firing", group: str = "{}", **labels: str) -> dict:
    alert = {"status": status, "labels": {"alertname": alertname, **labels}, "annotations": {}}
    return {"version": "4", "groupKey": group, "status": status, "alerts": [alert]}


@pytest.fixture
def url(home: Path) -> Iterator[str]:
    listening = server(Guard(home, DAY), "127.0.0.1", 0)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()


@pytest.fixture
def promoted(home: Path, versions: Versions) -> Path:
    changes.promote(home, versions.first, "the first one")
    changes.promote(home, versions.small, "a smaller one")
    return home


def test_an_alert_of_a_version_that_was_just_promoted_goes_back_once_whoever_repeats_it(
    promoted: Path, versions: Versions, url: str
) -> None:
    name, _, version = versions.small.partition(":")
    told = message("TabserveAccuracyLow", model=name, model_version=version)

    first = httpx.post(url, json=told)
    again = httpx.post(url, json=told)

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["done"] == f"gone back from {versions.small} to {versions.first}: TabserveAccuracyLow"
    assert again.json()["done"] == f"it is about another version than {versions.first}, which answers"
    done = deployments.history(promoted)
    assert [change.action for change in done] == ["promote", "promote", "rollback"]
    assert done[-1].why == f"alert TabserveAccuracyLow of {versions.small}"


def test_the_version_that_is_back_is_not_gone_back_from_by_the_same_errors(
    promoted: Path, versions: Versions, url: str
) -> None:
    """The alert of errors names no version, and goes on ringing for minutes."""
    said = [httpx.post(url, json=message("TabserveErrorsHigh", job="tabserve")).json()["done"] for _ in range(2)]

    assert said[0].startswith("gone back from ")
    assert said[1] == f"{versions.first} was not promoted, but gone back to: a matter for people"
    assert changes.current(promoted).champion == versions.first


def test_what_was_gone_back_from_may_be_promoted_again_and_the_same_group_does_not_end_it_again(
    promoted: Path, versions: Versions, url: str
) -> None:
    told = message("TabserveErrorsHigh", job="tabserve", group="one")
    httpx.post(url, json=told)
    changes.promote(promoted, versions.small, "it was the database")

    assert httpx.post(url, json=told).json()["done"] == "that was gone back from already"
    assert changes.current(promoted).champion == versions.small


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (message("TabserveAccuracyLow", status="resolved"), "nothing in it is a reason to do anything"),
        (message("TabserveFeatureDrift"), "nothing in it is a reason to do anything"),
        (message("TabserveAccuracyLow", model="breast_cancer", model_version="9.9.9-abcdef"), "it is about another"),
    ],
)
def test_what_is_no_reason_changes_nothing(promoted: Path, url: str, told: dict, answer: str) -> None:
    response = httpx.post(url, json=told)

    assert response.status_code == 200
    assert answer in response.json()["done"]
    assert len(deployments.history(promoted)) == 2


def test_a_version_that_was_promoted_long_ago_is_a_matter_for_people(promoted: Path) -> None:
    said = Guard(promoted, timedelta(0)).take(json.dumps(message("TabserveErrorsHigh")).encode())

    assert "a matter for people" in said
    assert len(deployments.history(promoted)) == 2


def test_what_should_be_gone_back_from_and_cannot_is_asked_for_again_by_alertmanager(
    promoted: Path, versions: Versions, url: str
) -> None:
    (promoted / "models" / versions.first.replace(":", "/") / "contract.json").write_text("{}")

    response = httpx.post(url, json=message("TabserveErrorsHigh"))

    assert response.status_code == 500, "whereupon Alertmanager tries again"
    assert "was champion before and cannot answer, promote another version: the model" in response.json()["done"]


def test_an_alert_that_it_was_told_to_pause_on_pauses_once_whoever_resumes_knows_better(
    promoted: Path, versions: Versions
) -> None:
    guard = Guard(promoted, DAY, frozenset({"TabserveSegmentWorse"}))
    name, _, version = versions.small.partition(":")
    labels = {"severity": "warning", "model": name, "model_version": version, "segment": "city"}
    told = json.dumps(message("TabserveSegmentWorse", **labels)).encode()

    assert guard.take(told) == f"paused {versions.small}: TabserveSegmentWorse"
    assert guard.take(told) == "it is paused already"
    assert changes.current(promoted).paused == f"alert TabserveSegmentWorse of {versions.small}"
    assert changes.current(promoted).champion == versions.small
    changes.resume(promoted, "they were asked")
    assert guard.take(told) == "that was paused for already"

    assert [change.action for change in deployments.history(promoted)][2:] == ["pause", "resume"]
    assert Guard(promoted, DAY).take(told) == "nothing in it is a reason to do anything"


@pytest.mark.parametrize("body", [b"", b"no JSON", b"{}", b"[]", b'{"groupKey": 1, "alerts": [{}]}', b"[" * 100_000])
def test_what_is_no_message_of_alertmanagers_is_400(promoted: Path, url: str, body: bytes) -> None:
    assert httpx.post(url, content=body).status_code == 400
    assert len(deployments.history(promoted)) == 2


def test_a_message_that_is_too_long_is_not_read(promoted: Path, url: str) -> None:
    assert httpx.post(url, content=b" " * (MOST_BYTES + 1)).status_code == 413


def test_the_alerts_that_it_knows_are_in_the_rules() -> None:
    rules = yaml.safe_load((ROOT / "monitoring" / "alerts" / "rules.yaml").read_text())
    assert {rule["alert"] for group in rules["groups"] for rule in group["rules"]} >= ALERTS


@pytest.mark.needs_program("prometheus-alertmanager", "amtool")
def test_a_real_alertmanager_with_our_route_has_it_go_back(
    promoted: Path, versions: Versions, url: str, tmp_path: Path
) -> None:
    text = (ROOT / "monitoring" / "alerts" / "alertmanager.yaml").read_text()
    configuration = yaml.safe_load(text.replace("#guard ", ""))
    (receiver,) = [one for one in configuration["receivers"] if one["name"] == "guard"]
    receiver["webhook_configs"][0]["url"] = url
    for one in configuration["receivers"]:
        if one["name"] != "guard":  # who would be told outside of this machine
            for kind in ("slack_configs", "pagerduty_configs"):
                one.pop(kind, None)
    configuration["route"]["group_wait"] = "0s"
    for route in configuration["route"]["routes"]:
        route.pop("group_wait", None)
    (tmp_path / "alertmanager.yaml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    command = [program("prometheus-alertmanager"), "--config.file=alertmanager.yaml", f"--storage.path={tmp_path}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]

    with running(command, port, tmp_path / "log", cwd=tmp_path, environment={}):
        alert = {"labels": {"alertname": "TabserveErrorsHigh", "severity": "critical", "job": "tabserve"}}
        httpx.post(f"http://127.0.0.1:{port}/api/v2/alerts", json=[alert]).raise_for_status()
        wait_for(lambda: changes.current(promoted).champion == versions.first, 30)
    assert deployments.history(promoted)[-1].why == f"alert TabserveErrorsHigh of {versions.small}"
