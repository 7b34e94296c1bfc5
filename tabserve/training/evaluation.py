"""How good a model is, beside what guessing would give, how fast it answers, and whether that is enough."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    classification_report,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline

from tabserve.contract import Contract, Rows
from tabserve.engine import Engine, Scores, SklearnEngine
from tabserve.training.columns import BadTableError

logger = logging.getLogger(__name__)

Target = np.ndarray[Any, Any]
Metrics = dict[str, float | None]

TEST_SHARE = 0.2
FOLDS = 5
LATENCY_CALLS = 200
LATENCY_ROWS = (1, 64)


@dataclass(frozen=True)
class Split:
    """Positions of the training and the test rows."""

    train: np.ndarray[Any, Any]
    test: np.ndarray[Any, Any]


def split(contract: Contract, target: Target, times: "pd.Series[Any] | None", seed: int, *, n_recent: int = 0) -> Split:
    """80 to 20: stratified by class, or the latest rows as test where there are times.

    Args:
        n_recent: so many of the latest rows are of a recent window. Then a fifth of these is the test, not of all rows:
            a window that is small beside the older rows would go into the test whole, and teach nothing.

    Raises:
        BadTableError: where a class has no rows before the time of the split.
    """
    if times is None:
        positions = np.arange(len(target))
        stratify = None if contract.task == "regression" else target
        train, test = train_test_split(positions, test_size=TEST_SHARE, random_state=seed, stratify=stratify)
        return Split(train, test)
    in_time = np.argsort(times.to_numpy(), kind="stable")
    n_test = n_test_of(n_recent or len(in_time))
    parts = Split(in_time[:-n_test], in_time[-n_test:])
    counts = pd.Series(target[parts.train]).value_counts()
    rare = [label for code, label in enumerate(contract.classes) if counts.get(code, 0) < FOLDS]
    if rare:
        raise BadTableError(
            f"before {times.iloc[parts.test[0]]}, where the {n_test} test rows begin, the classes {rare} "
            f"have fewer than {FOLDS} rows; train on a longer time or without --time-column"
        )
    return parts


def n_test_of(n_rows: int) -> int:
    """How many of so many rows are the test, where it is the latest ones."""
    return math.ceil(n_rows * TEST_SHARE)


def measure(contract: Contract, target: Target, scores: Scores) -> Metrics:
    """The metrics of a model's scores; None where the rows leave one undefined (a class without rows)."""
    if contract.task == "regression":
        return {
            "mae": float(mean_absolute_error(target, scores)),
            "rmse": float(root_mean_squared_error(target, scores)),
            "r2": float(r2_score(target, scores)),
        }
    labels = list(range(len(contract.classes)))
    found = scores.argmax(axis=1)
    of_class = np.eye(len(labels))[target]
    macro: dict[str, Any] = {"average": "macro", "labels": labels, "zero_division": 0.0}
    binary = contract.task == "binary"
    return {
        "accuracy": float(accuracy_score(target, found)),
        "precision": float(precision_score(target, found, **macro)),
        "recall": float(recall_score(target, found, **macro)),
        "f1_macro": float(f1_score(target, found, **macro)),
        "roc_auc": _defined(
            lambda: (
                roc_auc_score(target, scores[:, 1])
                if binary
                else roc_auc_score(target, scores, multi_class="ovr", labels=labels)
            )
        ),
        "average_precision": _defined(
            lambda: average_precision_score(
                of_class[:, 1] if binary else of_class, scores[:, 1] if binary else scores, average="macro"
            )
        ),
        "log_loss": float(log_loss(target, scores, labels=labels)),
        "brier": float(brier_score_loss(target, scores, labels=labels)),
    }


def _defined(metric: Callable[[], float]) -> float | None:
    try:
        value = float(metric())
    except ValueError:  # one class only
        return None
    return value if math.isfinite(value) else None


def guess(contract: Contract, train_target: Target, n_rows: int) -> Scores:
    """The scores of the baseline that knows only the training target: the share of each class, or the mean."""
    if contract.task == "regression":
        return np.full(n_rows, train_target.mean())
    shares = np.bincount(train_target, minlength=len(contract.classes)) / len(train_target)
    return np.tile(shares, (n_rows, 1))


def fit(pipeline: Pipeline, contract: Contract, rows: Rows, target: Target) -> Pipeline:
    """A fitted copy of an unfitted pipeline.

    Raises:
        BadTableError: where it cannot be fitted on these rows.
    """
    try:
        fitted: Pipeline = clone(pipeline).fit(contract.to_frame(rows), target)
    except Exception as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise BadTableError(f"the pipeline cannot be fitted on this table: {message[0][:300]}") from error
    if contract.task != "regression" and not hasattr(fitted, "predict_proba"):
        raise BadTableError(f"a classifier needs predict_proba, {type(pipeline[-1]).__name__} has none")
    return fitted


def predict_out_of_fold(
    pipeline: Pipeline, contract: Contract, rows: Rows, target: Target, seed: int
) -> tuple[Scores, list[Metrics]]:
    """Scores of each row by a model that was fitted without it, and the metrics of each of the 5 folds."""
    folds: Any = KFold if contract.task == "regression" else StratifiedKFold
    scores = np.empty(len(rows)) if contract.task == "regression" else np.empty((len(rows), len(contract.classes)))
    of_folds = []
    folder = folds(n_splits=FOLDS, shuffle=True, random_state=seed)
    for number, (fitted, held_out) in enumerate(folder.split(rows, target), start=1):
        started = time.perf_counter()
        model = fit(pipeline, contract, rows[fitted], target[fitted])
        scores[held_out] = SklearnEngine(model, contract).predict(rows[held_out])
        metrics = measure(contract, target[held_out], scores[held_out])
        of_folds.append(metrics)
        logger.info("fold %d of %d: %s (%.1f s)", number, FOLDS, headline(metrics), time.perf_counter() - started)
    return scores, of_folds


def headline(metrics: Mapping[str, float | None]) -> str:
    """The few metrics that one line has room for."""
    names = [name for name in ("accuracy", "roc_auc", "mae", "r2") if metrics.get(name) is not None]
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names)


def report(contract: Contract, target: Target, scores: Scores, names: Mapping[Any, str]) -> str:
    """scikit-learn's classification report, with the names of the classes."""
    shown = [names.get(label, str(label)) for label in contract.classes]
    text: str = classification_report(
        target, scores.argmax(axis=1), labels=list(range(len(shown))), target_names=shown, zero_division=0.0
    )
    return text


def measure_latency(engine: Engine, rows: Rows) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds, of 200 calls with one row and with 64."""
    found = {}
    for n_rows in LATENCY_ROWS:
        batch = np.resize(rows, (n_rows, rows.shape[1]))
        times = []
        for _ in range(LATENCY_CALLS + 10):
            started = time.perf_counter()
            engine.predict(batch)
            times.append((time.perf_counter() - started) * 1000)
        found[f"rows_{n_rows}_p50_ms"] = float(np.percentile(times[10:], 50))  # the first ten warm up
        found[f"rows_{n_rows}_p99_ms"] = float(np.percentile(times[10:], 99))
    return found


@dataclass(frozen=True)
class Gates:
    """What a model must reach on the test rows to be saved; None asks nothing. Beating the baseline is always asked."""

    min_accuracy: float | None = None
    min_roc_auc: float | None = None
    max_mae: float | None = None
    max_latency_ms: float | None = 200.0

    def check(self, contract: Contract) -> None:
        """Whether the model will have what the gates ask for.

        Raises:
            BadTableError: for a gate of another task.
        """
        of_classes = {"--min-accuracy": self.min_accuracy, "--min-roc-auc": self.min_roc_auc}
        foreign = of_classes if contract.task == "regression" else {"--max-mae": self.max_mae}
        given = [gate for gate, limit in foreign.items() if limit is not None]
        if given:
            raise BadTableError(f"{' and '.join(given)}: a {contract.task} has no such metric")

    def failures(self, contract: Contract, test: Metrics, baseline: Metrics, latency: Mapping[str, float]) -> list[str]:
        """A sentence for each gate that is not passed, with what was measured and by how much it misses."""
        # The loss that rewards honest probabilities: at 99 % of one class no model beats the accuracy of guessing.
        loss = "rmse" if contract.task == "regression" else "log_loss"
        guessed = _number(baseline[loss])
        return [
            failure
            for failure in (
                _missed(f"the baseline's {loss}", loss, test[loss], guessed, at_most=True, strictly=True),
                _missed("--min-accuracy", "accuracy", test.get("accuracy"), self.min_accuracy),
                _missed("--min-roc-auc", "roc_auc", test.get("roc_auc"), self.min_roc_auc),
                _missed("--max-mae", "mae", test.get("mae"), self.max_mae, at_most=True),
                # The median: on a busy machine the slowest of some calls says more about the machine.
                _missed(
                    "--max-latency-ms",
                    "median latency of one row (ms)",
                    latency["rows_1_p50_ms"],
                    self.max_latency_ms,
                    at_most=True,
                ),
            )
            if failure
        ]


def _missed(
    gate: str, name: str, value: float | None, limit: float | None, *, at_most: bool = False, strictly: bool = False
) -> str | None:
    if limit is None:
        return None
    if value is None:
        return f"{gate} asks for {name}, which this model does not have or its test rows leave undefined"
    missing = value - limit if at_most else limit - value
    if missing < 0 or (missing == 0 and not strictly):
        return None
    wanted = f"{'less than' if strictly else 'at most' if at_most else 'at least'} {limit:.4g}"
    return f"{name} is {value:.4g}, {gate} asks for {wanted}: missed by {missing:.2g}"


def _number(value: float | None) -> float:
    return math.inf if value is None else value
