"""`tabserve evaluate` and `tabserve replay` on real logs: real models, and engines that are spoiled on purpose."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import CUSTOMERS, SPEND, TrainedModels, home_in_use
from monitoring_parts import spread, write_predictions
from prediction_log_parts import CONTRACT, GAPS, ROW, SCORES
from tables import customers
from test_quality import coded as coded_frame
from test_quality import write_labels

from tabserve import cli, deployments, model_store
from tabserve.contract import Contract, Feature, Rows
from tabserve.engine import Engine, OnnxEngine, Scores, SklearnEngine
from tabserve.history.records import opened, readable_place
from tabserve.history.window import BadQuestionError, last
from tabserve.lifecycle import changes
from tabserve.lifecycle import replay as replay_module
from tabserve.lifecycle.comparison import decide
from tabserve.lifecycle.contenders import Contenders, trained_until
from tabserve.lifecycle.evaluation import Evaluation, evaluate_file, evaluate_log
from tabserve.lifecycle.evaluation_page import write_page
from tabserve.lifecycle.evaluation_text import text_of
from tabserve.lifecycle.logged_rows import FEATURE, coded, columns_of
from tabserve.lifecycle.replay import Replay, replay
from tabserve.model_store import LoadedModel
from tabserve.rollout_state import RolloutState

N_ROWS = 3000
WINDOW = timedelta(hours=1)


@dataclass
class Spoiled:
    """An engine that says another class of one row of so many, chosen by the row itself; a regression is off by 40."""

    engine: Engine
    one_of: int
    name: str = "spoiled"

    def predict(self, rows: Rows) -> Scores:
        scores: Scores = self.engine.predict(rows).copy()
        is_spoiled = (np.nan_to_num(rows[:, 0]) * 7 + np.nan_to_num(rows[:, 1]).round()) % self.one_of == 0
        if scores.ndim == 1:
            scores[is_spoiled] += 40
        else:
            scores[is_spoiled] = np.roll(scores[is_spoiled], 1, axis=1)
        return scores


def with_features(contract: Contract, features: tuple[Feature, ...]) -> Contract:
    return Contract(features=features, task=contract.task, target=contract.target, classes=contract.classes)


def spoiled(model: LoadedModel, one_of: int) -> LoadedModel:
    return replace(model, tag=f"{model.tag}0", engine=Spoiled(model.engine, one_of))


@pytest.fixture(scope="module")
def home(models: TrainedModels) -> Iterator[Path]:
    with home_in_use(models.home) as home:
        yield home


@pytest.fixture(scope="module")
def good(models: TrainedModels, home: Path) -> LoadedModel:
    return models.load(CUSTOMERS)


def fill(
    folder: Path, model: LoadedModel, frame: pd.DataFrame, *, target: str = "plan", weight: float = 1.0, ago: float = 0
) -> list[str]:
    """A log with the model's answers to rows of the last second, or of so many seconds ago, and what came true."""
    rows = coded_frame(model.contract, frame)
    since = datetime.now(UTC) - timedelta(seconds=1 + ago)
    times = spread(len(rows), since, timedelta(seconds=1))
    scores = model.engine.predict(rows)
    ids = write_predictions(folder, model.contract, rows, scores, times, model_version=model.tag, weight=weight)
    write_labels(folder, ids, frame[target].tolist(), name=str(len(list(folder.glob("labels/*/*")))))
    return ids


def evaluated(folder: Path, of: Contenders, *by: str) -> Evaluation:
    return evaluate_log(of, readable_place(folder.as_uri()), last(WINDOW), by)


# --- evaluate


def test_a_challenger_that_is_right_more_often_is_better_and_a_worse_one_is_worse(
    good: LoadedModel, tmp_path: Path
) -> None:
    bad = spoiled(good, 10)
    frame = customers(N_ROWS, seed=99)
    fill(tmp_path / "log", bad, frame)

    found = evaluated(tmp_path / "log", Contenders(bad, good))
    back = evaluated(tmp_path / "log", Contenders(bad, spoiled(good, 4)))

    said = [
        np.array(good.contract.classes)[scores.argmax(axis=1)]
        for scores in (found.pairs.champion, found.pairs.challenger)
    ]
    rows = coded_frame(good.contract, frame)
    effect = found.comparison.effect
    assert (found.comparison.verdict, back.comparison.verdict) == ("better", "worse")
    assert effect is not None
    for value, model in ((effect.champion, bad), (effect.challenger, good)):
        right = np.array(good.contract.classes)[model.engine.predict(rows).argmax(axis=1)] == frame["plan"]
        assert value == pytest.approx(right.mean())
    assert (said[0] != said[1]).mean() == pytest.approx(0.1, abs=0.03)
    assert len(found.pairs) == N_ROWS
    assert {group.column for group in found.comparison.groups} >= {"city", "age", "member", "came true"}


def test_the_page_and_the_lines_say_what_was_found_and_need_nothing_else(good: LoadedModel, tmp_path: Path) -> None:
    bad = spoiled(good, 10)
    fill(tmp_path / "log", bad, customers(N_ROWS, seed=99))
    found = evaluated(tmp_path / "log", Contenders(bad, good), "city")
    decision = decide(found.comparison, "better")

    lines = text_of(found, decision)
    page = write_page(found, decision, tmp_path / "pages").read_text()

    assert lines.startswith("BETTER: accuracy 0.")
    assert re.search(r"^roc_auc +0\.\d+ +0\.\d+$", lines, re.MULTILINE)
    assert re.search(r"^  city = Oslo \(\d+ rows\) +0\.\d+ → 0\.\d+ +[+-]\d+\.\d+$", lines, re.MULTILINE)
    assert page.count("<svg") == 4
    assert 'is\n<span class="good">better</span>' in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [
        f"{good.tag}-against-{bad.tag}.html".replace(":", "-")
    ]


def test_a_regression_is_compared_by_its_errors(models: TrainedModels, home: Path, tmp_path: Path) -> None:
    model = models.load(SPEND)
    bad = spoiled(model, 5)
    fill(tmp_path / "log", bad, customers(N_ROWS, seed=99), target="spend")

    found = evaluated(tmp_path / "log", Contenders(bad, model))

    assert found.comparison.verdict == "better"
    assert found.comparison.because.startswith("rmse ")
    assert write_page(found, decide(found.comparison, "better"), tmp_path).read_text().count("<svg") == 4


def test_only_rows_that_neither_model_was_trained_on_count(good: LoadedModel, tmp_path: Path) -> None:
    folder, trained = tmp_path / "log", datetime.fromisoformat(good.metadata["trained_at"])
    frame = customers(200, seed=3)
    fill(folder, good, frame)
    fill(folder, good, frame, ago=(datetime.now(UTC) - trained).total_seconds() + 60)
    again = {**good.metadata, "lineage": {"window": {"until": (trained - timedelta(hours=2)).isoformat()}}}
    later = {**good.metadata, "lineage": {"window": {"until": (datetime.now(UTC) + timedelta(hours=2)).isoformat()}}}
    bad = spoiled(good, 10)

    assert len(evaluated(folder, Contenders(good, bad)).pairs) == 200
    assert trained_until(again) == trained - timedelta(hours=2)
    retrained = [replace(model, metadata=again) for model in (good, bad)]
    assert len(evaluated(folder, Contenders(*retrained)).pairs) == 400
    found = evaluated(folder, Contenders(good, replace(bad, metadata=later)))
    assert (len(found.pairs), found.comparison.verdict) == (0, "inconclusive")
    assert decide(found.comparison, "not worse").exit_code == 3


def test_rows_of_a_sample_count_as_many_as_they_stand_for(good: LoadedModel, tmp_path: Path) -> None:
    fill(tmp_path, good, customers(1500, seed=1))
    fill(tmp_path, good, customers(1500, seed=2), weight=10.0)

    found = evaluated(tmp_path, Contenders(good, spoiled(good, 10)), "city")

    assert sorted(set(found.pairs.weights)) == [1.0, 10.0]
    assert found.comparison.effect is not None
    right = found.pairs.is_right[1]
    assert found.comparison.effect.challenger == pytest.approx(np.average(right, weights=found.pairs.weights))


def test_rows_of_every_kind_come_back_from_the_log_as_the_model_saw_them(tmp_path: Path) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=1)
    write_predictions(tmp_path, CONTRACT, np.stack([ROW, GAPS]), np.stack([SCORES] * 2), [moment, moment])
    with opened(readable_place(tmp_path.as_uri()), last(WINDOW)) as records:
        table = pa.Table.from_batches(records.batches('SELECT * FROM predictions ORDER BY "feature:age" DESC'))
    (batch,) = table.combine_chunks().to_batches()

    assert columns_of(CONTRACT, batch.schema.names) == [FEATURE + name for name in CONTRACT.names]
    rows, is_allowed = coded(CONTRACT, batch)
    np.testing.assert_array_equal(rows, np.stack([ROW, GAPS]))
    assert is_allowed.tolist() == [True, True]

    # A version that knows other cities, needs an income, and bounds the age, would refuse these rows.
    for name, change in (("city", {"categories": ("Oslo",)}), ("age", {"hard_maximum": 40.0})):
        features = tuple(f.model_copy(update=change) if f.name == name else f for f in CONTRACT.features)
        assert coded(with_features(CONTRACT, features), batch)[1].tolist() == [False, True]
    features = tuple(f.model_copy(update={"may_be_missing": False}) for f in CONTRACT.features)
    assert coded(with_features(CONTRACT, features), batch)[1].tolist() == [True, False]


def test_what_the_log_does_not_have_in_clear_is_named(good: LoadedModel, tmp_path: Path) -> None:
    features = tuple(f.model_copy(update={"personal": f.name in ("age", "city")}) for f in good.contract.features)
    hidden = replace(good, contract=with_features(good.contract, features))
    fill(tmp_path, hidden, customers(100, seed=1))

    with pytest.raises(BadQuestionError, match="personal features age, city, only their hash or nothing: .*--data"):
        evaluated(tmp_path, Contenders(hidden, spoiled(hidden, 10)))
    features = (*good.contract.features, good.contract.features[0].model_copy(update={"name": "height"}))
    taller = replace(spoiled(good, 10), contract=with_features(good.contract, features))
    fill(tmp_path / "clear", good, customers(100, seed=1))
    with pytest.raises(BadQuestionError, match="no features height, which the model needs"):
        evaluated(tmp_path / "clear", Contenders(good, taller))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_labelled_file_takes_the_logs_place(good: LoadedModel, tmp_path: Path, suffix: str) -> None:
    frame, file = customers(N_ROWS, seed=99), tmp_path / f"held-out.{suffix}"
    frame.to_csv(file, index=False) if suffix == "csv" else frame.to_parquet(file)
    bad = spoiled(good, 10)

    found = evaluate_file(Contenders(bad, good), file, ["city"])

    np.testing.assert_allclose(found.pairs.challenger, good.engine.predict(coded_frame(good.contract, frame)))
    assert found.comparison.verdict == "better"
    assert len(found.pairs) == N_ROWS


def test_a_file_that_cannot_be_compared_on_is_refused_with_a_sentence(
    models: TrainedModels, good: LoadedModel, tmp_path: Path
) -> None:
    of, frame, file = Contenders(spoiled(good, 10), good), customers(60), tmp_path / "f.csv"
    source = Path(models.runs[CUSTOMERS].args[models.runs[CUSTOMERS].args.index("--data") + 1])
    for change, by, sentence in (
        (frame.drop(columns="age"), [], "no columns age"),
        (frame.assign(plan="gold"), [], "60 rows of .* have a plan that no answer can have"),
        (frame, ["label"], "a file has no label"),
        (frame, ["height"], "there is no column 'height'"),
        (frame.assign(age="old"), [], "strings as age, the model expects integer values"),
    ):
        change.to_csv(file, index=False)
        with pytest.raises(BadQuestionError, match=sentence):
            evaluate_file(of, file, by)
    with pytest.raises(BadQuestionError, match="was trained on .*, whose rows it has seen"):
        evaluate_file(of, source, [])


# --- the commands


@pytest.fixture(scope="module")
def two_versions(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A home with two versions of a model, the second being the first again; and a log of the first."""
    folder = tmp_path_factory.mktemp("two")
    home, first = folder / "home", models.tag(CUSTOMERS)
    source = models.directory(CUSTOMERS)
    shutil.copytree(source, home / "models" / first.replace(":", "/"))
    with home_in_use(home):
        stored = model_store.find(first)
        model = model_store.load(stored)

        def write(into: Path, semantic: str) -> None:
            ours = shutil.ignore_patterns(model_store.CONTRACT_FILE, model_store.MANIFEST_FILE, "model.yaml")
            shutil.copytree(source, into, ignore=ours, dirs_exist_ok=True)
            metadata = {**model.metadata, "version": semantic}
            (into / model_store.METADATA_FILE).write_text(json.dumps(metadata))

        second = model_store.save(CUSTOMERS, model.contract, stored.pipeline_hash, write, {})
        fill(folder / "log", model, customers(2100, seed=5))
        yield folder, first, second


def test_the_commands_compare_with_the_champion_of_the_rollout_file(
    two_versions: tuple[Path, str, str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, first, second = two_versions
    RolloutState(champion=first).save(folder / "home" / "rollout.yaml")
    where = ["--log-url", (folder / "log").as_uri()]

    assert cli.main(["evaluate", second, *where, "--html", str(folder / "pages"), "--by", "city"]) == 0
    assert capsys.readouterr().out.startswith("NOT WORSE: accuracy 0.")
    assert [path.suffix for path in (folder / "pages").iterdir()] == [".html"]
    assert cli.main(["evaluate", second, *where, "--need", "better"]) == 3
    assert capsys.readouterr().out.endswith("not what was asked for: better\n")
    assert cli.main(["evaluate", first, "--against", second, "--log-url", folder.as_uri()]) == 3
    assert "0 labelled rows, at least 2,000 are needed" in capsys.readouterr().out

    assert cli.main(["replay", second, *where, "--window", "1h"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{second} on the rows that {first} answered in the last 1h\n\nrows            2,100\n")
    assert "another label   0.00%" in out
    assert re.search(r"mean 0, p50 0, p90 0, p99 0, p99.9 0, largest 0$", out, re.MULTILINE)
    assert "the champion answers as the log has it, to 0\n" in out

    for arguments, sentence in (
        (["evaluate", first], "is the champion itself"),
        (["evaluate", "customers:9.9.9-aaaaaa"], "has no model customers:9.9.9-aaaaaa"),
        (["evaluate", second, "--metric", "rmse"], "a multiclass has no rmse: choose accuracy or roc_auc or log_loss"),
        (["replay", second, "--window", "1y"], "such as 90m, 24h or 7d"),
        (["replay", second, "--log-url", "null:"], "nothing is kept"),
    ):
        caplog.clear()
        assert cli.main([*arguments, *where] if "--log-url" not in arguments else arguments) == 2
        assert sentence in caplog.text


def raising(rows: np.ndarray) -> np.ndarray:
    raise RuntimeError("in no mood")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (raising, "RuntimeError: in no mood"),
        (lambda rows: np.full((len(rows), 3), np.nan), "no finite number"),
        (lambda rows: np.ones((len(rows) - 1, 3)), "scores for"),
    ],
)
def test_a_model_that_fails_on_the_rows_is_a_sentence_and_no_verdict(
    two_versions: tuple[Path, str, str],
    said: Callable[[np.ndarray], np.ndarray],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, first, second = two_versions
    RolloutState(champion=first).save(folder / "home" / "rollout.yaml")
    for engine in (OnnxEngine, SklearnEngine):
        monkeypatch.setattr(engine, "predict", lambda _, rows: said(rows))

    for arguments in (["evaluate", second], ["promote", second, "--needs", "better"], ["replay", second]):
        caplog.clear()
        assert cli.main([*arguments, "--log-url", (folder / "log").as_uri()]) == 2
        assert f"{first} fails on these rows (" in caplog.text
        assert sentence in caplog.text


def test_a_promotion_that_needs_a_proof_is_made_with_it_and_the_history_says_which_it_was(
    two_versions: tuple[Path, str, str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, first, second = two_versions
    home, where = folder / "home", ["--log-url", (folder / "log").as_uri()]
    (home / "rollout.yaml").unlink(missing_ok=True)
    changes.promote(home, first, "the first one")

    assert cli.main(["promote", second]) == 2
    assert "say why, for the history: --why TEXT; or have it proved: --needs better" in caplog.text
    assert cli.main(["promote", second, *where, "--needs", "better"]) == 3
    assert capsys.readouterr().out.endswith("not what was asked for: better\n")
    assert cli.main(["promote", second, "--log-url", folder.as_uri(), "--needs", "not-worse"]) == 3, "no rows"
    worse, load = spoiled(model_store.load(model_store.find(second)), 4), model_store.load
    with monkeypatch.context() as patched:
        patched.setattr(model_store, "load", lambda model: worse if model.tag == second else load(model))
        assert cli.main(["promote", second, *where, "--needs", "not-worse"]) == 1
        assert cli.main(["evaluate", second, *where]) == 1
        assert cli.main(["evaluate", first, "--against", second, *where, "--need", "better"]) == 0
    assert changes.current(home).champion == first
    assert len(deployments.history(home)) == 1
    assert caplog.messages[-1] == f"{first} stays"

    def meanwhile(*said: object, **named: object) -> Evaluation:
        """Somebody promotes while rows are compared."""
        found = evaluate_log(*said, **named)  # type: ignore[arg-type]
        RolloutState(champion="customers:9.9.9-aaaaaa").save(home / "rollout.yaml")
        return found

    with monkeypatch.context() as patched:
        patched.setattr("tabserve.lifecycle.evaluation.evaluate_log", meanwhile)
        assert cli.main(["promote", second, *where, "--needs", "not-worse"]) == 2
    assert f"{first} is not champion any more, customers:9.9.9-aaaaaa is" in caplog.text
    RolloutState(champion=first).save(home / "rollout.yaml")

    assert cli.main(["promote", second, *where, "--needs", "not-worse", "--why", "the weekly one"]) == 0
    assert capsys.readouterr().out.endswith(f"\n{second}\n")
    assert changes.current(home).champion == second
    assert deployments.history(home)[-1].why.startswith(
        "the weekly one; asked for not worse, found not worse: accuracy 0."
    )


def test_what_comparing_needs_and_is_not_installed_is_named(
    two_versions: tuple[Path, str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tabserve.lifecycle.evaluation_page")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "tabserve.statistics.drawing", raising=False)
    folder, first, second = two_versions
    where = ["--against", first, "--log-url", (folder / "log").as_uri(), "--html", str(folder / "none")]

    assert cli.main(["evaluate", second, *where]) == 2
    assert "comparing models needs matplotlib, which comes with the extras `training` and `mon" in caplog.text


# --- replay


def replayed(folder: Path, of: Contenders) -> Replay:
    return replay(of, readable_place(folder.as_uri()), last(WINDOW))


def test_the_same_model_says_the_same_of_all_that_it_answered(
    models: TrainedModels, home: Path, tmp_path: Path
) -> None:
    for name, target in ((CUSTOMERS, "plan"), (SPEND, "spend")):
        model = models.load(name)
        fill(tmp_path / name, model, customers(1500, seed=4), target=target)

        with home_in_use(models.home):
            found = replayed(tmp_path / name, Contenders(model, model))

        assert (found.n_rows, found.changed, found.largest, found.off) == (1500, 0, 0, 0), name
        assert max(found.divergence.values()) < 1e-4  # a row on the edge of a bin may move by its last digit


def test_what_another_model_would_have_said_is_counted_row_by_row(
    good: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "SAMPLE", 500)
    bad, frame = spoiled(good, 10), customers(N_ROWS, seed=4)
    ids = fill(tmp_path, good, frame[:2000])
    ids += fill(tmp_path, good, frame[2000:], weight=5.0)
    weights = np.where(np.arange(N_ROWS) < 2000, 1.0, 5.0)
    rows = coded_frame(good.contract, frame)
    said, now = good.engine.predict(rows), bad.engine.predict(rows)
    change = np.abs(now - said).max(axis=1)

    found = replayed(tmp_path, Contenders(good, bad))

    assert (found.n_rows, found.weight) == (N_ROWS, weights.sum())
    assert found.changed == pytest.approx(np.average(said.argmax(axis=1) != now.argmax(axis=1), weights=weights))
    assert found.largest == pytest.approx(change.max())
    assert change[ids.index(found.largest_id)] == change.max()
    assert found.total / found.weight == pytest.approx(np.average(change, weights=weights))
    assert found.sample.quantiles()[0.5] == 0  # one of ten changes
    assert 0 < found.sample.quantiles()[0.99] <= found.largest
    assert all(value > 0.001 for value in found.divergence.values())
    assert found.off == 0
