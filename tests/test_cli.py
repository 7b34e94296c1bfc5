"""The command `tabserve`: with real services that answer and are told what came true."""

import argparse
import csv
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import BUILT_IN, CUSTOMERS, ROOT, SPEND, TrainedModels, environment, running_service
from prediction_log_parts import ROW, opened, predictions, records
from test_http import CUSTOMER, TUTORIAL_ROW
from test_prediction_log_service import two_workers
from uuid_utils import uuid7

from tabserve import cli
from tabserve.commands import labels as labels_command
from tabserve.history.label_file import NAMED_FAULTS


def start_tabserve(home: Path, *arguments: str, cwd: Path = ROOT, **settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tabserve", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment(home, **settings), stdout=pipe, stderr=pipe, text=True)


def tabserve(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    process = start_tabserve(home, *arguments, **settings)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def write_csv(path: Path, *rows: tuple[object, object], header: tuple[str, str] = ("prediction_id", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- with a service


def test_predictions_and_labels_are_in_the_command_line_within_two_seconds_with_two_workers_and_after_a_restart(
    models: TrainedModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = (tmp_path / "place").as_uri()
    ids: list[str] = []

    def shown() -> dict[str, list[str]]:
        assert cli.main(["log", "tail", "-n", "100", "--log-url", url]) == 0
        return {line.split()[2]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}

    for _ in range(2):
        with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service:
            answers = [httpx.post(f"{service.url}/predict", json={"features": TUTORIAL_ROW}).json() for _ in range(8)]
            for answer in answers:  # connections of their own, so that both workers get some
                label = {"prediction_id": answer["prediction_id"], "label": 1 - answer["label"]}
                assert httpx.post(f"{service.url}/feedback", json=label).json() == {"accepted": 1}
            ids += [answer["prediction_id"] for answer in answers]
            sent = looked = time.monotonic()
            while not all(shown().get(one, ["?"])[-1] == "1" for one in ids):
                looked = time.monotonic()
                assert looked - sent < 2
    lines = shown()
    assert list(lines) == sorted(ids)
    assert {(line[3], line[4]) for line in lines.values()} == {(models.tag(BUILT_IN), "0")}

    assert cli.main(["log", "stats", "--log-url", url]) == 0
    page = capsys.readouterr().out
    assert "predictions  16; " in page
    assert "100.00%  0  " in page
    assert "100.00% of the predictions have one (16); they came after p50 " in page
    assert " Parquet files and " in page


def test_tail_follows_what_comes_until_it_is_told_to_end(models: TrainedModels, tmp_path: Path) -> None:
    url = (tmp_path / "place").as_uri()
    log = opened(url, tmp_path)
    follower = start_tabserve(models.home, "log", "tail", "-f", TABSERVE_LOG_URL=url)
    assert follower.stdout
    assert follower.stdout.readline().startswith("time (UTC)")

    put = [predictions([ROW]) for _ in range(3)]
    seen = []
    for one in put:
        log.put(one, 0.001)
        seen.append(follower.stdout.readline())
    log.close()
    follower.send_signal(signal.SIGINT)

    assert follower.wait(60) == 0
    assert [one.ids[0] in line for one, line in zip(put, seen, strict=True)] == [True] * 3


@dataclass(frozen=True)
class Answered:
    """Where the predictions of two models are, and the ids of each."""

    url: str
    ids: dict[str, list[str]]


@pytest.fixture(scope="module")
def answered(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    url = tmp_path_factory.mktemp("place").as_uri()
    ids = {}
    for name in (CUSTOMERS, SPEND):
        log = tmp_path_factory.mktemp("log") / name
        settings = {"TABSERVE_MODEL": name, "TABSERVE_LOG_URL": url}
        with running_service(models.home, log, **settings) as service, service.client() as client:
            body = client.post("/predict/batch", json={"instances": [CUSTOMER] * 4}).json()
            ids[name] = [answer["prediction_id"] for answer in body["predictions"]]
    return Answered(url, ids)


def test_labels_from_a_file_are_joined_with_the_predictions_and_exported(
    models: TrainedModels, answered: Answered, tmp_path: Path
) -> None:
    ids = answered.ids[CUSTOMERS]
    file = write_csv(tmp_path / "l.csv", (ids[0], "basic"), (ids[1], "plus"), (ids[0], "pro"), (uuid7(), "pro"))
    exported = tmp_path / "x.parquet"

    done = tabserve(models.home, "labels", "import", str(file), "--model", CUSTOMERS, TABSERVE_LOG_URL=answered.url)
    assert (done.returncode, done.stderr) == (0, "4 labels were imported\n")
    command = ["log", "export", "--to", str(exported), "--with-labels", "--model", CUSTOMERS]
    done = tabserve(models.home, *command, TABSERVE_LOG_URL=answered.url)

    assert (done.returncode, done.stderr) == (0, f"4 predictions are in {exported}\n")
    rows = {row["prediction_id"]: row for row in pq.read_table(exported).to_pylist()}
    assert [rows[one]["true_label"] for one in ids] == ["pro", "plus", None, None]
    assert all(rows[one]["feature:age"] == CUSTOMER["age"] for one in ids)
    assert names_in(tmp_path) == ["l.csv", "x.parquet"]


def test_values_of_a_regression_are_imported_from_parquet_and_exported_as_csv(
    models: TrainedModels, answered: Answered, tmp_path: Path
) -> None:
    ids = answered.ids[SPEND]
    where = ["--log-url", answered.url]
    file, exported = tmp_path / "l.parquet", tmp_path / "x.csv"
    pd.DataFrame({"prediction_id": ids[:2], "value": [1.5, 2.5], "more": 1}).to_parquet(file)

    assert tabserve(models.home, "labels", "import", str(file), "--model", models.tag(SPEND), *where).returncode == 0
    command = ["log", "export", "--to", str(exported), "--with-labels", "--window", "1h", "--model", SPEND]
    assert cli.main([*command, *where]) == 0

    rows = pd.read_csv(exported).set_index("prediction_id")
    assert rows.loc[ids[:2], "true_value"].tolist() == [1.5, 2.5]
    assert rows.loc[ids[2:], "true_value"].isna().all()
    assert sorted(rows.index) == sorted(ids)


def test_without_an_address_it_is_the_place_that_the_service_takes(models: TrainedModels) -> None:
    done = tabserve(models.home, "log", "stats")

    assert (done.returncode, done.stderr) == (0, "")
    assert f"the last 24h in {(models.home.resolve() / 'prediction_log').as_uri()}, " in done.stdout


# --- labels that are wrong


def test_a_file_with_a_wrong_row_is_not_imported_and_every_fault_is_named_with_its_line(
    models: TrainedModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = (tmp_path / "place").as_uri()
    good, other = str(uuid7()), str(uuid7())
    file = write_csv(tmp_path / "l.csv", (good, "plus"), ("7", "plus"), (good, "gold"), (other, "pro"), ("", ""))
    command = ["labels", "import", str(file), "--model", CUSTOMERS, "--log-url", url]

    done = tabserve(models.home, *command)
    assert done.returncode == 2
    first, second, third, fourth, last = done.stderr.splitlines()
    assert first.startswith(f'{file}: line 3: feature "prediction_id": expected the prediction_id')
    assert second == f'{file}: line 4: feature "label": expected one of basic, plus, pro, got "gold"'
    assert ("line 6" in third, "line 6" in fourth) == (True, True)
    assert last.startswith(f"bad input: 3 rows of {file} are no labels, nothing was imported")
    assert records(url, "labels") == []

    done = tabserve(models.home, *command, "--skip-bad")
    assert done.returncode == 0
    assert done.stderr.endswith("2 labels were imported, 3 rows were left out\n")
    kept = {record["prediction_id"]: (record["label"], record["source"]) for record in records(url, "labels")}
    assert kept == {good: ("plus", "import"), other: ("pro", "import")}


def test_a_file_may_say_what_predictions_were_worth_and_the_last_of_each_counts(
    models: TrainedModels, tmp_path: Path, monkeypatch, caplog
) -> None:
    ids = [str(uuid7()) for _ in range(3)]
    url = (tmp_path / "place").as_uri()
    contract = models.load(CUSTOMERS).contract
    monkeypatch.setattr(labels_command, "_contract", lambda _wanted: contract)
    lines = [(ids[0], "pro", ""), (ids[0], "", "3"), (ids[1], "plus", "1.5"), (ids[1], "basic", ""), (ids[2], "", "-1")]
    both, worth, bad = (tmp_path / f"{name}.csv" for name in ("both", "worth", "bad"))
    for path, header, rows in (
        (both, "prediction_id,label,business_value", lines),
        (worth, "business_value,prediction_id", [("8", ids[2])]),
        (bad, "prediction_id,label,business_value", [(ids[0], "", ""), (ids[0], "pro", "much")]),
    ):
        path.write_text("\n".join([header, *map(",".join, rows)]))

    assert cli.main(["labels", "import", str(both), "--log-url", url]) == 0
    assert cli.main(["labels", "import", str(worth), "--log-url", url]) == 0
    assert cli.main(["labels", "import", str(bad), "--log-url", url]) == 2

    found = {(one["prediction_id"], one["label"], one["business_value"]) for one in records(url, "labels")}
    assert found == {(ids[0], "pro", 3.0), (ids[1], "basic", 1.5), (ids[2], None, -1.0), (ids[2], None, 8.0)}
    assert 'line 2: feature "business_value": expected a number, got ""' in caplog.text
    assert 'line 3: feature "business_value": expected a number, got "much"' in caplog.text


def test_of_many_faults_the_first_are_named(models: TrainedModels, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "l.csv", *[(str(uuid7()), "gold")] * 500)

    done = tabserve(models.home, "labels", "import", str(file), "--model", CUSTOMERS, "--log-url", tmp_path.as_uri())

    assert len(done.stderr.splitlines()) == NAMED_FAULTS + 1
    assert "500 rows" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("l.csv", b"id,label\n", "expected the columns prediction_id and label, or business_value, got id"),
        ("l.csv", b"", "got none"),
        ("l.csv", b"prediction_id,label\nx\n", "line 2 has 1 columns, expected 2"),
        ("l.csv", b"prediction_id,label\n\xff,1\n", "is no readable csv file"),
        ("l.parquet", b"PAR1", "is no readable parquet file"),
        ("l.txt", b"", "expected a .csv or .parquet file"),
        ("missing/l.csv", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_none_of_labels_is_refused_with_a_sentence(
    models: TrainedModels, tmp_path: Path, monkeypatch, caplog, name: str, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    contract = models.load(CUSTOMERS).contract
    monkeypatch.setattr(labels_command, "_contract", lambda _wanted: contract)

    assert cli.main(["labels", "import", str(file), "--log-url", (tmp_path / "place").as_uri()]) == 2
    assert sentence in caplog.text


# --- what is asked wrongly, or cannot be answered


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["log", "tail", "--window", "yesterday"], "such as 90m, 24h or 7d, got 'yesterday'"),
        (["log", "stats", "--version", "1"], "of which model?"),
        (["log", "export", "--to", "x.xlsx"], "expected a .parquet or .csv file, got x.xlsx"),
        (["log", "export", "--to", "/no/such/folder/x.csv"], "/no/such/folder is no folder"),
        (["log", "tail", "--log-url", "null:"], "nothing is kept"),
        (["log", "tail", "--log-url", "relative/folder"], "is no address of a place"),
        (["labels", "import", "l.csv", "--log-url", "null:"], "labels are not kept"),
    ],
)
def test_a_bad_question_is_one_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch, caplog, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setenv("TABSERVE_LOG_URL", tmp_path.as_uri())

    assert cli.main(arguments) == 2
    (record,) = caplog.records
    assert record.message.startswith("bad input: ")
    assert sentence in record.message


def test_an_empty_log_is_an_answer(tmp_path: Path, capsys, caplog) -> None:
    caplog.set_level("INFO")
    where = ["--log-url", (tmp_path / "none").as_uri()]

    assert cli.main(["log", "tail", *where]) == 0
    assert cli.main(["log", "stats", *where]) == 0
    assert cli.main(["log", "export", "--to", str(tmp_path / "x.csv"), *where]) == 0
    assert "none yet" in capsys.readouterr().out
    assert "no predictions in the last 24h in " in caplog.text
    assert (tmp_path / "x.csv").read_text().startswith('"prediction_id"')


def test_where_a_file_cannot_be_written_it_is_exit_code_3_and_what_was_there_stays(tmp_path: Path, caplog) -> None:
    log = opened((tmp_path / "place").as_uri(), tmp_path)
    log.put(predictions([ROW]), 0.001)
    log.close()
    target = tmp_path / "x.csv"
    target.mkdir()

    assert cli.main(["log", "export", "--to", str(target), "--log-url", (tmp_path / "place").as_uri()]) == 3
    assert "failed: " in caplog.text
    assert names_in(tmp_path) == ["place", "x.csv"]


def test_without_duckdb_a_sentence_names_the_extra(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    monkeypatch.delitem(sys.modules, "tabserve.history.files", raising=False)

    assert cli.main(["log", "tail", "--log-url", tmp_path.as_uri()]) == 2
    assert "needs DuckDB, which comes with the extra `monitoring`" in caplog.text


def test_who_reads_only_the_first_lines_gets_no_complaint(models: TrainedModels, tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    log.put(predictions([ROW] * 5000), 0.001)
    log.close()
    process = start_tabserve(models.home, "log", "tail", "-n", "5000", "--log-url", tmp_path.as_uri())
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(60) == 0
    assert process.stderr
    assert process.stderr.read() == ""


# --- help


def test_every_command_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    def commands_of(parser: argparse.ArgumentParser, *before: str) -> Iterator[tuple[str, ...]]:
        yield before
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, command in action.choices.items():
                    yield from commands_of(command, *before, name)

    known = list(commands_of(cli.parser()))
    assert ("ab-result",) in known
    for command in known:
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--help"])
        assert ended.value.code == 0
        assert "usage: tabserve" in capsys.readouterr().out
