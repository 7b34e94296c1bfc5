"""Measures all candidates side by side, then overload and fairness of our own, and writes docs/benchmarks.md.

Server and load have a core each. Exit codes: 0; 1 where an answer was wrong.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import uvloop

from loadtest import pages
from loadtest.benchmark import adaptive_cap, candidates, models, report, targets
from loadtest.benchmark.candidates import Candidate
from loadtest.benchmark.fairness import Fairness, fairness, fairness_open
from loadtest.benchmark.overload import Overload, overload
from loadtest.benchmark.rows import rows_of
from loadtest.benchmark.side_by_side import Point, Result, Running, measured_rounds, wait_until_it_answers
from loadtest.benchmark.targets import Target
from loadtest.processes import Server, free_port, running

SERVER_CORE, LOAD_CORE = 0, min(1, (os.cpu_count() or 1) - 1)
MAX_ROWS = 512

ONE = Point("1 connection", candidates.ALL, connections=1)
FEW = Point("32 connections", candidates.ALL, connections=32)
MANY = Point("128 connections", candidates.ALL, connections=128)
OPEN = Point("open loop, 1000 requests a second", candidates.ALL, rate=1000)
BATCHES = Point("16 rows a request, 32 connections", candidates.WITH_BATCHES, rows=16)
FOREST = Point("forest of 300 trees, 64 connections", candidates.WITH_FOREST, connections=64, forest=True, longer=3)
POINTS = (ONE, FEW, MANY, OPEN, BATCHES, FOREST)

DOCUMENT = models.ROOT / "docs" / "benchmarks.md"
PLOTS = models.ROOT / "docs" / "benchmarks"


@contextlib.contextmanager
def started(folder: Path, names: Collection[str], *, with_forest: bool) -> Iterator[dict[tuple[bool, str], Running]]:
    """The candidates of these names, each with a process tree of its own, on the core of the servers."""
    say("training the models")
    built_in = models.train(folder / "built-in")
    models.save_for_quickstart(built_in)
    wanted = [(False, built_in, one) for one in candidates.ALL]
    if with_forest:
        options = ("--estimator", "loadtest.benchmark.models:forest", "--engine", "scikit-learn")
        forest = models.train(folder / "forest", *options)
        wanted += [(True, forest, one) for one in FOREST.candidates]
    with contextlib.ExitStack() as stack:
        found = {}
        for is_forest, model, candidate in wanted:
            if candidate.name in names:
                server = stack.enter_context(serving(folder, candidate, model))
                found[is_forest, candidate.name] = Running(candidate, server, model)
        yield found


def serving(
    folder: Path, candidate: Candidate, model: models.BenchmarkModel
) -> contextlib.AbstractContextManager[Server]:
    """A candidate that serves a model, on the core of the servers."""
    port = free_port()
    return running(
        [*candidate.command, str(port)],
        port,
        folder / f"{port}.log",
        cwd=models.ROOT / candidate.folder,
        environment={**model.environment, **candidate.settings},
        cores=[SERVER_CORE],
    )


async def under_overload(built_in: Running, forest: Running, seconds: float, seed: int) -> list[Overload]:
    """Twice the peak: one row a request for both models, and as many as make the forest's time dominate."""
    found = []
    for what, one, n_rows in (
        ("built-in model, 1 row a request", built_in, 1),
        ("forest, 64 rows a request", forest, 64),
        ("forest, 1 row a request", forest, 1),
    ):
        requests = one.requests(n_rows)
        await wait_until_it_answers(one.server, requests)
        found.append(await overload(what, one.server.port, requests, seconds=seconds, seed=seed))
    return found


async def beside_large_requests(one: Running, seconds: float, seed: int) -> list[Fairness]:
    small, large = one.requests(), one.requests(MAX_ROWS)
    await wait_until_it_answers(one.server, small)
    port = one.server.port
    found = [await fairness(port, small, large, connections=n, seconds=seconds) for n in (8, 32)]
    return [*found, await fairness_open(port, small, large, rate=300, seconds=seconds, seed=seed)]


def kept(results: Sequence[Result]) -> list[Target]:
    """What became of each target."""
    rows = {point.name: rows_of(results, point) for point in POINTS}
    return [
        *targets.under_load(32, rows[FEW.name]),
        *targets.under_load(128, rows[MANY.name]),
        *targets.of_one_connection(rows[ONE.name]),
        *targets.of_open_loop(rows[OPEN.name]),
        *targets.of_batches(rows[BATCHES.name]),
        *targets.of_forest(rows[FOREST.name]),
    ]


def say(line: object) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    """Measures, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmark", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="a point and candidate in a round (default: 4)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="candidates, by the beginning of their names")
    parser.add_argument("--points", nargs="*", metavar="NAME", help="points, by the beginning of their names")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plots")
    arguments = parser.parse_args()
    names = [one.name for one in candidates.ALL if not arguments.only or one.name.startswith(tuple(arguments.only))]
    points = [one for one in POINTS if not arguments.points or one.name.startswith(tuple(arguments.points))]
    os.sched_setaffinity(0, [LOAD_CORE])
    results: list[Result] = []
    overloads: list[Overload] = []
    fair: list[Fairness] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tabserve-benchmark-")))
        servers = stack.enter_context(started(folder, names, with_forest=FOREST in points))
        for result in measured_rounds(servers, points, rounds=arguments.rounds, seconds=arguments.seconds):
            results.append(result)
            say(result)
        if not arguments.points and candidates.TABSERVE.name in names:
            built_in, forest = (servers[is_forest, candidates.TABSERVE.name] for is_forest in (False, True))
            for seed in range(3):
                overloads += uvloop.run(under_overload(built_in, forest, arguments.seconds, seed))
                fair += uvloop.run(beside_large_requests(built_in, arguments.seconds, seed))
    is_complete = points == list(POINTS) and len(names) == len(candidates.ALL)
    parts = [report.machine(), f"{arguments.rounds} rounds of {arguments.seconds:g} s each."]
    if is_complete:
        parts.append(report.targets_table(kept(results)))
    parts.append(report.side_by_side_tables(results, points))
    if overloads:
        parts += ["### Twice the peak", report.overload_table(overloads)]
        parts += ["### One row beside 512", report.fairness_table(fair)]
    text = "\n\n".join(parts)
    sys.stdout.write(f"{text}\n")
    if arguments.write and is_complete:
        report.plot(results, [FEW, MANY, OPEN], PLOTS / "side-by-side.svg")
        adaptive_cap.plot(PLOTS / "adaptive-cap.svg")
        pages.replace_section(DOCUMENT, "benchmark", text)
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
