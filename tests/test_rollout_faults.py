"""The rollout where something goes wrong: writers that die, people who interfere, alerts of something else."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from alert_programs import alertmanager, receiving
from conftest import BUILT_IN, TrainedModels, environment, home_in_use, wait_for

from tabserve import cli, deployments, model_store
from tabserve.audit import AUDIT_FILE
from tabserve.chained_log import BrokenChainError, ChainedLog
from tabserve.lifecycle import changes
from tabserve.lifecycle.canary_watch import Ended, Look, Plan, watch
from tabserve.lifecycle.guard import BadMessageError, Guard, server
from tabserve.rollout_state import BadRolloutError, Challenger, RolloutState

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Tags:
    """Versions of one model, under one contract."""

    first: str
    small: str
    moody: str


@pytest.fixture(scope="module")
def store(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tags]:
    """The built-in model three times: versions that differ in a line of their card, and so in name and sums."""
    store = tmp_path_factory.mktemp("store")
    tags = []
    for number in range(3):
        staged = store / "staged"
        shutil.copytree(models.directory(BUILT_IN), staged)
        with (staged / "MODEL_CARD.md").open("a") as card:
            card.write(f"\nnumber {number}\n")
        sums = json.loads((staged / model_store.MANIFEST_FILE).read_bytes())
        sums["MODEL_CARD.md"] = model_store._sha256(staged / "MODEL_CARD.md")
        of_the_artifact = {path: digest for path, digest in sums.items() if path != "model.yaml"}
        digits = model_store._artifact_digest(of_the_artifact)[: model_store.ARTIFACT_DIGITS]
        (staged / model_store.MANIFEST_FILE).write_text(model_store._manifest_text(sums))
        tags.append(f"{BUILT_IN}:1.0.{number}-{digits}")
        staged.rename(store / f"1.0.{number}-{digits}")
    return store, Tags(*tags)


@pytest.fixture
def tags(store: tuple[Path, Tags]) -> Tags:
    return store[1]


@pytest.fixture
def home(store: tuple[Path, Tags], tmp_path: Path) -> Iterator[Path]:
    """A home in which `first` was promoted."""
    shutil.copytree(store[0], tmp_path / "home" / "models" / BUILT_IN)
    tags = store[1]
    with home_in_use(tmp_path / "home") as found:
        changes.promote(found, tags.first, "the first one")
        yield found


@contextlib.contextmanager
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process dies here between history and file."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RolloutState, "save", dies)
        yield


# --- changes


@pytest.mark.parametrize(
    "command",
    [
        ("shadow", "{first}"),
        ("canary", "{first}", "--share", "5"),
        ("ab", "{first}", "--by", "header:x-user"),
        ("pause", "--why", "half \udcff"),
        ("pause", "--why", "two\nlines"),
        ("canary", "{small}", "--metrics", "file:///etc/hostname"),
    ],
)
def test_what_could_not_be_read_again_is_never_written(
    home: Path,
    tags: Tags,
    command: tuple[str, ...],
) -> None:
    try:
        code = cli.main([word.format(first=tags.first, small=tags.small) for word in command])
    except SystemExit as refused:  # of argparse
        code = int(str(refused.code))

    assert code == 2
    assert changes.current(home) == RolloutState(champion=tags.first)
    assert len(deployments.history(home)) == 1


def test_what_cannot_be_audited_is_not_done(home: Path, tags: Tags) -> None:
    (home / AUDIT_FILE).write_text("no line of ours\n")

    with pytest.raises(BrokenChainError, match="audit"):
        changes.promote(home, tags.small, "smaller")
    assert changes.current(home).champion == tags.first
    assert len(deployments.history(home)) == 1


def test_where_the_audit_log_finds_no_room_nothing_is_done_and_a_sentence_says_so(home: Path, tags: Tags) -> None:
    audit = ChainedLog(home / AUDIT_FILE)
    while audit.size() < 16 * 1024:
        audit.append("promote", why="x" * 1000)
    words = [sys.executable, "-m", "tabserve", "promote", tags.small, "--why", "smaller"]

    # No file may grow beyond 16 KiB: a disk that is full for the audit log alone.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 16; exec "$@"', "-", *words],
        env=environment(home, PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stderr == f"failed: nothing was changed: {home} cannot be written (File too large)\n"
    assert done.returncode == 3
    assert changes.current(home) == RolloutState(champion=tags.first)
    assert len(deployments.history(home)) == 1
    assert audit.lines()[-1]["why"] == "x" * 1000


def test_a_rollback_that_died_before_it_was_written_did_not_happen(
    home: Path,
    tags: Tags,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes.promote(home, tags.small, "smaller")
    with dying(monkeypatch), pytest.raises(KeyboardInterrupt):
        changes.rollback(home, "slow", key="a key")

    assert [change.action for change in deployments.history(home)] == ["promote", "promote", "rollback"]
    assert [change.action for change in deployments.happened(home)] == ["promote", "promote"]
    assert changes.rollback(home, "slow", key="a key").champion == tags.first
    with pytest.raises(BadRolloutError):
        changes.rollback(home, "slow", key="a key")


# --- the canary's watch


def busy(n_requests: int) -> Look:
    return Look(
        {("r", "tabserve_variant_requests_total", side, "200"): float(n_requests) for side in ("stable", "challenger")}
    )


def growing() -> Iterator[Look]:
    n_requests = 0
    while True:
        n_requests += 1000
        yield busy(n_requests)


def test_a_watch_that_is_started_again_goes_on_at_the_share_where_the_canary_is(
    home: Path,
    tags: Tags,
) -> None:
    changes.challenge(home, Challenger(model=tags.small, mode="canary", share=50), "by hand")
    looks = growing()

    ended = watch(home, Plan(tags.small, [5, 50, 100], 0.001), lambda: next(looks), threading.Event())

    assert isinstance(ended, Ended)
    assert ended.is_promoted
    states = [change.after.challenger for change in deployments.history(home)[1:]]
    assert [state.share if state else None for state in states] == [50, 100, None]
    assert "canary passed 50, 100 %" in ended.why


def test_requests_of_a_quiet_service_are_counted_on_until_they_are_enough(home: Path, tags: Tags) -> None:
    n_requests = iter(range(0, 10_000, 90))  # of 200 that are needed

    ended = watch(home, Plan(tags.small, [100], 0.001), lambda: busy(next(n_requests)), threading.Event())

    assert isinstance(ended, Ended)
    assert ended.is_promoted


def test_a_watch_of_what_is_champion_already_has_nothing_to_do(home: Path, tags: Tags) -> None:
    ended = watch(home, Plan(tags.first, [5, 100], 60), lambda: busy(0), threading.Event())

    assert ended == Ended(is_promoted=True, why=f"{tags.first} is champion already")
    assert len(deployments.history(home)) == 1


@pytest.mark.parametrize("is_bad", [False, True], ids=["it would go on", "it would go back"])
@pytest.mark.parametrize("does", ["stops it", "puts a shadow there"])
def test_who_changes_the_rollout_during_the_last_look_is_not_overruled(
    home: Path,
    tags: Tags,
    monkeypatch: pytest.MonkeyPatch,
    does: str,
    is_bad: bool,
) -> None:
    looks = growing()
    shadow = Challenger(model=tags.moody, mode="shadow", share=100)

    def interfere(*_: object) -> bool:
        """Somebody comes right after the watch has made sure that it is alone."""
        changes.stop(home, "by hand")
        if does != "stops it":
            changes.challenge(home, shadow, "by hand")
        return False

    def look() -> Look:
        found = next(looks)
        errors = {("r", "tabserve_variant_requests_total", "challenger", "500"): sum(found.counts.values())}
        return Look({**found.counts, **errors}) if is_bad else found

    monkeypatch.setattr("tabserve.lifecycle.canary_watch._is_elsewhere", interfere)

    assert watch(home, Plan(tags.small, [100], 0.001), look, threading.Event()) is None
    assert changes.current(home).champion == tags.first
    assert changes.current(home).challenger == (None if does == "stops it" else shadow)


# --- the guard


def message(alertname: str = "TabserveErrorsHigh", *, since: datetime | None = None, **labels: str) -> bytes:
    starts = (since or datetime.now(UTC)).isoformat()
    alert = {"status": "firing", "labels": {"alertname": alertname, **labels}, "startsAt": starts}
    return json.dumps({"version": "4", "groupKey": "g", "alerts": [alert]}).encode()


def test_a_rollback_in_which_the_guard_died_is_done_when_alertmanager_asks_again(
    home: Path,
    tags: Tags,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes.promote(home, tags.small, "smaller")
    with dying(monkeypatch), pytest.raises(KeyboardInterrupt):
        Guard(home, DAY).take(message())

    assert Guard(home, DAY).take(message()).startswith(f"gone back from {tags.small} to {tags.first}")
    assert changes.current(home).champion == tags.first


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ({"since": datetime.now(UTC) - timedelta(hours=1)}, "it rang before"),
        ({"severity": "warning"}, "nothing in it is a reason"),
        ({"alertname": "TabserveLatencyHigh"}, "nothing in it is a reason"),
        ({"model": "another", "model_version": "1.0.0-abcdef"}, "it is about another version"),
    ],
)
def test_what_a_new_version_is_not_the_cause_of_is_no_reason_to_go_back_from_it(
    home: Path,
    tags: Tags,
    told: dict,
    answer: str,
) -> None:
    changes.promote(home, tags.small, "smaller")

    assert answer in Guard(home, DAY).take(message(**told))
    assert changes.current(home).champion == tags.small


def test_the_guard_never_goes_back_a_second_step(home: Path, tags: Tags) -> None:
    changes.promote(home, tags.small, "smaller")
    changes.promote(home, tags.moody, "moody")
    Guard(home, DAY).take(message(job="one"))

    said = Guard(home, DAY).take(message(job="two").replace(b'"g"', b'"another group"'))

    assert "a matter for people" in said
    assert changes.current(home).champion == tags.small


def test_a_home_in_which_nothing_was_promoted_has_nothing_to_go_back_from(tmp_path: Path) -> None:
    assert Guard(tmp_path, DAY).take(message()) == "no version was promoted yet"


@pytest.mark.parametrize("starts", ["yesterday", 3, None])
def test_an_alert_without_a_time_is_no_message_of_alertmanagers(home: Path, starts: object) -> None:
    told = json.loads(message())
    told["alerts"][0]["startsAt"] = starts

    with pytest.raises(BadMessageError):
        Guard(home, DAY).take(json.dumps(told).encode())


@pytest.mark.needs_program("prometheus-alertmanager")
def test_a_real_alertmanager_has_the_guard_go_back_once_and_tells_people_all_the_same(
    home: Path,
    tags: Tags,
    tmp_path: Path,
) -> None:
    changes.promote(home, tags.small, "smaller")
    listening = server(Guard(home, DAY), "127.0.0.1", 0)
    threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_address[1]}/"
    labels = {"alertname": "TabserveErrorsHigh", "severity": "critical", "job": "tabserve", "component": "service"}
    annotations = {"summary": "errors", "description": "many", "runbook_url": "docs/operations.md"}
    alert = {"labels": labels, "annotations": annotations, "startsAt": datetime.now(UTC).isoformat()}

    with receiving() as rung, alertmanager(tmp_path, rung, guard=url) as address:
        httpx.post(f"http://{address}/api/v2/alerts", json=[alert]).raise_for_status()
        wait_for(lambda: changes.current(home).champion == tags.first and rung.pager, 60)
    listening.shutdown()
    listening.server_close()

    assert [change.action for change in deployments.history(home)] == ["promote", "promote", "rollback"]
    assert deployments.history(home)[-1].why == f"alert TabserveErrorsHigh of {tags.small}"
