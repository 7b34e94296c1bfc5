"""Populations that tables are drawn from: fresh rows without end, of which no model was fitted on any."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import Pipeline

from tabserve.contract import Contract, Feature, Rows
from tabserve.training.pipelines import builtin_pipeline, default_pipeline
from tabserve.training.table import builtin_table

Draw = Callable[[np.random.Generator, int], tuple[Rows, npt.NDArray[np.int64]]]

BANDWIDTH = 0.25  # standard deviations, within the class, of the noise that makes of a row of the table a fresh one
MANY_LEVELS = 40
CLASSES = ("basic", "plus", "pro")
CLASS_SHARES = (0.60, 0.35, 0.05)


@dataclass(frozen=True)
class Population:
    """Draws rows, shape (n, features), coded as in the contract, and the index of each row's class."""

    name: str
    contract: Contract
    table_rows: int
    """Of a table to train on; training keeps a fifth of it for the test."""
    pipeline: Callable[[], Pipeline]
    draw: Draw


def built_in() -> Population:
    """The built-in table as a smoothed bootstrap: a row of it and noise, within the class, the variance kept.

    Silverman (1987), Density Estimation, section 6.4.
    """
    table = builtin_table()
    means = np.array([table.rows[table.target == label].mean(axis=0) for label in (0, 1)])
    deviations = np.array([table.rows[table.target == label].std(axis=0) for label in (0, 1)])

    def draw(random: np.random.Generator, n_rows: int) -> tuple[Rows, npt.NDArray[np.int64]]:
        chosen = random.integers(0, len(table.rows), n_rows)
        target = table.target[chosen]
        noise = BANDWIDTH * deviations[target] * random.standard_normal((n_rows, table.rows.shape[1]))
        centre = means[target]
        return centre + (table.rows[chosen] - centre + noise) / np.sqrt(1 + BANDWIDTH**2), target

    return Population("built-in table", table.contract, len(table.rows), builtin_pipeline, draw)


def mixed() -> Population:
    """16 columns that statistics of drift find hard, and three classes, one of them rare."""
    number = [
        "normal", "lognormal", "lognormal, wide", "heavy tails", "Pareto", "zero-inflated", "normal, 1 % missing",
        "lognormal, 20 % missing", "normal, hardly ever missing",
    ]  # fmt: skip
    features = [Feature(name=name, kind="number", may_be_missing="missing" in name) for name in number]
    features += [Feature(name=name, kind="integer") for name in ("counts", "rare counts", "counts, overdispersed")]
    features += [Feature(name=name, kind="boolean") for name in ("boolean", "boolean, 2 %")]
    for name, levels in (("category, 5 levels", 5), ("category, 40 levels", MANY_LEVELS)):
        features.append(Feature(name=name, kind="category", categories=tuple(f"{i:02d}" for i in range(levels))))
    contract = Contract(features=tuple(features), task="multiclass", target="plan", classes=CLASSES)
    frequencies = 1 / np.arange(1, MANY_LEVELS + 1) ** 1.5  # Zipf: the rarest has 0.2 % of the rows
    frequencies /= frequencies.sum()

    def columns(random: np.random.Generator, n: int) -> list[npt.NDArray[np.float64]]:
        return [
            random.standard_normal(n),
            random.lognormal(0, 1, n),
            random.lognormal(0, 2, n),
            random.standard_t(3, n),
            random.pareto(1.5, n),
            np.where(random.random(n) < 0.7, 0.0, random.lognormal(0, 1, n)),
            _with_gaps(random, random.standard_normal(n), 0.01),
            _with_gaps(random, random.lognormal(0, 1, n), 0.20),
            _with_gaps(random, random.standard_normal(n), 0.0005),  # 1 of 2000 rows: often none of the reference
            random.poisson(3, n).astype(float),
            random.poisson(0.3, n).astype(float),
            random.negative_binomial(1, 0.1, n).astype(float),
            (random.random(n) < 0.5).astype(float),
            (random.random(n) < 0.02).astype(float),
            random.choice(5, n, p=(0.4, 0.3, 0.2, 0.09, 0.01)).astype(float),
            random.choice(MANY_LEVELS, n, p=frequencies).astype(float),
        ]

    def score(rows: Rows, random: np.random.Generator) -> npt.NDArray[np.float64]:
        signal = rows[:, 0] + np.log(rows[:, 1]) + 0.3 * rows[:, 9] + rows[:, 12] + 0.5 * (rows[:, 14] == 0)
        return np.asarray(signal + random.standard_normal(len(rows)), np.float64)

    some = np.random.default_rng(0)
    cuts = np.quantile(score(np.column_stack(columns(some, 100_000)), some), np.cumsum(CLASS_SHARES)[:-1])

    def draw(random: np.random.Generator, n_rows: int) -> tuple[Rows, npt.NDArray[np.int64]]:
        rows = np.column_stack(columns(random, n_rows))
        return rows, np.searchsorted(cuts, score(rows, random)).astype(np.int64)

    return Population("skewed mixed table", contract, 2500, lambda: default_pipeline(contract), draw)


def _with_gaps(random: np.random.Generator, values: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    return np.where(random.random(len(values)) < share, np.nan, values)
