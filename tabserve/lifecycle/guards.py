"""What a model must not pay for being better as a whole: a group of rows, or honest probabilities.

A group is worse where it lost more than twice the margin and more than chance gives, groups of fewer than 200 rows
being left out. All that are looked at share the 5 % (Bonferroni): a model that is as good everywhere is stopped in at
most one case of twenty, however many groups there are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tabserve.lifecycle.effects import ALPHA, MARGIN
from tabserve.lifecycle.paired_tests import discordant, mcnemar
from tabserve.lifecycle.pairs import Floats, Pairs

FEWEST_ROWS = 200  # of a group; of fewer, even ten points are within chance
MOST_LOST = 2 * MARGIN
MOST_BRIER_LOST = 0.1  # of the champion's Brier score, and never more than the margin: a good model has a small one


@dataclass(frozen=True)
class Group:
    """Rows of one part of a column: accuracy, or the RMSE of a regression."""

    column: str
    value: str
    n_rows: int
    champion: float
    challenger: float
    difference: float
    """Positive where the challenger is better; of an RMSE as a share of the champion's."""
    p_value: float
    is_worse: bool = False

    def __str__(self) -> str:
        return f"{self.column} = {self.value} ({self.n_rows:,} rows)"


@dataclass(frozen=True)
class Calibration:
    """The Brier score of both: the mean squared distance of the probabilities from what came true."""

    champion: float
    challenger: float
    p_value: float
    is_worse: bool


def groups_of(pairs: Pairs) -> tuple[Group, ...]:
    """All groups that are large enough, those that fare worst first."""
    found = list(_large_enough(pairs))
    judged = [
        replace(group, is_worse=group.difference < -MOST_LOST and group.p_value <= ALPHA / len(found))
        for group in found
    ]
    return tuple(sorted(judged, key=lambda group: (not group.is_worse, group.difference)))


def calibration_of(pairs: Pairs) -> Calibration | None:
    """None of a regression."""
    if pairs.task == "regression":
        return None
    champion, challenger = pairs.brier_scores
    before, after = (float(np.average(scores, weights=pairs.weights)) for scores in (champion, challenger))
    p_value = _p_value(champion - challenger, pairs.weights)
    allowed = min(MARGIN, MOST_BRIER_LOST * before)
    return Calibration(before, after, p_value, is_worse=after - before > allowed and p_value <= ALPHA)


def _large_enough(pairs: Pairs) -> Iterator[Group]:
    for column, parts in pairs.segments.items():
        values, place, counts = np.unique(parts.astype(str), return_inverse=True, return_counts=True)
        for number in np.flatnonzero(counts >= FEWEST_ROWS):
            yield _group(column, str(values[number]), pairs.where(place == number))


def _group(column: str, value: str, rows: Pairs) -> Group:
    if rows.task == "regression":
        champion, challenger = rows.squared_errors
        before, after = (float(np.average(each, weights=rows.weights)) ** 0.5 for each in (champion, challenger))
        p_value = _p_value(champion - challenger, rows.weights)
        return Group(column, value, len(rows), before, after, 1 - after / before if before else 0.0, p_value)
    right, right_too = rows.is_right
    counted = discordant(right, right_too, rows.weights)
    before, after = (float(np.average(each, weights=rows.weights)) for each in (right, right_too))
    return Group(column, value, len(rows), before, after, counted.difference, mcnemar(counted))


def _p_value(differences: Floats, weights: Floats) -> float:
    """Two-sided, that the weighted mean is 0: normal, with the linearised variance; at 200 rows the t is no other."""
    shares = weights / weights.sum()
    mean = float(shares @ differences)
    error = float(np.sqrt(np.sum((shares * (differences - mean)) ** 2)))
    return math.erfc(abs(mean) / error / math.sqrt(2)) if error > 0 else 1.0 if mean == 0 else 0.0
