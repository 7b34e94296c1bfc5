"""Whether a canary may go on: from what both sides did in one observation, wherever that was read.

A share that is above its limit by chance alone is no reason to go back. What decides is an exact test: binomial against
a limit (Clopper and Pearson, Biometrika 26, 1934), Fisher's on the two sides (The Design of Experiments, 1935, chapter
11), each one-sided at `ALPHA`.
"""

from dataclasses import dataclass, field
from typing import Literal

from scipy.stats import binom, fisher_exact

Judgement = Literal["go", "hold", "back"]

# A canary has four steps and two tests in each: one that has exactly what the limits allow is called bad in less than
# one of a hundred.
ALPHA = 0.001
BEYOND_P99 = 0.01  # of the requests are slower than the 99th percentile, by its definition


@dataclass(frozen=True)
class Seen:
    """What one side did in an observation."""

    n_requests: int
    n_errors: int
    """Requests that were answered with a 5xx."""
    p99_seconds: float | None = None
    """The 99th percentile of the latency; None where there were no requests."""
    n_labels: int = 0
    n_correct: int = 0
    n_slow: int | None = None
    """Requests slower than the limit of the p99. None where nobody knows: the p99 is then taken as it is."""

    @property
    def error_share(self) -> float:
        return self.n_errors / self.n_requests if self.n_requests else 0.0

    @property
    def accuracy(self) -> float:
        return self.n_correct / self.n_labels if self.n_labels else 0.0


@dataclass(frozen=True)
class Limits:
    """What a canary may have at the most."""

    error_share: float = 0.01
    p99_seconds: float = 0.3
    fewest_requests: int = 200
    """Of the canary in an observation, for anything but going back: with fewer a p99 is the slowest or two."""
    fewest_labels: int = 300
    accuracy_loss: float = 0.05
    """Below what is stable, in points of 1, where labels have come."""


@dataclass(frozen=True)
class Verdict:
    """What to do, and why: a sentence each."""

    judgement: Judgement
    reasons: list[str] = field(default_factory=list)


def judge(stable: Seen, canary: Seen, limits: Limits) -> Verdict:
    """Back where the canary breaks a limit and what is stable does not break it as well; hold where there is too little
    to say, or where both are bad, which is no canary's fault; else go.
    """
    bad: list[str] = []
    shared: list[str] = []
    for fault, is_shared in (_errors(stable, canary, limits), _slowness(stable, canary, limits)):
        if fault:
            (shared if is_shared else bad).append(fault)
    worse = _accuracy(stable, canary, limits)
    if worse:
        bad.append(worse)
    if bad:
        return Verdict("back", bad)
    if canary.n_requests < limits.fewest_requests:
        return Verdict("hold", [f"{canary.n_requests} requests, {limits.fewest_requests} are needed"])
    if shared:
        return Verdict("hold", [f"{fault}, and so is what is stable" for fault in shared])
    return Verdict("go", [f"{_percent(canary.error_share)} errors, p99 {_ms(canary.p99_seconds)}"])


def _errors(stable: Seen, canary: Seen, limits: Limits) -> tuple[str | None, bool]:
    if canary.error_share <= limits.error_share:
        return None, False
    by_chance = binom.sf(canary.n_errors - 1, canary.n_requests, limits.error_share)
    if by_chance >= ALPHA:
        return None, False
    fault = f"{_percent(canary.error_share)} of {canary.n_requests} requests failed, at most "
    fault += f"{_percent(limits.error_share)} may"
    sides = ((canary.n_errors, canary.n_requests), (stable.n_errors, stable.n_requests))
    return fault, stable.error_share > limits.error_share and not _is_more(*sides)


def _slowness(stable: Seen, canary: Seen, limits: Limits) -> tuple[str | None, bool]:
    if canary.p99_seconds is None or canary.n_requests < limits.fewest_requests:
        return None, False
    if canary.p99_seconds <= limits.p99_seconds:
        return None, False
    # A p99 is above its limit where more than one of a hundred is slower, which comes by chance as errors do.
    if canary.n_slow is not None and binom.sf(canary.n_slow - 1, canary.n_requests, BEYOND_P99) >= ALPHA:
        return None, False
    is_shared = stable.p99_seconds is not None and stable.p99_seconds > limits.p99_seconds
    return f"p99 is {_ms(canary.p99_seconds)}, at most {_ms(limits.p99_seconds)} may be", is_shared


def _accuracy(stable: Seen, canary: Seen, limits: Limits) -> str | None:
    if min(stable.n_labels, canary.n_labels) < limits.fewest_labels:
        return None
    if stable.accuracy - canary.accuracy <= limits.accuracy_loss:
        return None
    wrong = ((one.n_labels - one.n_correct, one.n_labels) for one in (canary, stable))
    if not _is_more(*wrong):
        return None
    return (
        f"{_percent(canary.accuracy)} of {canary.n_labels} labels are as predicted, {_percent(stable.accuracy)} of "
        f"{stable.n_labels} where it is stable"
    )


def _is_more(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a share is larger than another one, beyond chance; each is a count and of how many."""
    table = [[count, total - count] for count, total in (one, other)]
    return bool(fisher_exact(table, alternative="greater").pvalue < ALPHA)


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1000:.0f} ms"
