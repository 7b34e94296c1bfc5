"""What holds for every place that predictions can be kept in: one line in PLACES adds another one."""

import hashlib
import hmac
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import wait_for
from prediction_log_parts import (
    CONTRACT,
    GAPS,
    MODEL,
    ROW,
    Counts,
    ids_in,
    opened,
    predictions,
    records,
    wait_for_ids,
)
from uuid_utils import uuid7

from tabserve.contract import Contract
from tabserve.history.label_file import save
from tabserve.labels import Labels
from tabserve.prediction_log.places import place_of
from tabserve.validation import Violation

PLACES: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {
    "file": lambda _, folder: (folder / "a place").as_uri(),
    "s3": lambda request, folder: request.getfixturevalue("s3").url(folder / "spool"),
    "postgresql": lambda request, folder: request.getfixturevalue("postgresql").url(folder / "spool"),
}
NEEDS = {"postgresql": pytest.mark.needs_program("postgres")}
PERSONAL = Contract(
    features=tuple(
        feature.model_copy(update={"personal": feature.name in ("age", "city", "member", "income")})
        for feature in CONTRACT.features
    ),
    task=CONTRACT.task,
    target=CONTRACT.target,
    classes=CONTRACT.classes,
)


@pytest.fixture(params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in PLACES])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return PLACES[request.param](request, tmp_path)


def test_a_record_is_what_the_caller_sent_and_was_told(url: str, tmp_path: Path) -> None:
    put = predictions([ROW, GAPS])
    before = datetime.now(UTC)
    log = opened(url, tmp_path)
    log.put(put, 0.0012345)
    log.close()

    first, second = sorted(records(url), key=lambda record: record["prediction_id"])
    assert first.pop("time") == second.pop("time") == pytest.approx(before, abs=timedelta(seconds=30))
    assert first == {
        "prediction_id": put.ids[0],
        "model": "plans",
        "version": "1.0.0-abcdef",
        "contract_hash": CONTRACT.hash,
        "variant": "champion",
        "feature:age": 44,
        "feature:income": 30500.5,
        "feature:city": "Tromsø",
        "feature:zone": "1",
        "feature:member": True,
        "label": "plus",
        "probability:basic": 0.2,
        "probability:plus": 0.7,
        "probability:pro": 0.1,
        "latency_ms": 1.234,
        "weight": 1.0,
    }
    gaps = {name: value for name, value in second.items() if name.startswith("feature:")}
    assert gaps == {
        "feature:age": 18,
        "feature:income": None,
        "feature:city": None,
        "feature:zone": "2",
        "feature:member": None,
    }


def test_what_was_put_is_found_while_the_log_is_open(url: str, tmp_path: Path) -> None:
    log = opened(url, tmp_path)
    put = [predictions([ROW] * 3) for _ in range(10)]
    for some in put:
        log.put(some, 0.001)

    wait_for_ids(url, [one for some in put for one in some.ids])
    log.close()
    assert len(ids_in(url)) == 30


def test_several_logs_in_one_place_keep_everything_once(url: str, tmp_path: Path) -> None:
    logs = [opened(url, tmp_path) for _ in range(3)]
    put = [predictions() for _ in range(30)]
    for number, some in enumerate(put):
        logs[number % 3].put(some, 0.001)
    for log in logs:
        log.close()
        wait_for_ids(url, [])

    assert sorted(ids_in(url)) == sorted(one for some in put for one in some.ids)


def test_each_model_version_is_found_with_its_own_columns(url: str, tmp_path: Path) -> None:
    log = opened(url, tmp_path)
    other = Contract(features=CONTRACT.features[:1], task="regression", target="spend")
    spend = predictions([ROW[:1]], other, "spend:2.1.0-123456")
    spend.scores = spend.scores[:, 0]
    log.put(predictions(), 0.001)
    log.put(spend, 0.001)
    log.close()

    by_version = {record["version"]: record for record in records(url)}
    assert set(by_version) == {"1.0.0-abcdef", "2.1.0-123456"}
    assert (by_version["2.1.0-123456"]["value"], by_version["1.0.0-abcdef"]["label"]) == (0.2, "plus")


def test_of_a_share_of_the_requests_each_row_says_for_how_many_it_stands(url: str, tmp_path: Path) -> None:
    log = opened(url, tmp_path, log_sample=0.25)
    for _ in range(2000):
        log.put(predictions([ROW] * 2), 0.001)
    log.close()

    found = records(url)
    assert {record["weight"] for record in found} == {4.0}
    assert sum(record["weight"] for record in found) == pytest.approx(4000, rel=0.25)  # six standard deviations
    assert len(found) % 2 == 0  # a request is kept whole


def test_personal_features_are_hashed_with_the_key(url: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a key of sixteen bytes and more\n")
    log = opened(url, tmp_path, log_key_file=str(key))
    put = predictions([ROW, GAPS], PERSONAL)
    log.put(put, 0.001)
    log.close()

    def hashed(text: str) -> str:
        return hmac.new(b"a key of sixteen bytes and more", text.encode(), hashlib.sha256).hexdigest()

    of_row, of_gaps = sorted(records(url), key=lambda record: put.ids.index(record["prediction_id"]))
    assert of_row["feature:age"] == hashed("age=44")
    assert of_row["feature:income"] == hashed("income=30500.5")
    assert of_row["feature:city"] == hashed("city=Tromsø")
    assert of_row["feature:member"] == hashed("member=true")
    assert of_row["feature:zone"] == "1"
    assert (of_gaps["feature:age"], of_gaps["feature:city"]) == (hashed("age=18"), None)
    assert put.rows[0].tolist() == ROW.tolist()  # whoever put them still has them


def test_without_a_key_personal_features_are_left_out(url: str, tmp_path: Path) -> None:
    log = opened(url, tmp_path)
    log.put(predictions([ROW], PERSONAL), 0.001)
    log.close()

    (found,) = records(url)
    assert [name for name in found if name.startswith("feature:")] == ["feature:zone"]


def test_rejected_values_are_counted_by_route_feature_and_rule_and_repeat_nothing(url: str, tmp_path: Path) -> None:
    counts = Counts()
    log = opened(url, tmp_path, counts)
    high = Violation(0, "age", "maximum", "expected at most 120", 300)
    unknown = Violation(0, "their own name", "unknown_name", "expected no such feature", "their own name")
    for _ in range(1000):
        log.reject("/predict", [high, unknown], MODEL)
    log.reject("/predict/batch", [high] * 7, MODEL)
    log.close()

    found = records(url, "rejections")
    totals: dict[tuple, int] = {}
    for record in found:
        key = (record["route"], record["feature"], record["rule"], record["model"], record["version"])
        totals[key] = totals.get(key, 0) + record["count"]
    assert totals == {
        ("/predict", "age", "maximum", "plans", "1.0.0-abcdef"): 1000,
        ("/predict", None, "unknown_name", "plans", "1.0.0-abcdef"): 1000,
        ("/predict/batch", "age", "maximum", "plans", "1.0.0-abcdef"): 7,
    }
    assert counts.written["rejections"] == len(found) < 30  # a row a flush, however many came


def test_labels_are_kept_as_they_came_from_callers_and_from_files(url: str, tmp_path: Path) -> None:
    ids = [str(uuid7()) for _ in range(4)]
    log = opened(url, tmp_path)
    log.label(Labels(ids[:1], ["basic"], [None]))
    log.label(Labels([ids[0], ids[1]], ["plus", None], [None, 2.5]))
    log.close()
    place = place_of(url)
    assert place is not None
    save(Labels(ids[2:], ["pro", None], [None, -1.0]), place)

    found = sorted(records(url, "labels"), key=lambda record: record["time"])

    assert [(record["prediction_id"], record["label"], record["value"], record["source"]) for record in found[:3]] == [
        (ids[0], "basic", None, "feedback"),
        (ids[0], "plus", None, "feedback"),
        (ids[1], None, 2.5, "feedback"),
    ]
    assert {(record["prediction_id"], record["label"], record["value"], record["source"]) for record in found[3:]} == {
        (ids[2], "pro", None, "import"),
        (ids[3], None, -1.0, "import"),
    }


def test_days_that_are_too_old_are_deleted(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, kept, new = (predictions() for _ in range(3))
    now = time.time()
    for some, days in ((old, 9), (kept, 6)):
        log = opened(url, tmp_path, log_retention_days=30)
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda days=days: now - days * 86400)
            log.put(some, 0.001)
        log.close()
    assert sorted(ids_in(url)) == sorted([*old.ids, *kept.ids])

    log = opened(url, tmp_path, log_retention_days=7)
    log.put(new, 0.001)
    wait_for(lambda: not {*old.ids} & {*ids_in(url)})
    log.close()
    assert sorted(ids_in(url)) == sorted([*kept.ids, *new.ids])
