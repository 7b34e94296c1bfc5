"""Our divergences as methods of Evidently, so that a report and a gauge of the same rows show the same number.

Evidently asks a method with two columns whose missing values it has removed, and bins of its own choice would hide a
drift behind one outlier (docs/decisions.md). So these methods look up the column by its name, and divide the counts in
the bins that are fixed at training, with the bin for missing. The counts are set around a report by `counts_of_report`.

Import this without Evidently; `register` imports it, which takes seconds.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from monitoring.verdict import KL_ALARM, PSI_ALARM
from tabserve.statistics.divergence import Counts, kl, psi


@dataclass(frozen=True)
class BinCounts:
    """Rows of one column in its fixed bins, the last for missing; both of the same length."""

    reference: Counts
    current: Counts


@dataclass(frozen=True)
class Method:
    """A divergence by the name under which Evidently knows it; the score above `threshold` is drift."""

    name: str
    measure: Callable[[Counts, Counts], float]
    threshold: float


FEATURE_METHOD = Method("kl in training bins", kl, KL_ALARM)
PREDICTION_METHOD = Method("psi in training bins", psi, PSI_ALARM)

_counts: ContextVar[Mapping[str, BinCounts]] = ContextVar("counts of the report's columns")


@contextlib.contextmanager
def counts_of_report(counts: Mapping[str, BinCounts]) -> Iterator[None]:
    """Within it, Evidently's columns of these names are measured by these counts."""
    token = _counts.set(counts)
    try:
        yield
    finally:
        _counts.reset(token)


def register() -> None:
    """Makes both methods known to Evidently by their names; again and again is the same as once.

    Raises:
        ImportError: where Evidently is not installed.
    """
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    for method in (FEATURE_METHOD, PREDICTION_METHOD):
        known = StatTest(
            name=method.name,
            display_name=method.name,
            allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
            default_threshold=method.threshold,
        )
        register_stattest(known, _asked_by_evidently(method))


def _asked_by_evidently(method: Method) -> Callable[[Any, Any, Any, float], tuple[float, bool]]:
    def measure(reference: Any, current: Any, column_type: Any, threshold: float) -> tuple[float, bool]:  # noqa: ARG001
        counts = _counts.get({}).get(current.name)
        if counts is None:
            raise ValueError(f"the bins of {current.name!r} are not known: run the report within counts_of_report")
        score = method.measure(counts.reference, counts.current)
        return score, score > threshold

    return measure
