"""The rounds of one candidate at one point, taken together."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.benchmark.side_by_side import Point, Result


@dataclass(frozen=True)
class Row:
    """One candidate at one point, over all rounds."""

    results: Sequence[Result]

    def middle(self, field: str) -> float:
        """The median over the rounds."""
        return float(median(getattr(result, field) for result in self.results))

    def times(self, other: "Row") -> float:
        """How many times the rate of another one: the median of the ratios of each round."""
        return median(mine.rate / its.rate for mine, its in zip(self.results, other.results, strict=True))


def rows_of(results: Sequence[Result], point: Point) -> dict[str, Row]:
    """By the name of the candidate, in the order in which they were measured."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.point == point:
            found.setdefault(result.candidate, []).append(result)
    return {name: Row(of_candidate) for name, of_candidate in found.items()}
