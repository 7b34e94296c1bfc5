"""How long a drift verdict takes on a log of many rows, and in how much memory: `python -m monitoring.soundness.scale`.

Trains the built-in model and writes rows of its 30 numbers, two windows together, as a service rolls them: 2.6 GB in
the folder for temporary files for ten million. Then `monitoring.drift` judges them in a process of its own. Exit codes:
0; 1 where that took more than `MOST_SECONDS` or `MOST_MEGABYTES`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loadtest import provenance
from monitoring.soundness.populations import built_in
from tabserve.contract import Contract
from tabserve.prediction_log.columns import prediction_schema
from tabserve.prediction_log.journal import partition_of

ROOT = Path(__file__).parent.parent.parent
MOST_SECONDS, MOST_MEGABYTES = 60.0, 2000.0
ROWS_A_FILE = 100_000  # as the service rolls them, or what an hour has
HOURS = 48  # of two windows
_JUDGE = """
import sys, time
from monitoring import drift
started = time.perf_counter()
code = drift.main(["--log-url", sys.argv[1], "--window", "24h"])
seconds = time.perf_counter() - started
# Not ru_maxrss, which begins with what the process had that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, seconds, int(peak.split()[1]) / 1024)
"""


@dataclass(frozen=True)
class Judged:
    """What became of a log: the exit code and the words of `monitoring.drift`, and what they took."""

    code: int
    said: str
    seconds: float
    """On the clock, from the start of the command on; imports are not in it."""
    megabytes: float
    """The most memory that its process ever had, libraries among it."""


def write_log(folder: Path, contract: Contract, tag: str, n_rows: int, seed: int = 0) -> None:
    """Rolled files of so many predictions of the built-in table's population, spread over the last two days; the scores
    are chance.
    """
    random, population = np.random.default_rng(seed), built_in()
    schema = prediction_schema(contract, personal_are_hashed=False)
    model, _, version = tag.partition(":")
    length = timedelta(hours=HOURS)
    since = datetime.now(UTC) - length
    rows_a_file = min(ROWS_A_FILE, -(-n_rows // HOURS))
    for first in range(0, n_rows, rows_a_file):
        n = min(rows_a_file, n_rows - first)
        rows = np.abs(population.draw(random, n)[0])
        score = random.random(n)
        seconds = length.total_seconds() * (first + np.arange(n)) / n_rows
        moments = np.datetime64(since.replace(tzinfo=None), "us") + (seconds * 1e6).astype("timedelta64[us]")
        columns: dict[str, object] = {
            "prediction_id": [random.bytes(16).hex() for _ in range(n)],
            "time": moments,
            **{name: [value] * n for name, value in (("model", model), ("version", version), ("variant", "champion"))},
            "contract_hash": [contract.hash] * n,
            **{f"feature:{name}": rows[:, place] for place, name in enumerate(contract.names)},
            "label": (score > 0.5).astype(int),
            **dict(zip((f"probability:{key}" for key in contract.probability_keys), (1 - score, score), strict=True)),
            "latency_ms": np.ones(n),
            "weight": np.ones(n),
        }
        date = str(moments[0].astype("datetime64[D]"))
        target = folder / "predictions" / partition_of(model=model, version=version, date=date)
        target.mkdir(parents=True, exist_ok=True)
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        pq.write_table(pa.table(arrays, schema=schema), target / f"{first}.parquet", compression="zstd")


def judged(url: str, environment: Mapping[str, str]) -> Judged:
    """Has `monitoring.drift` judge the log there, with the model store that the environment names."""
    command = [sys.executable, "-c", _JUDGE, url]
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the judgement ended with {done.returncode}:\n{done.stderr[-2000:]}")
    said, _, numbers = done.stdout.rstrip().rpartition("\n")
    code, seconds, megabytes = numbers.split()
    return Judged(int(code), said, float(seconds), float(megabytes))


def main() -> int:
    """Writes, judges, and says what it took."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.soundness.scale", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of both windows together (default: ten million)")
    n_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="tabserve-scale-") as name:
        folder = Path(name)
        environment = {**os.environ, "BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
        trained = subprocess.run(
            [sys.executable, "train.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        tag = trained.stdout.strip()
        contract = Contract.load(folder / "home/models" / tag.replace(":", "/") / "contract.json")
        write_log(folder / "log", contract, tag, n_rows)
        found = judged((folder / "log").as_uri(), environment)
    sys.stdout.write(
        f"{found.said}\n\n{provenance.machine()}\n{n_rows:,} rows of {len(contract.names)} features: "
        f"{found.seconds:.1f} s (at most {MOST_SECONDS:g}), {found.megabytes:.0f} MB (at most {MOST_MEGABYTES:g})\n"
    )
    return 1 if found.seconds > MOST_SECONDS or found.megabytes > MOST_MEGABYTES else 0


if __name__ == "__main__":
    sys.exit(main())
