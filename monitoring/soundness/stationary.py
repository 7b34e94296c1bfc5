"""Days without any drift: how many of them alarm, by tabserve and by Evidently's default."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from monitoring.soundness import evidently_default, ours
from monitoring.soundness.ours import Model, Watched
from monitoring.soundness.populations import built_in, mixed
from monitoring.verdict import Level
from tabserve.engine import Scores
from tabserve.reference import Bins, deciles
from tabserve.statistics.divergence import psi

SIZES = (500, 1000, 5000, 20_000)  # rows a day
POPULATIONS = (built_in, mixed)
PSI_ROWS = 5000  # of the windows by which references of the predictions are compared

OURS = "tabserve"
OURS_ALONE = "tabserve, a day alone"
ANY = "Evidently, any column"
ANY_TWO = "Evidently, any column, two days running"
HALF = "Evidently, half of the columns"
FEATURE = "Evidently, any feature"
FEATURE_TWO = "Evidently, any feature, two days running"
JUDGES = (OURS, OURS_ALONE, ANY, ANY_TWO, FEATURE, FEATURE_TWO, HALF)


@dataclass
class Found:
    """What the days of one training, or of several added up, gave."""

    population: str
    trainings: int = 0
    days: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By judge and rows a day; so are those that follow."""
    alarms: Counter[tuple[str, int]] = field(default_factory=Counter)
    trainings_with_alarms: Counter[tuple[str, int]] = field(default_factory=Counter)
    columns: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Days with an alarm of tabserve, by rows a day and column."""
    prediction_psi: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Of a window without drift: out-of-fold and in-sample, in our bins; the same in deciles alone."""
    same_as_the_preset: int = 0
    compared_with_the_preset: int = 0

    def add(self, other: "Found") -> None:
        self.trainings += other.trainings
        for mine, more in (
            (self.days, other.days),
            (self.alarms, other.alarms),
            (self.trainings_with_alarms, other.trainings_with_alarms),
        ):
            mine.update(more)
        self.columns.update(other.columns)
        self.prediction_psi += other.prediction_psi
        self.same_as_the_preset += other.same_as_the_preset
        self.compared_with_the_preset += other.compared_with_the_preset

    def count(self, judge: str, n_rows: int, days: Sequence[bool]) -> None:
        """Adds the days of one training, but the first: whether each had an alarm of any column."""
        days = days[1:]
        self.days[judge, n_rows] += len(days)
        self.alarms[judge, n_rows] += sum(days)
        self.trainings_with_alarms[judge, n_rows] += any(days)


def simulate(
    which: int, seed: int, n_days: int, n_evidently: int, sizes: Sequence[int] = SIZES, *, ask_preset: bool = False
) -> Found:
    """One training and its days; the first of them are judged by Evidently too.

    Args:
        which: position in `POPULATIONS`.
        ask_preset: whether the very first of them is judged by Evidently's preset itself as well.
        sizes: ascending; a day of fewer rows is the beginning of the day of more.
    """
    population = POPULATIONS[which]()
    random = np.random.default_rng([which, seed])
    model = ours.trained(population, random)
    found = Found(population.name, trainings=1)
    levels: dict[int, list[list[Level]]] = {n_rows: [] for n_rows in sizes}
    flags: dict[int, list[list[bool]]] = {n_rows: [] for n_rows in sizes}
    reference = _frame(model, model.rows, model.out_of_fold)
    for day in range(n_days + 1):  # the first is only what the second is confirmed by
        rows, _ = population.draw(random, max(sizes))
        scores = model.engine.predict(rows)
        columns = ours.columns_of(rows, scores)
        parts = {
            end: model.watched.counts([values[begin:end] for values in columns])
            for begin, end in itertools.pairwise((0, *sizes))
        }
        for n_rows, counts in ours.cumulated(parts).items():
            levels[n_rows].append(model.watched.levels(counts, n_rows))
        for n_rows in sizes if day <= n_evidently else ():
            current = _frame(model, rows[:n_rows], scores[:n_rows])
            flags[n_rows].append(evidently_default.drifted(reference, current, _categories(model)))
            if ask_preset and day == 0 and n_rows == sizes[0]:
                preset = evidently_default.by_the_preset(reference, current, _categories(model))
                found.compared_with_the_preset += 1
                found.same_as_the_preset += preset == flags[n_rows][0]
    for n_rows in sizes:
        _count(found, model.watched, n_rows, levels[n_rows], flags[n_rows])
    rows, _ = population.draw(random, PSI_ROWS)
    found.prediction_psi.append(_psi_of_references(model, model.engine.predict(rows)))
    return found


def _count(
    found: Found, watched: Watched, n_rows: int, levels: Sequence[Sequence[Level]], flags: Sequence[Sequence[bool]]
) -> None:
    confirmed = ours.alarms(levels)
    found.count(OURS, n_rows, [any(day) for day in confirmed])
    found.count(OURS_ALONE, n_rows, ["alarm" in day for day in levels])
    for day in confirmed[1:]:
        found.columns.update(
            (n_rows, name) for (name, _, _), is_alarm in zip(watched.columns, day, strict=True) if is_alarm
        )
    if flags:
        n_features = len(watched.reference.features)
        running = evidently_default.alarms(flags, running=2)
        found.count(ANY, n_rows, [any(day) for day in flags])
        found.count(ANY_TWO, n_rows, [any(day) for day in running])
        found.count(FEATURE, n_rows, [any(day[:n_features]) for day in flags])
        found.count(FEATURE_TWO, n_rows, [any(day[:n_features]) for day in running])
        found.count(HALF, n_rows, [bool(np.mean(day) >= evidently_default.DATASET_DRIFT) for day in flags])


def _psi_of_references(model: Model, fresh: Scores) -> tuple[float, float, float, float]:
    """The largest PSI of the scores; see `Found.prediction_psi`."""
    in_sample = model.engine.predict(model.rows)
    keys = list(model.reference.predictions)

    def largest(bins: Sequence[Bins], reference: Scores) -> float:
        pairs = zip(bins, reference.T, fresh.T, strict=True)
        return max(psi(one.count(old), one.count(new)) for one, old, new in pairs)

    def by_deciles(reference: Scores) -> list[Bins]:
        return [Bins(edges=tuple(np.unique(deciles(scores)).tolist())) for scores in reference.T]

    return (
        largest([model.reference.predictions[key] for key in keys], model.out_of_fold),
        largest([model.in_sample.predictions[key] for key in keys], in_sample),
        largest(by_deciles(model.out_of_fold), model.out_of_fold),
        largest(by_deciles(in_sample), in_sample),
    )


def _frame(model: Model, rows: np.ndarray[tuple[int, int], np.dtype[np.float64]], scores: Scores) -> pd.DataFrame:
    """Features and scores, as somebody would give them to Evidently."""
    frame = model.contract.to_frame(rows)
    columns = {f"score:{key}": scores[:, place] for place, key in enumerate(model.contract.probability_keys)}
    return pd.concat([frame, pd.DataFrame(columns)], axis=1)


def _categories(model: Model) -> list[str]:
    return [feature.name for feature in model.contract.features if feature.kind in ("category", "boolean")]
