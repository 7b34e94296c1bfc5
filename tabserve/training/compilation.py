"""A fitted pipeline to array arithmetic and ONNX, and the proof that both say the same.

Only ensembles of trees are compiled. All that a tree does with a number is to compare it, so float32 can be exact:
scikit-learn's own trees round their input to float32, as ONNX does; those of histogram gradient boosting compare in
float64, and get the number's rank among their thresholds instead of the number.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from tabserve.contract import Contract, Feature, Rows
from tabserve.engine import LARGEST_DIFFERENCE, Compiled, Engine, OnnxEngine, Parity, Scores, SklearnEngine
from tabserve.preprocessing import Block, Preprocessing, Step
from tabserve.training.array_steps import NotCompilableError, Part, compile_preprocessing
from tabserve.training.columns import BadTableError

PROBES = 2000  # rows beside those of the table on which both have to agree
RANGES_BEYOND = 3  # how far outside of the range of the table probes go, in ranges

FLOAT32_TREES = (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
FLOAT64_TREES = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)


@dataclass(frozen=True)
class CompiledModel:
    """What compiling gave: `onnx_model` is None where scikit-learn serves, and `compiled.parity` says why."""

    compiled: Compiled
    onnx_model: bytes | None

    def engine(self, pipeline: Pipeline, contract: Contract) -> Engine:
        """The engine that will serve, of the fitted pipeline that this was compiled from."""
        preprocessing = self.compiled.preprocessing
        if self.onnx_model is None or preprocessing is None:
            return SklearnEngine(pipeline, contract)
        return OnnxEngine(preprocessing, self.onnx_model, is_classifier=contract.task != "regression")


def compile_model(pipeline: Pipeline, contract: Contract, rows: Rows, *, engine: str = "auto") -> CompiledModel:
    """Compiles a pipeline whose last step is the model, and compares it with scikit-learn on `rows` and on probes.

    Args:
        pipeline: fitted on `contract.to_frame(...)`.
        rows: every training and test row, shape (n, features).
        engine: "scikit-learn" to leave it there.

    Raises:
        BadTableError: where the pipeline itself fails on a row that the contract allows.
    """
    rows = np.vstack([rows, probe_rows(contract, rows)])
    try:
        expected = SklearnEngine(pipeline, contract).predict(rows)
    except Exception as error:
        raise BadTableError(
            "the pipeline fails on rows that the contract allows (values beyond the range of the table, each category, "
            f"missing values where they may be): {first_line(error)}"
        ) from error
    if engine != "auto":
        return _kept("asked for by --engine")
    try:
        preprocessing, onnx_model = _convert(pipeline, contract, len(rows[0]))
        found = OnnxEngine(preprocessing, onnx_model, is_classifier=contract.task != "regression").predict(rows)
    except NotCompilableError as error:
        return _kept(str(error))
    except Exception as error:  # noqa: BLE001  # whatever ONNX does not know or load, scikit-learn serves
        return _kept(f"ONNX does not take {type(pipeline[-1]).__name__}: {first_line(error)}")
    parity = compare(expected, found, n_table=len(rows) - PROBES)
    if parity.engine == "scikit-learn":
        return CompiledModel(Compiled(parity=parity), None)
    return CompiledModel(Compiled(parity=parity, preprocessing=preprocessing), onnx_model)


def compare(expected: Scores, found: Scores, *, n_table: int) -> Parity:
    """The verdict on two engines' scores for the same rows: no score differs by more than 1e-6, and no label.

    Labels are compared on the first `n_table` rows, those of the table. Beyond, where scores agree, labels can differ
    only where two classes are as good as equal, as after an even vote of a forest.
    """
    if expected.shape != found.shape:
        return Parity(
            engine="scikit-learn", reason=f"ONNX answers in shape {found.shape}, scikit-learn in {expected.shape}"
        )
    scale = np.maximum(1.0, np.abs(expected)) if expected.ndim == 1 else 1.0
    difference = float(np.max(np.abs(expected - found) / scale))
    labels = 0
    if expected.ndim == 2:
        labels = int((expected[:n_table].argmax(axis=1) != found[:n_table].argmax(axis=1)).sum())
    agrees = difference <= LARGEST_DIFFERENCE and labels == 0
    return Parity(
        engine="onnxruntime" if agrees else "scikit-learn",
        reason=(
            f"ONNX {'agrees' if agrees else 'does not agree'} with scikit-learn on {n_table} rows "
            f"and {len(expected) - n_table} probes: "
            f"largest difference {difference:.1e} (allowed {LARGEST_DIFFERENCE:.0e}), {labels} labels differ"
        ),
        rows_compared=len(expected),
        largest_difference=difference if np.isfinite(difference) else None,
        labels_that_differ=labels,
    )


def probe_rows(contract: Contract, rows: Rows) -> Rows:
    """Rows that the contract allows and the table may not have, shape (2000, features).

    New combinations of the table's values, values within and beyond its range, every category, and missing values
    wherever they are allowed, whether or not the table has any.
    """
    random = np.random.default_rng(0)
    columns = [_probes(feature, rows[:, position], random) for position, feature in enumerate(contract.features)]
    return np.column_stack(columns)


def _probes(feature: Feature, column: np.ndarray[Any, Any], random: np.random.Generator) -> np.ndarray[Any, Any]:
    if feature.kind == "category":
        probes = random.integers(0, len(feature.categories), PROBES).astype(np.float64)
    elif feature.kind == "boolean":
        probes = random.integers(0, 2, PROBES).astype(np.float64)
    else:
        present = column[~np.isnan(column)]
        low, high = present.min(), present.max()
        beyond = RANGES_BEYOND * (high - low)
        choices = [
            random.choice(present, PROBES),
            random.uniform(low, high, PROBES),
            random.uniform(low - beyond, high + beyond, PROBES),
        ]
        probes = np.choose(random.integers(0, 3, PROBES), choices)
        probes = feature.clip(probes)
    if feature.may_be_missing:
        probes[random.random(PROBES) < 0.2] = np.nan
    return probes


def _kept(reason: str) -> CompiledModel:
    return CompiledModel(Compiled(parity=Parity(engine="scikit-learn", reason=reason)), None)


def _convert(pipeline: Pipeline, contract: Contract, n_features: int) -> tuple[Preprocessing, bytes]:
    # Here and not above: this import takes seconds, and only this function needs it.
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    model = pipeline[-1]
    if type(model) not in FLOAT32_TREES + FLOAT64_TREES:  # a subclass may do anything
        raise NotCompilableError(f"{type(model).__name__} is not among the models that are compiled, which are trees")
    parts = compile_preprocessing(pipeline[:-1], contract)
    if type(model) in FLOAT64_TREES:
        model, parts = _ranked(model, parts)
    preprocessing = Preprocessing(blocks=[Block(columns=part.columns, steps=part.steps) for part in parts])
    n_inputs = preprocessing.function()(np.zeros((1, n_features))).shape[1]
    converted = convert_sklearn(
        model,
        initial_types=[("rows", FloatTensorType([None, n_inputs]))],
        options={id(model): {"zipmap": False}} if contract.task != "regression" else None,
    )
    return preprocessing, bytes(converted.SerializeToString())


def _ranked(model: Any, parts: list[Part]) -> tuple[Any, list[Part]]:
    """The model with each threshold replaced by its rank, and the step that ranks its input in the same way.

    `x <= thresholds[k]` is `(thresholds < x).sum() <= k`, and ranks are whole numbers, which float32 holds exactly.
    """
    model = copy.deepcopy(model)
    # Where its fitted trees are, each an array of nodes; skl2onnx reads them there too.
    trees = [tree.nodes for of_round in model._predictors for tree in of_round]  # noqa: SLF001
    width = sum(part.width for part in parts)
    thresholds: list[list[float]] = []
    for position in range(width):
        splits = [nodes[(nodes["is_leaf"] == 0) & (nodes["feature_idx"] == position)] for nodes in trees]
        if any(split["is_categorical"].any() for split in splits):
            raise NotCompilableError("splits on categories are not compiled, encode them before the model")
        of_feature = np.unique(np.concatenate([split["num_threshold"] for split in splits]))
        # Infinity parts missing from present: every present value is below its rank, the number of the others.
        thresholds.append(of_feature[np.isfinite(of_feature)].tolist())
    for nodes in trees:
        for node in np.flatnonzero(nodes["is_leaf"] == 0):
            rank = np.searchsorted(thresholds[nodes["feature_idx"][node]], nodes["num_threshold"][node])
            nodes["num_threshold"][node] = rank
    ranked, start = [], 0
    for part in parts:
        step = Step(operation="rank", values=[list(t) for t in thresholds[start : start + part.width]])
        ranked.append(Part(part.columns, [*part.steps, step], part.width))
        start += part.width
    return model, ranked


def first_line(error: BaseException) -> str:
    """What a library's error says, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
