"""Simulates traffic without drift and with known drift, has tabserve and Evidently judge it, and prints what was found.

Takes half an hour on two cores. Exit codes: 0 where every target is met, 1 where one is not.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from monitoring.soundness import ours, page, power, stationary

DAYS_OF_A_TRAINING = 50
EVIDENTLY_DAYS = 5  # of a training: Evidently takes 0.2 s for the four sizes of a day, which adds up
PRESET_TRAININGS = 10  # of a population, the first day of which its preset judges too: 5 s each
PROCESSES = 2
PARTS = 4  # of the runs of power, which go to the processes
RUNS = 2000
BUILT_IN_PART = 25  # runs of a part, of 30 columns each
EVIDENTLY_RUNS = 48
OUTLIER_RUNS = 200
REFERENCES = (2000, 455)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates, prints, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.soundness", description=__doc__)
    parser.add_argument("--days", type=int, default=1000, help="days without drift, of each table (default 1000)")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each shift (default {RUNS})")
    parser.add_argument("--write", action="store_true", help="write docs/monitoring.md and its plots")
    chosen = parser.parse_args(arguments)
    if chosen.days < 1 or chosen.runs < 1:
        parser.error("--days and --runs take whole numbers from 1")
    # Numeric libraries would start a thread for each core in each process, and wait for each other.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=ours.be_quiet) as executor:
        proof = prove(executor, chosen.days, chosen.runs)
    sys.stdout.write(page.section(proof) + "\n")
    if chosen.write:
        page.write(proof)
    return 1 if "**no**" in page.targets(proof) else 0


def prove(executor: Executor, days: int, runs: int) -> page.Proof:
    """Everything, in the processes of the executor."""
    started = time.monotonic()
    part = -(-runs // PARTS)
    of_evidently = min(part, EVIDENTLY_RUNS // PARTS)

    def of_columns(columns: Sequence[power.Column], shifts: Sequence[float]) -> list[Future[list[power.Found]]]:
        return [
            executor.submit(
                power.of_columns,
                [column.name for column in columns],
                n_reference,
                shifts,
                runs=part,
                evidently_runs=of_evidently,
                seed=seed,
            )
            for n_reference in REFERENCES
            for seed in range(PARTS)
        ]

    traffic = [
        executor.submit(
            stationary.simulate,
            which,
            seed,
            min(days, DAYS_OF_A_TRAINING),
            EVIDENTLY_DAYS,
            ask_preset=seed < PRESET_TRAININGS,
        )
        for seed in range(-(-days // DAYS_OF_A_TRAINING))
        for which in range(len(stationary.POPULATIONS))
    ]
    kinds = of_columns(power.COLUMNS, power.SHIFTS)
    missing = of_columns((power.MISSING,), (1.0,))
    built_in = [
        executor.submit(power.of_built_in, n_reference, power.FEW_SHIFTS, runs=min(part, BUILT_IN_PART), seed=seed)
        for n_reference in REFERENCES
        for seed in range(PARTS)
    ]
    outliers = executor.submit(power.outliers, min(runs, OUTLIER_RUNS), 0)
    by_population: dict[str, stationary.Found] = {}
    for done in traffic:
        found = done.result()
        by_population.setdefault(found.population, stationary.Found(found.population)).add(found)
    return page.Proof(
        stationary=list(by_population.values()),
        of_kinds=power.together([done.result() for done in kinds]),
        of_missing=power.together([done.result() for done in missing]),
        of_built_in=power.together([done.result() for done in built_in]),
        outliers=outliers.result(),
        minutes=(time.monotonic() - started) / 60,
    )


if __name__ == "__main__":
    sys.exit(main())
