"""tabserve retrain: on real models, their own predictions, and a stream whose truth is known and drifts."""

import argparse
import fcntl
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from conftest import (
    BUILT_IN,
    ROOT,
    TrainedModels,
    environment,
    free_port,
    home_in_use,
    running_service,
    wait_for,
)
from drifting_stream import NAME, Piece, piece
from monitoring_parts import spread, write_predictions
from prediction_log_parts import CONTRACT, GAPS, MODEL, ROW
from test_quality import write_labels
from test_training import OWN_PIPELINE, small_table

import train as train_command
from monitoring.watching.retraining import read_triggers
from monitoring.watching.trigger import Call
from tabserve import cli, deployments, model_store
from tabserve.commands.retrain import next_step
from tabserve.contract import MAX_ROWS, Contract, Feature
from tabserve.history.records import opened, readable_place
from tabserve.history.window import BadQuestionError, Which, Window, last
from tabserve.lifecycle import labelled_rows
from tabserve.lifecycle.contenders import Contenders
from tabserve.lifecycle.evaluation import evaluate_log
from tabserve.lifecycle.labelled_rows import LabelledRows, WindowRows
from tabserve.lifecycle.retraining import LOCK_FILE, Retrained, judged
from tabserve.lifecycle.training_rows import Known, with_window
from tabserve.model_store import LoadedModel
from tabserve.rollout_state import Challenger, RolloutState, read_rollout
from tabserve.training.evaluation import split
from tabserve.training.table import Source, Table

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
MONTH = Window(NOW - 30 * DAY, NOW)

BEFORE = np.zeros(800)
DRIFT = np.concatenate([np.linspace(0, 1, 500), np.ones(2000)])
AFTER = np.ones(2000)


@dataclass
class Stream:
    """A model of the drifting stream's beginning, and a prediction log."""

    home: Path
    log: Path
    data: Path

    def model(self, tag: str = NAME) -> LoadedModel:
        return model_store.load(model_store.find(tag))

    def serve(self, rows: Piece, model: LoadedModel, since: datetime, **more: object) -> list[str]:
        """Has a model answer rows over ten days, and what came true be said."""
        coded = rows.rows(model.contract)
        times = spread(len(coded), since, 10 * DAY)
        scores = model.engine.predict(coded)
        return write_predictions(self.log, model.contract, coded, scores, times, model_version=model.tag, **more)

    def label(self, ids: Sequence[str], rows: Piece, name: str = "0") -> None:
        write_labels(self.log, ids, list(map(str, rows.outcome[: len(ids)])), name=name)

    def retrain(self, *arguments: str) -> int:
        return cli.main(["retrain", "--log-url", self.log.as_uri(), *arguments])


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a model of the stream's beginning, and its table."""
    folder = tmp_path_factory.mktemp("stream")
    data = piece(BEFORE, seed=1).write(folder / f"{NAME}.csv")
    with home_in_use(folder / "home"):
        assert train_command.main(["--data", str(data), "--target", "y", "--min-accuracy", "0.7"]) == 0
    return folder / "home", data


@pytest.fixture
def stream(trained_once: tuple[Path, Path], tmp_path: Path) -> Iterator[Stream]:
    home, data = trained_once
    shutil.copytree(home, tmp_path / "home")
    with home_in_use(tmp_path / "home"):
        yield Stream(tmp_path / "home", tmp_path / "log", data)


def metadata_of(tag: str) -> dict:
    return model_store.read_metadata(model_store.find(tag))


# --- what it is for


def test_a_model_that_went_stale_is_beaten_by_the_one_retrained_on_the_window_and_the_log_tells_it(
    stream: Stream, capsys: pytest.CaptureFixture[str]
) -> None:
    stale, drifted, after = stream.model(), piece(DRIFT, seed=2), piece(AFTER, seed=3)
    stream.label(stream.serve(drifted, stale, NOW - 20 * DAY), drifted)

    assert stream.retrain("--model", NAME, "--window", "20d", "--mature", "10d") == 0

    *page, tag = capsys.readouterr().out.splitlines()
    new = stream.model(tag)
    # By a margin that a retraining which ignored the window could not reach: it would be the stale model once more.
    accuracy = {model.tag: after.accuracy(model.engine.predict(after.rows(new.contract))) for model in (stale, new)}
    assert accuracy[stale.tag] < 0.6
    assert accuracy[tag] > accuracy[stale.tag] + 0.2
    assert accuracy[tag] > after.best_accuracy - 0.1

    # Only the data changed: a patch, under the same contract. It was compared on the 500 latest rows of the window.
    assert (stale.tag.partition("-")[0], tag.partition("-")[0]) == (f"{NAME}:1.0.0", f"{NAME}:1.0.1")
    assert new.contract.hash == stale.contract.hash
    assert page[0].split() == ["500", "latest", "rows", stale.tag, tag]
    name, before, now = page[1].split()
    assert (name, float(now)) == ("accuracy", pytest.approx(new.metadata["test_metrics"]["accuracy"], abs=1e-4))
    assert float(before) == pytest.approx(accuracy[stale.tag], abs=0.1)
    verdict, became, next_step = page[-3:]
    assert verdict == "INCONCLUSIVE: 500 labelled rows, at least 2,000 are needed"
    assert became == f"{tag} is the shadow of {stale.tag}"
    where = f"--log-url {stream.log.as_uri()}"
    assert (
        next_step
        == f"next: tabserve promote {tag} --needs better {where}, when 2,000 predictions from now on have labels"
    )
    assert (new.metadata["n_test"], new.metadata["n_train"]) == (500, len(BEFORE) + 2000)
    assert read_rollout(stream.home / "rollout.yaml") == RolloutState(
        champion=stale.tag, challenger=Challenger(model=tag, mode="shadow", share=100)
    )

    lineage = new.metadata["lineage"]
    assert lineage["retrained_from"] == stale.tag
    assert lineage["rows"] == {"original": len(BEFORE), "window": 2500, "used": 2500}
    assert lineage["labels"] == {"predictions_in_window": 2500, "labelled": 2500, "coverage": 1}
    assert lineage["log"] == "file"
    window_of = {end: NOW - datetime.fromisoformat(moment) for end, moment in lineage["window"].items()}
    assert 29 * DAY < window_of["since"] < 31 * DAY
    assert 9 * DAY < window_of["until"] < 11 * DAY
    card = (model_store.find(tag).directory / "MODEL_CARD.md").read_text()
    assert f"Retrained from {stale.tag}: 2500 rows of the prediction log (file)" in card
    assert "stream.csv, and 2500 rows of the prediction log" in card

    # It answers in the shadow: the log has both versions, on the same predictions, and who was right.
    ids = stream.serve(after, stale, NOW - 10 * DAY)
    stream.serve(after, new, NOW - 10 * DAY, ids=ids, variant="shadow")
    stream.label(ids, after, name="1")
    with opened(readable_place(stream.log.as_uri()), Window(NOW - 10 * DAY, NOW)) as records:
        both = "(FROM joined UNION ALL BY NAME FROM joined_shadows)"
        told = records.rows(
            f"SELECT version, variant, avg(CAST(is_correct AS INT)) FROM {both} GROUP BY ALL ORDER BY 1"
        )
    assert [(version, variant) for version, variant, _ in told] == [
        (stale.tag.partition(":")[2], "champion"),
        (tag.partition(":")[2], "shadow"),
    ]
    assert [share for *_, share in told] == [pytest.approx(accuracy[stale.tag]), pytest.approx(accuracy[tag])]

    # Those rows are judged on, and none of the window's, on which it was trained. The window ends as long before the
    # retraining as NOW is before this module was read: what was asked in between lies on the edge.
    before_all = replace(stale, metadata={**stale.metadata, "trained_at": (NOW - 99 * DAY).isoformat()})
    found = evaluate_log(Contenders(before_all, new), readable_place(stream.log.as_uri()), MONTH, [])
    assert found.since == datetime.fromisoformat(lineage["window"]["until"])
    n_on_the_edge = 2 + (datetime.now(UTC) - NOW) / (10 * DAY / len(AFTER))
    assert len(AFTER) - n_on_the_edge <= len(found.pairs) <= len(AFTER)


def test_what_is_to_be_typed_next_follows_from_what_the_test_rows_prove() -> None:
    random = np.random.default_rng(1)
    target = random.integers(0, 3, 4000)

    def scores(share: float, n_rows: int = 4000) -> np.ndarray:
        """Of a model that is right in such a share of the rows."""
        said = np.where(random.random(n_rows) < share, target[:n_rows], (target[:n_rows] + 1) % 3)
        return 0.1 + 0.7 * np.eye(3)[said]

    def found(before: np.ndarray, after: np.ndarray) -> tuple[str, str]:
        verdict = judged(Retrained("m:2", CONTRACT, target[: len(before)], before, after)).verdict
        return verdict, next_step(verdict, "m:2", argparse.Namespace(log_url=None))

    worse, better = scores(0.6), scores(0.8)
    assert found(worse, better) == ("better", "tabserve promote m:2 --why TEXT")
    assert found(better, worse)[0] == "worse"
    assert found(better, worse)[1].startswith("tabserve stop")
    waits = "tabserve promote m:2 --needs better, when 2,000 predictions from now on have labels"
    assert found(better, better) == ("not worse", waits)
    assert found(worse[:1999], better[:1999]) == ("inconclusive", waits)


def test_an_empty_window_gives_the_model_of_the_first_training_again(
    models: TrainedModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = models.tag(BUILT_IN).partition(":")[0]
    shutil.copytree(models.home / "models" / name, tmp_path / "home" / "models" / name)
    with home_in_use(tmp_path / "home"):
        arguments = ["--log-url", (tmp_path / "log").as_uri(), "--minimum-labels", "0", "--no-challenger"]
        assert cli.main(["retrain", *arguments]) == 0
        tag = capsys.readouterr().out.splitlines()[-1]
        again, first = metadata_of(tag), metadata_of(models.tag(BUILT_IN))

    assert tag.startswith(f"{BUILT_IN}:1.0.1-")
    same = ("test_metrics", "train_metrics", "cv_folds", "arguments", "dataset", "split", "pipeline_hash", "n_train")
    assert {key: again[key] for key in same} == {key: first[key] for key in same}
    assert again["lineage"]["rows"] == {"original": 569, "window": 0, "used": 0}
    assert not (tmp_path / "home" / "rollout.yaml").exists()


def test_a_users_own_pipeline_is_retrained_from_the_code_in_the_model(
    tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's file is gone, and the table has moved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_of_retraining.py").write_text(textwrap.dedent(OWN_PIPELINE.format(c=0.7)))
    data = small_table(tmp_path / "t.csv")
    assert train_command.main(["--data", "t.csv", "--target", "y", "--estimator", "own_of_retraining:make"]) == 0
    first = metadata_of("t")
    (tmp_path / "own_of_retraining.py").unlink()
    monkeypatch.delitem(sys.modules, "own_of_retraining")
    data.rename(tmp_path / "moved.csv")
    arguments = ["retrain", "--log-url", (tmp_path / "log").as_uri(), "--minimum-labels", "0"]

    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--original", "moved.csv"]) == 0

    again = metadata_of(capsys.readouterr().out.splitlines()[-1])
    assert again["semantic_version"] == "1.0.1"
    assert again["model_config"] == first["model_config"]
    assert again["test_metrics"] == first["test_metrics"]
    assert (
        model_store.load(model_store.find("t:" + model_store.find("t").tag[2:]))
        .engine.predict(np.array([[3.0, 3.0]]))
        .argmax()
    )
    assert model_store.verify_files(model_store.find("t")) is None


# --- what is refused


def test_what_cannot_be_retrained_is_a_sentence_and_saves_nothing(
    stream: Stream, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = piece(np.ones(600), seed=4)
    ids = stream.serve(rows, stream.model(), NOW - 20 * DAY)
    stream.label(ids[:499], rows)

    def refused(*arguments: str) -> tuple[int, str]:
        caplog.clear()
        code = stream.retrain(*arguments)
        return code, caplog.messages[-1]

    code, said = refused()
    assert code == 3
    assert said.startswith(f"nothing was trained: 499 labelled rows of {NAME} since ")
    assert "expected at least 500: wait for labels" in said

    other = piece(BEFORE, seed=9).write(tmp_path / "other.csv")
    code, said = refused("--minimum-labels", "400", "--original", str(other))
    assert (code, "is not what the model was trained on: expected the SHA-256" in said) == (2, True)
    code, said = refused("--minimum-labels", "400", "--original", str(tmp_path / "none.csv"))
    assert (code, "none.csv cannot be read" in said) == (2, True)
    code, said = refused("--model", "nobody")
    assert (code, "has no model nobody" in said) == (2, True)
    code, said = refused("--mature", "soon")
    assert (code, "a window is minutes, hours or days" in said) == (2, True)

    with (stream.home / LOCK_FILE).open("w") as another:
        fcntl.flock(another, fcntl.LOCK_EX)
        code, said = refused()
    assert (code, said.startswith("nothing was trained: another retraining runs in ")) == (3, True)

    (stream.home / "rollout.yaml").write_text("champion: 3\n")
    code, said = refused()
    assert (code, "rollout.yaml cannot be used" in said) == (2, True)
    (stream.home / "rollout.yaml").unlink()

    metadata = {key: value for key, value in metadata_of(NAME).items() if key != "arguments"}
    monkeypatch.setattr(model_store, "read_metadata", lambda _: metadata)
    code, said = refused()
    assert (code, "does not say how it was trained, as older models do not" in said) == (2, True)
    assert len(model_store.stored_models()) == 1


def test_a_new_version_that_misses_the_gates_of_the_first_training_is_not_saved(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    rows = piece(np.ones(600), seed=4)
    guessed = Piece(rows.frame, rows.probability, np.random.default_rng(5).integers(0, 2, 600))
    stream.label(stream.serve(rows, stream.model(), NOW - 20 * DAY), guessed)

    assert stream.retrain() == 1

    assert "not good enough, nothing was saved: " in caplog.messages[-1]
    assert "--min-accuracy asks for at least 0.7" in caplog.messages[-1]
    assert len(model_store.stored_models()) == 1
    assert not (stream.home / "rollout.yaml").exists()


def changed(**fields: object) -> Contract:
    return Contract.model_validate({**{name: getattr(CONTRACT, name) for name in Contract.model_fields}, **fields})


def test_personal_features_are_not_in_the_log_and_are_named() -> None:
    features = (*CONTRACT.features, Feature(name="salary", kind="number", personal=True))
    with pytest.raises(BadQuestionError, match="this model needs salary: train it with train.py"):
        labelled_rows.check_features(changed(features=features))
    alike = (*CONTRACT.features, Feature(name="AGE", kind="number"))
    with pytest.raises(BadQuestionError, match="read for age, AGE, whose names differ only in case"):
        labelled_rows.check_features(changed(features=alike))


# --- rows of the log


def read(folder: Path, contract: Contract, window: Window = MONTH) -> tuple:
    with opened(readable_place(folder.as_uri()), window, Which(MODEL.partition(":")[0])) as records:
        labelled = LabelledRows(records, contract)
        counts = labelled.counts()
        return counts, labelled.read(counts.n_usable) if counts.n_usable else None


SCORES = np.array([[0.2, 0.7, 0.1]])


def test_rows_come_back_as_the_model_saw_them_in_order_of_time_with_the_last_label_of_each(tmp_path: Path) -> None:
    rows = np.stack([ROW, GAPS, [90.0, -0.1, 0.0, 1.0, 0.0], [1.0, 1e300, 1.0, 0.0, np.nan]])
    times = [NOW - hours * timedelta(hours=1) for hours in (1, 4, 3, 2)]
    ids = write_predictions(tmp_path, CONTRACT, rows, SCORES.repeat(4, 0), times, model_version=MODEL)
    write_labels(tmp_path, ids, ["basic"] * 4, NOW - timedelta(minutes=2), name="first")
    write_labels(tmp_path, ids[:3], ["pro", "plus", "gold"], name="last")
    counts, found = read(tmp_path, CONTRACT)

    np.testing.assert_array_equal(found.rows, rows[[1, 3, 0]])
    assert found.target.tolist() == [1, 0, 2]
    assert found.target.dtype == np.int64
    assert list(found.times) == [times[1], times[3], times[0]]
    assert (counts.n_predictions, counts.n_labels, counts.n_usable) == (4, 4, 3), "gold is no class"


def test_a_prediction_is_one_row_however_many_models_answered_it_and_other_contracts_are_counted(
    tmp_path: Path,
) -> None:
    other = changed(classes=("basic", "plus", "pro", "trial"))
    moments = spread(6, NOW - DAY, DAY)
    rows = np.stack([ROW] * 6)
    rows[:, 0] = np.arange(6)

    def write(contract: Contract, which: slice, **more: object) -> list[str]:
        scores = np.full((6, len(contract.classes)), 1 / len(contract.classes))
        version = more.pop("version", "1.0.0-abcdef")
        return write_predictions(
            tmp_path, contract, rows[which], scores[which], moments[which], model_version=f"plans:{version}", **more
        )

    ids = write(CONTRACT, slice(0, 3))
    write(CONTRACT, slice(0, 3), ids=ids, variant="shadow", version="1.0.1-abcdef")
    foreign = write(other, slice(3, 6), version="2.0.0-abcdef")
    of_another_model = write_predictions(tmp_path, CONTRACT, rows, SCORES.repeat(6, 0), moments, model_version="p:1")
    write_labels(tmp_path, [*ids, *foreign, *of_another_model], ["plus"] * 12)

    counts, found = read(tmp_path, CONTRACT)

    assert found.rows[:, 0].tolist() == [0, 1, 2]
    assert (counts.n_predictions, counts.n_other_contract, counts.n_usable) == (3, 3, 3)
    assert counts.coverage == 1


def test_a_sampled_log_counts_coverage_by_weight_and_rows_once(tmp_path: Path) -> None:
    moments = spread(10, NOW - DAY, DAY)
    rows = np.stack([ROW] * 10)
    every = write_predictions(tmp_path, CONTRACT, rows, SCORES.repeat(10, 0), moments, model_version=MODEL)
    write_predictions(tmp_path, CONTRACT, rows, SCORES.repeat(10, 0), moments, model_version=MODEL, weight=4.0)
    write_labels(tmp_path, every, ["plus"] * 10)

    counts, found = read(tmp_path, CONTRACT)

    assert (counts.coverage, counts.weights, len(found)) == (pytest.approx(0.2), (1, 1), 10)


def test_numbers_come_back_for_a_regression_and_labels_that_are_none_do_not(tmp_path: Path) -> None:
    contract = changed(task="regression", classes=())
    rows = np.stack([ROW] * 3)
    ids = write_predictions(
        tmp_path, contract, rows, np.ones(3), spread(3, NOW - DAY, DAY), model_version="plans:1.0.0-abcdef"
    )
    write_labels(tmp_path, ids, [1.5, float("nan"), -2.0])

    counts, found = read(tmp_path, contract)

    assert (counts.n_labels, counts.n_usable, found.target.tolist()) == (3, 2, [1.5, -2.0])


def test_of_more_rows_than_fit_some_are_taken_from_the_whole_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled_rows, "MOST_ROWS", 500)
    rows = np.repeat([ROW], 2000, axis=0)
    times = spread(2000, NOW - 10 * DAY, 10 * DAY)
    ids = write_predictions(tmp_path, CONTRACT, rows, SCORES.repeat(2000, 0), times, model_version=MODEL)
    write_labels(tmp_path, ids, ["plus"] * 2000)

    counts, found = read(tmp_path, CONTRACT)

    assert counts.n_usable == 2000
    assert 400 < len(found) < 600
    assert found.times.is_monotonic_increasing
    assert 150 < (found.times < NOW - 5 * DAY).sum() < 350


# --- what is trained on


def table_of(times: list[datetime] | None) -> Table:
    """Four rows of age 0 to 3."""
    rows = np.stack([ROW] * 4)
    rows[:, 0] = np.arange(4)
    moments = None if times is None else pd.Series(times)
    return Table(CONTRACT, rows, np.zeros(4, np.int64), moments, Source("plans", "plans.csv", ""), {}, ())


def window_of(n_rows: int) -> WindowRows:
    """Rows of age 100 and more, over the last ten days."""
    rows = np.stack([ROW] * n_rows)
    rows[:, 0] = np.arange(100, 100 + n_rows)
    return WindowRows(rows, np.ones(n_rows, np.int64), pd.Series(spread(n_rows, NOW - 10 * DAY, 10 * DAY)))


LONG_AGO = Known(NOW - 99 * DAY, None)


def test_the_test_is_the_latest_fifth_of_the_window_and_nothing_later_is_trained_on() -> None:
    """The last two rows of the table are later than the test begins, two days ago."""
    table = table_of([NOW - 50 * DAY, NOW - 40 * DAY, NOW - 1 * DAY, NOW])

    both = with_window(table, window_of(50), LONG_AGO, original_share=None, seed=1)

    assert both.rows[:2, 0].tolist() == [0, 1]
    assert (len(both.rows), both.n_recent) == (52, 50)
    assert both.warnings == ("2 rows of the table are left out: the test rows are older.",)
    contract = CONTRACT.model_copy(update={"classes": ()})  # so that none is rare
    parts = split(contract, both.target, both.times, 42, n_recent=both.n_recent)
    assert both.rows[parts.train, 0].tolist() == [0, 1, *range(100, 140)]
    assert both.rows[parts.test, 0].tolist() == list(range(140, 150))


def test_what_may_flatter_one_of_the_models_is_said() -> None:
    seen = Known(NOW - DAY, NOW - DAY)

    both = with_window(table_of(None), window_of(50), seen, original_share=None, seed=1)

    assert [warning[:30] for warning in both.warnings] == [
        "Some test rows are older than ",
        "Some test rows may have traine",
    ]
    assert with_window(table_of(None), window_of(50), LONG_AGO, original_share=None, seed=1).warnings == ()


def test_the_table_may_be_held_to_a_share_of_what_is_trained_on() -> None:
    """Of 40 rows of the window that are trained on 5 % of the whole are two."""
    both = with_window(table_of(None), window_of(50), LONG_AGO, original_share=5, seed=1)

    assert (both.rows[:, 0] < 100).sum() == 2
    assert both.n_recent == 50


# --- with a service


def ask(client: httpx.Client, rows: Piece, contract: Contract) -> tuple[float, set[str]]:
    """Has the service answer rows, then tells it what came true; its accuracy, and who answered."""
    right, versions = 0, set()
    instances, outcomes = rows.instances(contract), rows.outcome.tolist()
    for start in range(0, len(instances), MAX_ROWS):
        piece_of = slice(start, start + MAX_ROWS)
        answer = client.post("/predict/batch", json={"instances": instances[piece_of]}).raise_for_status().json()
        versions.add(answer["model_version"])
        labels = [
            {"prediction_id": prediction["prediction_id"], "label": outcome}
            for prediction, outcome in zip(answer["predictions"], outcomes[piece_of], strict=True)
        ]
        client.post("/feedback", json={"labels": labels}).raise_for_status()
        right += sum(p["label"] == o for p, o in zip(answer["predictions"], outcomes[piece_of], strict=True))
    return right / len(instances), versions


def in_service(client: httpx.Client, champion: str, challenger: str | None) -> None:
    """Waits until the service says so."""

    def as_said() -> bool:
        rollout = client.get("/metadata").json()["rollout"]
        beside = rollout["challenger"]
        return (rollout["champion"], beside and beside["model"]) == (champion, challenger)

    wait_for(as_said)


def told(stream: Stream) -> list[tuple]:
    """Version, variant, labelled rows and accuracy, in the order of their first answer."""
    with opened(readable_place(stream.log.as_uri()), last(timedelta(hours=1))) as records:
        return records.rows(
            "SELECT model || ':' || version, variant, count(is_correct), avg(CAST(is_correct AS INT)) "
            "FROM (FROM joined UNION ALL BY NAME FROM joined_shadows) GROUP BY ALL ORDER BY min(time), variant DESC"
        )


def calls(kept: Path) -> list[Call]:
    return [call for trigger in read_triggers(kept, NAME) for call in trigger.calls]


def test_a_service_whose_world_changed_is_watched_retrained_proved_and_better_after_the_promotion(
    stream: Stream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process that serves from the beginning to the end."""
    stale, kept, where = stream.model(), tmp_path / "kept", ["--log-url", stream.log.as_uri(), "--window", "1h"]
    command = [sys.executable, "-m", "monitoring.watch", "--log-url", stream.log.as_uri(), "--port", str(free_port())]
    command += ["--reports", str(kept), "--every", "1s", "--window", "5m", "--no-reports"]
    # Which model, and why, the monitor says in its environment.
    retrain = [sys.executable, "-m", "tabserve", "retrain", *where]
    command += ["--retrain-after-labels", "0", "--on-retrain", shlex.join([*retrain, "--original-share", "25"])]
    with running_service(stream.home, tmp_path / "log.txt", TABSERVE_LOG_URL=stream.log.as_uri()) as service:
        client = service.client()
        good, versions = ask(client, piece(np.zeros(500), seed=6), stale.contract)
        assert (good > 0.75, versions) == (True, {stale.tag})
        gone_stale, _ = ask(client, piece(np.ones(2048), seed=7), stale.contract)
        assert gone_stale < 0.6

        with (tmp_path / "said").open("wb") as out:
            monitor = subprocess.Popen(command, cwd=ROOT, env=environment(stream.home), stdout=out, stderr=out)
        try:
            wait_for(lambda: [call for call in calls(kept) if call.outcome != "not known"], 180)
        finally:
            monitor.send_signal(signal.SIGTERM)
            monitor.wait(60)
        (trigger,) = read_triggers(kept, NAME)
        assert trigger.calls[0].outcome == "succeeded", (tmp_path / "said").read_text()
        assert trigger.causes == ("quality",)
        new = metadata_of(NAME)
        assert new["lineage"]["why"] == trigger.reasons[0]
        assert new["lineage"]["labels"] == {"predictions_in_window": 2548, "labelled": 2548, "coverage": 1}
        # A quarter of what it is trained on is of the table; the window is 2548 rows, 510 of them for the test.
        assert new["lineage"]["rows"] == {"original": (2548 - 510) // 3, "window": 2548, "used": 2548}
        challenger = model_store.find(NAME).tag
        in_service(client, champion=stale.tag, challenger=challenger)

        assert cli.main(["promote", challenger, "--needs", "better", *where]) == 3, "no row since it was trained"
        still_stale, versions = ask(client, piece(np.ones(2048), seed=8), stale.contract)
        assert versions == {stale.tag}, "drift and quality promote nobody"
        wait_for(lambda: told(stream)[0][2:3] == (2548 + 2048,))
        capsys.readouterr()
        assert cli.main(["promote", challenger, "--needs", "better", *where]) == 0
        page = capsys.readouterr().out
        assert page.startswith("BETTER: accuracy 0.")
        assert f"\n2,048 labelled rows of {stream.log.as_uri()}, from " in page, "and none of the window"
        in_service(client, champion=challenger, challenger=None)

        better, versions = ask(client, piece(np.ones(1024), seed=9), stale.contract)
        assert client.get("/metadata").json()["lineage"]["retrained_from"] == stale.tag
        client.close()
    assert versions == {challenger}
    assert better > max(gone_stale, still_stale) + 0.2

    # The log tells it: who answered, who was asked beside, and who was right.
    old, of_shadow, promoted = told(stream)
    assert (old[:3], promoted[:3]) == ((stale.tag, "champion", 4596), (challenger, "champion", 1024))
    assert promoted[3] == pytest.approx(better)
    assert of_shadow[:2] == (challenger, "shadow")
    assert min(of_shadow[3], promoted[3]) > old[3] + 0.15
    # And the history who decided what.
    assert [(change.action, change.after.champion) for change in deployments.history(stream.home)] == [
        ("promote", stale.tag),
        ("shadow", stale.tag),
        ("promote", challenger),
    ]
    whys = [change.why for change in deployments.history(stream.home)]
    assert whys[1] == trigger.reasons[0]
    assert whys[2].startswith("asked for better, found better: accuracy 0.")
