"""The highest rate that one replica takes within the objectives, by bisection; and the replicas that others need.

Open loops of one row a request; the replica has a core, the load generator the other. Exit codes: 0; 1 where an answer
was wrong, or no rate at all was within the objectives; 2 for bad input.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from loadtest import pages, slo
from loadtest.benchmark import autoscaling, candidates, models, report
from loadtest.benchmark.__main__ import DOCUMENT, LOAD_CORE, say, serving
from loadtest.benchmark.autoscaling import CpuCurve
from loadtest.benchmark.load import Measured, closed_loop, open_loop
from loadtest.benchmark.side_by_side import Running, wait_until_it_answers, wrong_answers
from loadtest.errors import BadInputError
from loadtest.profiles import EXPECTED_PEAK_RATE

OPERATIONS = models.ROOT / "docs" / "operations.md"
PEAK_CONNECTIONS, CONNECTIONS = 128, 256
ABOVE_PEAK = 1.3  # of the closed loop's peak, where the search begins: with less waiting, batches may be better
LONGER = 5  # times as long as a step, the rate that was found has to hold
STEP_BACK = 0.97
SHARE_BEHIND, SECONDS_BEHIND = 0.03, 0.05  # what the answers may be behind when a step ends: of its length, and at all
KEPT = 20  # one answer in so many is compared with scikit-learn's
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the capacity, at which CPU is measured
NEEDED_FOR = (EXPECTED_PEAK_RATE, 2 * EXPECTED_PEAK_RATE, 5_000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True)
class Step:
    """One rate, tried."""

    rate: float
    cores: float
    p50_ms: float
    p99_ms: float
    failed: int
    wrong: int
    findings: Sequence[slo.Finding]

    @property
    def is_met(self) -> bool:
        return all(finding.is_met for finding in self.findings)

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "; ".join(str(one) for one in self.findings if not one.is_met)
        return f"{self.rate:8.0f}/s  {self.cores:.2f} cores  p50 {self.p50_ms:7.2f}  p99 {self.p99_ms:7.2f}  {verdict}"


Try = Callable[[float, float], Step]
"""Tries a rate for some seconds."""


def highest(attempt: Try, *, above: float, seconds: float, precision: float) -> Step | None:
    """The highest rate that meets the objectives, to within a share `precision`; None where none does.

    A rate that missed them is tried again: a stall of the machine is not the limit of the service. What is found has
    to hold for longer, because a queue that grows slowly is still short after a few seconds.

    Args:
        above: a rate that nobody expects to be met.
    """

    def tried(rate: float, seconds: float) -> Step:
        first = attempt(rate, seconds)
        return first if first.is_met else attempt(rate, seconds)

    low, high = 0.0, above
    while tried(high, seconds).is_met:
        low, high = high, 2 * high
    least = precision * above
    while high - low > max(precision * high, least if low == 0 else 0):
        middle = (low + high) / 2
        if tried(middle, seconds).is_met:
            low = middle
        else:
            high = middle
    while low > least:
        longer = tried(low, LONGER * seconds)
        if longer.is_met:
            return longer
        low *= STEP_BACK
    return None


def keeps_up(found: Measured) -> slo.Finding:
    """Whether nearly all was answered meanwhile. A queue that grows is short at first, and its answers are in time."""
    left = len(found.latencies) + found.failed - found.in_time
    seconds_behind = left / max(1.0, found.rate)
    allowed = SHARE_BEHIND * found.duration + SECONDS_BEHIND
    return slo.Finding(
        is_met=seconds_behind <= allowed,
        sentence=f"the answers were {seconds_behind:.2f} s behind at the end of {found.duration:.1f} s",
    )


def measured(one: Running, objectives: slo.Objectives) -> Try:
    """Tries rates on a candidate that runs."""
    requests = one.requests()

    def attempt(rate: float, seconds: float) -> Step:
        cpu, started = one.server.cpu_seconds(), time.perf_counter()
        found = uvloop.run(
            open_loop(one.server.port, requests, rate=rate, seconds=seconds, seed=1, connections=CONNECTIONS, kept=KEPT)
        )
        cpu, seconds_taken = one.server.cpu_seconds() - cpu, time.perf_counter() - started
        wrong = wrong_answers(found, one, 1)
        answers = slo.Measured(
            requests=len(found.latencies) + found.failed,
            failures=found.failed + wrong,
            wrong=wrong,
            timed=len(found.latencies),
            percentile_ms=lambda share: round(found.quantile_ms(share), 2),
        )
        step = Step(
            rate=rate,
            cores=cpu / seconds_taken,  # with the time in which the last answers came
            p50_ms=found.quantile_ms(0.5),
            p99_ms=found.quantile_ms(0.99),
            failed=found.failed,
            wrong=wrong,
            findings=[*slo.verdict(objectives, answers), keeps_up(found)],
        )
        say(step)
        return step

    return attempt


@dataclass(frozen=True)
class Capacity:
    """What one way to run one model takes."""

    model: str
    candidate: str
    best: Step
    curve: Sequence[Step]
    """Shares of it, ascending."""

    @property
    def cpu(self) -> CpuCurve:
        return CpuCurve([(step.rate, step.cores) for step in self.curve])


def capacity(name: str, one: Running, objectives: slo.Objectives, seconds: float, precision: float) -> Capacity | None:
    """The capacity of a candidate that runs, and what it costs below that."""
    uvloop.run(wait_until_it_answers(one.server, one.requests()))
    say(f"{name}, {one.candidate.name}")
    warm = closed_loop(one.server.port, one.requests(), connections=PEAK_CONNECTIONS, seconds=seconds)
    peak = uvloop.run(warm).rate
    attempt = measured(one, objectives)
    best = highest(attempt, above=ABOVE_PEAK * peak, seconds=seconds, precision=precision)
    if best is None:
        return None
    return Capacity(name, one.candidate.name, best, [attempt(share * best.rate, seconds) for share in SHARES])


def capacity_table(found: Sequence[Capacity]) -> str:
    """A line a way to run a model, and the replicas for some rates."""
    rates = [f"{rate:,.0f}/s" for rate in NEEDED_FOR]
    lines = [
        f"| model | | one replica | CPU cores | p50, p99 ms | failed | wrong | replicas for {' | '.join(rates)} |",
        "|---" * (7 + len(rates)) + "|",
    ]
    for one in found:
        replicas = [str(autoscaling.needed(rate, one.best.rate)) for rate in NEEDED_FOR]
        lines.append(
            f"| {one.model} | {one.candidate} | {one.best.rate:.0f}/s | {one.best.cores:.2f} "
            f"| {one.best.p50_ms:.1f}, {one.best.p99_ms:.1f} | {one.best.failed} | {one.best.wrong} "
            f"| {' | '.join(replicas)} |"
        )
    return "\n".join(lines)


def autoscaling_tables(one: Capacity) -> str:
    """The CPU of a replica at each rate, and the replicas that follow from it."""
    lines = ["| requests/s of one replica | CPU cores | CPU µs a request | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    lines += [
        f"| {step.rate:.0f} | {step.cores:.2f} | {step.cores / step.rate * 1e6:.0f} | {step.p50_ms:.2f} "
        f"| {step.p99_ms:.2f} |"
        for step in one.curve
    ]
    target, cpu = autoscaling.TARGET, one.cpu
    at_target = cpu.rate(target)
    lines += [
        "",
        f"A replica reaches {target:.0%} of its core at {at_target:.0f} requests a second.",
        "",
        f"| requests/s | replicas at {target:.0%} CPU | at full capacity | the autoscaler's steps from 2 | CPU then |",
        "|---|---|---|---|---|",
    ]
    for rate in NEEDED_FOR:
        steps = autoscaling.autoscaled(rate, cpu)
        lines.append(
            f"| {rate:,.0f} | {autoscaling.needed(rate, at_target)} | {autoscaling.needed(rate, one.best.rate)} "
            f"| {' → '.join(map(str, steps))} | {cpu.cores(rate / steps[-1]):.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Searches, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmark.capacity", description=__doc__)
    parser.add_argument(
        "--slo", help="objectives beside and instead of those in loadtest/slo.yaml, p99=500ms,errors=1%%"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of a step; what is found has to hold 5 times as long"
    )
    parser.add_argument("--precision", type=float, default=0.03, help="share to which a rate is found (default: 0.03)")
    parser.add_argument("--only", metavar="MODEL", choices=("built-in", "forest"), help="one of the two models")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and docs/operations.md")
    arguments = parser.parse_args()
    try:
        objectives = {**slo.from_file(), **(slo.from_text(arguments.slo) if arguments.slo else {})}
    except BadInputError as error:
        say(f"capacity: {error}")
        return 2
    os.sched_setaffinity(0, [LOAD_CORE])
    found: list[Capacity] = []
    is_complete = True
    with tempfile.TemporaryDirectory(prefix="tabserve-capacity-") as folder:
        for name, options in models.TRAINED.items():
            if arguments.only not in (None, name):
                continue
            model = models.train(Path(folder) / name, *options)
            for candidate in (candidates.TABSERVE, candidates.NO_BATCHING):
                with serving(Path(folder), candidate, model) as server:
                    one = capacity(
                        name, Running(candidate, server, model), objectives, arguments.seconds, arguments.precision
                    )
                if one is None:
                    say(f"{name}, {candidate.name}: no rate is within the objectives")
                    is_complete = False
                else:
                    found.append(one)
    stated = f"Objectives: {', '.join(f'{name} {limit}' for name, limit in objectives.items())}."
    where = f"{report.machine()} {stated}"
    sys.stdout.write(f"{where}\n\n{capacity_table(found)}\n")
    for one in found:
        sys.stdout.write(f"\n{one.model}, {one.candidate}\n\n{autoscaling_tables(one)}\n")
    if arguments.write and is_complete and arguments.only is None:
        pages.replace_section(DOCUMENT, "capacity", f"{where}\n\n{capacity_table(found)}")
        pages.replace_section(OPERATIONS, "autoscaling", f"{where}\n\n{autoscaling_tables(found[0])}")
    return 0 if is_complete and not any(one.best.wrong for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
