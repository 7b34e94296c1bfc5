"""Ten times BentoML's `traffic.timeout` at 70 % of the peak: does memory stay flat, does every answer stay right?

Whatever a request leaves behind for as long as that timeout has been freed once the second one is over. Memory goes up
and down from there, with each segment of the prediction log that is rolled; a leak raises its peaks. Exit codes: 0, or
1 where they rose, a request failed or an answer was wrong.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop
import yaml

from loadtest import pages
from loadtest.benchmark import candidates, models, report
from loadtest.benchmark.__main__ import DOCUMENT, LOAD_CORE, PLOTS, say, serving
from loadtest.benchmark.load import Measured, closed_loop, open_loop
from loadtest.benchmark.side_by_side import Running, wait_until_it_answers, wrong_answers

TIMEOUTS = 10
SHARE_OF_PEAK = 0.7
LARGEST_GROWTH = 0.02  # of the peaks: pages that the allocator keeps
KEPT = 20  # one answer in so many is compared with scikit-learn's, else they fill the load's own memory


@dataclass(frozen=True)
class Soak:
    """What was found; memory in MB, of all processes of the service, at each instant in seconds."""

    timeout: float
    rate: float
    measured: Measured
    wrong: int
    instants: list[float]
    memory: list[float]

    @property
    def growth(self) -> float:
        """The peak in the last third of what comes after the second timeout, over the peak in the first third."""
        later = [mb for at, mb in zip(self.instants, self.memory, strict=True) if at >= 2 * self.timeout]
        third = len(later) // 3
        return max(later[-third:]) / max(later[:third]) - 1

    @property
    def is_good(self) -> bool:
        return self.growth <= LARGEST_GROWTH and not self.wrong and not self.measured.failed

    def __str__(self) -> str:
        found = self.measured
        return (
            f"{found.duration:.0f} s at {self.rate:.0f} requests a second (70 % of the peak, Poisson arrivals), "
            f"`traffic.timeout` {self.timeout:g} s: {len(found.latencies)} answers, {found.failed} failed, "
            f"{self.wrong} wrong of {len(found.bodies)} compared. p50 {found.quantile_ms(0.5):.2f} ms, "
            f"p99 {found.quantile_ms(0.99):.2f} ms, p99.9 {found.quantile_ms(0.999):.2f} ms. Memory of all processes "
            f"{self.memory[0]:.0f} MB before, at most {max(self.memory):.0f} MB, {self.memory[-1]:.0f} MB at the end; "
            f"the peak in the last third after the second timeout beside that in the first: {self.growth:+.1%}."
        )


async def soak(one: Running, traffic_timeout: float, timeouts: int) -> Soak:
    port, requests = one.server.port, one.requests()
    await wait_until_it_answers(one.server, requests)
    peak = (await closed_loop(port, requests, connections=128, seconds=4)).rate
    rate, seconds = SHARE_OF_PEAK * peak, timeouts * traffic_timeout
    started = time.perf_counter()
    instants, memory = [0.0], [one.server.memory_bytes() / 1e6]

    async def watch() -> None:
        while True:
            await asyncio.sleep(1)
            instants.append(time.perf_counter() - started)
            memory.append(one.server.memory_bytes() / 1e6)

    watching = asyncio.ensure_future(watch())
    measured = await open_loop(port, requests, rate=rate, seconds=seconds, seed=1, kept=KEPT)
    watching.cancel()
    return Soak(traffic_timeout, rate, measured, wrong_answers(measured, one, 1), instants, memory)


def plot(found: Soak, path: Path) -> None:
    with pages.figure(path) as plt:
        plt.figure(figsize=(8, 3))
        plt.plot(found.instants, found.memory, color="#c0504d")
        for number in (1, 2):
            plt.axvline(number * found.timeout, color="#888888", linestyle=":")
        plt.ylim(0, max(found.memory) * 1.2)
        plt.title(f"Memory of all processes at {found.rate:.0f} requests a second; dotted: traffic.timeout, twice")
        plt.xlabel("seconds")
        plt.ylabel("MB")


def main() -> int:
    """Soaks, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmark.soak", description=__doc__)
    parser.add_argument("--timeouts", type=int, default=TIMEOUTS, help="how many traffic.timeouts long")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plot")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [LOAD_CORE])
    configuration = yaml.safe_load((models.ROOT / "configuration.yaml").read_text(encoding="utf-8"))
    timeout = configuration["services"]["tabserve"]["traffic"]["timeout"]
    with tempfile.TemporaryDirectory(prefix="tabserve-soak-") as folder:
        model = models.train(Path(folder) / "built-in")
        with serving(Path(folder), candidates.TABSERVE, model) as server:
            found = uvloop.run(soak(Running(candidates.TABSERVE, server, model), timeout, arguments.timeouts))
    say(found)
    if arguments.write:
        plot(found, PLOTS / "soak.svg")
        pages.replace_section(DOCUMENT, "soak", f"{report.machine()}\n\n{found}\n\n![memory](benchmarks/soak.svg)")
    return 0 if found.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
