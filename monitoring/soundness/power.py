"""Shifts of a known size in windows of 1000 rows: in what share of runs they are found, and how soon."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.soundness import evidently_default, ours
from monitoring.soundness.ours import Watched
from monitoring.soundness.populations import Population, built_in
from tabserve.contract import Contract, Feature, Kind, Rows
from tabserve.reference import build_reference
from tabserve.training.recipe import with_statistics

WINDOW_ROWS = 1000
WINDOWS = 4
SHIFTS = (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
FEW_SHIFTS = (0.5, 0.6, 0.8, 1.0)
ABSURD = 1e9
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """Draws n values of a column, shifted by so many of its own standard deviations."""

    name: str
    draw: Callable[[np.random.Generator, int, float], Values]
    kind: Kind = "number"


def _lognormal(random: np.random.Generator, n: int, shift: float) -> Values:
    return np.asarray(random.lognormal(0, 1, n) + shift * np.sqrt((np.e - 1) * np.e), np.float64)


def _share(mean: float) -> Callable[[np.random.Generator, int, float], Values]:
    deviation = np.sqrt(mean * (1 - mean))
    return lambda random, n, shift: (random.random(n) < mean + shift * deviation).astype(float)


def _zero_inflated(random: np.random.Generator, n: int, shift: float) -> Values:
    """What is shifted is the share of those that are not 0, by so many standard deviations of being one."""
    return _share(0.3)(random, n, shift) * random.lognormal(0, 1, n)


def _missing(random: np.random.Generator, n: int, shift: float) -> Values:
    """Without a shift 1 % are missing; with any, 10 %."""
    return np.where(random.random(n) < (0.10 if shift else 0.01), np.nan, random.standard_normal(n))


def _counts(mean: float) -> Callable[[np.random.Generator, int, float], Values]:
    return lambda random, n, shift: random.poisson(mean + shift * np.sqrt(mean), n).astype(float)


NORMAL = Column("normal", lambda random, n, shift: random.normal(shift, 1, n))
COLUMNS = (
    NORMAL,
    Column("lognormal, in the logarithm", lambda random, n, shift: random.lognormal(shift, 1, n)),
    Column("lognormal, added", _lognormal),
    Column("heavy tails (t, 3 degrees)", lambda random, n, shift: random.standard_t(3, n) + shift * np.sqrt(3)),
    Column("counts (Poisson, mean 3)", _counts(3), "integer"),
    Column("rare counts (Poisson, mean 0.3)", _counts(0.3), "integer"),
    Column("zero-inflated (70 % zeros)", _zero_inflated),
    Column("boolean, 50 %", _share(0.5), "boolean"),
    Column("boolean, 2 %", _share(0.02), "boolean"),
)
MISSING = Column("missing, 1 % to 10 %", _missing)
BY_NAME = {column.name: column for column in (*COLUMNS, MISSING)}  # a name goes to another process, a lambda does not


@dataclass(frozen=True)
class Found:
    """In what share of `runs` a shift of one column was found, within so many windows after it."""

    column: str
    n_reference: int
    shift: float
    runs: int
    within_2: float
    within_4: float
    evidently_runs: int = 0
    evidently_within_2: float = float("nan")
    """Flagged in one of the windows; nothing is asked to hold for two running."""


def together(parts: Sequence[Sequence[Found]]) -> list[Found]:
    """Parts with as many runs each, with seeds of their own, as one."""
    by_key: dict[tuple[str, int, float], list[Found]] = {}
    for one in (found for part in parts for found in part):
        by_key.setdefault((one.column, one.n_reference, one.shift), []).append(one)
    return [
        Found(
            *key,
            runs=sum(one.runs for one in same),
            within_2=float(np.mean([one.within_2 for one in same])),
            within_4=float(np.mean([one.within_4 for one in same])),
            evidently_runs=sum(one.evidently_runs for one in same),
            evidently_within_2=float(np.mean([one.evidently_within_2 for one in same])),
        )
        for key, same in by_key.items()
    ]


def _watched(contract: Contract, rows: Rows, random: np.random.Generator) -> Watched:
    """References of these rows; the scores are there because they are looked at together with the features."""
    scores = random.random(len(rows))
    contract = with_statistics(contract, rows)
    return Watched(build_reference(contract, rows, np.column_stack([1 - scores, scores])))


def of_columns(
    names: Sequence[str], n_reference: int, shifts: Sequence[float], *, runs: int, evidently_runs: int, seed: int
) -> list[Found]:
    """Columns of one kind each. All are shifted at once and judged one by one; each run has a reference of its own."""
    columns = [BY_NAME[name] for name in names]
    features = tuple(Feature(name=c.name, kind=c.kind, may_be_missing=c is MISSING) for c in columns)
    contract = Contract(features=features, task="binary", target="y", classes=("no", "yes"))

    def draw(random: np.random.Generator, n: int, shift: float) -> Rows:
        return np.column_stack([column.draw(random, n, shift) for column in columns])

    return _found(contract, draw, n_reference, shifts, runs=runs, evidently_runs=evidently_runs, seed=seed)


def of_built_in(n_reference: int, shifts: Sequence[float], *, runs: int, seed: int) -> list[Found]:
    """Each column of the built-in table, shifted by so many standard deviations of the table."""
    population: Population = built_in()
    deviations = population.draw(np.random.default_rng(0), 100_000)[0].std(axis=0)

    def draw(random: np.random.Generator, n: int, shift: float) -> Rows:
        return np.asarray(population.draw(random, n)[0] + shift * deviations, np.float64)

    return _found(population.contract, draw, n_reference, shifts, runs=runs, evidently_runs=0, seed=seed)


def _found(
    contract: Contract,
    draw: Callable[[np.random.Generator, int, float], Rows],
    n_reference: int,
    shifts: Sequence[float],
    *,
    runs: int,
    evidently_runs: int,
    seed: int,
) -> list[Found]:
    random = np.random.default_rng([n_reference, seed])
    n_columns = len(contract.features)
    within = np.zeros((2, len(shifts), n_columns))
    flagged = np.zeros((len(shifts), n_columns))
    categories = [feature.name for feature in contract.features if feature.kind == "boolean"]
    for run in range(runs):
        reference = draw(random, n_reference, 0.0)
        watched = _watched(contract, reference, random)
        for place, shift in enumerate(shifts):
            windows = [draw(random, WINDOW_ROWS, shift) for _ in range(WINDOWS)]
            alarms = np.array(found_by_us(watched, windows, random))[:, :n_columns]
            within[0, place] += alarms[:2].any(axis=0)
            within[1, place] += alarms.any(axis=0)
            if run < evidently_runs:
                old = pd.DataFrame(reference, columns=list(contract.names))
                days = [pd.DataFrame(rows, columns=list(contract.names)) for rows in windows[:2]]
                flagged[place] += np.any([evidently_default.drifted(old, day, categories) for day in days], axis=0)
    within /= runs
    flagged = flagged / evidently_runs if evidently_runs else np.full_like(flagged, np.nan)
    return [
        Found(
            column=name,
            n_reference=n_reference,
            shift=shift,
            runs=runs,
            within_2=float(within[0, place, position]),
            within_4=float(within[1, place, position]),
            evidently_runs=evidently_runs,
            evidently_within_2=float(flagged[place, position]),
        )
        for place, shift in enumerate(shifts)
        for position, name in enumerate(contract.names)
    ]


def found_by_us(watched: Watched, windows: Sequence[Rows], random: np.random.Generator) -> list[list[bool]]:
    """Whether each column has an alarm, window after window; the first shifted one follows a quiet one."""
    levels = []
    for rows in windows:
        scores = random.random(len(rows))
        counts = watched.counts([*rows.T, 1 - scores, scores])
        levels.append(watched.levels(counts, len(rows)))
    return ours.alarms(levels)


@dataclass(frozen=True)
class Outlier:
    """How often each judge says drift, of `runs`."""

    what: str
    runs: int
    tabserve: float
    """Two windows running."""
    evidently: float
    """Its default, in one window; so is its PSI."""
    evidently_psi: float


def outliers(runs: int, seed: int) -> list[Outlier]:
    """One value of 1e9 in each window, or among the training rows, of a normal column with a shift or without."""
    random = np.random.default_rng([9, seed])
    contract = Contract(
        features=(Feature(name="normal", kind="number"),), task="binary", target="y", classes=("no", "yes")
    )

    def rows(n: int, shift: float, *, absurd: bool) -> Rows:
        values = random.normal(shift, 1, n)
        if absurd:
            values[0] = ABSURD
        return values.reshape(-1, 1)

    found = []
    for what, shift, in_window, in_training in (
        ("no shift", 0.0, False, False),
        ("no shift, 1e9 in each window", 0.0, True, False),
        ("shift of 1 sd", 1.0, False, False),
        ("shift of 1 sd, 1e9 in each window", 1.0, True, False),
        ("shift of 1 sd, 1e9 among the training rows", 1.0, False, True),
    ):
        hits = np.zeros(3)
        for _ in range(runs):
            reference = rows(2000, 0.0, absurd=in_training)
            windows = [rows(WINDOW_ROWS, shift, absurd=in_window) for _ in range(2)]
            old, new = pd.DataFrame(reference, columns=["normal"]), pd.DataFrame(windows[0], columns=["normal"])
            hits[0] += found_by_us(_watched(contract, reference, random), windows, random)[-1][0]
            hits[1] += evidently_default.drifted(old, new, [])[0]
            hits[2] += evidently_default.drifted(old, new, [], "psi")[0]
        found.append(Outlier(what, runs, *(hits / runs).tolist()))
    return found
