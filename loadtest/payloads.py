"""Rows to ask with, made from the contract of the model that is served, so that they fit any model.

Where the local model store has that very model, they are drawn from its reference sample, and the stored scikit-learn
pipeline says what the answers must be; else they are made within the ranges and categories that the contract states.
Values of personal features are always made up.

`python -m loadtest.payloads` does it in a process of its own, from standard input to standard output: a load generator
has no room for BentoML, pandas and scikit-learn, and gevent patches what those were written for.
"""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.errors import BadInputError
from tabserve.contract import Contract, Feature, Rows

if TYPE_CHECKING:
    from tabserve.model_store import StoredModel

ROOT = Path(__file__).parents[1]
ROWS = 1000  # enough to meet most of what a table has; asked with again and again
SHARE_MISSING = 0.1  # of the values that are made up for a feature that may be missing
ONE_BY_NAME = 8  # one row in so many goes as an object of names and values, the others as a list
LIMIT_SECONDS = 120.0  # for making them: BentoML and scikit-learn take seconds to import on a busy machine


class Wanted(msgspec.Struct, frozen=True):
    """What payloads are made for."""

    contract: dict[str, Any]
    tag: str
    seed: int = 0
    rows: int = ROWS


class Payloads(msgspec.Struct, frozen=True):
    """Rows as callers send them, with what must be answered."""

    wanted: Wanted
    rows: list[Any]
    scores: list[Any] | None
    """For each row the probabilities in the contract's order of classes, or the value; None where nobody can say."""
    bad_rows: list[Any]
    """Each breaks the contract in one way."""
    origin: str
    """One line: where the rows come from, and with what the answers are compared."""


def prepare(wanted: Wanted) -> Payloads:
    """Makes payloads in a process of its own.

    Raises:
        BadInputError: where that fails.
    """
    command = [sys.executable, "-m", "loadtest.payloads"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(wanted),
            capture_output=True,
            cwd=ROOT,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BadInputError(f"no payloads for {wanted.tag} within {LIMIT_SECONDS:g} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BadInputError(f"no payloads can be made for {wanted.tag}: {said[-1]}")
    return msgspec.json.decode(done.stdout, type=Payloads)


def make(wanted: Wanted) -> Payloads:
    """Makes payloads in this process; the same for the same seed."""
    contract = Contract.model_validate_json(msgspec.json.encode(wanted.contract))
    random = np.random.default_rng(wanted.seed)
    stored, reason = _stored(contract, wanted.tag)
    sample = None if stored is None else _sampled(stored.directory, contract, random, wanted.rows)
    coded = made_up(contract, random, wanted.rows) if sample is None else sample
    rows = [contract.to_values(row) for row in coded]
    scores = None
    if stored is not None:
        scores, reason = _scores(stored.directory, contract, coded)
    drawn = "rows are made up within the contract" if sample is None else "rows are drawn from the reference sample"
    compared = (
        f"answers are checked by status and shape only, because {reason}"
        if scores is None
        else f"every answer is compared with scikit-learn's, by {wanted.tag} in the local model store"
    )
    return Payloads(
        wanted=wanted,
        rows=[_by_name(contract, row) if number % ONE_BY_NAME == 0 else row for number, row in enumerate(rows)],
        scores=scores,
        bad_rows=bad_rows(contract, rows[0]),
        origin=f"{drawn}; {compared}",
    )


def made_up(contract: Contract, random: np.random.Generator, n_rows: int) -> Rows:
    """Rows that training could have seen, coded as the contract says; its features do not depend on each other."""
    return np.column_stack([_made_up_column(feature, random, n_rows) for feature in contract.features])


def bad_rows(contract: Contract, good: list[Any]) -> list[Any]:
    """Rows that break the contract in one way each, made of one that keeps it."""
    named = dict(zip(contract.names, good, strict=True))
    unknown = f"no {max(contract.names, key=len)}"  # longer than every name there is
    bad: list[Any] = [good[:-1], [*good, 1.0], {**named, unknown: 1}, "no row", 1.5, None]
    for position, feature in enumerate(contract.features):
        for value in _bad_values(feature):
            broken = [*good]
            broken[position] = value
            bad.append(broken)
        if not feature.may_be_missing:
            bad.append({name: value for name, value in named.items() if name != feature.name})
    return bad


def _bad_values(feature: Feature) -> list[Any]:
    bad: list[Any] = [[1.0]] if feature.may_be_missing else [[1.0], None]
    match feature.kind:
        case "category":
            known = {str(category) for category in feature.categories}
            unknown = next(text for text in ("no such category", "nor this one") if text not in known)
            return [*bad, True, unknown]
        case "boolean":
            return [*bad, 1, "true"]
        case "integer":
            return [*bad, True, "1", 0.5, 2**53]
        case _:
            return [*bad, True, "1.0", 1e300]


def _by_name(contract: Contract, row: list[Any]) -> dict[str, Any]:
    return {name: value for name, value in zip(contract.names, row, strict=True) if value is not None}


def _made_up_column(feature: Feature, random: np.random.Generator, n_rows: int) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64]
    if feature.kind == "category":
        values = random.integers(0, len(feature.categories), n_rows).astype(np.float64)
    elif feature.kind == "boolean":
        values = random.integers(0, 2, n_rows).astype(np.float64)
    else:
        values = feature.clip(np.interp(random.random(n_rows), *_distribution(feature)))
    if feature.may_be_missing:
        values[random.random(n_rows) < SHARE_MISSING] = np.nan
    return values


def _distribution(feature: Feature) -> tuple[list[float], list[float]]:
    """The distribution function of the training rows as far as the contract tells: shares, and the values there."""
    known = list(zip(np.arange(1, 10) / 10, feature.quantiles, strict=False))
    if feature.minimum is not None and feature.maximum is not None:
        known = [(0.0, feature.minimum), *known, (1.0, feature.maximum)]
    known = known or [(0.0, 0.0)]
    return [float(share) for share, _ in known], [value for _, value in known]


def _stored(contract: Contract, tag: str) -> tuple["StoredModel | None", str]:
    """The model in the local store, verified, or why it is not there."""
    from tabserve import model_store  # brings BentoML

    try:
        stored = model_store.find(tag)
        model_store.verify(stored)
    except model_store.ModelRefusedError as error:
        return None, str(error)
    if Contract.load(stored.directory / model_store.CONTRACT_FILE) != contract:
        return None, f"{tag} in the local model store has another contract than the service shows"
    return stored, ""


def _sampled(directory: Path, contract: Contract, random: np.random.Generator, n_rows: int) -> Rows | None:
    """Training rows as the contract codes them, with personal features made up; None where no library reads them."""
    import pandas as pd

    from tabserve.model_store import REFERENCE_SAMPLE_FILE

    try:
        frame = pd.read_parquet(directory / REFERENCE_SAMPLE_FILE)
    except ImportError:  # of pyarrow, which comes with the extra for training
        return None
    chosen = frame.iloc[random.integers(0, len(frame), n_rows)]
    rows = made_up(contract, random, n_rows)
    for position, feature in enumerate(contract.features):
        column = f"feature:{feature.name}"
        if feature.personal or column not in chosen:
            continue
        values = chosen[column]
        if feature.kind == "category":
            values = values.map({str(category): code for code, category in enumerate(feature.categories)})
        rows[:, position] = values.to_numpy(dtype=np.float64)
    return rows


def _scores(directory: Path, contract: Contract, rows: Rows) -> tuple[list[Any] | None, str]:
    """What the stored scikit-learn pipeline says of rows, or why it says nothing."""
    from tabserve.engine import SklearnEngine, load_pipeline

    try:
        engine = SklearnEngine(load_pipeline(directory), contract)
        return engine.predict(rows).tolist(), ""
    except Exception as error:  # noqa: BLE001  # a pipeline may be anybody's code, and need what is not installed here
        return None, f"the stored pipeline cannot be asked here ({type(error).__name__}: {error})"


def main() -> None:
    answer, sys.stdout = sys.stdout.buffer, sys.stderr  # what a library prints must not stand in the answer
    answer.write(msgspec.json.encode(make(msgspec.json.decode(sys.stdin.buffer.read(), type=Wanted))))


if __name__ == "__main__":
    main()
