"""Models that change while a service of two workers answers: promoted, rolled back, refused, tried beside, paused."""

import itertools
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import wait_for
from prediction_log_parts import records
from rollouts import (
    Callers,
    Following,
    Versions,
    ask_many,
    following,
    scores_of,
    statuses,
)
from test_http import TUTORIAL_ROW

from tabserve.assignment import experiment_of, place_of
from tabserve.history.records import opened, readable_place
from tabserve.history.stats import stats_of, text_of
from tabserve.history.window import last
from tabserve.rollout_state import Challenger

SWITCHES = 20
ROLLBACK_SECONDS = 2.0  # what is promised
FEATURE = "mean radius"


@pytest.fixture(scope="module")
def at_work(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    with following(versions, tmp_path_factory.mktemp("following")) as found:
        yield found


@pytest.fixture
def served(at_work: Following) -> Iterator[Following]:
    """With the first version alone in service, at the beginning and again at the end."""
    at_work.mood.write_text("")
    at_work.put(at_work.versions.first)
    yield at_work
    at_work.mood.write_text("")


def rows_around() -> list[list[float]]:
    """512 rows that differ in the feature that choices are sticky by."""
    return [[TUTORIAL_ROW[0] + number / 64, *TUTORIAL_ROW[1:]] for number in range(-256, 256)]


def test_twenty_promotions_and_rollbacks_lose_no_request_and_each_answer_is_its_versions(served: Following) -> None:
    first, small = served.versions.first, served.versions.small
    expected = {tag: scores_of(served.versions.load(tag), [TUTORIAL_ROW])[0, 1] for tag in (first, small)}
    assert abs(expected[first] - expected[small]) > 1e-3
    said: list[float] = []
    with Callers(served.url, a_second=500).asking() as callers:
        for number in range(SWITCHES):
            said.append(time.monotonic())
            served.put(small if number % 2 == 0 else first)
        time.sleep(0.2)  # the last ones asked

    assert not callers.faults
    assert Counter(status for _, status, _ in callers.answers) == {200: len(callers.answers)}
    moments = [moment for moment, _, _ in callers.answers]
    assert len(moments) / (max(moments) - min(moments)) > 400
    for _, _, answer in callers.answers:
        assert answer["probabilities"]["class_1"] == pytest.approx(expected[answer["model_version"]], abs=1e-9)
    took = []
    for number, (begun, until) in enumerate(itertools.pairwise([*said, max(moments)])):
        old = first if number % 2 == 0 else small
        late = [m for m, _, answer in callers.answers if begun < m < until and answer["model_version"] == old]
        took.append(max(late, default=begun) - begun)
    assert max(took) < ROLLBACK_SECONDS, took


def test_what_cannot_be_used_never_replaces_what_works_and_is_said_once(served: Following) -> None:
    first, moody, other = served.versions.first, served.versions.moody, served.versions.other
    unused = "breast_cancer:9.9.9-abcdef"
    answer = httpx.post(f"{served.url}/predict", json={"features": TUTORIAL_ROW}).json()
    cases = {
        "champion: {": "is no YAML at line 1",
        f"champion: {first}\nchampoin: x": "champoin is no key of it",
        f"champion: {first}\nchallenger: {{model: {moody}, mode: canary, share: 101}}": "less than or equal to 100",
        f"champion: {unused}": f"has no model {unused}: it holds",
        f"champion: {moody}": "answers its own examples differently here",
    }
    served.mood.write_text("lies")
    for content, sentence in cases.items():
        before = served.metric("tabserve_rollout_refusals_total") or 0
        served.write(content)
        wait_for(lambda sentence=sentence: sum(sentence in said for said in served.refusals()) == 2)

        assert sentence in served.metadata()["refused"]
        assert served.metadata()["champion"] == first
        assert served.metric("tabserve_rollout_refused") == 1
        assert served.metric("tabserve_rollout_refusals_total") == before + 2
        now = httpx.post(f"{served.url}/predict", json={"features": TUTORIAL_ROW}).json()
        assert (now["model_version"], now["probabilities"]) == (first, answer["probabilities"])

    served.write(f"champion: {first}\nchallenger: {{model: {other}, mode: canary, share: 50}}")
    wait_for(lambda: sum("only models under one contract" in said for said in served.refusals()) == 2)
    assert served.metadata()["challenger"] is None
    assert {one["model_version"] for one in ask_many(served.url, [{}] * 20)} == {first}

    served.file.unlink()
    wait_for(lambda: sum("rollout.yaml is gone" in said for said in served.refusals()) == 2)
    time.sleep(0.5)  # some looks more
    n_sentences = Counter(served.refusals())
    assert set(n_sentences.values()) == {2}  # a line of each worker, not of each look
    assert served.metadata()["champion"] == first

    served.say(first)
    wait_for(lambda: served.metric("tabserve_rollout_refused") == 0)
    assert served.metadata()["refused"] is None


def test_a_damaged_model_is_refused_until_it_is_mended_and_then_served(served: Following) -> None:
    first, small, moody = served.versions.first, served.versions.small, served.versions.moody
    served.put(moody)
    served.put(first)  # what was in service before is moody now: small is not loaded any more
    examples = served.versions.directory(small) / "examples.json"
    good = examples.read_bytes()
    try:
        examples.write_bytes(good[:-1])
        served.say(small)
        wait_for(lambda: sum("examples.json is not the file that was saved" in said for said in served.refusals()) == 2)
        assert {one["model_version"] for one in ask_many(served.url, [{}] * 20)} == {first}
    finally:
        examples.write_bytes(good)

    wait_for(lambda: all(f"model {small} is in service" in said for said in served.in_service().values()))
    assert served.metadata()["refused"] is None


def test_a_model_that_hangs_while_it_is_loaded_keeps_nobody_from_going_back(served: Following) -> None:
    first, small, moody = served.versions.first, served.versions.small, served.versions.moody
    served.put(small)
    served.put(first)  # moody is not loaded any more
    served.mood.write_text("hangs")
    served.say(moody)
    time.sleep(0.5)
    assert {one["model_version"] for one in ask_many(served.url, [{}] * 20)} == {first}

    begun = time.monotonic()
    served.put(small)
    assert time.monotonic() - begun < ROLLBACK_SECONDS
    assert {one["model_version"] for one in ask_many(served.url, [{}] * 20)} == {small}

    served.say(first, {"model": moody, "mode": "canary", "share": 50})  # and a challenger neither
    wait_for(lambda: all(f"model {first} is in service" in said for said in served.in_service().values()), 10)


def test_a_canary_by_chance_answers_its_share_and_both_arms_are_counted(served: Following) -> None:
    first, small = served.versions.first, served.versions.small
    served.put(first, {"model": small, "mode": "canary", "share": 25})
    n_asked = 1200

    answers = ask_many(served.url, [{}] * n_asked)

    assert statuses(answers) == {200: n_asked}
    found = Counter(answer["model_version"] for answer in answers)
    assert abs(found[small] / n_asked - 0.25) < 3 * (0.25 * 0.75 / n_asked) ** 0.5
    for tag, variant in ((first, "champion"), (small, "challenger")):
        labels = f'model_version="{tag}",'
        wait_for(
            lambda labels=labels, tag=tag, variant=variant: (
                served.metric(f'tabserve_variant_requests_total{{{labels}status="200",variant="{variant}"}}')
                == found[tag]
            )
        )
        counted = f'tabserve_variant_duration_seconds_count{{{labels}variant="{variant}"}}'
        assert served.metric(counted) == found[tag]
        assert served.metric(f'tabserve_rollout_model{{{labels}variant="{variant}"}}') == 1


@pytest.mark.parametrize("mood", ["raises", "no number"])
def test_a_fault_of_an_arm_is_counted_for_that_arm(served: Following, mood: str) -> None:
    first, moody = served.versions.first, served.versions.moody
    served.put(first, {"model": moody, "mode": "canary", "share": 50})
    served.mood.write_text(mood)
    failed = f'tabserve_variant_requests_total{{model_version="{moody}",status="500",variant="challenger"}}'
    before = served.metric(failed) or 0

    answers = ask_many(served.url, [{}] * 60)

    n_failed = statuses(answers)[500]
    assert 0 < n_failed < 60
    wait_for(lambda: served.metric(failed) == before + n_failed)
    assert served.metric(failed.replace(moody, first).replace("challenger", "champion")) is None


def test_a_batch_is_split_where_a_feature_decides_and_who_is_in_stays_in(served: Following) -> None:
    first, small = served.versions.first, served.versions.small
    rows = rows_around()
    expected = {tag: scores_of(served.versions.load(tag), rows)[:, 1] for tag in (first, small)}
    in_before: set[int] = set()
    for share in (5, 25):
        challenger = {"model": small, "mode": "canary", "share": share, "by": FEATURE}
        served.put(first, challenger)
        experiment = experiment_of(first, Challenger(**challenger))
        is_in = {n for n, row in enumerate(rows) if place_of(experiment, repr(row[0])) < share / 100}

        (answer,) = ask_many(
            served.url, [{}], "/predict/batch", httpx.Request("POST", "http://x", json={"instances": rows}).content
        )
        one = httpx.post(f"{served.url}/predict", json={"features": rows[min(is_in)]}).json()

        assert answer["model_version"] == first
        assert [said["model_version"] for said in answer["predictions"]] == [
            small if number in is_in else first for number in range(len(rows))
        ]
        for number, said in enumerate(answer["predictions"]):
            right = expected[said["model_version"]][number]
            assert said["probabilities"]["class_1"] == pytest.approx(right, abs=1e-9)
        assert one["model_version"] == small
        # Who is in is another draw in each run, with the version's name: three of these would be missed once in 400.
        assert abs(len(is_in) / len(rows) - share / 100) < 5 * (share / 100 * (1 - share / 100) / len(rows)) ** 0.5
        assert in_before < is_in
        in_before = is_in
    url = (served.versions.home / "prediction_log").as_uri()
    ids = {said["prediction_id"]: said["model_version"] for said in answer["predictions"]}
    wait_for(lambda: ids.keys() <= {one["prediction_id"] for one in records(url)})
    logged = {one["prediction_id"]: one for one in records(url) if one["prediction_id"] in ids}
    assert {an_id: f"{one['model']}:{one['version']}" for an_id, one in logged.items()} == ids
    assert {one["variant"] for one in logged.values() if f"{one['model']}:{one['version']}" == small} == {"challenger"}


def test_an_ab_test_gives_each_caller_the_same_version_on_every_worker_and_after_a_restart(served: Following) -> None:
    first, small = served.versions.first, served.versions.small
    challenger = {"model": small, "mode": "ab", "share": 50, "by": "header:X-User-Id"}
    served.put(first, challenger)
    experiment = experiment_of(first, Challenger(**challenger))
    users = [f"user-{number}" for number in range(100)]
    expected = [small if place_of(experiment, user) < 0.5 else first for user in users]
    assert 30 < expected.count(small) < 70

    def asked() -> list[str]:
        return [answer["model_version"] for answer in ask_many(served.url, [{"x-user-id": user} for user in users])]

    control = f'tabserve_variant_requests_total{{model_version="{first}",status="200",variant="control"}}'
    without_key = control.replace("control", "champion")
    n_before = served.metric(without_key) or 0
    assert asked() == asked() == expected
    assert {answer["model_version"] for answer in ask_many(served.url, [{}, {"x-user-id": " "}] * 4)} == {first}
    killed = random.Random(0).choice(sorted(served.in_service()))
    # What is started again serves what the others do, also where the file cannot be used at that moment.
    served.write("champion: {")
    wait_for(lambda: served.metric("tabserve_rollout_refused") == 1)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(served.in_service()) == 2 and killed not in served.in_service())
    assert all(f"ab of {small}" in said for said in served.in_service().values())
    assert asked() == expected
    wait_for(lambda: served.metric(control) == 3 * expected.count(first))
    assert served.metric(without_key) == n_before + 8


def test_a_shadow_changes_no_answer_and_its_records_join_the_champions(served: Following) -> None:
    first, small = served.versions.first, served.versions.small
    url = (served.versions.home / "prediction_log").as_uri()
    before = ask_many(served.url, [{}])[0]
    served.put(first, {"model": small, "mode": "shadow", "share": 100})

    answers = ask_many(served.url, [{}] * 40)

    ids = [answer["prediction_id"] for answer in answers]
    assert {answer["model_version"] for answer in answers} == {first}
    assert all(answer["probabilities"] == before["probabilities"] for answer in answers)
    httpx.post(f"{served.url}/feedback", json={"labels": [{"prediction_id": an_id, "label": 0} for an_id in ids[:10]]})
    right = scores_of(served.versions.load(small), [TUTORIAL_ROW])[0, 1]
    of_id: defaultdict[str, dict[str, dict]] = defaultdict(dict)

    def both_are_there() -> bool:
        for one in records(url):
            of_id[one["prediction_id"]][one["variant"]] = one
        return all(of_id[an_id].keys() == {"champion", "shadow"} for an_id in ids)

    wait_for(both_are_there)
    for an_id in ids:
        shadow = of_id[an_id]["shadow"]
        assert f"{shadow['model']}:{shadow['version']}" == small
        assert shadow["probability:class_1"] == pytest.approx(right, abs=1e-9)
        assert shadow[f"feature:{FEATURE}"] == TUTORIAL_ROW[0]
    assert (served.metric('tabserve_shadow_rows_total{outcome="answered"}') or 0) >= 40
    window = last(timedelta(hours=1))
    some = ", ".join(f"'{an_id}'" for an_id in ids)
    with opened(readable_place(url), window) as log:
        for view, n_rows, n_labels in (("joined", 40, 10), ("joined_shadows", 40, 10), ("predictions", 40, None)):
            true_label = "count(true_label)" if n_labels is not None else "NULL"
            asked = f"SELECT count(*), {true_label} FROM {view} WHERE prediction_id IN ({some})"
            assert log.rows(asked) == [(n_rows, n_labels)]
        found = stats_of(log, window, of_all_models=True)
        assert dict(found.shadows)[small] >= 40
        assert f"{small}, in none of these numbers" in text_of(found, window, "")


@pytest.mark.parametrize("mood", ["slow", "raises", "hangs", "no number"])
def test_a_shadow_that_is_ill_changes_no_answer(served: Following, mood: str) -> None:
    first, moody = served.versions.first, served.versions.moody
    served.put(first, {"model": moody, "mode": "shadow", "share": 100})
    served.mood.write_text(mood)
    outcome = f'tabserve_shadow_rows_total{{outcome="{"dropped" if mood in ("slow", "hangs") else "failed"}"}}'
    before = served.metric(outcome) or 0
    body = httpx.Request("POST", "http://x", json={"instances": [TUTORIAL_ROW] * 512}).content

    answers = ask_many(served.url, [{}] * 120, "/predict/batch", body)

    assert statuses(answers) == {200: 120}
    assert {answer["model_version"] for answer in answers} == {first}
    wait_for(lambda: (served.metric(outcome) or 0) > before)
    begun = time.monotonic()
    served.put(first)
    assert time.monotonic() - begun < ROLLBACK_SECONDS


def test_a_pause_says_why_to_who_predicts_and_lets_all_else_go_on(served: Following) -> None:
    first = served.versions.first
    an_id = ask_many(served.url, [{}])[0]["prediction_id"]
    served.put(first, paused="the labels of last week were wrong")

    for path, body in (("/predict", {"features": TUTORIAL_ROW}), ("/bento/predict", {"rows": [TUTORIAL_ROW]})):
        answer = httpx.post(f"{served.url}{path}", json=body)
        assert answer.status_code == 503
        assert answer.json()["error"] == "Predictions are paused: the labels of last week were wrong."
        assert answer.headers["retry-after"] == "30"
    for path in ("/health", "/ready", "/metadata", "/metrics", "/readyz"):
        assert httpx.get(f"{served.url}{path}").status_code == 200
    feedback = httpx.post(f"{served.url}/feedback", json={"prediction_id": an_id, "label": 1})
    assert feedback.json() == {"accepted": 1}
    assert served.metadata()["paused"] == "the labels of last week were wrong"
    assert served.metric("tabserve_paused") == 1

    served.put(first)
    assert statuses(ask_many(served.url, [{}] * 8)) == {200: 8}
    assert served.metric("tabserve_paused") == 0


def test_bentos_own_api_is_the_champions_alone(served: Following) -> None:
    first, small = served.versions.first, served.versions.small
    served.put(first, {"model": small, "mode": "canary", "share": 100})

    assert ask_many(served.url, [{}])[0]["model_version"] == small
    rows = httpx.post(f"{served.url}/bento/predict", json={"rows": [TUTORIAL_ROW] * 3}).json()
    assert [row["model_version"] for row in rows] == [first] * 3
    right = scores_of(served.versions.load(first), [TUTORIAL_ROW])[0, 1]
    assert np.allclose([row["probabilities"]["class_1"] for row in rows], right, atol=1e-9)


def test_at_the_end_nothing_hangs_although_the_shadow_does(at_work: Following, tmp_path: Path) -> None:
    at_work.put(at_work.versions.first, {"model": at_work.versions.moody, "mode": "shadow", "share": 100})
    at_work.mood.write_text("hangs")
    ask_many(at_work.url, [{}] * 20)
    time.sleep(0.2)  # until the shadow hangs

    at_work.service.process.send_signal(signal.SIGTERM)

    assert at_work.service.process.wait(15) == 0
