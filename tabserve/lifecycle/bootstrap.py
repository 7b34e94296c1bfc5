"""The paired bootstrap: what a metric of two models would have been on other rows like these (Efron 1979).

Rows are drawn with replacement, the same rows for both models, so that what is hard about a row is in both.
"""

from collections.abc import Callable

import numpy as np

from tabserve.lifecycle.pairs import Floats, Pairs

RESAMPLES = 2000
DRAWS_AT_ONCE = 500_000  # of rows; what they are counted into stays in a core's cache
FEWEST_OF_A_CLASS = 10  # a class with fewer may be in no row of a resample, and the area is then undefined

Metric = Callable[[Floats], Floats]
"""Weights of rows, shape (resamples, n), to the metric of the champion and the challenger, shape (resamples, 2)."""


def resampled(metric: Metric, weights: Floats, seed: int = 0, n_resamples: int = RESAMPLES) -> Floats:
    """The metric of both models in each resample, shape (resamples, 2)."""
    random, n_rows = np.random.default_rng(seed), len(weights)
    at_once = max(1, DRAWS_AT_ONCE // n_rows)
    found = []
    for first in range(0, n_resamples, at_once):
        n = min(at_once, n_resamples - first)
        drawn = random.integers(0, n_rows, (n, n_rows), dtype=np.int32) + n_rows * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * n_rows).reshape(n, n_rows)
        found.append(metric(times * weights))
    return np.concatenate(found)


def log_loss(pairs: Pairs) -> Metric:
    return _means(np.stack(pairs.log_losses, axis=1))


def rmse(pairs: Pairs) -> Metric:
    of_squares = _means(np.stack(pairs.squared_errors, axis=1))
    return lambda weights: np.sqrt(of_squares(weights))


def roc_auc(pairs: Pairs) -> Metric:
    """The area under the ROC curve; of more than two classes the mean of the areas of each against the rest."""
    codes = (1,) if pairs.champion.shape[1] == 2 else tuple(range(pairs.champion.shape[1]))
    of_classes = [
        [_area(scores[:, code], pairs.true == code) for code in codes] for scores in (pairs.champion, pairs.challenger)
    ]
    return lambda weights: np.stack(
        [np.mean([area(weights) for area in areas], axis=0) for areas in of_classes], axis=1
    )


def _means(values: Floats) -> Metric:
    """Of values of shape (n, 2)."""
    return lambda weights: (weights @ values) / weights.sum(axis=1, keepdims=True)


def _area(scores: Floats, is_it: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Callable[[Floats], Floats]:
    """The share of pairs of a row of the class and another that are in order; ties count half. In one pass of the rows
    by their score: of each row of the class, the rows of no such class below it.
    """
    order = np.argsort(scores, kind="stable")
    begins = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    is_it = is_it[order]

    def area(weights: Floats) -> Floats:
        sorted_weights = weights[:, order]
        of_it = np.where(is_it, sorted_weights, 0.0)
        of_rest = sorted_weights - of_it
        if len(begins) < len(order):
            of_it, of_rest = (np.add.reduceat(part, begins, axis=1) for part in (of_it, of_rest))
        below = np.cumsum(of_rest, axis=1)
        total, rest = of_it.sum(axis=1), below[:, -1].copy()
        below -= of_rest / 2
        return np.asarray(np.einsum("ij,ij->i", of_it, below) / (total * rest), np.float64)

    return area
