"""Coordinated omission: the same stall of the service as a closed loop sees it, and as an open one does.

The service is stopped for a second in the middle of each run.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loadtest import pages
from loadtest.benchmark import candidates, models, report
from loadtest.benchmark.__main__ import DOCUMENT, LOAD_CORE, PLOTS, serving
from loadtest.benchmark.load import Measured, closed_loop, open_loop
from loadtest.benchmark.side_by_side import Running, wait_until_it_answers
from loadtest.processes import Server

SECONDS, STALL_SECONDS = 10.0, 1.0
CONNECTIONS, RATE = 8, 1000.0
CLOSED, OPEN = f"closed loop, {CONNECTIONS} callers", f"open loop, {RATE:g} requests a second"


async def with_a_stall(server: Server, load: Coroutine[Any, Any, Measured]) -> Measured:
    """A run in the middle of which the service is stopped for a while."""
    running = asyncio.ensure_future(load)
    await asyncio.sleep(SECONDS / 2)
    with server.stopped():
        await asyncio.sleep(STALL_SECONDS)
    return await running


async def both(one: Running) -> dict[str, Measured]:
    port, requests = one.server.port, one.requests()
    await wait_until_it_answers(one.server, requests)
    closed = closed_loop(port, requests, connections=CONNECTIONS, seconds=SECONDS)
    found = {CLOSED: await with_a_stall(one.server, closed)}
    opened = open_loop(port, requests, rate=RATE, seconds=SECONDS, seed=1, connections=2048)
    return {**found, OPEN: await with_a_stall(one.server, opened)}


def table(found: Mapping[str, Measured]) -> str:
    lines = [
        "| | requests | slower than 100 ms | p50 ms | p99 ms | p99.9 ms | slowest ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in found.items():
        slow = sum(latency > 0.1 for latency in measured.latencies)
        quantiles = " | ".join(f"{measured.quantile_ms(q):.2f}" for q in (0.5, 0.99, 0.999, 1.0))
        lines.append(f"| {name} | {len(measured.latencies)} | {slow} | {quantiles} |")
    return "\n".join(lines)


def plot(found: Mapping[str, Measured], path: Path) -> None:
    """Latencies by percentile, with as much room from 99 to 99.9 as from 90 to 99."""
    percentiles = (50, 90, 99, 99.9, 99.99)
    with pages.figure(path) as plt:
        plt.figure(figsize=(8, 4))
        for (name, measured), colour in zip(found.items(), ("#2e6da4", "#b03a2e"), strict=True):
            nines = np.linspace(0.3, min(4.0, np.log10(len(measured.latencies))), 200)
            plt.plot(nines, np.quantile(measured.latencies, 1 - 10.0**-nines) * 1000, label=name, color=colour)
        plt.xticks([-np.log10(1 - p / 100) for p in percentiles], [f"{p:g} %" for p in percentiles])
        plt.yscale("log")
        plt.grid(axis="y", color="#dddddd")
        plt.xlabel("share of the requests that were answered within")
        plt.ylabel("ms")
        plt.title(f"A service that stops for {STALL_SECONDS:g} of {SECONDS:g} seconds", loc="left")
        plt.legend(frameon=False)


def main() -> int:
    """Measures, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmark.coordinated_omission", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plot")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [LOAD_CORE])
    with tempfile.TemporaryDirectory(prefix="tabserve-omission-") as folder:
        model = models.train(Path(folder) / "built-in")
        with serving(Path(folder), candidates.TABSERVE, model) as server:
            found = uvloop.run(both(Running(candidates.TABSERVE, server, model)))
    text = f"{report.machine()}\n\n{table(found)}\n\n![latencies by percentile](benchmarks/coordinated-omission.svg)"
    sys.stdout.write(f"{text}\n")
    if arguments.write:
        plot(found, PLOTS / "coordinated-omission.svg")
        pages.replace_section(DOCUMENT, "coordinated omission", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
