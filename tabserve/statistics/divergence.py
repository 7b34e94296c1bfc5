"""How far a window's counts are from the reference's, in the same bins: PSI, KL, and what chance alone would give.

A window of rows that came with weights has weighted counts; how many rows it is worth is Kish's effective number.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

Counts = Sequence[float] | npt.NDArray[np.float64]

SMOOTHING = 0.5  # rows are added to each bin: an empty one would make either number infinite (Jeffreys' prior)


def shares(counts: Counts) -> npt.NDArray[np.float64]:
    """The smoothed share of each bin, shape (bins,): none is 0, they add up to 1."""
    smoothed = np.asarray(counts, np.float64) + SMOOTHING
    return np.asarray(smoothed / smoothed.sum(), np.float64)


def kl(reference: Counts, current: Counts) -> float:
    """The Kullback-Leibler divergence in nats, of smoothed shares, the larger of its two directions.

    D(current || reference) = sum of c * ln(c / r) over the bins; D(reference || current) likewise. Kullback and Leibler
    (1951). The former sees rows come where there were few, the latter sees them go: a missing share that rises from 1
    to 10 % is 0.144 and 0.071, and when it falls again it is the other way round.
    """
    c, r = shares(current), shares(reference)
    return float(max(np.sum(c * np.log(c / r)), np.sum(r * np.log(r / c))))


def psi(reference: Counts, current: Counts) -> float:
    """The population stability index: sum of (c - r) * ln(c / r), the KL of either side added up. Siddiqi (2006)."""
    c, r = shares(current), shares(reference)
    return float(np.sum((c - r) * np.log(c / r)))


def effective_rows(weights_sum: float, squares_sum: float) -> float:
    """How many rows of equal weight say as much: (sum of w)^2 / sum of w^2. Kish (1965); 0 where there is none."""
    return weights_sum**2 / squares_sum if squares_sum else 0.0


def psi_by_chance(n_bins: int, n_reference: float, n_current: float, false_alarms: float) -> float:
    """What PSI exceeds in a share `false_alarms` of windows where nothing changed.

    PSI is then distributed as chi-square with bins - 1 degrees of freedom, times 1/n + 1/m: Yurdakul and Naranjo
    (2020). Bins that are empty on both sides make it a little too large, which is the safe side.
    """
    if min(n_reference, n_current) <= 0:
        return float("inf")
    return float(chi2.isf(false_alarms, max(1, n_bins - 1))) * (1 / n_reference + 1 / n_current)


def kl_by_chance(n_bins: int, n_reference: float, n_current: float, false_alarms: float) -> float:
    """As `psi_by_chance`: KL is half of PSI where both are small."""
    return psi_by_chance(n_bins, n_reference, n_current, false_alarms) / 2
