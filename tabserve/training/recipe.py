"""The way from a table to a model in the store: split, cross-validate, fit, compile, evaluate, pass the gates, save."""

import hashlib
import io
import json
import logging
import pickle
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from tabserve import model_store
from tabserve.contract import Contract, Feature, Rows
from tabserve.engine import (
    COMPILED_FILE,
    ONNX_FILE,
    PIPELINE_FILE,
    Engine,
    OnnxEngine,
    Scores,
    SklearnEngine,
)
from tabserve.reference import Reference, build_reference, deciles
from tabserve.training import evaluation
from tabserve.training.compilation import CompiledModel, compile_model
from tabserve.training.evaluation import Gates, Metrics
from tabserve.training.model_card import write_card, write_plots
from tabserve.training.table import Table

logger = logging.getLogger(__name__)

REFERENCE_SAMPLE_ROWS = 5000  # enough for a report; the bins count all training rows
EXAMPLES = 4

# Threads that share a small table wait for each other: 1200 rows by 5 took 0.4 s on one, 0.8 s on two, and 6 s on two
# whose cores had other work.
FEWEST_VALUES_FOR_THREADS = 1_000_000


class GateFailedError(Exception):
    """A trained model that is not good enough to be saved; the message names each gate and by how much it is missed."""


@dataclass(frozen=True)
class TrainedModel:
    """Everything that the artifact is written from."""

    contract: Contract
    pipeline: Pipeline
    compiled: CompiledModel
    reference: Reference
    split: evaluation.Split
    out_of_fold: Scores
    test_scores: Scores
    metadata: dict[str, Any]


def train(table: Table, pipeline: Pipeline, gates: Gates, *, seed: int, engine: str = "auto") -> TrainedModel:
    """Fits an unfitted pipeline and evaluates it.

    Args:
        engine: "auto" for ONNX Runtime where it agrees with scikit-learn, "scikit-learn" for scikit-learn.

    Raises:
        BadTableError: where the table cannot be split.
        GateFailedError: where the model is not good enough.
    """
    with threadpool_limits(limits=1 if table.rows.size < FEWEST_VALUES_FOR_THREADS else None):
        return _train(table, pipeline, gates, seed=seed, engine=engine)


def _train(table: Table, pipeline: Pipeline, gates: Gates, *, seed: int, engine: str) -> TrainedModel:
    parts = evaluation.split(table.contract, table.target, table.times, seed)
    contract = with_statistics(table.contract, table.rows[parts.train])
    rows, target = table.rows[parts.train], table.target[parts.train]
    logger.info("%d training and %d test rows, %d features", len(parts.train), len(parts.test), rows.shape[1])
    balance = {str(label): int((table.target == code).sum()) for code, label in enumerate(contract.classes)}
    if balance:
        logger.info("class balance: %s", balance)

    out_of_fold, folds = evaluation.predict_out_of_fold(pipeline, contract, rows, target, seed)
    started = time.perf_counter()
    fitted = evaluation.fit(pipeline, contract, rows, target)
    train_duration_s = time.perf_counter() - started
    logger.info("fitted in %.1f s", train_duration_s)

    compiled = compile_model(fitted, contract, table.rows, engine=engine)
    parity = compiled.compiled.parity
    logger.info("served by %s: %s", parity.engine, parity.reason)
    serving = _engine(compiled, fitted, contract)

    test_target = table.target[parts.test]
    test_scores = serving.predict(table.rows[parts.test])
    train_metrics = evaluation.measure(contract, target, serving.predict(rows))
    test_metrics = evaluation.measure(contract, test_target, test_scores)
    baseline_metrics = evaluation.measure(contract, test_target, evaluation.guess(contract, target, len(test_target)))
    logger.info("baseline: %s", evaluation.headline(baseline_metrics))
    logger.info("test rows: %s", evaluation.headline(test_metrics))
    report = evaluation.report(contract, test_target, test_scores, table.class_names) if contract.classes else None
    latency = evaluation.measure_latency(serving, table.rows[parts.test])
    logger.info("one row takes %.3f ms (median), 64 take %.3f ms", latency["rows_1_p50_ms"], latency["rows_64_p50_ms"])

    failures = gates.failures(contract, test_metrics, baseline_metrics, latency)
    if failures:
        raise GateFailedError("; ".join(failures))
    metadata = {
        "task": contract.task,
        "target": contract.target,
        "classes": list(contract.classes),
        "class_names": {str(label): name for label, name in table.class_names.items()},
        "class_balance": balance,
        "contract_hash": contract.hash,
        "model_class": type(fitted[-1]).__name__,
        "model_config": _describe(fitted),
        "feature_names": list(contract.names),
        "n_features": len(contract.names),
        "dataset": {
            "name": table.source.name,
            "description": table.source.description,
            "sha256": table.source.sha256,
            "n_rows": len(table.rows),
        },
        "n_train": len(parts.train),
        "n_test": len(parts.test),
        "split": "stratified"
        if table.times is None and contract.classes
        else "random"
        if table.times is None
        else "time",
        "seed": seed,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "train_duration_s": round(train_duration_s, 3),
        "cv": _mean_and_std(folds),
        "cv_folds": folds,
        "train_metrics": train_metrics,
        "test_metrics": test_metrics,
        "baseline_metrics": baseline_metrics,
        "classification_report": report,
        "latency": latency,
        "engine": parity.model_dump(),
        "environment": model_store.environment(),
        "git_commit": _git_commit(),
        "known_limitations": _limitations(table, contract, len(parts.test)),
    }
    reference = build_reference(contract, rows, out_of_fold)
    return TrainedModel(contract, fitted, compiled, reference, parts, out_of_fold, test_scores, metadata)


def save(model: TrainedModel, table: Table, name: str, modules: Sequence[ModuleType] = ()) -> str:
    """Saves a trained model in the model store and returns its tag.

    Args:
        modules: the user's modules that the pipeline came from, whose code has to travel with the pickle.
    """
    pickled = _pickled(model.pipeline, modules)
    fingerprint = pipeline_hash(model.pipeline, modules)
    metadata = {
        "name": name,
        **model.metadata,
        "pipeline_hash": fingerprint,
        "pickled_packages": _packages_in(pickled),
    }

    def write(directory: Path, semantic_version: str) -> None:
        metadata["semantic_version"] = semantic_version
        _write_json(directory / model_store.METADATA_FILE, metadata)
        _write_json(directory / model_store.EXAMPLES_FILE, _examples(model, table))
        (directory / PIPELINE_FILE).write_bytes(pickled)
        model.compiled.compiled.save(directory / COMPILED_FILE)
        if model.compiled.onnx_model is not None:
            (directory / ONNX_FILE).write_bytes(model.compiled.onnx_model)
        model.reference.save(directory / model_store.REFERENCE_FILE)
        _write_reference_sample(directory / model_store.REFERENCE_SAMPLE_FILE, model, table)
        test = model.split.test
        plots = write_plots(
            directory / "plots",
            contract=model.contract,
            pipeline=model.pipeline,
            rows=table.rows[test],
            target=table.target[test],
            scores=model.test_scores,
        )
        write_card(directory / model_store.CARD_FILE, model.contract, metadata, plots)

    headline = {key: f"{value:.4g}" for key, value in model.metadata["test_metrics"].items() if value is not None}
    return model_store.save(name, model.contract, fingerprint, write, {"task": model.contract.task, **headline})


def with_statistics(contract: Contract, rows: Rows) -> Contract:
    """The contract with minimum, maximum and deciles of the training rows, shape (n, features)."""
    features = (_with_statistics(feature, rows[:, position]) for position, feature in enumerate(contract.features))
    return Contract(features=tuple(features), task=contract.task, target=contract.target, classes=contract.classes)


def _with_statistics(feature: Feature, values: np.ndarray[Any, Any]) -> Feature:
    present = values[~np.isnan(values)]
    if feature.kind not in ("number", "integer") or not present.size:
        return feature
    if feature.personal:  # the ends of a range are somebody's own values
        return feature.model_copy(update={"quantiles": deciles(values)})
    statistics = {"minimum": float(present.min()), "maximum": float(present.max()), "quantiles": deciles(values)}
    return feature.model_copy(update=statistics)


def pipeline_hash(pipeline: Pipeline, modules: Sequence[ModuleType]) -> str:
    """SHA-256 (hex) of the pipeline's classes and parameters, and of the user's modules that it came from."""
    source = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules)
    return hashlib.sha256((json.dumps(_describe(pipeline), sort_keys=True) + source).encode()).hexdigest()


def _describe(value: Any) -> Any:
    """Estimators and their parameters as JSON, the same in each run (a repr may hold an address)."""
    if isinstance(value, BaseEstimator):
        parameters = {} if isinstance(value, Pipeline) else value.get_params(deep=False)
        steps = {name: _describe(step) for name, step in value.steps} if isinstance(value, Pipeline) else {}
        return {"class": type(value).__name__, **{name: _describe(item) for name, item in parameters.items()}, **steps}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, float) or np.isfinite(value) else str(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else type(value).__name__
    return str(value)


def _engine(compiled: CompiledModel, pipeline: Pipeline, contract: Contract) -> Engine:
    preprocessing = compiled.compiled.preprocessing
    if compiled.onnx_model is None or preprocessing is None:
        return SklearnEngine(pipeline, contract)
    return OnnxEngine(preprocessing, compiled.onnx_model, is_classifier=contract.task != "regression")


def _mean_and_std(folds: list[Metrics]) -> dict[str, dict[str, float]]:
    found = {}
    for name in folds[0]:
        values = [value for fold in folds if (value := fold[name]) is not None]
        if values:
            found[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return found


def _limitations(table: Table, contract: Contract, n_test: int) -> list[str]:
    found = [
        f"Evaluated on {n_test} rows of the same table; other sources were not tried.",
        "Outside of the ranges and categories of the contract it extrapolates, or refuses.",
        *table.warnings,
    ]
    if contract.classes:
        shares = np.bincount(table.target) / len(table.target)
        if shares.min() < 0.1:
            rarest = contract.classes[int(shares.argmin())]
            found.append(f"The class {rarest} has only {shares.min():.1%} of the rows: its metrics are unsure.")
    return found


def _examples(model: TrainedModel, table: Table) -> dict[str, Any]:
    """Test rows as a caller would send them, and what the served engine says to them."""
    rows = table.rows[model.split.test[:EXAMPLES]].copy()
    for position, feature in enumerate(model.contract.features):
        if feature.personal:  # nobody's own values on a public page
            rows[:, position] = np.floor(np.mean(feature.quantiles)) if feature.quantiles else 0.0
    scores = _engine(model.compiled, model.pipeline, model.contract).predict(rows)
    return {"instances": [model.contract.to_values(row) for row in rows], "scores": scores.tolist()}


def _write_reference_sample(path: Path, model: TrainedModel, table: Table) -> None:
    """Training rows with their target and out-of-fold scores; personal columns are left out."""
    n_rows = min(REFERENCE_SAMPLE_ROWS, len(model.split.train))
    chosen = np.sort(np.random.default_rng(model.metadata["seed"]).permutation(len(model.split.train))[:n_rows])
    positions = model.split.train[chosen]
    contract = model.contract
    frame = contract.to_frame(table.rows[positions]).drop(columns=[f.name for f in contract.features if f.personal])
    sample: dict[str, Any] = {f"feature:{name}": frame[name] for name in frame.columns}
    target, scores = table.target[positions], model.out_of_fold[chosen]
    if contract.task == "regression":
        sample |= {"target": target, "score:value": scores}
    else:
        labels = np.array(contract.classes)
        sample |= {"target": labels[target], "prediction": labels[scores.argmax(axis=1)]}
        sample |= {f"score:{key}": scores[:, code] for code, key in enumerate(contract.probability_keys)}
    type(frame)(sample).to_parquet(path, index=False)


def _pickled(pipeline: Pipeline, modules: Sequence[ModuleType]) -> bytes:
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(pipeline))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


class _RecordingUnpickler(pickle.Unpickler):
    """Loads a pickle of our own and notes which packages that took: serving needs them too."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.packages: set[str] = set()

    def find_class(self, module_name: str, global_name: str) -> Any:
        self.packages.add(module_name.partition(".")[0])
        return super().find_class(module_name, global_name)


def _packages_in(pickled: bytes) -> list[str]:
    unpickler = _RecordingUnpickler(pickled)
    unpickler.load()
    return sorted(unpickler.packages)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _git_commit() -> str | None:
    """The commit of the code that trained, with a mark when it was changed; None outside of a checkout."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-changed" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
