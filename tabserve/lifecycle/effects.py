"""How much better the challenger is, how sure that is, and what may be said of it.

A difference is positive where the challenger is better: in accuracy or area under the ROC curve as it stands (0.01 is
one point), of a loss (log loss, RMSE) as a share of the champion's (0.01 is one percent less). The margin is 0.01 of
either.

- *Better* and *worse* are two-sided tests at 5 %: McNemar's exact one for accuracy, else the 95 % interval of the
  paired bootstrap. *Better* must also leave no more than 0.1 % for being worse by the margin. Where many rows are
  discordant 2000 rows are few, and the 5 % test alone calls a model that is a point worse better in 0.24 % of cases.
- *Not worse* is non-inferiority: the one-sided 95 % bound of the difference lies above the margin.

The bootstrap's bounds are the more cautious of the percentile and of the normal one with the bootstrap's deviation. It
decides at four fifths of these levels, in the far tail at half: it is approximate, and at the full 5 % a model that is
worse by the margin was called not worse in 5.2 to 5.8 % of the runs of four simulations (docs/comparison.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from tabserve.contract import Task
from tabserve.lifecycle import bootstrap
from tabserve.lifecycle.paired_tests import Discordant, discordant, interval, mcnemar, worse_by
from tabserve.lifecycle.pairs import Pairs

ALPHA = 0.05
MARGIN = 0.01
ALMOST_NEVER = 0.001  # may a model that is worse by the margin be called better
CAUTION, CAUTION_FAR_OUT = 0.8, 0.5  # of a level, that the bootstrap decides at

Metric = Literal["accuracy", "roc_auc", "log_loss", "rmse"]
LOSSES: tuple[Metric, ...] = ("log_loss", "rmse")

_BOOTSTRAPPED: Mapping[Metric, Callable[[Pairs], bootstrap.Metric]] = {
    "roc_auc": bootstrap.roc_auc,
    "log_loss": bootstrap.log_loss,
    "rmse": bootstrap.rmse,
}


class UndefinedMetricError(ValueError):
    """A metric that these rows do not have; the message says why."""


@dataclass(frozen=True)
class Effect:
    """What was found of one metric."""

    metric: Metric
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    """The 95 % interval."""
    at_least: float
    """The one-sided bound of the difference that decides, of at least 95 %."""
    test: str
    is_better: bool
    is_worse: bool
    is_not_worse: bool
    differences: "np.ndarray[tuple[int], np.dtype[np.float64]] | None" = None
    """Of each resample, where it was bootstrapped."""


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """Those that decide; the first unless another one is asked for."""
    return ("rmse",) if task == "regression" else ("accuracy", "roc_auc", "log_loss")


def measured(pairs: Pairs, metric: Metric, *, seed: int = 0, n_resamples: int = bootstrap.RESAMPLES) -> Effect:
    """One metric of both models.

    Raises:
        UndefinedMetricError: where the rows leave it undefined.
    """
    return _accuracy(pairs) if metric == "accuracy" else _bootstrapped(pairs, metric, seed, n_resamples)


def _accuracy(pairs: Pairs) -> Effect:
    champion, challenger = pairs.is_right
    rows = discordant(champion, challenger, pairs.weights)
    low, high = interval(rows, ALPHA)
    is_better, is_worse, is_not_worse = shown(rows)
    return Effect(
        metric="accuracy",
        champion=float(np.average(champion, weights=pairs.weights)),
        challenger=float(np.average(challenger, weights=pairs.weights)),
        difference=rows.difference,
        low=low,
        high=high,
        at_least=interval(rows, 2 * ALPHA)[0],
        test=f"McNemar's exact p = {mcnemar(rows):.2g}: {rows.only_challenger:,.0f} rows right by the challenger "
        f"alone, {rows.only_champion:,.0f} by the champion alone",
        is_better=is_better,
        is_worse=is_worse,
        is_not_worse=is_not_worse,
    )


def shown(rows: Discordant) -> tuple[bool, bool, bool]:
    """Whether the challenger is better, worse, not worse by the margin: what follows from the discordant rows alone."""
    is_different = mcnemar(rows) <= ALPHA
    by_margin = worse_by(MARGIN, rows)
    return (
        is_different and rows.difference > 0 and by_margin <= ALMOST_NEVER,
        is_different and rows.difference < 0,
        by_margin <= ALPHA,
    )


def _bootstrapped(pairs: Pairs, name: Metric, seed: int, n_resamples: int) -> Effect:
    if name == "roc_auc":
        n_of_class = np.bincount(pairs.true, minlength=pairs.champion.shape[1])
        if n_of_class.min() < bootstrap.FEWEST_OF_A_CLASS:
            raise UndefinedMetricError(
                f"the area under the ROC curve needs {bootstrap.FEWEST_OF_A_CLASS} rows of each class, "
                f"one has {n_of_class.min()}: choose another metric, or wait for more labels"
            )
    metric = _BOOTSTRAPPED[name](pairs)
    ((champion, challenger),) = metric(pairs.weights[None])
    drawn = bootstrap.resampled(metric, pairs.weights, seed, n_resamples)
    is_loss = name in LOSSES
    if is_loss and not (champion > 0 and (drawn[:, 0] > 0).all()):
        raise UndefinedMetricError(f"the champion has a {name} of 0 on these rows, no share of it can be said")
    differences = 1 - drawn[:, 1] / drawn[:, 0] if is_loss else drawn[:, 1] - drawn[:, 0]
    difference = float(1 - challenger / champion if is_loss else challenger - champion)
    deviation = float(differences.std(ddof=1))

    def low(misses: float) -> float:
        normal = difference - NormalDist().inv_cdf(1 - misses) * deviation
        return min(float(np.quantile(differences, misses)), normal)

    def high(misses: float) -> float:
        normal = difference + NormalDist().inv_cdf(1 - misses) * deviation
        return max(float(np.quantile(differences, 1 - misses)), normal)

    return Effect(
        metric=name,
        champion=float(champion),
        challenger=float(challenger),
        difference=difference,
        low=low(ALPHA / 2),
        high=high(ALPHA / 2),
        at_least=low(CAUTION * ALPHA),
        test=f"paired bootstrap of {len(differences):,} resamples",
        is_better=low(CAUTION * ALPHA / 2) > 0 and low(CAUTION_FAR_OUT * ALMOST_NEVER) > -MARGIN,
        is_worse=high(CAUTION * ALPHA / 2) < 0,
        is_not_worse=low(CAUTION * ALPHA) > -MARGIN,
        differences=differences,
    )
