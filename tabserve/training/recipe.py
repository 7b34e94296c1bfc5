"""The way from a table to a trained model: split, cross-validate, fit, compile, evaluate, pass the gates."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from tabserve import model_store
from tabserve.build import git_commit
from tabserve.contract import Contract, Feature, Rows
from tabserve.reference import build_reference, deciles
from tabserve.training import evaluation
from tabserve.training.arguments import KEY, Arguments
from tabserve.training.artifact import TrainedModel, describe
from tabserve.training.compilation import compile_model
from tabserve.training.evaluation import Metrics
from tabserve.training.table import Table

logger = logging.getLogger(__name__)

# Threads that share a small table wait for each other: 1200 rows by 5 took 0.4 s on one, 0.8 s on two, and 6 s on two
# whose cores had other work.
FEWEST_VALUES_FOR_THREADS = 1_000_000


class GateFailedError(Exception):
    """A trained model that is not good enough to be saved; the message names each gate and by how much it is missed."""


def train(table: Table, pipeline: Pipeline, told: Arguments) -> TrainedModel:
    """Fits an unfitted pipeline and evaluates it.

    Args:
        told: of it the gates, the seed and the engine: "auto" for ONNX Runtime where it agrees with scikit-learn.

    Raises:
        BadTableError: where the table cannot be split.
        GateFailedError: where the model is not good enough.
    """
    with threadpool_limits(limits=1 if table.rows.size < FEWEST_VALUES_FOR_THREADS else None):
        return _train(table, pipeline, told)


def _train(table: Table, pipeline: Pipeline, told: Arguments) -> TrainedModel:
    seed = told.seed
    parts = evaluation.split(table.contract, table.target, table.times, seed, n_recent=table.n_recent)
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

    compiled = compile_model(fitted, contract, table.rows, engine=told.engine)
    parity = compiled.compiled.parity
    logger.info("served by %s: %s", parity.engine, parity.reason)
    serving = compiled.engine(fitted, contract)

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

    failures = told.gates.failures(contract, test_metrics, baseline_metrics, latency)
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
        "model_config": describe(fitted),
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
        "split": _kind_of_split(table),
        "seed": seed,
        KEY: told.model_dump(mode="json"),
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
        "git_commit": git_commit(),
        "known_limitations": [*told.limitations, *_limitations(table, contract, len(parts.test))],
    }
    reference = build_reference(contract, rows, out_of_fold)
    return TrainedModel(contract, fitted, compiled, reference, parts, out_of_fold, test_scores, metadata)


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


def _mean_and_std(folds: list[Metrics]) -> dict[str, dict[str, float]]:
    found = {}
    for name in folds[0]:
        values = [value for fold in folds if (value := fold[name]) is not None]
        if values:
            found[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return found


def _kind_of_split(table: Table) -> str:
    if table.times is not None:
        return "time, of the window" if table.n_recent else "time"
    return "stratified" if table.contract.classes else "random"


def _limitations(table: Table, contract: Contract, n_test: int) -> list[str]:
    of = "of the same table; other sources were not tried" if not table.n_recent else "that came last in the window"
    found = [
        f"Evaluated on {n_test} rows {of}.",
        "Outside of the ranges and categories of the contract it extrapolates, or refuses.",
        *table.warnings,
    ]
    if contract.classes:
        shares = np.bincount(table.target) / len(table.target)
        if shares.min() < 0.1:
            rarest = contract.classes[int(shares.argmin())]
            found.append(f"The class {rarest} has only {shares.min():.1%} of the rows: its metrics are unsure.")
    return found
