"""What an autoscaler makes of measured CPU: the load at which it wants more replicas, and how many it ends with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TARGET = 0.65  # of the CPU that a replica asks for, which is one core here
TOLERANCE = 0.1  # Kubernetes leaves the replicas alone where the ratio is nearer to 1 than this
FEWEST, MOST = 2, 1000  # two, so that one may go; the other bound is a budget, and not this table's matter
ROUNDS = 20


@dataclass(frozen=True)
class CpuCurve:
    """Cores that one replica uses by requests a second, measured; linear in between, and from nothing to the first."""

    points: Sequence[tuple[float, float]]
    """Rate and cores, the rates ascending."""

    def cores(self, rate: float) -> float:
        """At a rate. Beyond the last measured one it stays there: there is no more CPU to use."""
        below = (0.0, 0.0)
        for point in self.points:
            if rate <= point[0]:
                return _between(rate, below, point)
            below = point
        return below[1]

    def rate(self, cores: float) -> float:
        """The rate at which a replica first uses so much; the last measured one where it never does."""
        below = (0.0, 0.0)
        for rate, used in self.points:
            if used >= cores:
                return _between(cores, (below[1], below[0]), (used, rate))
            below = (rate, used)
        return below[0]


def needed(rate: float, rate_of_one: float) -> int:
    """Replicas for a rate where one takes so much."""
    return max(FEWEST, math.ceil(rate / rate_of_one))


def autoscaled(rate: float, curve: CpuCurve, replicas: int = FEWEST) -> list[int]:
    """How many replicas a horizontal pod autoscaler has, one decision after the other, while a rate stays as it is.

    By the rule of Kubernetes' documentation (Horizontal Pod Autoscaling, algorithm details):
    ceil(replicas * CPU / target), and no change within the tolerance.
    """
    steps = [replicas]
    for _ in range(ROUNDS):
        ratio = curve.cores(rate / steps[-1]) / TARGET
        wanted = min(MOST, max(FEWEST, math.ceil(steps[-1] * ratio)))
        if abs(ratio - 1) <= TOLERANCE or wanted == steps[-1]:
            break
        steps.append(wanted)
    return steps


def _between(x: float, below: tuple[float, float], above: tuple[float, float]) -> float:
    if above[0] == below[0]:
        return above[1]
    return below[1] + (x - below[0]) / (above[0] - below[0]) * (above[1] - below[1])
