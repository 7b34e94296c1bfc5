"""What the workers of one service leave in their metrics."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, wait_for

from tabserve.resources import ProcessesCollector

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


def test_cpu_and_memory_of_a_process_and_of_all_that_it_started_are_told() -> None:
    start_another = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", start_another], stdin=subprocess.PIPE) as parent:
        collector = ProcessesCollector(parent.pid)
        wait_for(lambda: [sample.value > 1e6 for sample in list(collector.collect())[1].samples] == [True, True])
        cpu, memory = collector.collect()
        parent.communicate(b"\n")

    assert cpu.samples[0].name == "tabserve_process_cpu_seconds_total"
    assert cpu.samples[0].labels["pid"] == str(parent.pid)
    assert all(0 <= sample.value < 60 for sample in cpu.samples)
    assert all(1e6 < sample.value < 1e9 for sample in memory.samples)
    assert [metric.samples for metric in collector.collect()] == [[], []]  # they have ended
