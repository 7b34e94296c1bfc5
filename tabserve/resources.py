"""CPU time and memory of the service's processes, read from Linux when a scrape asks for them.

prometheus_client says nothing of either where several processes add up their metrics.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PROC = Path("/proc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessesCollector(Collector):
    """A process and all that it started, each by its id. Elsewhere than on Linux there is nothing to read.

    Args:
        root: the id of the first process.
    """

    def __init__(self, root: int) -> None:
        self._root = root

    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily(
            "tabserve_process_cpu_seconds", "User and system time of a process of the service.", labels=["pid"]
        )
        memory = GaugeMetricFamily(
            "tabserve_process_resident_memory_bytes", "Memory of a process of the service.", labels=["pid"]
        )
        for process_id in _with_children(self._root):
            try:
                # What follows the name, which may hold anything, spaces and brackets too.
                fields = (_PROC / str(process_id) / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            user_ticks, system_ticks, resident_pages = int(fields[11]), int(fields[12]), int(fields[21])
            cpu.add_metric([str(process_id)], (user_ticks + system_ticks) / _TICKS_PER_SECOND)
            memory.add_metric([str(process_id)], resident_pages * _PAGE_BYTES)
        yield cpu
        yield memory


def _with_children(process_id: int) -> Iterator[int]:
    yield process_id
    for task in (_PROC / str(process_id) / "task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            yield from _with_children(int(child))
