"""The audit log: what is recorded, and that tampering shows."""

import multiprocessing
from pathlib import Path

import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, TrainedModels, wait_for

from tabserve import cli
from tabserve.audit import AUDIT_FILE, OTHERS, NoAuditError, Refusals, check_audit_log
from tabserve.chained_log import FIRST, BrokenChainError, ChainedLog, user
from tabserve.settings import Settings


class Counted:
    """An observer that counts."""

    def __init__(self) -> None:
        self.recorded = 0
        self.dropped = 0

    def refusals_recorded(self, n_refusals: int) -> None:
        self.recorded += n_refusals

    def refusals_dropped(self, n_refusals: int) -> None:
        self.dropped += n_refusals


@pytest.fixture
def log(tmp_path: Path) -> ChainedLog:
    """Five lines, of which no two are alike."""
    log = ChainedLog(tmp_path / "audit.jsonl")
    for number in range(5):
        log.append("promote", who="öl@here", number=number, why="zwölf\u2028\n", half="\ud800", share=0.1)
    return log


# --- the chain


def test_lines_come_back_as_they_were_appended_each_with_the_hash_of_the_one_before(log: ChainedLog) -> None:
    lines = log.lines()

    assert [line["number"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["previous"] for line in lines] == [FIRST, *(line["hash"] for line in lines[:-1])]
    assert lines[0]["half"] == "\ud800"


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"action": "promote"', b'"action": "rollback"'),
        (b'"time": "2', b'"time": "1'),
        (b'"who": "', b'"who": "x'),
        (b'"who": ', b'"who": "x", "who": '),  # JSON's last word counts: read again it says the same
        (b'"number": ', b'"number":  '),
        (b'"previous": "', b'"previous": "f'),
        (b"}\n", b"}\r\n"),
        (b"{", b"[" * 100_000),
    ],
)
def test_a_line_that_was_changed_is_named(log: ChainedLog, number: int, before: bytes, after: bytes) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    assert before in lines[number]
    lines[number] = lines[number].replace(before, after, 1)
    log.path.write_bytes(b"".join(lines))

    with pytest.raises(BrokenChainError, match=f"^line {number + 1} of "):
        log.lines()


@pytest.mark.parametrize(
    ("order", "named"),
    [([1, 2, 3, 4], 1), ([0, 1, 3, 4], 3), ([0, 2, 1, 3, 4], 2), ([0, 1, 2, 4, 3], 4), ([0, 1, 1, 2, 3, 4], 3)],
    ids=["first removed", "one removed", "swapped", "last two swapped", "repeated"],
)
def test_lines_that_are_gone_or_elsewhere_are_noticed(log: ChainedLog, order: list[int], named: int) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[position] for position in order))

    with pytest.raises(BrokenChainError, match=f"^line {named} of "):
        log.lines()


def test_a_line_that_was_changed_with_a_hash_of_its_own_breaks_the_next_one(log: ChainedLog, tmp_path: Path) -> None:
    forged = ChainedLog(tmp_path / "forged.jsonl")
    forged.append("promote", who="öl@here", number=99)
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(forged.path.read_bytes() + b"".join(lines[1:]))

    with pytest.raises(BrokenChainError, match=r"^line 2 of "):
        log.lines()


def test_a_last_line_that_was_never_finished_is_none_and_the_next_one_takes_its_place(log: ChainedLog) -> None:
    whole = log.path.read_bytes()
    for piece in (b"{", b'{"time": "2026', whole.splitlines()[-1], b"\xff" * 60_000):
        log.path.write_bytes(whole + piece)
        assert len(log.lines()) == 5

    log.append("rollback", who="me")

    assert [line["action"] for line in log.lines()] == ["promote"] * 5 + ["rollback"]


def test_nothing_is_appended_after_a_last_line_that_is_none_of_ours(log: ChainedLog) -> None:
    log.path.write_bytes(log.path.read_bytes() + b'{"by": "hand"}\n')

    with pytest.raises(BrokenChainError, match="the last line of "):
        log.append("rollback")


def test_a_line_that_could_not_be_read_again_is_not_written(log: ChainedLog) -> None:
    with pytest.raises(ValueError, match="expected at most 65536"):
        log.append("promote", why="x" * 65_536)

    assert len(log.lines()) == 5


def _append_many(path: Path, who: str) -> None:
    for number in range(100_000 if who == "killed" else 200):
        ChainedLog(path).append("promote", who=who, number=number)


def test_processes_append_to_one_chain_also_when_one_is_killed_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    processes = {
        who: context.Process(target=_append_many, args=(path, who)) for who in ("one", "two", "three", "killed")
    }
    for process in processes.values():
        process.start()
    wait_for(lambda: path.exists() and path.read_bytes().count(b'"killed"') > 10)
    processes["killed"].kill()
    for process in processes.values():
        process.join(60)

    lines = ChainedLog(path).lines()
    numbers = {who: [line["number"] for line in lines if line["who"] == who] for who in processes}
    assert numbers == {who: list(range(len(numbers["killed"]) if who == "killed" else 200)) for who in processes}
    assert len(numbers["killed"]) > 10


# --- refusals


def test_repeated_refusals_are_counted_in_one_line_and_the_rest_when_the_time_is_over(tmp_path: Path) -> None:
    log, counted = ChainedLog(tmp_path / "audit.jsonl"), Counted()
    refusals = Refusals(log, counted, quiet_seconds=2.0)
    refusals.start()
    refusals.refused("10.0.0.1", "/predict", "not known")
    wait_for(lambda: counted.recorded)
    for _ in range(1000):
        refusals.refused("10.0.0.1", "/predict", "not known")
    refusals.refused("10.0.0.2", "/predict", "not known")
    wait_for(lambda: counted.recorded == 2)  # another one is told at once
    assert [(line["who"], line["count"]) for line in log.lines()] == [("10.0.0.1", 1), ("10.0.0.2", 1)]

    wait_for(lambda: counted.recorded == 1002)
    refusals.close()

    *_, last = log.lines()
    assert (last["action"], last["who"], last["route"], last["reason"], last["count"]) == (
        "refused",
        "10.0.0.1",
        "/predict",
        "not known",
        1000,
    )
    assert counted.dropped == 0


def test_an_attack_from_ever_new_addresses_is_a_few_lines_that_count_all_of_it(tmp_path: Path) -> None:
    log, counted = ChainedLog(tmp_path / "audit.jsonl"), Counted()
    refusals = Refusals(log, counted, most_named=10)
    refusals.start()
    for start in range(0, 30_000, 10_000):
        for number in range(start, start + 10_000):
            refusals.refused(f"address {number}", "/predict", "not known")
        wait_for(lambda: not refusals._counts or set(refusals._counts) == {(OTHERS, "/predict", "not known")})
    refusals.close()

    lines = log.lines()
    assert len(lines) <= 10 + 1 + 1  # named; others; and others again when it ends
    assert sum(line["count"] for line in lines) == counted.recorded == 30_000


def test_who_counts_a_refusal_never_waits_for_the_disk(tmp_path: Path) -> None:
    log, counted = ChainedLog(tmp_path / "audit.jsonl"), Counted()
    refusals = Refusals(log, counted)
    refusals.start()
    with log._locked():  # as if another process took long
        refusals.refused("10.0.0.1", "/predict", "not known")
        wait_for(lambda: not refusals._counts)  # the thread has it, and waits
        for number in range(100):
            refusals.refused(f"10.0.1.{number}", "/predict", "not known")
        assert counted.recorded == 0
    refusals.close()

    assert counted.recorded == 101


def test_refusals_that_cannot_be_written_are_counted_said_once_and_written_again_when_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, counted = ChainedLog(tmp_path / "audit.jsonl"), Counted()
    log.path.write_bytes(b"by hand\n")
    refusals = Refusals(log, counted, quiet_seconds=0)
    refusals.start()
    for expected in (1, 2):
        refusals.refused("10.0.0.1", "/predict", "not known")
        wait_for(lambda expected=expected: counted.dropped == expected)
    log.path.unlink()
    refusals.refused("10.0.0.1", "/predict", "not known")
    wait_for(lambda: counted.recorded == 1)
    refusals.close()

    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(",")[0] for message in messages if "refusals" in message] == [
        "refusals are not recorded",
        f"refusals are recorded again in {log.path}",
    ]


def test_a_file_that_has_grown_too_large_takes_no_refusals_and_every_action(tmp_path: Path) -> None:
    log, counted = ChainedLog(tmp_path / "audit.jsonl"), Counted()
    log.append("promote", who="me")
    refusals = Refusals(log, counted, most_bytes=10)
    refusals.start()
    refusals.refused("10.0.0.1", "/predict", "not known")
    refusals.close()
    log.append("rollback", who="me")

    assert (counted.recorded, counted.dropped) == (0, 1)
    assert [line["action"] for line in log.lines()] == ["promote", "rollback"]


def test_a_place_that_was_asked_for_and_cannot_be_written_is_an_error_and_the_default_one_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.jsonl").mkdir()  # even root cannot append to a folder

    check_audit_log(Settings(), tmp_path)

    assert "nobody who is refused is recorded" in caplog.text
    with pytest.raises(NoAuditError, match=r"^TABSERVE_AUDIT_LOG is '.*', which cannot be written \(Is a directory\)"):
        check_audit_log(Settings(audit_log=str(tmp_path / "audit.jsonl")), tmp_path)


def test_the_training_of_each_model_is_recorded(models: TrainedModels) -> None:
    lines = ChainedLog(models.home / AUDIT_FILE).lines()

    saved = [line for line in lines if line["action"] == "save_model"]
    assert {line["model"] for line in saved} >= {models.tag(name) for name in (BUILT_IN, CUSTOMERS, SPEND)}
    assert {line["who"] for line in saved} == {user()}


# --- the command


def test_verify_says_whole_or_names_the_line_and_tail_shows_the_newest(
    log: ChainedLog, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = log.append("refused", who="\x9b31m\u202e", route="/predict", reason="not known", count=3)["hash"]

    assert cli.main(["audit", "verify", "--file", str(log.path)]) == 0
    assert capsys.readouterr().out == f"whole: 6 lines in {log.path}, the newest has the hash {newest}\n"
    assert cli.main(["audit", "tail", "--file", str(log.path), "-n", "2"]) == 0
    promoted, refused = capsys.readouterr().out.splitlines()
    assert "öl@here  promote  number=4  why=" in promoted
    assert refused.endswith(r'  "\u009b31m\u202e"  refused  route=/predict  reason=not known  count=3')

    cut = log.path.read_bytes().splitlines(keepends=True)[:-1]
    log.path.write_bytes(b"".join(cut))
    assert cli.main(["audit", "verify", "--file", str(log.path)]) == 0  # the chain alone cannot know
    assert cli.main(["audit", "verify", "--file", str(log.path), "--has", newest]) == 1
    assert "it was cut, written anew or taken away" in capsys.readouterr().out

    log.path.write_bytes(b"".join(cut).replace(b'"number": 2', b'"number": 7'))
    assert cli.main(["audit", "verify", "--file", str(log.path)]) == 1
    assert capsys.readouterr().out == f"tampered: line 3 of {log.path} is not as written, or one before it is gone\n"
    assert cli.main(["audit", "tail", "--file", str(log.path)]) == 1

    log.path.unlink()
    assert cli.main(["audit", "verify", "--file", str(log.path), "--has", newest]) == 1


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert cli.main(["audit", "verify", "--file", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no " in caplog.text
