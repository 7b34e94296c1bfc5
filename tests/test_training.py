"""train.py as a user runs it: the real command, a real model store."""

import json
import os
import signal
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, TrainedModels, home_in_use, start_training, train
from tables import customers, write_customers

import train as train_command
from tabserve import model_store
from tabserve.contract import Contract
from tabserve.reference import Reference


def metadata_of(models: TrainedModels, name: str) -> dict:
    return json.loads((models.directory(name) / "metadata.json").read_text())


def small_table(path: Path, seed: int = 0) -> Path:
    """120 rows that train in a moment."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, 120))
    pd.DataFrame({"a": a, "b": b, "y": (a + b > 0).astype(int)}).to_csv(path, index=False)
    return path


def versions(home: Path, name: str) -> list[str]:
    with home_in_use(home):
        return [model.tag.partition(":")[2] for model in model_store.stored_models() if model.name == name]


def saved(home: Path, output: str) -> Path:
    """The folder of the model whose tag train.py wrote."""
    return home / "models" / output.strip().replace(":", "/")


def test_the_built_in_model_is_as_good_as_the_design_says(models: TrainedModels) -> None:
    metadata = metadata_of(models, BUILT_IN)

    assert metadata["test_metrics"]["accuracy"] == pytest.approx(0.956, abs=0.01)
    assert metadata["test_metrics"]["roc_auc"] == pytest.approx(0.99, abs=0.01)
    assert metadata["baseline_metrics"]["accuracy"] == pytest.approx(0.632, abs=0.01)
    assert metadata["engine"]["engine"] == "onnxruntime"
    assert (metadata["n_train"], metadata["n_test"], metadata["n_features"]) == (455, 114, 30)


def test_the_tag_is_the_last_line_and_all_that_stands_on_standard_output(models: TrainedModels) -> None:
    for name, run in models.runs.items():
        assert run.stdout.startswith(f"{name}:1.0.0-")
        assert run.stdout.count("\n") == 1


def test_progress_class_balance_and_the_baseline_are_told_on_the_way(models: TrainedModels) -> None:
    told = models.runs[CUSTOMERS].stderr

    assert "class balance: {'basic': " in told
    for number in range(1, 6):
        assert f"fold {number} of 5: accuracy" in told
    assert "baseline: accuracy" in told
    assert "one row takes" in told


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_the_artifact_holds_all_that_serving_monitoring_and_people_need(models: TrainedModels, name: str) -> None:
    directory = models.directory(name)
    metadata = metadata_of(models, name)
    curves = {"roc.png", "precision_recall.png", "calibration.png", "confusion_matrix.png"}
    residuals = {"predicted_against_actual.png", "residuals.png"}

    files = {path.name for path in directory.iterdir()}
    plots = {path.name for path in (directory / "plots").iterdir()}

    assert files == {
        *("model.yaml", "manifest.json", "metadata.json", "contract.json", "examples.json", "pipeline.pkl"),
        *("compiled.json", "estimator.onnx", "reference.json", "reference.parquet", "MODEL_CARD.md", "plots"),
    }
    assert plots == {"feature_importance.png", *(residuals if name == SPEND else curves)}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (directory / "plots").iterdir())
    for key in (
        *("model_class", "model_config", "feature_names", "n_features", "dataset", "n_train", "n_test", "cv"),
        *("train_duration_s", "train_metrics", "test_metrics", "trained_at", "known_limitations", "seed", "git_commit"),
        *("environment", "class_balance", "latency", "baseline_metrics"),
    ):
        assert key in metadata, key
    expected = (
        {"mae", "rmse", "r2"}
        if name == SPEND
        else {
            *("accuracy", "precision", "recall", "f1_macro", "roc_auc", "average_precision", "log_loss", "brier"),
        }
    )
    for part in ("train_metrics", "test_metrics", "baseline_metrics", "cv"):
        assert set(metadata[part]) == expected


def test_the_model_card_says_what_the_model_is_how_good_it_is_and_where_it_ends(models: TrainedModels) -> None:
    card = (models.directory(CUSTOMERS) / "MODEL_CARD.md").read_text()
    metadata = metadata_of(models, CUSTOMERS)

    assert card.startswith("# customers 1.0.0\n")
    assert f"| accuracy | {metadata['baseline_metrics']['accuracy']:.4g} |" in card
    assert "| city | category | Bergen, Oslo, Tromsø | yes |" in card
    assert "## Known limitations" in card
    for plot in ("roc", "calibration", "feature_importance"):
        assert f"](plots/{plot}.png)" in card


def test_the_reference_of_predictions_is_out_of_fold(models: TrainedModels) -> None:
    """Predictions of rows that the model was fitted on are far surer than those of new rows."""
    directory = models.directory(CUSTOMERS)
    sample = pd.read_parquet(directory / "reference.parquet")
    reference = Reference.load(directory / "reference.json")
    metadata = metadata_of(models, CUSTOMERS)

    accuracy = (sample["prediction"] == sample["target"]).mean()

    assert accuracy == pytest.approx(metadata["cv"]["accuracy"]["mean"], abs=0.01)
    assert accuracy < metadata["train_metrics"]["accuracy"] - 0.05
    assert reference.n_rows == metadata["n_train"] == len(sample)
    assert set(reference.features) == set(metadata["feature_names"])
    assert set(reference.predictions) == {"basic", "plus", "pro"}


def test_the_pipeline_was_fitted_on_the_features_of_the_contract_in_order(models: TrainedModels) -> None:
    from tabserve.engine import load_pipeline

    for name in models.runs:
        pipeline = load_pipeline(models.directory(name))
        contract = Contract.load(models.directory(name) / "contract.json")

        assert tuple(pipeline.feature_names_in_) == contract.names
        assert list(pipeline.named_steps) == ["preprocessor", "model"]


def test_a_missed_gate_saves_nothing_and_says_by_how_much(empty_home: Path, tmp_path: Path, capsys, caplog) -> None:
    data = str(small_table(tmp_path / "t.csv"))

    assert train_command.main(["--data", data, "--target", "y", "--min-accuracy", "1.1"]) == 1
    assert capsys.readouterr().out == ""
    assert "not good enough, nothing was saved: accuracy is" in caplog.text
    assert "--min-accuracy asks for at least 1.1: missed by" in caplog.text
    assert versions(empty_home, "t") == []


def test_a_target_that_nothing_predicts_does_not_beat_the_baseline(empty_home: Path, tmp_path: Path, caplog) -> None:
    random = np.random.default_rng(5)
    frame = pd.DataFrame({"a": random.normal(size=200), "y": random.integers(0, 2, 200)})
    frame.to_csv(tmp_path / "noise.csv", index=False)

    assert train_command.main(["--data", str(tmp_path / "noise.csv"), "--target", "y"]) == 1
    assert "the baseline's log_loss asks for less than" in caplog.text


def test_bad_input_is_exit_code_2_with_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    data = str(write_customers(tmp_path / "c.csv"))

    run = train(tmp_path / "home", "--data", data, "--target", "plan")

    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith('bad input: column "customer" is unique per row')
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--data t.csv", "--data needs --target COLUMN"),
        ("--data t.csv --target nope", "--target names ['nope']"),
        ("--data t.csv --target y --name Not-A-Name", "expected at most 40 lower case letters"),
        ("--data t.csv --target y --rules none.yaml", "the rules none.yaml cannot be read"),
        ("--target plan", "the built-in table takes none"),
        ("--data t.csv --target y --max-mae 3", "--max-mae: a binary has no such metric"),
        ("--estimator nowhere:at_all", "No module named 'nowhere'"),
        ("--estimator json", "--estimator takes module:function"),
        ("--estimator json:nothing", "module 'json' has no attribute 'nothing'"),
        ("--estimator tempfile:gettempdir", "expected a scikit-learn Pipeline with steps, got str"),
        ("--estimator sys:exit", "does not work: SystemExit"),
        ("--data t.csv --target y --min-roc-auc nan", "expected a finite number"),
        ("--limitation \x07", "expected a sentence in one line"),
        ("--data t.csv --target y --name " + "x" * 41, "expected at most 40 lower case letters"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_bad_input(
    empty_home: Path, tmp_path: Path, monkeypatch, capsys, caplog, arguments: str, sentence: str
) -> None:
    small_table(tmp_path / "t.csv")
    monkeypatch.chdir(tmp_path)

    try:
        code = train_command.main(arguments.split())
    except SystemExit as exit_by_the_parser:
        code = exit_by_the_parser.code

    assert code == 2
    assert sentence in capsys.readouterr().err + caplog.text


OWN_PIPELINE = """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    def doubled(frame):
        return frame * 2

    def make():
        return Pipeline([("preprocessor", FunctionTransformer(doubled)), ("model", LogisticRegression(C={c}))])
    """


def test_versions_tell_a_change_of_the_contract_the_pipeline_or_only_the_data(tmp_path: Path) -> None:
    home, own = tmp_path / "home", tmp_path / "own.py"
    data = small_table(tmp_path / "t.csv")
    own.write_text(textwrap.dedent(OWN_PIPELINE.format(c=1.0)))
    options = ("--data", str(data), "--target", "y", "--estimator", "own:make")

    def trained(*more: str) -> str:
        run = train(home, *options, *more, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip().partition(":")[2].partition("-")[0]

    assert trained() == "1.0.0"
    assert trained() == "1.0.1"
    small_table(data, seed=1)
    assert trained() == "1.0.2"
    own.write_text(textwrap.dedent(OWN_PIPELINE.format(c=0.5)))
    assert trained() == "1.1.0"
    (tmp_path / "rules.yaml").write_text("features: {a: {min: -100}}")
    assert trained("--rules", str(tmp_path / "rules.yaml")) == "2.0.0"
    assert len(versions(home, "t")) == 5


def test_a_users_own_pipeline_travels_with_its_code(tmp_path: Path) -> None:
    """The function of the transformer is known only to the user's file, which is gone when the model is loaded."""
    home, own = tmp_path / "home", tmp_path / "own.py"
    own.write_text(textwrap.dedent(OWN_PIPELINE.format(c=1.0)))
    data = str(small_table(tmp_path / "t.csv"))
    run = train(home, "--data", data, "--target", "y", "--estimator", "own:make", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    own.unlink()

    with home_in_use(home):
        model = model_store.load(model_store.find(None))

    assert model.engine.name == "scikit-learn"
    assert "LogisticRegression is not among the models that are compiled" in model.metadata["engine"]["reason"]
    assert model.engine.predict(np.array([[3.0, 3.0]]))[0].argmax() == 1


def test_a_users_modules_travel_together_and_what_they_print_is_not_the_tag(tmp_path: Path) -> None:
    home, package = tmp_path / "home", tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "steps.py").write_text("def doubled(frame):\n    return frame * 2\n")
    (package / "model.py").write_text(
        textwrap.dedent(OWN_PIPELINE.format(c=1.0)).replace("def doubled(frame):\n    return frame * 2\n", "")
        + "\nfrom mine.steps import doubled\nprint('hello')\n"
    )
    data = str(small_table(tmp_path / "t.csv"))

    run = train(home, "--data", data, "--target", "y", "--estimator", "mine.model:make", cwd=tmp_path)

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("t:1.0.0-")
    with home_in_use(home):
        assert model_store.load(model_store.find(None)).engine.predict(np.array([[3.0, 3.0]]))[0].argmax() == 1


def test_a_pipeline_that_fails_on_rows_that_the_contract_allows_is_bad_input(tmp_path: Path) -> None:
    """A rule allows missing values, which this pipeline does not take: each such row would be a 500."""
    (tmp_path / "own.py").write_text(textwrap.dedent(OWN_PIPELINE.format(c=1.0)))
    (tmp_path / "rules.yaml").write_text("features: {a: {missing: true}}")
    arguments = ("--data", str(small_table(tmp_path / "t.csv")), "--target", "y", "--estimator", "own:make")

    run = train(tmp_path / "home", *arguments, "--rules", str(tmp_path / "rules.yaml"), cwd=tmp_path)

    assert run.returncode == 2
    assert "the pipeline fails on rows that the contract allows" in run.stderr
    assert "Traceback" not in run.stderr


def test_personal_columns_are_in_no_example_and_no_sample(empty_home: Path, tmp_path: Path, capsys) -> None:
    frame = customers(200).drop(columns=["spend", "since", "customer"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "rules.yaml").write_text("features: {income: {personal: true, min: 0.5}, city: {personal: true}}")
    arguments = ("--data", str(tmp_path / "t.csv"), "--target", "plan", "--rules", str(tmp_path / "rules.yaml"))

    assert train_command.main([*arguments]) == 0
    directory = saved(empty_home, capsys.readouterr().out)
    examples = json.loads((directory / "examples.json").read_text())["instances"]
    incomes = set(frame["income"].dropna())
    assert not incomes & {example[1] for example in examples}
    assert {example[2] for example in examples} == {"Bergen"}
    extremes = {str(frame["income"].min()), str(frame["income"].max())}
    assert not [value for value in extremes if value in (directory / "contract.json").read_text()]
    assert "| income | number | personal, not shown |" in (directory / "MODEL_CARD.md").read_text()
    assert not {"feature:income", "feature:city"} & set(pd.read_parquet(directory / "reference.parquet").columns)


def test_the_metadata_keeps_the_time_split_and_what_it_is_not_for(empty_home: Path, tmp_path: Path, capsys) -> None:
    customers(200).drop(columns="spend").to_csv(tmp_path / "c.csv", index=False)
    table = ["--data", str(tmp_path / "c.csv"), "--target", "plan"]

    said = ["--limitation", "Not for customers of a bank.", "--limitation", "Not for children."]

    assert train_command.main([*table, "--id-columns", "customer", "--time-column", "since", *said]) == 0
    directory = saved(empty_home, capsys.readouterr().out)
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["split"] == "time"
    assert metadata["known_limitations"][:2] == metadata["arguments"]["limitations"] == said[1::2]
    assert "\n- Not for customers of a bank.\n- Not for children.\n" in (directory / "MODEL_CARD.md").read_text()
    assert "since" not in Contract.load(directory / "contract.json").names


def test_a_model_that_cannot_be_written_is_another_exit_code_than_one_that_is_not_good_enough(
    empty_home: Path, tmp_path: Path, caplog
) -> None:
    (empty_home / "models" / "t").write_text("a file where the folder of the model's versions should be")

    assert train_command.main(["--data", str(small_table(tmp_path / "t.csv")), "--target", "y"]) == 3
    assert caplog.messages[-1].startswith("nothing was saved: ")


def test_a_training_that_is_killed_leaves_a_store_that_works(tmp_path: Path) -> None:
    """Killed as soon as anything of the model is in the home, which is in the middle of saving."""
    home = tmp_path / "home"
    process = start_training(home, "--data", str(small_table(tmp_path / "t.csv")), "--target", "y")
    deadline = time.monotonic() + 120
    while not list((home / "tmp").glob("tabserve-*/files/*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)

    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    assert versions(home, "t") == []
    again = train(home, "--data", str(tmp_path / "t.csv"), "--target", "y")
    assert again.returncode == 0, again.stderr
    assert len(versions(home, "t")) == 1


def test_trainings_at_the_same_time_make_different_versions(tmp_path: Path) -> None:
    home, data = tmp_path / "home", str(small_table(tmp_path / "t.csv"))

    both = [start_training(home, "--data", data, "--target", "y") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err

    assert sorted(version.partition("-")[0] for version in versions(home, "t")) == ["1.0.0", "1.0.1"]
