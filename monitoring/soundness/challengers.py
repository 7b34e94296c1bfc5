"""Pairs of models with a known difference, as the labelled rows that they would answer."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from tabserve.lifecycle.effects import MARGIN, Metric
from tabserve.lifecycle.pairs import Pairs
from tabserve.statistics.quality import area_under_curve, mean_influences

Draw = Callable[[np.random.Generator, int, float], Pairs]
"""A generator, a number of rows and the challenger's true difference to rows."""

DISCORDANT = (0.012, 0.02, 0.04, 0.08, 0.16, 0.30)
ACCURACY = 0.90  # of the champion
SURE = 0.9  # the probability of what a model says; calibrated where it is right so often
GROUPS = 5
POSITIVE = 0.3
SEPARATION = 1.5  # of the classes in standard deviations: the area under the champion's curve is 0.86


def of_accuracy(random: np.random.Generator, n_rows: int, difference: float, *, discordant: float) -> Pairs:
    """Two classes; `discordant` is the share of rows where one model is right and the other is not.

    The rows are parted into five groups, so that the guards are in what is found.
    """
    only_challenger, only_champion = (discordant + difference) / 2, (discordant - difference) / 2
    shares = (ACCURACY - only_champion, only_champion, only_challenger, 1 - ACCURACY - only_challenger)
    kind = random.choice(4, n_rows, p=shares)
    true = random.integers(0, 2, n_rows)
    groups = random.integers(0, GROUPS, n_rows).astype(object)
    champion, challenger = kind <= 1, (kind == 0) | (kind == 2)  # right
    return Pairs("binary", true, _said(true, champion), _said(true, challenger), np.ones(n_rows), {"group": groups})


def of_weighted_rows(random: np.random.Generator, n_rows: int, difference: float, *, heavy: float) -> Pairs:
    """As the log has them where the share of requests that are kept was 1 and then a tenth; 8 % are discordant.

    Args:
        heavy: of the discordance of the light rows, what the heavy ones have of it.
    """
    weights = np.where(random.random(n_rows) < 0.5, 1.0, 10.0)
    light_share = 0.08 / (1 / 11 + heavy * 10 / 11)
    share = np.where(weights == 1, light_share, heavy * light_share)
    differs = random.random(n_rows) < share
    challenger_alone = random.random(n_rows) < (share + difference) / 2 / share
    both = random.random(n_rows) < ACCURACY
    true = random.integers(0, 2, n_rows)
    champion = np.where(differs, ~challenger_alone, both)
    challenger = np.where(differs, challenger_alone, both)
    return Pairs("binary", true, _said(true, champion), _said(true, challenger), weights)


def of_area(random: np.random.Generator, n_rows: int, difference: float, *, correlation: float) -> Pairs:
    """Normal scores within each class (Hanley 1988): the area is Phi(separation / sqrt 2)."""
    from scipy.stats import norm

    true = (random.random(n_rows) < POSITIVE).astype(np.intp)
    area = norm.cdf(SEPARATION / 2**0.5)
    separation = norm.ppf(area + difference) * 2**0.5
    mine, own = random.standard_normal((2, n_rows))
    other = correlation * mine + (1 - correlation**2) ** 0.5 * own
    champion, challenger = (
        1 / (1 + np.exp(-(noise + by * (true - POSITIVE)))) for noise, by in ((mine, SEPARATION), (other, separation))
    )
    return Pairs(
        "binary", true, np.stack([1 - champion, champion], 1), np.stack([1 - challenger, challenger], 1),
        np.ones(n_rows),
    )  # fmt: skip


def of_log_loss(random: np.random.Generator, n_rows: int, difference: float, *, spread: float) -> Pairs:
    """Honest probabilities, each model's with noise in the log odds of its own; the challenger's log loss is rescaled
    to have the difference: the probability of what came true is raised to the power that gives it.
    """
    odds = 1.5 * random.standard_normal(n_rows)
    true = (random.random(n_rows) < 1 / (1 + np.exp(-odds))).astype(np.intp)
    found = []
    for power in (1.0, 1 - difference):
        probability = 1 / (1 + np.exp(-(odds + spread * random.standard_normal(n_rows))))
        of_true = np.where(true == 1, probability, 1 - probability) ** power
        found.append(np.where(true == 1, of_true, 1 - of_true))
    return Pairs(
        "binary", true, np.stack([1 - found[0], found[0]], 1), np.stack([1 - found[1], found[1]], 1), np.ones(n_rows)
    )


def of_errors(
    random: np.random.Generator, n_rows: int, difference: float, *, correlation: float, degrees: float
) -> Pairs:
    """Errors of a regression, of both models correlated; t-distributed with so many degrees of freedom."""
    noise = random.standard_normal((2, n_rows))
    if np.isfinite(degrees):  # one row is wild for both
        noise *= np.sqrt(degrees / random.chisquare(degrees, n_rows))
    other = correlation * noise[0] + (1 - correlation**2) ** 0.5 * noise[1]
    true = 10 * random.standard_normal(n_rows)
    return Pairs("regression", true, true + noise[0], true + (1 - difference) * other, np.ones(n_rows))


HOPELESS = 1.4  # standard errors; *not worse* takes 1.75 of the bootstrap's, which are never a fifth smaller


def is_hopeless(pairs: Pairs, metric: Metric) -> bool:
    """Whether the difference is so little above the margin, in linearised standard errors, that no bootstrap of it can
    end with *not worse* or *better*: that is said without one, which costs a hundredth.
    """
    weights = pairs.weights
    if metric == "roc_auc":
        (before, of_before), (after, of_after) = (
            area_under_curve(pairs.true, scores, weights) for scores in (pairs.champion, pairs.challenger)
        )
        difference, influences = after - before, of_after - of_before
    else:
        losses = pairs.squared_errors if metric == "rmse" else pairs.log_losses
        means = [float(np.average(each, weights=weights)) for each in losses]
        power = 0.5 if metric == "rmse" else 1.0
        ratio = (means[1] / means[0]) ** power
        first, second = (mean_influences(each, weights) / mean for each, mean in zip(losses, means, strict=True))
        difference, influences = 1 - ratio, power * ratio * (first - second)
    return bool(difference - HOPELESS * float(np.sum(influences**2)) ** 0.5 <= -MARGIN)


def _said(true: npt.NDArray[np.intp], is_right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    said = np.where(is_right, true, 1 - true)
    return np.where(said[:, None] == np.arange(2), SURE, 1 - SURE)


SETTINGS: dict[tuple[str, str], tuple[Draw, Metric]] = {
    **{
        ("verdict", f"{share:.1%} of the rows discordant"): (partial(of_accuracy, discordant=share), "accuracy")
        for share in (0.04, 0.08, 0.16)
    },
    ("weights", "heavy rows are like the others"): (partial(of_weighted_rows, heavy=1.0), "accuracy"),
    ("weights", "heavy rows are discordant twice as often"): (partial(of_weighted_rows, heavy=2.0), "accuracy"),
    ("roc_auc", "scores correlated 0.95"): (partial(of_area, correlation=0.95), "roc_auc"),
    ("roc_auc", "scores correlated 0.80"): (partial(of_area, correlation=0.80), "roc_auc"),
    ("log_loss", "little noise of their own"): (partial(of_log_loss, spread=0.1), "log_loss"),
    ("log_loss", "much noise of their own"): (partial(of_log_loss, spread=0.4), "log_loss"),
    ("rmse", "normal errors, correlated 0.95"): (partial(of_errors, correlation=0.95, degrees=np.inf), "rmse"),
    ("rmse", "errors with heavy tails (t, 5 degrees), correlated 0.95"): (
        partial(of_errors, correlation=0.95, degrees=5.0),
        "rmse",
    ),
}
