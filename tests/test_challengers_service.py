"""Challengers beside the champion of a running service, and what the commands find in what it wrote: A/B, canary."""

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from alert_programs import prometheus
from conftest import home_in_use, wait_for
from rollouts import Callers, Following, Versions, ask_many, following, scores_of
from test_http import TUTORIAL_ROW

from tabserve import cli
from tabserve.commands import ab_result as ab_result_module
from tabserve.contract import MAX_ROWS
from tabserve.history.records import opened, readable_place
from tabserve.history.window import Window, last
from tabserve.lifecycle.guard import Guard
from tabserve.rollout_state import RolloutState, read_rollout

FEATURE = "mean radius"
SEED = 11
ROLLBACK_SECONDS = 2.0  # what is promised


@pytest.fixture(scope="module")
def at_work(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Following]:
    """A home of its own, whose history has nothing of others."""
    folder = tmp_path_factory.mktemp("challengers")
    (folder / "home").mkdir()
    (folder / "home" / "models").symlink_to(versions.home / "models")
    with following(replace(versions, home=folder / "home"), folder) as found:
        yield found


@pytest.fixture
def served(at_work: Following) -> Iterator[Following]:
    """With the first version alone in service at the beginning; the commands are those of its home."""
    at_work.mood.write_text("")
    at_work.put(at_work.versions.first)
    with home_in_use(at_work.versions.home):
        yield at_work


def begin(served: Following, *command: str) -> None:
    """Has a command change the rollout, and waits until both workers do as it says."""
    assert cli.main(list(command)) == 0
    state = read_rollout(served.file)
    assert state is not None
    assert state.challenger is not None
    of = f"; {state.challenger.mode} of {state.challenger.model} for {state.challenger.share:g} %"
    wait_for(lambda: all(of in said for said in served.in_service().values()))


def answered(served: Following, first_key: int, n_keys: int, **headers: str) -> list[dict]:
    """Asks a row for each of as many keys, in batches; what the service says of each."""
    rows = [[10 + number / 1024, *TUTORIAL_ROW[1:]] for number in range(first_key, first_key + n_keys)]
    found: list[dict] = []
    with served.service.client() as client:
        for start in range(0, n_keys, MAX_ROWS):
            body = {"instances": rows[start : start + MAX_ROWS]}
            answer = client.post("/predict/batch", json=body, headers=headers).raise_for_status().json()
            found += [{"model_version": answer["model_version"], **one} for one in answer["predictions"]]
    return found


def told(served: Following, answers: list[dict], random: np.random.Generator) -> dict[str, list[float]]:
    """Says what the answers were worth, 1 more of those of `small`; the values of each version."""
    worth = [random.normal(11 if one["model_version"] == served.versions.small else 10, 2) for one in answers]
    labels = [
        {"prediction_id": one["prediction_id"], "label": one["label"], "business_value": value}
        for one, value in zip(answers, worth, strict=True)
    ]
    with served.service.client() as client:
        for start in range(0, len(labels), MAX_ROWS):
            client.post("/feedback", json={"labels": labels[start : start + MAX_ROWS]}).raise_for_status()
    url = (served.versions.home / "prediction_log").as_uri()
    ids = ", ".join(f"'{one['prediction_id']}'" for one in answers)

    def is_written() -> bool:
        with opened(readable_place(url), last(timedelta(hours=1))) as log:
            asked = f"SELECT count(business_value) FROM joined WHERE prediction_id IN ({ids})"
            return log.rows(asked) == [(len(answers),)]

    wait_for(is_written)
    found: dict[str, list[float]] = defaultdict(list)
    for one, value in zip(answers, worth, strict=True):
        found[one["model_version"]].append(value)
    return found


def in_two_hours(length: timedelta) -> Window:
    window = last(length)
    return Window(window.since, window.until + timedelta(hours=2))


VERDICT = re.compile(r"BETTER: (\S+) → (\S+), \+(\S+) \(95 % interval \+(\S+) to \+(\S+), p = (\S+)\)(.*)\n")


def test_an_ab_test_by_a_feature_is_decided_at_its_horizon_on_what_the_service_wrote_and_not_before(
    served: Following, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, small, random = served.versions.first, served.versions.small, np.random.default_rng(SEED)
    begin(served, "ab", small, "--by", FEATURE, "--share", "50")
    told(served, answered(served, 0, 2048), random)
    assert cli.main(["stop"]) == 0
    served.put(first)
    begin(served, "ab", small, "--by", FEATURE, "--share", "40")
    worth = told(served, answered(served, 0, 1024) + answered(served, 0, 1024), random)
    capsys.readouterr()

    assert cli.main(["ab-result", "--outcome", "business-value", "--horizon", "1h"]) == 3
    early = capsys.readouterr().out
    assert early.startswith("INCONCLUSIVE: not enough data: 1.0 hours of 1h are left\n")
    assert "→" not in early

    with monkeypatch.context() as later:
        later.setattr(ab_result_module, "last", in_two_hours)
        assert cli.main(["ab-result"]) == 0
    page = capsys.readouterr().out
    found = VERDICT.match(page)
    assert found, page
    mean, mean_too = (float(np.mean(worth[tag])) for tag in (first, small))
    assert [float(number) for number in found.groups()[:3]] == pytest.approx(
        [mean, mean_too, mean_too - mean], rel=1e-3
    )
    variance = 0.0
    for values in worth.values():  # of both rounds, whose keys come in the same order
        of_keys = np.array(values).reshape(2, -1).sum(axis=0)
        variance += len(of_keys) * np.var(of_keys - 2 * np.mean(values), ddof=1) / len(values) ** 2
    half = 1.959964 * variance**0.5
    low, high, p_value = (float(number) for number in found.groups()[3:6])
    assert (high - low) / 2 == pytest.approx(half, rel=2e-3)
    assert p_value < 0.001
    rows = {line.split()[0]: line.split()[1:] for line in page.splitlines() if line.startswith(("control", "chall"))}
    for variant, tag in (("control", first), ("challenger", small)):
        n_rows, n_keys = (f"{n:,}" for n in (len(worth[tag]), len(worth[tag]) // 2))
        assert rows[variant] == [n_rows, n_keys, n_keys], "and none of the test before, which dealt the keys otherwise"

    assert cli.main(["stop"]) == 0
    over = ["--control", first, "--challenger", small, "--share", "40", "--by", FEATURE]
    capsys.readouterr()
    assert cli.main(["ab-result", *over]) == 3
    assert "not enough data: it was ended 1.0 hours before its horizon of 1h\n" in capsys.readouterr().out


def test_an_ab_test_by_a_header_says_that_the_log_has_no_keys_and_how_far_its_result_goes(
    served: Following, capsys: pytest.CaptureFixture[str]
) -> None:
    first, small, random = served.versions.first, served.versions.small, np.random.default_rng(SEED)
    begin(served, "ab", small, "--by", "header:x-user-id", "--share", "50")
    users = [{"x-user-id": f"user-{number}"} for number in range(560)]

    few = told(served, ask_many(served.url, users[:60]), random)
    capsys.readouterr()
    assert cli.main(["ab-result", "--outcome", "business-value", "--detect", "0.7"]) == 3
    said = capsys.readouterr().out
    n_few = len(few[first]), len(few[small])
    assert (
        f"each arm needs 200 rows with an outcome, the control has {n_few[0]} and the challenger has {n_few[1]}" in said
    )

    more = told(served, ask_many(served.url, users[60:]), random)
    told(served, ask_many(served.url, [{}] * 20), random)
    assert cli.main(["ab-result"]) == 0
    page = capsys.readouterr().out
    found = VERDICT.match(page)
    assert found, page
    effect = np.mean(few[small] + more[small]) - np.mean(few[first] + more[first])
    assert float(found[3]) == pytest.approx(effect, rel=1e-3)
    assert found[7] == ", if no x-user-id has many of the rows"
    assert "rows are taken as independent: the log does not have what the choice is sticky by" in page
    assert f"challenger  {len(few[small] + more[small]):>10,}" in page
    # Of the twenty without the header nobody chose who answers: they are the champion's, and no control.
    assert f"control     {560 - len(few[small] + more[small]):>10,}" in page


# --- the canary that goes by itself


def canary(tag: str, *more: str) -> list[str]:
    """The command; the p99 of a busy machine is no reason to go back here."""
    return ["canary", tag, "--max-p99", "10000", *more]


@contextmanager
def labelled_callers(served: Following) -> Iterator[None]:
    """Somebody asks for batches until it is over, and says that what the first version answers came true."""
    is_over = threading.Event()
    body = {"instances": [TUTORIAL_ROW] * 20}

    def ask(client: httpx.Client) -> None:
        right = int(scores_of(served.versions.load(served.versions.first), [TUTORIAL_ROW])[0].argmax())
        while not is_over.is_set():
            answers = client.post("/predict/batch", json=body).raise_for_status().json()["predictions"]
            labels = [{"prediction_id": one["prediction_id"], "label": right} for one in answers]
            client.post("/feedback", json={"labels": labels}).raise_for_status()

    with served.service.client() as client:
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        try:
            yield
        finally:
            is_over.set()
            asking.join()


def test_a_canary_whose_answers_do_not_come_true_goes_back_by_itself_although_it_is_fast_and_never_fails(
    served: Following, capsys: pytest.CaptureFixture[str]
) -> None:
    first, moody = served.versions.first, served.versions.moody
    begin(served, "canary", moody, "--share", "50")  # loaded while it is well
    served.mood.write_text("lies")

    with labelled_callers(served):
        code = cli.main(canary(moody, "--steps", "50,100", "--every", "2s", "--metrics", f"{served.url}/metrics"))

    assert code == 1
    said = capsys.readouterr().out
    assert re.search(
        r"canary at 50 %: 0\.00 % of [\d,]+ labels are as predicted, 100\.00 % of [\d,]+ where it is", said
    )
    state = read_rollout(served.file)
    assert state == RolloutState(champion=first)
    wait_for(lambda: served.metadata()["challenger"] is None)


@pytest.mark.needs_program("prometheus")
def test_a_real_prometheus_that_scrapes_the_service_sends_a_canary_back_and_lets_a_good_one_up(
    served: Following, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, small, moody = served.versions.first, served.versions.small, served.versions.moody
    begin(served, "canary", moody, "--share", "50")
    served.mood.write_text("raises")
    nobody = "127.0.0.1:9"  # who would be told of alerts
    address = served.url.removeprefix("http://")
    with prometheus(tmp_path, nobody, tabserve=address) as server, Callers(served.url, a_second=200).asking():
        by = ["--prometheus", server.url, "--every", "3s", "--no-labels"]
        assert cli.main(canary(moody, "--steps", "50,100", *by)) == 1
        assert re.search(
            r"canary at 50 %: 100\.00 % of \d+ requests failed, at most 1\.00 % may", capsys.readouterr().out
        )
        assert read_rollout(served.file) == RolloutState(champion=first)
        assert cli.main(canary(small, "--steps", "100", "--needs", "nothing", *by)) == 0
        assert capsys.readouterr().out.startswith("canary passed 100 %: 0.00 % errors, p99 ")
        wait_for(lambda: served.metadata()["champion"] == small)


def test_an_alert_takes_a_running_service_back_to_the_champion_before(served: Following) -> None:
    first, small, home = served.versions.first, served.versions.small, served.versions.home
    assert cli.main(["promote", small, "--why", "smaller"]) == 0
    wait_for(lambda: all(f"model {small} is" in said for said in served.in_service().values()))
    name, _, version = small.partition(":")
    alert = {
        "status": "firing",
        "labels": {"alertname": "TabserveAccuracyLow", "model": name, "model_version": version},
    }
    message = json.dumps({"version": "4", "groupKey": "{}", "alerts": [alert]}).encode()
    with Callers(served.url, a_second=100).asking() as callers:
        begun = time.monotonic()
        assert Guard(home, timedelta(hours=1)).take(message).startswith(f"gone back from {small} to {first}")
        wait_for(lambda: all(f"model {first} is" in said for said in served.in_service().values()))
        assert Guard(home, timedelta(hours=1)).take(message).startswith("it is about another version")
        time.sleep(0.2)  # the last ones asked

    late = [moment for moment, _, answer in callers.answers if answer["model_version"] == small]
    assert max(late, default=begun) - begun < ROLLBACK_SECONDS
    assert {status for _, status, _ in callers.answers} == {200}
    assert callers.answers[-1][2]["model_version"] == first
