"""What the workers of one service leave in their metrics."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

WORKER = """
import sys
from tabserve.telemetry import Telemetry
telemetry = Telemetry()
batches = telemetry.of_model("m:1")
batches.queue_left(7)
batches.batch_done(3, 0.001)
if sys.argv[1:]:
    sys.stdout.write(telemetry.exposition().decode())
"""


def test_what_a_dead_worker_counted_stays_and_what_waited_in_it_is_gone(tmp_path: Path) -> None:
    environment = {**os.environ, "TABSERVE_METRICS_DIR": str(tmp_path)}

    def worker(*arguments: str) -> str:
        command = [sys.executable, "-c", WORKER, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    worker()
    exposition = worker("and show")

    assert 'tabserve_predictions_total{model_version="m:1"} 6.0' in exposition
    assert "tabserve_batch_rows_count 2.0" in exposition
    assert "tabserve_queued_rows 7.0" in exposition
