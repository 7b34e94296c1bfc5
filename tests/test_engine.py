import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import BUILT_IN, CUSTOMERS, ROOT, SPEND, TrainedModels
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from tables import customers

from tabserve.contract import LARGEST_NUMBER, Contract, Rows
from tabserve.engine import OnnxEngine, SklearnEngine, load_pipeline
from tabserve.training.columns import Rule
from tabserve.training.compilation import compare, compile_model, probe_rows
from tabserve.training.evaluation import split
from tabserve.training.pipelines import default_pipeline
from tabserve.training.table import Columns, Source, Table, builtin_table, prepare


def customers_table() -> Table:
    frame = customers().drop(columns="spend").convert_dtypes()
    return prepare(frame, Columns("plan", ids=("customer", "since")), Source("customers", "made", "0"))


def spend_table() -> Table:
    frame = customers().drop(columns=["plan", "customer", "since"]).convert_dtypes()
    return prepare(frame, Columns("spend"), Source("spend", "made", "0"))


TABLES = {BUILT_IN: builtin_table, CUSTOMERS: customers_table, SPEND: spend_table}


def random_rows(contract: Contract, n_rows: int, seed: int = 3) -> Rows:
    """Valid rows, also beyond the ranges and combinations of the training rows."""
    random = np.random.default_rng(seed)
    columns = []
    for feature in contract.features:
        if feature.kind == "category":
            column = random.integers(0, len(feature.categories), n_rows).astype(float)
        elif feature.kind == "boolean":
            column = random.integers(0, 2, n_rows).astype(float)
        else:
            low, high = float(feature.minimum or 0), float(feature.maximum or 1)
            column = random.uniform(low - (high - low) / 2, high + (high - low) / 2, n_rows)
            column = np.round(column) if feature.kind == "integer" else column
        if feature.may_be_missing:
            column[random.random(n_rows) < 0.2] = np.nan
        columns.append(column)
    return np.column_stack(columns)


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_the_served_engine_says_what_scikit_learn_says_on_every_test_row_alone_and_in_a_batch(
    models: TrainedModels, name: str
) -> None:
    model = models.load(name)
    table = TABLES[name]()
    test = split(table.contract, table.target, None, seed=42).test
    rows = table.rows[test]
    in_sklearn = SklearnEngine(load_pipeline(models.directory(name)), model.contract)

    expected = in_sklearn.predict(rows)
    batch = model.engine.predict(rows)
    alone = np.concatenate([model.engine.predict(rows[row : row + 1]) for row in range(len(rows))])

    assert model.engine.name == "onnxruntime"
    np.testing.assert_allclose(batch, expected, rtol=1e-6 if name == SPEND else 0, atol=1e-6)
    np.testing.assert_array_equal(alone, batch)


def test_a_model_that_multiplies_matrices_says_the_same_alone_and_in_a_batch_to_the_twelfth_digit() -> None:
    """The order in which a BLAS adds depends on the size of the batch; that of trees does not."""
    table = builtin_table()
    steps = [("preprocessor", StandardScaler()), ("model", LogisticRegression(max_iter=500))]
    pipeline = Pipeline(steps).fit(table.contract.to_frame(table.rows), table.target)
    engine = SklearnEngine(pipeline, table.contract)

    batch = engine.predict(table.rows)
    alone = np.concatenate([engine.predict(table.rows[row : row + 1]) for row in range(len(table.rows))])

    np.testing.assert_allclose(alone, batch, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS])
def test_probabilities_sum_to_one(models: TrainedModels, name: str) -> None:
    model = models.load(name)

    probabilities = model.engine.predict(random_rows(model.contract, 500))

    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_the_compiled_model_agrees_on_rows_that_training_never_saw(models: TrainedModels, name: str) -> None:
    model = models.load(name)
    rows = random_rows(model.contract, 2000)

    expected = SklearnEngine(load_pipeline(models.directory(name)), model.contract).predict(rows)

    np.testing.assert_allclose(model.engine.predict(rows), expected, rtol=1e-6 if name == SPEND else 0, atol=1e-6)


class Clipped(StandardScaler):
    """Looks like a scaler, and does something else far out."""

    def transform(self, X, copy=None):  # noqa: N803
        return np.clip(super().transform(X, copy), -5, 5)


class OwnForest(RandomForestClassifier):
    pass


def numbers_pipeline(*steps: object) -> Pipeline:
    forest = RandomForestClassifier(20, max_depth=5, random_state=0)
    return Pipeline([*((f"step{number}", step) for number, step in enumerate(steps)), ("model", forest)])


@pytest.mark.parametrize(
    "pipeline",
    [
        numbers_pipeline(),
        numbers_pipeline(StandardScaler(with_mean=False)),
        numbers_pipeline(RobustScaler(), MinMaxScaler()),
        numbers_pipeline(MaxAbsScaler(), FunctionTransformer(), "passthrough"),
        numbers_pipeline(Pipeline([("impute", SimpleImputer()), ("scale", StandardScaler())])),
        numbers_pipeline(
            ColumnTransformer(
                [
                    ("a", StandardScaler(), ["mean area", "mean radius"]),
                    ("b", "drop", [3]),
                    ("c", "passthrough", [1, 2]),
                ]
            )
        ),
    ],
    ids=["none", "scale only", "robust, min-max", "identities", "nested", "columns"],
)
def test_known_preprocessing_of_numbers_is_compiled(pipeline: Pipeline) -> None:
    table = builtin_table()
    pipeline.fit(table.contract.to_frame(table.rows), table.target)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert compiled.compiled.parity.engine == "onnxruntime", compiled.compiled.parity.reason


@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(sparse_output=False),
        OneHotEncoder(sparse_output=False, drop="first"),
        OrdinalEncoder(encoded_missing_value=-1),
        OrdinalEncoder(),
    ],
    ids=["one-hot", "one-hot with a dropped category", "ordinal, missing is -1", "ordinal"],
)
def test_known_encodings_of_categories_are_compiled(encoder: object) -> None:
    table = customers_table()
    numbers = ["age", "income", "member", "visits"]
    preprocessor = ColumnTransformer([("categories", encoder, ["city"]), ("numbers", SimpleImputer(), numbers)])
    pipeline = Pipeline([("preprocessor", preprocessor), ("model", HistGradientBoostingClassifier(max_iter=20))])
    pipeline.fit(table.contract.to_frame(table.rows), table.target)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert compiled.compiled.parity.engine == "onnxruntime", compiled.compiled.parity.reason


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        (numbers_pipeline(PolynomialFeatures(1)), "PolynomialFeatures is not among the preprocessing steps"),
        (numbers_pipeline(Clipped()), "Clipped is not scikit-learn's own"),
        (numbers_pipeline(SimpleImputer(missing_values=-1)), "compiled only where NaN is what is missing"),
        (Pipeline([("model", LogisticRegression(max_iter=100))]), "not among the models that are compiled"),
        (Pipeline([("model", OwnForest(5, random_state=0))]), "OwnForest is not among the models"),
    ],
    ids=["unknown step", "subclass of a step", "other missing value", "no trees", "subclass of a model"],
)
def test_a_model_that_cannot_be_compiled_faithfully_is_served_by_scikit_learn_and_the_verdict_says_why(
    pipeline: Pipeline, reason: str
) -> None:
    table = builtin_table()
    pipeline.fit(table.contract.to_frame(table.rows), table.target)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert compiled.onnx_model is None
    assert compiled.compiled.parity.engine == "scikit-learn"
    assert reason in compiled.compiled.parity.reason


def test_gradient_boosting_is_exact_between_numbers_that_float32_cannot_tell_apart() -> None:
    """Epoch seconds: in float32 the 2000 values of the table are 17 numbers."""
    times = 1_700_000_000 + 1000 * np.arange(2000)
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"ts": times, "noise": random.normal(size=2000), "y": (times // 40000) % 2})
    table = prepare(frame.convert_dtypes(), Columns("y"), Source("times", "made", "0"))
    pipeline = default_pipeline(table.contract).fit(table.contract.to_frame(table.rows), table.target)
    rows = np.column_stack([random.integers(times[0], times[-1], 20000), random.normal(size=20000)]).astype(float)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert compiled.onnx_model is not None
    assert compiled.compiled.preprocessing is not None
    found = OnnxEngine(compiled.compiled.preprocessing, compiled.onnx_model, is_classifier=True).predict(rows)
    expected = SklearnEngine(pipeline, table.contract).predict(rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_missing_values_that_are_allowed_and_not_in_the_table_are_probed() -> None:
    """A forest that saw none sends them to its larger side, which ONNX does not."""
    frame = customers(400)[["age", "visits", "member", "plan"]].dropna().convert_dtypes()
    table = prepare(frame, Columns("plan"), Source("c", "made", "0"), rules={"age": Rule(missing=True)})
    pipeline = Pipeline([("preprocessor", "passthrough"), ("model", RandomForestClassifier(30, random_state=0))])
    pipeline.fit(table.contract.to_frame(table.rows), table.target)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert not np.isnan(table.rows).any()
    assert np.isnan(probe_rows(table.contract, table.rows)).any()
    assert compiled.compiled.parity.engine == "scikit-learn"
    assert "does not agree" in compiled.compiled.parity.reason


def test_probes_keep_to_the_bounds_of_the_contract() -> None:
    frame = pd.DataFrame(
        {"huge": np.linspace(-2e38, 2e38, 100), "n": np.arange(100), "y": [0, 1] * 50}
    ).convert_dtypes()
    table = prepare(frame, Columns("y"), Source("t", "made", "0"), rules={"n": Rule(min=-0.5, max=120)})

    probes = probe_rows(table.contract, table.rows)

    assert np.abs(probes[:, 0]).max() <= LARGEST_NUMBER
    assert set(probes[:, 1]) <= set(range(121))


@pytest.mark.parametrize("n_trees", [30, 100])
def test_the_votes_of_a_forest_are_probabilities(n_trees: int) -> None:
    """Thirty times a thirtieth is more than one in float32."""
    table = builtin_table()
    pipeline = Pipeline([("preprocessor", "passthrough"), ("model", RandomForestClassifier(n_trees, random_state=0))])
    pipeline.fit(table.contract.to_frame(table.rows), table.target)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert compiled.onnx_model is not None
    assert compiled.compiled.preprocessing is not None
    engine = OnnxEngine(compiled.compiled.preprocessing, compiled.onnx_model, is_classifier=True)
    found = engine.predict(table.rows)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_category_that_an_encoder_knows_and_the_table_does_not_is_compiled() -> None:
    table = customers_table()
    known = [["Bergen", "Oslo", "Tromsø", "never", np.nan]]
    encoder = OneHotEncoder(categories=known, sparse_output=False)
    preprocessor = ColumnTransformer([("city", encoder, ["city"])], remainder=SimpleImputer())
    pipeline = Pipeline([("preprocessor", preprocessor), ("model", RandomForestClassifier(10, random_state=0))])
    pipeline.fit(table.contract.to_frame(table.rows), table.target)

    compiled = compile_model(pipeline, table.contract, table.rows)

    assert compiled.compiled.parity.engine == "onnxruntime", compiled.compiled.parity.reason


def test_engines_that_differ_by_more_than_a_millionth_or_in_a_label_do_not_agree() -> None:
    scores = np.array([[0.2, 0.8], [0.5, 0.5]])

    assert compare(scores, scores + 9e-7, n_table=2).engine == "onnxruntime"
    assert compare(scores, scores + 2e-6, n_table=2).engine == "scikit-learn"
    tie_broken = scores + np.array([[0, 0], [0, 1e-9]])
    assert compare(scores, tie_broken, n_table=2).engine == "scikit-learn"
    assert compare(scores, tie_broken, n_table=1).engine == "onnxruntime"
    assert compare(np.array([1e6]), np.array([1e6 + 0.5]), n_table=1).engine == "onnxruntime"
    assert compare(np.array([1e6]), np.array([1e6 + 2.0]), n_table=1).engine == "scikit-learn"
    assert compare(np.array([1.0]), np.array([np.nan]), n_table=1).engine == "scikit-learn"


def test_the_engine_of_onnx_uses_one_thread(models: TrainedModels) -> None:
    model = models.load(BUILT_IN)

    assert isinstance(model.engine, OnnxEngine)
    options = model.engine._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_nothing_is_written_or_sent_for_the_makers_of_the_engine(models: TrainedModels, tmp_path: Path) -> None:
    """ONNX Runtime keeps an identifier of the device in the home, and what is not sent yet among temporary files."""
    code = "import sys, tabserve, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    subprocess.run(
        [sys.executable, "-c", code, str(models.directory(BUILT_IN) / "estimator.onnx")], env=variables, check=True
    )

    assert list(tmp_path.rglob("*")) == []
