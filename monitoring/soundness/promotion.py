"""How often the verdict on a challenger is wrong, and how often it is found: `tabserve.lifecycle.comparison` itself.

    python -m monitoring.soundness.promotion --part accuracy --keep found.jsonl     # and the other parts, in pieces
    python -m monitoring.soundness.promotion --keep found.jsonl --write             # the page, docs/comparison.md

Accuracy needs no simulation: how many rows only one of the models has right is multinomial, so that every outcome can
be judged and counted with its probability. All else is simulated. Exit codes: 0 where every target is met, else 1.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binom

from monitoring.soundness import challengers
from tabserve.lifecycle import bootstrap
from tabserve.lifecycle.comparison import Verdict, compare
from tabserve.lifecycle.effects import shown
from tabserve.lifecycle.paired_tests import Discordant

DIFFERENCES = (0.0, -0.01, 0.01)
LEAST_PROBABILITY = 1e-12  # of an outcome that is judged; all others together are less than a millionth
PROCESSES = 2
FEWER_RESAMPLES = 500  # where a run would take a second with 2000; the bounds are then less sure, not wider


@dataclass(frozen=True)
class Found:
    """How often each verdict was found for one pair of models; a share of 1 where it was computed, `runs` being 0."""

    part: str
    setting: str
    n_rows: int
    difference: float
    """The challenger's true accuracy or area less the champion's, or the share of the champion's loss that it saves."""
    runs: int
    verdicts: dict[str, float]
    seed: int | None = None
    seconds: float = 0.0

    def share(self, *verdicts: Verdict) -> float:
        """Of the runs that ended with one of them."""
        return sum(self.verdicts.get(verdict, 0.0) for verdict in verdicts) / max(1, self.runs)


def computed(n_rows: int, discordant_share: float, difference: float) -> Found:
    """Every outcome with its probability."""
    started = time.monotonic()
    only_challenger = (discordant_share + difference) / 2
    found = {"better": 0.0, "not worse": 0.0, "worse": 0.0, "inconclusive": 0.0}
    discordant = np.arange(n_rows + 1)
    likely = binom.pmf(discordant, n_rows, discordant_share)
    for n_discordant in discordant[likely > LEAST_PROBABILITY].tolist():
        more = np.arange(n_discordant + 1)
        of_these = likely[n_discordant] * binom.pmf(more, n_discordant, only_challenger / discordant_share)
        for b in more[of_these > LEAST_PROBABILITY].tolist():
            is_better, is_worse, is_not_worse = shown(Discordant(n_rows, b, n_discordant - b))
            verdict = (
                "better" if is_better else "not worse" if is_not_worse else "worse" if is_worse else "inconclusive"
            )
            found[verdict] += float(of_these[b])
    setting = f"{discordant_share:.1%} of the rows discordant"
    return Found("accuracy", setting, n_rows, difference, 0, found, None, time.monotonic() - started)


def simulated(
    part: str, setting: str, n_rows: int, difference: float, *, runs: int, resamples: int, seed: int
) -> Found:
    """Draws labelled rows `runs` times and compares; of a worse model *worse* and *inconclusive* are not told apart."""
    started = time.monotonic()
    random = np.random.default_rng([seed, n_rows, round(1e4 * (1 + difference)), runs])
    draw, metric = challengers.SETTINGS[part, setting]
    found: dict[str, float] = {}
    for run in range(runs):
        pairs = draw(random, n_rows, difference)
        # Of a model that is worse only the few runs matter that could pass: it is hopeless for the others.
        is_hopeless = difference < 0 and metric != "accuracy" and challengers.is_hopeless(pairs, metric)
        verdict = "inconclusive" if is_hopeless else compare(pairs, metric, seed=run, n_resamples=resamples).verdict
        found[verdict] = found.get(verdict, 0.0) + 1
    return Found(part, setting, n_rows, difference, runs, found, seed, time.monotonic() - started)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m monitoring.soundness.promotion", description=__doc__)
    parser.add_argument("--part", choices=("accuracy", *dict.fromkeys(part for part, _ in challengers.SETTINGS)))
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 5000, 10000], metavar="N")
    parser.add_argument("--runs", type=int, default=1000, help="of each cell that is simulated")
    parser.add_argument("--resamples", type=int, default=bootstrap.RESAMPLES)
    parser.add_argument("--differences", type=float, nargs="+", default=list(DIFFERENCES), metavar="D")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, required=True, metavar="FILE", help="add what is found to this file")
    parser.add_argument("--write", action="store_true", help="write docs/comparison.md from the file")
    chosen = parser.parse_args(arguments)
    if chosen.part:
        for found in _run(chosen):
            with chosen.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            sys.stdout.write(f"{found}\n")
            sys.stdout.flush()
    return _page(chosen.keep, write=chosen.write)


def _run(chosen: argparse.Namespace) -> "list[Found]":
    # Numeric libraries would start a thread for each core in each process, and wait for each other.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as executor:
        if chosen.part == "accuracy":
            jobs = [
                executor.submit(computed, n, share, difference)
                for n in chosen.rows
                for share in challengers.DISCORDANT
                for difference in chosen.differences
                if share > abs(difference)
            ]
        else:
            jobs = [
                executor.submit(
                    simulated,
                    part,
                    setting,
                    n,
                    difference,
                    runs=chosen.runs,
                    resamples=chosen.resamples,
                    seed=chosen.seed,
                )
                for n in chosen.rows
                for part, setting in challengers.SETTINGS
                for difference in chosen.differences
                if part == chosen.part
            ]
        return [job.result() for job in jobs]


def _page(kept: Path, *, write: bool) -> int:
    from monitoring.soundness import promotion_page  # here, because it needs what is above

    lines = kept.read_text(encoding="utf-8").splitlines()
    return promotion_page.show([Found(**json.loads(line)) for line in lines], write=write)


if __name__ == "__main__":
    sys.exit(main())
