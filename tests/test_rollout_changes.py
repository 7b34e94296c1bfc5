"""Changes of the rollout: what is checked, what is written, what the history knows, by one at a time."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from conftest import ROOT, environment, home_in_use, wait_for
from contracts import contracts
from hypothesis import given
from hypothesis import strategies as st
from rollouts import Versions

from tabserve import cli, deployments, model_store
from tabserve.audit import AUDIT_FILE
from tabserve.chained_log import BrokenChainError, ChainedLog
from tabserve.contract import Contract, Feature
from tabserve.lifecycle import changes
from tabserve.lifecycle.compatibility import breaking_changes
from tabserve.lifecycle.shadowing import offer_as_shadow
from tabserve.model_store import ModelRefusedError
from tabserve.rollout import Rollout
from tabserve.rollout_follower import Follower
from tabserve.rollout_state import ROLLOUT_FILE, BadRolloutError, Challenger, RolloutState, read_rollout
from tabserve.settings import Settings


@pytest.fixture
def home(versions: Versions, tmp_path: Path) -> Iterator[Path]:
    """A home with the versions in its store, of which none was promoted."""
    shutil.copytree(versions.home / "models", tmp_path / "home" / "models", symlinks=True)
    with home_in_use(tmp_path / "home") as found:
        yield found


def said(home: Path) -> RolloutState:
    state = read_rollout(home / ROLLOUT_FILE)
    assert state is not None
    return state


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(list(arguments))
    return code, capsys.readouterr().out


# --- promote, roll back


def test_a_promotion_is_written_and_the_history_and_the_audit_log_say_who_and_why(
    home: Path,
    versions: Versions,
) -> None:
    changes.promote(home, versions.first, "the first one")
    changes.promote(home, versions.small, "a smaller one")

    assert said(home) == RolloutState(champion=versions.small)
    first, second = deployments.history(home)
    assert first.before is None
    assert (second.action, second.before, second.after) == ("promote", first.after, said(home))
    assert (second.why, "@" in second.who) == ("a smaller one", True)
    assert [line["action"] for line in ChainedLog(home / AUDIT_FILE).lines()] == ["promote", "promote"]


def test_a_rollback_goes_to_the_champion_before_and_once_more_to_the_one_before_that(
    home: Path,
    versions: Versions,
) -> None:
    for tag in (versions.first, versions.small, versions.moody):
        changes.promote(home, tag, "one after the other")

    assert [changes.rollback(home, "back").champion for _ in range(2)] == [versions.small, versions.first]
    with pytest.raises(BadRolloutError, match=f"no champion before {versions.first}: promote the version"):
        changes.rollback(home, "back")
    changes.promote(home, versions.moody, "again")
    assert changes.rollback(home, "back").champion == versions.first, "what was gone back from is not gone back to"


def test_a_version_that_cannot_be_loaded_is_neither_promoted_nor_gone_back_to(
    home: Path,
    versions: Versions,
) -> None:
    changes.promote(home, versions.first, "the first one")
    changes.promote(home, versions.small, "a smaller one")
    (home / "models" / versions.first.replace(":", "/") / "contract.json").write_text("{}")

    for change in (
        lambda: changes.rollback(home, "back"),
        lambda: changes.promote(home, versions.first, "again"),
        lambda: changes.promote(home, "breast_cancer:9.9.9-abcdef", "unknown"),
    ):
        with pytest.raises(ModelRefusedError):
            change()
    assert said(home).champion == versions.small
    assert len(deployments.history(home)) == 2


@pytest.mark.parametrize(
    ("tag", "why", "sentence"),
    [
        ("breast_cancer", "a name", "expected name:version, got 'breast_cancer'"),
        ("{first}", "again", "{first} is champion already"),
        ("{small}", " ", "--why says nothing"),
        ("{other}", "another table", "the contract of {other} breaks callers of {first}: "),
    ],
)
def test_what_cannot_be_promoted_is_refused_with_a_sentence_and_all_stays(
    home: Path,
    versions: Versions,
    tag: str,
    why: str,
    sentence: str,
) -> None:
    names = {"first": versions.first, "small": versions.small, "other": versions.other}
    changes.promote(home, versions.first, "the first one")

    with pytest.raises(BadRolloutError) as refused:
        changes.promote(home, tag.format(**names), why)

    assert sentence.format(**names) in str(refused.value)
    assert said(home) == RolloutState(champion=versions.first)
    assert len(deployments.history(home)) == 1


def test_of_a_contract_that_has_little_to_do_with_the_other_one_some_faults_are_named(
    home: Path, versions: Versions
) -> None:
    changes.promote(home, versions.first, "the first one")
    with pytest.raises(BadRolloutError, match=r"a row that is a list has 5 values.*; and 25 more\. Tell them"):
        changes.promote(home, versions.other, "another table")


@pytest.mark.parametrize("is_there", [False, True], ids=["gone", "damaged"])
def test_a_champion_that_was_lost_keeps_nobody_from_another_one(home: Path, versions: Versions, is_there: bool) -> None:
    changes.promote(home, versions.first, "the first one")
    folder = home / "models" / versions.first.replace(":", "/")
    if is_there:
        (folder / "contract.json").write_text("{}")
    else:
        shutil.rmtree(folder)

    with pytest.raises(BadRolloutError, match="breaks callers of .* cannot be said: .*--allow-contract-change"):
        changes.promote(home, versions.small, "what else")
    assert changes.promote(home, versions.small, "what else", allow_contract_change=True).champion == versions.small


def test_another_contract_may_be_promoted_where_somebody_says_so(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    changes.promote(home, versions.other, "callers know", allow_contract_change=True)

    assert said(home).champion == versions.other
    assert changes.rollback(home, "they did not").champion == versions.first


# --- challengers


def test_a_challenger_comes_rises_and_ends_and_a_promotion_ends_it_too(
    home: Path,
    versions: Versions,
) -> None:
    changes.promote(home, versions.first, "the first one")
    for share in (5, 25):
        canary = Challenger(model=versions.small, mode="canary", share=share, by="worst texture")
        assert changes.challenge(home, canary, "rising").challenger == canary
    assert changes.stop(home, "enough").challenger is None
    with pytest.raises(BadRolloutError, match="no challenger to stop"):
        changes.stop(home, "again")
    changes.challenge(home, Challenger(model=versions.small, mode="shadow", share=100), "beside")
    assert changes.promote(home, versions.small, "good") == RolloutState(champion=versions.small)


@pytest.mark.parametrize(
    ("challenger", "sentence"),
    [
        ({"model": "{other}", "mode": "shadow"}, "was trained for another contract than {first}"),
        (
            {"model": "{small}", "mode": "canary", "by": "nope"},
            "--by is 'nope', expected header:NAME or a feature: mean",
        ),
        ({"model": "{first}", "mode": "canary"}, "challenger and champion are the same version"),
    ],
)
def test_a_challenger_that_cannot_be_asked_the_same_rows_is_refused(
    home: Path,
    versions: Versions,
    challenger: dict[str, str],
    sentence: str,
) -> None:
    names = {"first": versions.first, "small": versions.small, "other": versions.other}
    said_of_it = {key: value.format(**names) for key, value in challenger.items()}
    changes.promote(home, versions.first, "the first one")

    with pytest.raises((BadRolloutError, ValueError)) as refused:
        changes.challenge(home, Challenger(**said_of_it, share=5), "try")

    assert sentence.format(**names) in str(refused.value)
    assert said(home) == RolloutState(champion=versions.first)


def test_one_challenger_does_not_push_another_one_out(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    changes.challenge(home, Challenger(model=versions.small, mode="shadow", share=100), "beside")

    with pytest.raises(BadRolloutError, match="is challenger already"):
        changes.challenge(home, Challenger(model=versions.moody, mode="canary", share=5), "too")


def test_the_history_knows_from_when_to_when_a_challenger_stood_just_so(home: Path, versions: Versions) -> None:
    def stood(share: float) -> tuple[datetime, datetime | None] | None:
        test = Challenger(model=versions.small, mode="ab", share=share, by="header:x-user")
        return deployments.stood(deployments.happened(home), versions.first, test)

    changes.promote(home, versions.first, "the first one")
    assert stood(50) is None
    for share in (50, 40, 50):
        changes.challenge(home, Challenger(model=versions.small, mode="ab", share=share, by="header:x-user"), "a test")
    changes.pause(home, "a moment")  # which does not end it
    changes.resume(home, "over")
    moments = [datetime.fromisoformat(change.time) for change in deployments.history(home)]

    assert stood(40) == (moments[2], moments[3])
    assert stood(50) == (moments[3], None)
    changes.promote(home, versions.moody, "another one")
    assert stood(50) == (moments[3], datetime.fromisoformat(deployments.history(home)[-1].time))


def test_without_a_champion_nothing_is_put_beside_it_or_paused(home: Path, versions: Versions) -> None:
    for change in (
        lambda: changes.challenge(home, Challenger(model=versions.small, mode="shadow", share=100), "beside"),
        lambda: changes.pause(home, "wrong"),
    ):
        with pytest.raises(BadRolloutError, match="`tabserve promote TAG --why TEXT` makes one"):
            change()
    assert not (home / ROLLOUT_FILE).exists()


def test_a_pause_lasts_over_a_promotion_until_it_is_resumed(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    changes.pause(home, "the labels were wrong")
    changes.promote(home, versions.small, "trained again")

    assert said(home).paused == "the labels were wrong"
    assert changes.resume(home, "right again") == RolloutState(champion=versions.small)
    with pytest.raises(BadRolloutError, match="nothing is paused"):
        changes.resume(home, "again")


def test_a_new_version_becomes_a_shadow_only_where_that_changes_nobodys_plans(home: Path, versions: Versions) -> None:
    first, small, moody = versions.first, versions.small, versions.moody

    assert offer_as_shadow(home, small, first, "trained again") == f"{small} is the shadow of {first}"
    shadow = Challenger(model=small, mode="shadow", share=100)
    assert said(home) == RolloutState(champion=first, challenger=shadow), "and not the newest, which nobody promoted"
    assert offer_as_shadow(home, moody, first, "again") == f"{small} is the challenger already (shadow), it stays that"
    assert said(home).challenger == shadow

    changes.promote(home, moody, "another one")
    changes.pause(home, "for a reason")
    assert offer_as_shadow(home, small, first, "again").startswith(f"the champion is {moody} and not {first}")
    assert said(home).challenger is None
    assert offer_as_shadow(home, first, moody, "again") == f"{first} is the shadow of {moody}"
    assert said(home).paused == "for a reason"


# --- several writers, and who dies


def test_of_changes_by_many_processes_at_once_none_is_lost(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    code = f"""
from tabserve.lifecycle import changes
from tabserve import model_store
for number in range(3):
    for tag in ("{versions.small}", "{versions.first}"):
        try:
            changes.promote(model_store.home(), tag, f"{{number}}")
        except changes.BadRolloutError as error:
            assert "champion already" in str(error), error
"""
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(home)) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]

    done = deployments.history(home)
    assert len(done) >= 7
    assert [change.before for change in done[1:]] == [change.after for change in done[:-1]], "each saw the one before"
    assert done[-1].after == said(home)


def test_a_change_that_did_not_come_true_because_its_process_died_is_said_by_the_next_one(
    home: Path,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes.promote(home, versions.first, "the first one")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(RolloutState, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            changes.promote(home, versions.small, "never came true")

    (home / f".{ROLLOUT_FILE}-half").write_text("champ")  # what it leaves when it dies while it writes
    changes.promote(home, versions.moody, "the next one")

    assert not list(home.glob(f".{ROLLOUT_FILE}-*"))
    assert [change.action for change in deployments.history(home)] == ["promote", "promote", "found", "promote"]
    assert changes.rollback(home, "back").champion == versions.first, "and not the one that never answered"


def test_what_somebody_wrote_by_hand_is_noticed_by_the_next_change(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    RolloutState(champion=versions.small).save(home / ROLLOUT_FILE)

    changes.promote(home, versions.moody, "the next one")

    found = deployments.history(home)[1]
    assert (found.action, found.after.champion) == ("found", versions.small)
    assert changes.rollback(home, "back").champion == versions.small


def test_a_file_that_is_gone_is_no_reason_to_forget_its_champion(
    home: Path, versions: Versions, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    changes.promote(home, versions.moody, "the first one")
    changes.promote(home, versions.first, "better")
    (home / ROLLOUT_FILE).unlink()

    for arguments in (("rollback",), ("pause", "--why", "wrong answers"), ("stop",)):
        assert command(capsys, *arguments) == (2, "")
    assert f"is gone, in which {versions.first} was champion: `tabserve promote {versions.first} --why" in caplog.text
    assert command(capsys, "models")[1].count("last champion") == 1

    changes.promote(home, versions.small, "the next one")
    assert [change.action for change in deployments.history(home)] == ["promote", "promote", "found", "promote"]
    assert f"{versions.first} -> nothing" in command(capsys, "history")[1]
    assert changes.rollback(home, "back").champion == versions.first

    (home / ROLLOUT_FILE).unlink()
    changes.promote(home, versions.first, "as it was")
    assert changes.rollback(home, "back").champion == versions.moody, "and not the champion itself"


def test_a_file_that_cannot_be_used_is_not_written_over(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    (home / ROLLOUT_FILE).write_text(f"champion: {versions.first}\nchallanger: typo\n")

    with pytest.raises(BadRolloutError, match="challanger is no key of it.*mend it by hand, or move it away"):
        changes.promote(home, versions.small, "over it")
    assert "challanger" in (home / ROLLOUT_FILE).read_text()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "the file has no keys"),
        (
            "champion: a:1\nchallenger: {model: b:1, mode: canary, share: 101}",
            "share: expected less than or equal to 100, got 101",
        ),
        (
            "champion: a:1\nchallenger: {model: b:1, mode: cannary, share: 5}",
            "mode: expected 'shadow', 'canary' or 'ab'",
        ),
        ("champion: a:1\nchallenger: {model: b:1, mode: ab, share: 5}", "an A/B test needs `by`"),
        (
            "champion: a:1\nchallenger: {model: b:1, mode: canary, share: true}",
            "share: expected a valid number, got True",
        ),
        ("champion: a:1\nchallenger: {model: b:1, mode: canary, share: '5'}", "share: expected a valid number"),
        (f"champion: a:1\nchallenger: {{model: b:1, mode: canary, share: 1{'0' * 400}}}", "got 10000000000000000000;"),
        (f"champion: 1{'0' * 5000}", "is no YAML"),
        ("champion: 2026-13-01", "is no YAML"),
        ("[" * 1000, "is no YAML"),
    ],
)
def test_a_rollout_file_that_cannot_be_used_says_what_was_expected_and_came(content: str, sentence: str) -> None:
    with pytest.raises(BadRolloutError) as refused:
        RolloutState.parse(content)
    assert sentence in str(refused.value)


def test_a_history_that_was_tampered_with_stops_the_next_change_and_says_what_to_do(
    home: Path, versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    changes.promote(home, versions.first, "the first one")
    path = home / deployments.HISTORY_FILE
    path.write_text(path.read_text().replace("the first one", "the best one"))

    with pytest.raises(BrokenChainError, match="line 1 of .* is not as written"):
        changes.promote(home, versions.small, "after it")
    assert cli.main(["pause", "--why", "to look at it"]) == 3
    assert caplog.messages[-1].endswith("move the file away, and keep it")
    assert said(home).champion == versions.first


# --- what a service makes of it


def test_after_a_start_the_champion_before_is_loaded_too_and_gone_back_to_even_where_the_store_has_lost_it(
    home: Path, versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    class Nobody:
        def in_service(self, models: set[tuple[str, str]], *, is_paused: bool) -> None: ...

        def refused(self, *, is_refused: bool, is_news: bool) -> None: ...

    caplog.set_level("INFO")
    for tag in (versions.first, versions.moody, versions.small):
        changes.promote(home, tag, "one after the other")
    changes.rollback(home, "slower")  # from here one would go back to the first
    rollout = Rollout()
    follower = Follower(
        rollout, home / ROLLOUT_FILE, settings=Settings(), observer=Nobody(), shadow_of=lambda *_: pytest.fail("none")
    )
    try:
        follower.begin(versions.small)
        wait_for(lambda: f"model {versions.first} is loaded too, for a rollback" in caplog.messages)
        assert rollout.champion().tag == versions.moody

        shutil.rmtree(home / "models" / versions.first.replace(":", "/"))
        RolloutState(champion=versions.first).save(home / ROLLOUT_FILE)
        wait_for(lambda: rollout.champion().tag == versions.first)
    finally:
        follower.close()


# --- the command line


def test_the_command_line_tells_the_story(
    home: Path,
    versions: Versions,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(capsys, "promote", versions.first, "--why", "the first one") == (0, f"{versions.first}\n")
    assert command(capsys, "promote", versions.small, "--why", "smaller")[0] == 0
    assert command(capsys, "canary", versions.moody, "--share", "5")[0] == 0
    shown = command(capsys, "models")[1].splitlines()
    uses = {line.split()[0]: line.rpartition("  ")[2] for line in shown if line}
    assert uses[versions.small] == "champion"
    assert uses[versions.moody] == "canary 5 %"
    assert uses[versions.first] == "champion before"
    assert command(capsys, "stop")[0] == 0
    assert command(capsys, "rollback", "--why", "slower") == (0, f"{versions.first}\n")
    told = command(capsys, "history")[1]
    assert f"{versions.small}, canary {versions.moody} 5 % -> {versions.small}" in told
    assert told.rstrip().endswith("slower")


def test_the_table_of_versions_is_as_wide_as_a_terminal_and_leaves_nothing_out(
    home: Path, versions: Versions, capsys: pytest.CaptureFixture[str]
) -> None:
    changes.promote(home, versions.first, "the first one")
    by = "header:x-the-user-of-the-shop-in-the-north"
    changes.challenge(home, Challenger(model=versions.small, mode="ab", share=50, by=by), "a test")
    (home / "models" / versions.moody.replace(":", "/") / "metadata.json").write_text("{")

    shown = command(capsys, "models")[1]

    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    metadata = model_store.read_metadata(model_store.find(versions.small))
    of_small = next(number for number, line in enumerate(lines) if line.startswith(versions.small))
    assert lines[of_small].split()[-3:] == [
        f"{metadata['test_metrics']['accuracy']:.4f}",
        f"{metadata['test_metrics']['roc_auc']:.4f}",
        model_store.find(versions.small).contract_hash[:12],
    ]
    assert lines[of_small + 1] == f"    ab 50 % by {by}"
    headers = [line.split() for line in lines if line.startswith("version")]
    assert ["version", "trained", "accuracy", "roc_auc", "contract", "used", "as"] in headers
    assert ["version", "trained", "accuracy", "f1_macro", "contract", "used", "as"] in headers
    assert next(line for line in lines if line.startswith(versions.moody)).endswith("  damaged")

    shutil.rmtree(home / "models" / versions.first.replace(":", "/"))
    assert command(capsys, "models")[1].endswith(f"\n{versions.first} is not in the store: champion\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("canary", "a:b"),
        ("canary", "a:b", "--share", "5", "--needs", "better"),
        ("canary", "a:b", "--share", "5", "--key-file", "key"),
        ("canary", "a:b", "--share", "5", "--data", "rows.csv"),
        ("canary", "a:b", "--metrics", "http://127.0.0.1:1/metrics", "--key-file", "no such file"),
        ("canary", "a:b", "--share", "0"),
        ("canary", "a:b", "--share", "101"),
        ("canary", "a:b", "--share", "nan"),
        ("canary", "a:b", "--share", "5", "--metrics", "http://127.0.0.1:1/metrics"),
        ("shadow", "no tag"),
        ("rollback",),
        ("pause", "--why", "there is no champion"),
        ("promote", "{first}", "--why", "the proof is not asked for", "--data", "held_back.csv"),
    ],
)
def test_a_command_that_makes_no_sense_is_bad_input_and_changes_nothing(
    home: Path, versions: Versions, arguments: tuple[str, ...]
) -> None:
    assert cli.main([word.format(first=versions.first) for word in arguments]) == 2
    assert not (home / ROLLOUT_FILE).exists()


# --- contracts


def contract(**changed: object) -> Contract:
    """Two features, an optional category and two classes, with some of the first feature changed."""
    first = {"name": "age", "kind": "number", "hard_minimum": 0.0, "hard_maximum": 120.0, **changed}
    city = Feature(name="city", kind="category", categories=("Bergen", "Oslo"), may_be_missing=True)
    return Contract(features=(Feature(**first), city), task="binary", target="plan", classes=("no", "yes"))


def otherwise(**changed: object) -> Contract:
    """The contract above with something else changed."""
    return Contract.model_validate({**contract().model_dump(), **changed})


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (contract(kind="integer"), "age is a integer, and was a number"),
        (contract(hard_maximum=100.0), "age may be 0 to 100, and might be 0 to 120"),
        (contract(name="years"), "age is no feature any more"),
        (otherwise(features=contract().features[::-1]), "in another order"),
        (otherwise(features=contract().features[:1]), "a list has 1 values, and had 2"),
        (otherwise(classes=("no", "perhaps")), "its classes are no, perhaps, and were no, yes"),
        (otherwise(target="spend"), "it predicts spend, and not plan"),
        (otherwise(task="regression", classes=()), "it answers a regression"),
    ],
)
def test_what_breaks_callers_is_said(new: Contract, sentence: str) -> None:
    assert sentence in "; ".join(breaking_changes(contract(), new))


def test_fewer_categories_and_what_may_not_be_missing_any_more_break_callers() -> None:
    age, city = contract().features
    narrower = city.model_copy(update={"categories": ("Oslo",), "may_be_missing": False})

    assert breaking_changes(contract(), otherwise(features=(age, narrower))) == [
        "city may not be missing any more",
        "city may not be Bergen any more",
    ]


def test_what_takes_more_than_before_breaks_nobody() -> None:
    age, city = contract().features
    wider = (
        age.model_copy(update={"hard_maximum": None, "may_be_missing": True, "minimum": 3.0}),
        city.model_copy(update={"categories": ("Bergen", "Oslo", "Tromsø")}),
    )

    assert breaking_changes(contract(), otherwise(features=wider)) == []
    assert breaking_changes(contract(kind="integer"), contract()) == []


@given(contracts(), st.data())
def test_no_contract_breaks_its_own_callers(one: Contract, data: st.DataObject) -> None:
    other = data.draw(st.sampled_from([one, Contract.model_validate_json(one.model_dump_json())]))
    assert breaking_changes(one, other) == []
