"""Labelled rows that two models answered: the same rows, so that what is hard about a row is hard for both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tabserve.contract import Task

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_LEAST_PROBABILITY = float(np.finfo(np.float64).eps)  # what scikit-learn's log_loss clips at


@dataclass(frozen=True)
class Pairs:
    """What came true of n rows, and the scores of both models."""

    task: Task
    true: npt.NDArray[Any]
    """Shape (n,): the position in the contract's classes, or the value of a regression."""
    champion: Floats
    challenger: Floats
    """Shape (n, classes), or (n,) of a regression."""
    weights: Floats
    """Shape (n,), above 0: how many rows each stands for, where the log is a sample."""
    segments: Mapping[str, npt.NDArray[np.object_]] = field(default_factory=dict)
    """For each column that the rows are parted by, the part that each row is in; shape (n,)."""

    def __len__(self) -> int:
        return len(self.true)

    def where(self, chosen: Flags) -> "Pairs":
        """Some of the rows, not parted any more."""
        return Pairs(self.task, self.true[chosen], self.champion[chosen], self.challenger[chosen], self.weights[chosen])

    @cached_property
    def is_right(self) -> tuple[Flags, Flags]:
        """Whether champion and challenger said the class that came true; the first of the most probable, as answers."""
        return self.champion.argmax(axis=1) == self.true, self.challenger.argmax(axis=1) == self.true

    @cached_property
    def squared_errors(self) -> tuple[Floats, Floats]:
        """Of a regression."""
        return (self.champion - self.true) ** 2, (self.challenger - self.true) ** 2

    @cached_property
    def log_losses(self) -> tuple[Floats, Floats]:
        rows = np.arange(len(self))
        champion, challenger = (
            -np.log(np.clip(scores[rows, self.true], _LEAST_PROBABILITY, None))
            for scores in (self.champion, self.challenger)
        )
        return champion, challenger

    @cached_property
    def brier_scores(self) -> tuple[Floats, Floats]:
        """Halved for two classes, as scikit-learn has it."""
        of_class = np.eye(self.champion.shape[1])[self.true]
        parts = 2 if self.champion.shape[1] == 2 else 1
        champion, challenger = (
            np.sum((scores - of_class) ** 2, axis=1) / parts for scores in (self.champion, self.challenger)
        )
        return champion, challenger
