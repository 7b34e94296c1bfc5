"""A stream of rows whose truth is known and changes: what follows from a row early does not follow from it late.

At phase 0 the class follows from x, at phase 1 from z (the weights turn by 100 degrees: concept drift), and x has moved
up by one standard deviation (shift). The truth is a probability, so the best that any model can do is known.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tabserve.contract import Contract, Rows
from tabserve.training.columns import code

NAME = "stream"
TURN = np.deg2rad(100)
SURENESS = 4.0  # of the truth: at its best a model is right in 86 % of the rows


@dataclass(frozen=True)
class Piece:
    """Rows of one stretch of time, what came true of them, and how likely that was."""

    frame: pd.DataFrame
    probability: np.ndarray
    outcome: np.ndarray

    @property
    def best_accuracy(self) -> float:
        """Of whoever knows the truth."""
        return float(np.maximum(self.probability, 1 - self.probability).mean())

    def accuracy(self, scores: np.ndarray) -> float:
        """Of somebody's probabilities, shape (rows, 2)."""
        return float((scores.argmax(axis=1) == self.outcome).mean())

    def rows(self, contract: Contract) -> Rows:
        """The rows as they are coded in a contract."""
        return np.column_stack([code(self.frame[feature.name], feature) for feature in contract.features])

    def instances(self, contract: Contract) -> list[list]:
        """The rows as a caller sends them."""
        return [contract.to_values(row) for row in self.rows(contract)]

    def write(self, path: Path) -> Path:
        """A table to train on."""
        self.frame.assign(y=self.outcome).to_csv(path, index=False)
        return path


def piece(phase: np.ndarray, seed: int) -> Piece:
    """A row for each phase, in order of time."""
    random = np.random.default_rng(seed)
    n_rows = len(phase)
    x, z = random.normal(phase, 1), random.normal(0, 1, n_rows)
    region = random.choice(["north", "south"], n_rows)
    member = random.random(n_rows) < 0.5
    score = np.cos(phase * TURN) * (x - phase) + np.sin(phase * TURN) * z + 0.5 * (region == "south") - 0.25
    probability = 1 / (1 + np.exp(-SURENESS * score))
    frame = pd.DataFrame({"x": x, "z": z, "region": region, "member": member})
    frame["visits"] = pd.array(random.poisson(3, n_rows), dtype="Int64")
    frame.loc[random.random(n_rows) < 0.1, "visits"] = pd.NA
    return Piece(frame, probability, (random.random(n_rows) < probability).astype(int))
