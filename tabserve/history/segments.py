"""The columns that quality can be asked by, and which part of them a row is in: an expression that DuckDB evaluates.

The same expression parts the rows of the log and those of a model's reference sample, whose columns have these names.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tabserve.contract import Contract, Feature
from tabserve.history.sql import quoted, text
from tabserve.history.window import BadQuestionError

MISSING = "(missing)"
_DECILES = np.arange(1, 10) / 10
_QUARTILES = np.array([0.25, 0.5, 0.75])
_PREFIX = "feature:"


@dataclass(frozen=True)
class SegmentColumn:
    name: str
    sql: str
    """A text for each row; null nowhere."""
    in_reference: bool = True
    """Whether the reference sample has it."""


def segment_column(contract: Contract, name: str) -> SegmentColumn:
    """The column of this name: a feature, `variant` (what answered), or `label` (what was predicted).

    A category or boolean is parted by its values, a number at the quartiles of the training rows. A feature goes
    before a column of the log with its name, and may be called `feature:name`.

    Raises:
        BadQuestionError: where there is none, or it is personal.
    """
    feature = next((feature for feature in contract.features if name in (feature.name, _PREFIX + feature.name)), None)
    if feature is not None:
        if feature.personal:
            raise BadQuestionError(
                f"{feature.name} is a personal feature: the log has its hash or nothing of it, "
                "and no report is made by it; choose another column"
            )
        return SegmentColumn(feature.name, _parts(feature))
    if name == "variant":
        return SegmentColumn(name, f"coalesce(variant, '{MISSING}')", in_reference=False)
    if name == "label" and contract.classes:
        return SegmentColumn(name, "CAST(label AS VARCHAR)")
    known = [feature.name for feature in contract.features if not feature.personal] + ["variant"]
    known += ["label"] if contract.classes else []
    raise BadQuestionError(f"there is no column {name!r} to part the rows by: there are {', '.join(known)}")


def _parts(feature: Feature) -> str:
    column = quoted(_PREFIX + feature.name)
    if feature.kind == "category":
        return f"coalesce({column}, '{MISSING}')"
    if feature.kind == "boolean":
        return (
            f"CASE WHEN {column} IS NULL THEN '{MISSING}' WHEN CAST({column} AS BOOLEAN) THEN 'true' ELSE 'false' END"
        )
    # Of the deciles, which is what the contract has: the first and third quartile lie halfway between two of them.
    edges = np.unique(np.interp(_QUARTILES, _DECILES, feature.quantiles)).tolist() if feature.quantiles else []
    names = _names_of_parts(edges)
    below = "".join(
        f" WHEN {column} < CAST('{edge!r}' AS DOUBLE) THEN {text(name)}"
        for edge, name in zip(edges, names, strict=False)  # the last name is of what is in no other part
    )
    missing = f"WHEN {column} IS NULL OR isnan(CAST({column} AS DOUBLE)) THEN '{MISSING}'"
    return f"CASE {missing}{below} ELSE {text(names[-1])} END"


def _names_of_parts(edges: list[float]) -> list[str]:
    if not edges:
        return ["any number"]
    for digits in (4, 8, 17):  # as few as tell the edges apart
        shown = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(shown)) == len(edges):
            break
    between = [f"{low} to {high}" for low, high in pairwise(shown)]
    return [f"below {shown[0]}", *between, f"{shown[-1]} and above"]
