"""The reference of the drift statistics: bins that are fixed at training, and how many training rows fell into each.

The edges are the deciles of the training rows, with open ends, so that one wild value cannot widen a bin and hide a
shift of all others. Missing has a bin of its own. The predictions are out-of-fold: those of rows that a model was
fitted on are too sure, and would make every honest window look drifted.

The edges of a probability are deciles too, but no closer than a percentage point to each other, to 0 or to 1. The
out-of-fold scores come from models of four fifths of the rows, which saturate elsewhere than the one that serves: three
of ten rows of the built-in table score below 0.002, and whether 0.0001 or 0.0003 says nothing about the data.
"""

from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from tabserve.contract import Contract, Feature, Rows
from tabserve.engine import Scores

MOST_CATEGORY_BINS = 20  # the most frequent ones; the others share one bin
PROBABILITY_STEP = 0.01  # by which edges of a probability are apart; with deciles alone PSI is 0.9 without any drift


class Bins(BaseModel):
    """Fixed bins of one column and the training rows in each: `edges` or `codes` first, then other, then missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: tuple[float, ...] = ()
    """Inner edges of a number, ascending: k edges make k + 1 bins, each including its lower edge."""
    codes: tuple[int, ...] | None = None
    """Codes of a category or boolean with a bin of their own; None for a number."""
    counts: tuple[int, ...] = ()
    """Rows a bin: len(edges) + 1 or len(codes) + 1 (other) bins, and the last for missing."""

    def count(self, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[int, ...]:
        """How many of `values`, shape (n,), coded as in a row, fall into each bin."""
        missing = np.isnan(values)
        present = values[~missing]
        if self.codes is None:
            places = np.searchsorted(np.array(self.edges), present, side="right")
            n_bins = len(self.edges) + 1
        else:
            places = np.full(len(present), len(self.codes))
            for place, code in enumerate(self.codes):
                places[present == code] = place
            n_bins = len(self.codes) + 1
        return (*np.bincount(places, minlength=n_bins).tolist(), int(missing.sum()))


class Reference(BaseModel):
    """The bins of every feature, and of every score a model gives (a probability a class, or the value)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_rows: int
    features: dict[str, Bins]
    predictions: dict[str, Bins]

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def build_reference(contract: Contract, rows: Rows, out_of_fold: Scores) -> Reference:
    """The reference of the training rows, shape (n, features), and of the out-of-fold scores of the same rows."""
    features = {
        feature.name: _bins_of_feature(feature, rows[:, position]) for position, feature in enumerate(contract.features)
    }
    columns = [out_of_fold] if contract.task == "regression" else list(out_of_fold.T)
    keys = ("value",) if contract.task == "regression" else contract.probability_keys
    predictions = {}
    for key, scores in zip(keys, columns, strict=True):
        edges = tuple(np.unique(deciles(scores))) if contract.task == "regression" else edges_of_probability(scores)
        predictions[key] = _counted(Bins(edges=edges), scores)
    return Reference(n_rows=len(rows), features=features, predictions=predictions)


def deciles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    """The nine deciles, 0.1 to 0.9, of the values that are not missing."""
    present = values[~np.isnan(values)]
    return tuple(np.quantile(present, np.arange(1, 10) / 10).tolist()) if present.size else ()


def edges_of_probability(scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    """The deciles of a probability that are a step from each other; those nearer to 0 or 1 are moved a step away."""
    edges: list[float] = []
    for edge in np.unique(np.clip(deciles(scores), PROBABILITY_STEP, 1 - PROBABILITY_STEP)).tolist():
        if not edges or edge - edges[-1] >= PROBABILITY_STEP:
            edges.append(edge)
    return tuple(edges)


def _bins_of_feature(feature: Feature, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Bins:
    if feature.kind in ("number", "integer"):
        return _counted(Bins(edges=tuple(np.unique(feature.quantiles))), values)
    codes, counts = np.unique(values[~np.isnan(values)].astype(int), return_counts=True)
    frequent = codes[np.argsort(-counts, kind="stable")][:MOST_CATEGORY_BINS]
    return _counted(Bins(codes=tuple(sorted(frequent.tolist()))), values)


def _counted(bins: Bins, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Bins:
    return bins.model_copy(update={"counts": bins.count(values)})
