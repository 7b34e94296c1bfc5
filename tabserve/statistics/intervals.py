"""How sure a number of some rows is: intervals of shares, of means and of what is no mean, and of a difference.

Rows may have weights. A share then counts as of Kish's effective number of rows; all else is linearised: to first
order a metric changes by its rows' influences, which are independent, so that its variance is the sum of their
squares (the infinitesimal jackknife: Efron 1982; of an area under the ROC curve it is DeLong's variance).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SHOWN = 0.05  # one in twenty 95 % intervals misses what it is to hold


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Average:
    """A share or a mean of some rows."""

    value: float
    n_rows: float
    """Effective, where they have weights."""
    deviation: float | None = None
    """Standard deviation of one row; None for a share, whose own value says it."""

    def interval(self, misses: float = SHOWN) -> Interval:
        """What holds the true value but in a share `misses` of cases: Wilson's of a share, Wald's of a mean."""
        if self.n_rows <= 0:
            return Interval(-math.inf, math.inf)
        if self.deviation is None:
            return wilson(self.value, self.n_rows, misses)
        half = _z(misses) * self.deviation / math.sqrt(self.n_rows)
        return Interval(self.value - half, self.value + half)


def wilson(share: float, n_rows: float, misses: float = SHOWN) -> Interval:
    """The score interval of a share: Wilson (1927). It is right for few rows, and where all or none are right."""
    z = _z(misses)
    centre = (share + z * z / (2 * n_rows)) / (1 + z * z / n_rows)
    half = z / (1 + z * z / n_rows) * math.sqrt(share * (1 - share) / n_rows + (z / (2 * n_rows)) ** 2)
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def difference(of: Average, less: Average, misses: float = SHOWN) -> Interval:
    """The interval of `of - less`, two averages of different rows.

    Each side brings the half of its own interval that faces the other: Newcombe (1998, method 10) of two shares, and
    in general Zou and Donner (2008). Of two means it is Welch's, with the normal distribution.
    """
    a, b, gap = of.interval(misses), less.interval(misses), of.value - less.value
    low = gap - math.hypot(of.value - a.low, b.high - less.value)
    return Interval(low, gap + math.hypot(a.high - of.value, less.value - b.low))


def linearised(
    value: float, influences: Floats, scale: Literal["plain", "log", "logit"] = "plain", misses: float = SHOWN
) -> Interval:
    """The interval of a metric by the influences of its rows.

    Symmetric on a scale where the metric is about normal: `log` for what is positive, `logit` for what lies between 0
    and 1 (of an area under the ROC curve: Pepe 2003), and never beyond these bounds. Where no row has an influence it
    is the value alone.
    """
    error = math.sqrt(float(np.sum(influences**2)))
    half = _z(misses) * error
    if error == 0 or (scale != "plain" and value <= 0) or (scale == "logit" and value >= 1):
        return Interval(value, value)
    if scale == "plain":
        return Interval(value - half, value + half)
    if scale == "log":
        factor = math.exp(min(half / value, 50.0))  # beyond that it says nothing anyhow
        return Interval(value / factor, value * factor)
    odds, factor = value / (1 - value), math.exp(min(half / (value * (1 - value)), 50.0))
    return Interval(odds / factor / (1 + odds / factor), odds * factor / (1 + odds * factor))


def effective(weights: Floats) -> float:
    """Kish's effective number of rows with these weights; 0 of none."""
    total = float(weights.sum())
    return total**2 / float(np.sum(weights**2)) if total > 0 else 0.0


def _z(misses: float) -> float:
    return NormalDist().inv_cdf(1 - misses / 2)
