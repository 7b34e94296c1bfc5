"""What tabserve says of simulated windows: the very functions that judge the log's windows."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from monitoring.soundness.populations import Population
from monitoring.verdict import Binned, Level, compare, confirmed
from tabserve.contract import Contract, Rows
from tabserve.engine import Engine, Scores
from tabserve.reference import Bins, Reference, build_reference
from tabserve.training.arguments import Arguments
from tabserve.training.evaluation import Gates
from tabserve.training.recipe import train
from tabserve.training.table import Source, Table

Column = np.ndarray[tuple[int], np.dtype[np.float64]]


def be_quiet() -> None:
    """For a process of a run: trainings say what is odd about a table, and these are odd on purpose."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


@dataclass(frozen=True)
class Watched:
    """The columns of a reference, features first, each with its bins."""

    reference: Reference

    @cached_property
    def columns(self) -> list[tuple[str, Bins, bool]]:
        """Name, bins, and whether it is a prediction."""
        features = [(name, bins, False) for name, bins in self.reference.features.items()]
        return features + [(name, bins, True) for name, bins in self.reference.predictions.items()]

    @cached_property
    def _binned(self) -> list[Binned]:
        return [Binned(counts=bins.counts, n_rows=self.reference.n_rows) for _, bins, _ in self.columns]

    def levels(self, counts: Sequence[Sequence[int]], n_rows: int) -> list[Level]:
        """The level of each column in one window of `n_rows` rows, from the counts of its bins."""
        return [
            compare(
                reference,
                Binned(counts=tuple(counted), n_rows=n_rows),
                is_prediction=is_prediction,
                n_columns=len(self.columns),
            ).level
            for (_, _, is_prediction), reference, counted in zip(self.columns, self._binned, counts, strict=True)
        ]

    def counts(self, columns: Sequence[Column]) -> list[tuple[int, ...]]:
        """The counts of the bins of values that are given column by column."""
        return [bins.count(values) for (_, bins, _), values in zip(self.columns, columns, strict=True)]


def alarms(days: Sequence[Sequence[Level]]) -> list[list[bool]]:
    """Whether each column has an alarm, day after day: `confirmed` of that day and the one before."""
    return [
        [confirmed(pair) == "alarm" for pair in zip(*days[max(0, day - 1) : day + 1], strict=True)]
        for day in range(len(days))
    ]


@dataclass(frozen=True)
class Model:
    """A model as training makes it, from rows of a population."""

    contract: Contract
    reference: Reference
    engine: Engine
    rows: Rows
    """Those that it was fitted on, shape (n, features)."""
    out_of_fold: Scores

    @cached_property
    def watched(self) -> Watched:
        return Watched(self.reference)

    @cached_property
    def in_sample(self) -> Reference:
        """The reference as it would be of the scores of the rows that the model was fitted on."""
        return build_reference(self.contract, self.rows, self.engine.predict(self.rows))


def trained(population: Population, random: np.random.Generator) -> Model:
    """Draws a table of the population and trains on it, by the project's own recipe."""
    rows, target = population.draw(random, population.table_rows)
    source = Source("simulated", population.name, "")
    table = Table(population.contract, rows, target, None, source, {}, ())
    model = train(table, population.pipeline(), Arguments(gates=Gates(max_latency_ms=None), seed=42))
    engine = model.compiled.engine(model.pipeline, model.contract)
    return Model(model.contract, model.reference, engine, rows[model.split.train], model.out_of_fold)


def columns_of(rows: Rows, scores: Scores) -> list[Column]:
    """Features and scores, column by column."""
    return [*rows.T, *scores.T]


def cumulated(counts: Mapping[int, Sequence[Sequence[int]]]) -> dict[int, list[tuple[int, ...]]]:
    """Counts of the first n rows, for each n, from the counts of the rows between one n and the next."""
    found: dict[int, list[tuple[int, ...]]] = {}
    before: list[tuple[int, ...]] | None = None
    for n_rows, counted in counts.items():
        so_far = [tuple(np.add(a, b).tolist()) for a, b in zip(before, counted, strict=True)] if before else counted
        before = found[n_rows] = [tuple(column) for column in so_far]
    return found
