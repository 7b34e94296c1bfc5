"""How good a model is on rows whose label came: the metrics of training with their intervals, and what they mean.

Values in, values out. The definitions are those of training's `test_metrics`, by the same functions of scikit-learn;
a metric that the rows leave undefined is left out, with its reason. Two of them are no part of `test_metrics`: the
expected calibration error, and the bias of a regression.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from tabserve.statistics.intervals import Average, Floats, Interval, effective, linearised, wilson

Codes = npt.NDArray[np.intp]
"""Positions in the contract's classes, shape (n,)."""

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Metric:
    """A number and its 95 % interval."""

    name: str
    value: float
    interval: Interval


@dataclass(frozen=True)
class Measured:
    metrics: tuple[Metric, ...]
    left_out: tuple[str, ...] = ()
    """A sentence for those that are undefined."""


@dataclass(frozen=True)
class Counts:
    """Labelled rows by class, each of shape (classes, classes): what came true by line, what was said by column."""

    rows: Floats
    weights: Floats
    squares: Floats
    """Sums of the squared weights."""

    @property
    def n_rows(self) -> int:
        return int(self.rows.sum())

    @property
    def accuracy(self) -> Average:
        """With Kish's effective number of rows."""
        total, squares = float(self.weights.sum()), float(self.squares.sum())
        if total <= 0:
            return Average(0.0, 0.0)
        return Average(float(np.trace(self.weights)) / total, total**2 / squares)

    def without(self, others: "Counts") -> "Counts":
        """The rows that are not among `others`."""
        less = (self.rows - others.rows, self.weights - others.weights, self.squares - others.squares)
        return Counts(*(np.maximum(part, 0.0) for part in less))  # of sums of floats a speck may be left


def of_counts(counts: Counts, classes: tuple[str, ...]) -> Measured:
    """Accuracy and macro F1: exact of any number of rows. Wilson's interval, and the linearised one."""
    if not counts.n_rows:
        return Measured((), ("no metric: no row has a label",))
    true, said = (part.ravel() for part in np.indices(counts.weights.shape))
    weights = counts.weights.ravel()
    accuracy = counts.accuracy
    value = float(accuracy_score(true, said, sample_weight=weights))
    metrics = [Metric("accuracy", value, accuracy.interval())]
    absent = _absent(counts.rows.sum(axis=1), classes)
    if absent:
        return Measured(tuple(metrics), (f"f1_macro: {absent}",))
    labels = list(range(len(classes)))
    f1 = float(f1_score(true, said, labels=labels, sample_weight=weights, average="macro", zero_division=0.0))
    found = linearised(f1, (_f1_influences(counts.weights) * np.sqrt(counts.squares)).ravel(), "logit")
    return Measured((*metrics, Metric("f1_macro", f1, _wide_at_the_end(f1, found, counts.rows.sum(axis=1)))))


def of_scores(true: Codes, scores: Floats, weights: Floats, classes: tuple[str, ...]) -> Measured:
    """ROC-AUC (one against the rest, macro, where there are more than two), Brier, log loss, calibration error.

    Args:
        true: what came true, shape (n,).
        scores: probabilities, shape (n, classes).
        weights: shape (n,), above 0.
    """
    if not len(true):
        return Measured(())
    metrics: list[Metric] = []
    left_out: tuple[str, ...] = ()
    labels = list(range(len(classes)))
    n_of_class = np.bincount(true, minlength=len(classes))
    absent = _absent(n_of_class, classes)
    if absent:
        left_out = (f"roc_auc: {absent}",)
    else:
        found, influences = area_under_curve(true, scores, weights)
        value = _area_by_scikit_learn(true, scores, weights, labels)
        interval = _wide_at_the_end(value, linearised(found, influences, "logit"), n_of_class)
        metrics.append(Metric("roc_auc", value, interval))
    of_class = np.eye(len(classes))[true]
    of_true = np.clip(scores[np.arange(len(true)), true], np.finfo(scores.dtype).eps, None)
    losses: tuple[tuple[str, Callable[..., float], Floats], ...] = (
        ("brier", brier_score_loss, np.sum((scores - of_class) ** 2, axis=1) / (2 if len(classes) == 2 else 1)),
        ("log_loss", log_loss, -np.log(of_true)),
    )
    for name, metric, of_rows in losses:
        value = float(metric(true, scores, labels=labels, sample_weight=weights))
        metrics.append(Metric(name, value, linearised(value, mean_influences(of_rows, weights), "log")))
    metrics.append(calibration_error(scores.max(axis=1), scores.argmax(axis=1) == true, weights))
    return Measured(tuple(metrics), left_out)


def of_values(true: Floats, predicted: Floats, weights: Floats) -> Measured:
    """Of a regression: MAE, RMSE, R2 and bias, the mean of predicted - true; each of shape (n,)."""
    if not len(true):
        return Measured((), ("no metric: no row has a label",))
    errors = predicted - true
    given: dict[str, Any] = {"sample_weight": weights}
    mae = float(mean_absolute_error(true, predicted, **given))
    rmse = float(root_mean_squared_error(true, predicted, **given))
    of_squares = linearised(rmse**2, mean_influences(errors**2, weights), "log")
    bias = float(np.average(errors, weights=weights))
    metrics = [
        Metric("mae", mae, linearised(mae, mean_influences(np.abs(errors), weights), "log")),
        Metric("rmse", rmse, Interval(of_squares.low**0.5, of_squares.high**0.5)),
        Metric("bias", bias, linearised(bias, mean_influences(errors, weights))),
    ]
    from_mean = true - np.average(true, weights=weights)
    spread = float(np.average(from_mean**2, weights=weights))
    if spread <= 0:
        return Measured(tuple(metrics), ("r2: all labels are the same number",))
    r2 = float(r2_score(true, predicted, **given))
    # Of 1 - R2, the ratio of two means, which is positive.
    ratio = linearised(1 - r2, weights / weights.sum() * (errors**2 - (1 - r2) * from_mean**2) / spread, "log")
    return Measured((*metrics, Metric("r2", r2, Interval(1 - ratio.high, 1 - ratio.low))))


def mean_error(true: Floats, predicted: Floats, weights: Floats) -> Average:
    """The mean absolute error, to be compared with another."""
    if not len(true):
        return Average(0.0, 0.0)
    n_rows, sizes = effective(weights), np.abs(predicted - true)
    error = float(np.sqrt(np.sum(mean_influences(sizes, weights) ** 2)))
    return Average(float(np.average(sizes, weights=weights)), n_rows, error * n_rows**0.5)


def mean_influences(values: Floats, weights: Floats) -> Floats:
    """What each row moves the weighted mean by, shape (n,)."""
    shares = weights / weights.sum()
    return np.asarray(shares * (values - np.sum(shares * values)), np.float64)


def area_under_curve(true: Codes, scores: Floats, weights: Floats) -> tuple[float, Floats]:
    """The area under the ROC curve and the influences of the rows, shape (n,): DeLong et al. (1988).

    Of more than two classes the mean of the areas of each against the rest. Every class needs a row.
    """
    classes = (1,) if scores.shape[1] == 2 else tuple(range(scores.shape[1]))
    areas, influences = [], np.zeros(len(true))
    for code in classes:
        is_it = true == code
        values, place = np.unique(scores[:, code], return_inverse=True)
        of_it = np.bincount(place, np.where(is_it, weights, 0.0), len(values))
        of_rest = np.bincount(place, np.where(is_it, 0.0, weights), len(values))
        total, rest = of_it.sum(), of_rest.sum()
        # The share of the others that a row is on the right side of; ties count half.
        beaten = (np.cumsum(of_rest) - of_rest / 2)[place] / rest
        beating = 1 - (np.cumsum(of_it) - of_it / 2)[place] / total
        area = float(np.sum(of_it * (np.cumsum(of_rest) - of_rest / 2)) / total / rest)
        areas.append(area)
        for mine, right, whole in ((is_it, beaten, total), (~is_it, beating, rest)):
            n_rows = int(mine.sum())
            unbiased = (n_rows / (n_rows - 1)) ** 0.5 if n_rows > 1 else 1.0
            influences[mine] += (weights * (right - area))[mine] / whole * unbiased / len(classes)
    return float(np.mean(areas)), influences


def calibration_error(sure: Floats, is_right: npt.NDArray[np.bool_], weights: Floats) -> Metric:
    """The expected calibration error of the largest probability: Guo et al. (2017), in 10 bins of equal mass.

    Its own sampling only ever adds to it, so a bootstrap of it would be beside the truth. The interval holds what is
    no further away than the noise of all bins added up reaches in 95 % of draws (the triangle inequality): it begins
    above 0 only where the scores are off by more than chance, and is too wide rather than too narrow.

    Args:
        sure: the largest probabilities, shape (n,).
    """
    values, place = np.unique(sure, return_inverse=True)
    mass = np.bincount(place, weights, len(values))
    of_value = ((np.cumsum(mass) - mass / 2) / mass.sum() * CALIBRATION_BINS).astype(np.intp)
    bins = of_value[place]  # equal scores share a bin
    within = _sums(bins, weights)
    gaps = _divided(_sums(bins, weights * (is_right - sure)), within)
    of_rows = _sums(bins, weights**2 * (is_right - sure - gaps[bins]) ** 2)
    of_scores = _sums(bins, weights**2 * sure * (1 - sure))
    errors = _divided(np.sqrt(np.maximum(of_rows, of_scores)), within)  # a bin where all are right is not sure of it
    shares = within / within.sum()
    value = float(np.sum(shares * np.abs(gaps)))
    draws = np.abs(np.random.default_rng(0).standard_normal((2000, CALIBRATION_BINS)))
    reach = float(np.quantile(draws @ (shares * errors), 0.95))
    return Metric("ece", value, Interval(max(0.0, value - reach), min(1.0, value + reach)))


def _sums(bins: Codes, values: Floats) -> Floats:
    return np.bincount(bins, values, CALIBRATION_BINS).astype(np.float64)


def _divided(sums: Floats, by: Floats) -> Floats:
    return np.divide(sums, by, out=np.zeros_like(by), where=by > 0)


def _f1_influences(weights: Floats) -> Floats:
    """What a row of each cell, shape (classes, classes), moves the macro F1 by, times its weight."""
    of_both = weights.sum(axis=0) + weights.sum(axis=1)
    f1 = 2 * np.diag(weights) / of_both
    parts = f1 / of_both
    right = np.diag(2 / of_both)
    return np.asarray((right - parts[:, None] - parts[None, :]) / len(f1), np.float64)


def _area_by_scikit_learn(true: Codes, scores: Floats, weights: Floats, labels: list[int]) -> float:
    if len(labels) == 2:
        return float(roc_auc_score(true, scores[:, 1], sample_weight=weights))
    return float(roc_auc_score(true, scores, multi_class="ovr", labels=labels, sample_weight=weights))


def _wide_at_the_end(value: float, found: Interval, n_of_class: npt.NDArray[Any]) -> Interval:
    """Where all rows are right there is no spread to go by: then Wilson's of the rarest class, the safe side."""
    return wilson(value, float(n_of_class.min())) if found.low == found.high else found


def _absent(n_of_class: npt.NDArray[Any], classes: tuple[str, ...]) -> str:
    absent = [name for name, n_rows in zip(classes, n_of_class, strict=True) if not n_rows]
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    return f"no label is {', '.join(absent[:5])}{more}" if absent else ""
