"""Tests of two shares of the same rows: is one model right more often than another, or not less by a margin?

Only the rows where one model is right and the other is not say anything. There are `b` where the challenger alone is
right and `c` where the champion alone is.

- *Different*: McNemar (1947), exact. Under equality b is binomial of b + c trials with probability 1/2.
- *Not worse by a margin*: the score test of Tango (1998), with a continuity correction of half a row. The interval
  that Wald's formula gives is too short where few rows are discordant: with 1.2 % of 2000 discordant it lets a model
  that is a point worse pass in 7.0 % of cases instead of 5 %, Tango's in 4.4 %, and with the correction in 3.4 %
  (docs/comparison.md). The correction keeps it below 5 % for all that was computed, which without it is 5.001 %.

Rows with weights count as so many rows of equal weight as give the share's difference the same variance (Rao and
Scott 1992); the binomial distribution is continued to fractions of rows by the beta function.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc

from tabserve.lifecycle.pairs import Flags, Floats

HALF_A_ROW = 0.5  # the continuity correction: b - c moves by whole rows


@dataclass(frozen=True)
class Discordant:
    """Rows where one model is right and the other is not. Fractions of rows where they have weights."""

    n_rows: float
    """Of all rows, concordant ones too."""
    only_challenger: float
    only_champion: float

    @property
    def difference(self) -> float:
        """The challenger's share of right answers less the champion's."""
        return (self.only_challenger - self.only_champion) / self.n_rows

    @property
    def share(self) -> float:
        return (self.only_challenger + self.only_champion) / self.n_rows


def discordant(champion_is_right: Flags, challenger_is_right: Flags, weights: Floats) -> Discordant:
    """Counts the discordant rows, in effective rows; each of shape (n,), n at least 1."""
    differs = challenger_is_right.astype(np.float64) - champion_is_right
    shares = weights / weights.sum()
    difference = float(shares @ differs)
    of_either = float(shares @ differs**2)
    variance = float(np.sum((shares * (differs - difference)) ** 2))
    # Without a discordant row there is no variance to go by, then Kish's effective number.
    n_rows = (of_either - difference**2) / variance if variance > 0 else 1 / float(np.sum(shares**2))
    return Discordant(n_rows, n_rows * (of_either + difference) / 2, n_rows * (of_either - difference) / 2)


def mcnemar(rows: Discordant) -> float:
    """The two-sided p-value that both models are right equally often: min(1, 2 P(X >= max(b, c))), X binomial."""
    more, less = sorted((rows.only_champion, rows.only_challenger), reverse=True)
    return min(1.0, 2 * float(betainc(more, less + 1, 0.5))) if more > 0 else 1.0


def worse_by(margin: float, rows: Discordant) -> float:
    """The one-sided p-value that the challenger's share is less by the margin, or by more."""
    return 1 - NormalDist().cdf(_score(rows, -margin, HALF_A_ROW))


def interval(rows: Discordant, misses: float = 0.05) -> tuple[float, float]:
    """The interval of the difference by the same score test; it misses what is true in at most that share of cases."""
    z = NormalDist().inv_cdf(1 - misses / 2)
    edge = 1 - 1e-9
    low = high = rows.difference
    if _score(rows, -edge, HALF_A_ROW) > z:
        low = float(brentq(lambda at: _score(rows, at, HALF_A_ROW) - z, -edge, rows.difference))
    else:
        low = -1.0
    if _score(rows, edge, -HALF_A_ROW) < -z:
        high = float(brentq(lambda at: _score(rows, at, -HALF_A_ROW) + z, rows.difference, edge))
    else:
        high = 1.0
    return low, high


def _score(rows: Discordant, supposed: float, correction: float) -> float:
    """How many standard errors the difference is above a supposed one: Tango (1998), formula 4.

    (b - c - n d) / sqrt(n (2 q + d (1 - d))), q the most likely share of rows where the champion alone is right, given
    the difference d: the root of 2n q^2 + (-b - c + (2n - b + c) d) q - c d (1 - d).
    """
    n, b, c = rows.n_rows, rows.only_challenger, rows.only_champion
    linear = -b - c + (2 * n - b + c) * supposed
    constant = -c * supposed * (1 - supposed)
    q = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    above = b - c - n * supposed - correction
    variance = n * (2 * q + supposed * (1 - supposed))
    return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)
