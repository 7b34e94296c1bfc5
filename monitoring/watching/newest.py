"""What the long-running monitor shows at /metrics: the newest results, how its own runs went, and what is due.

Made anew for each scrape. A version that did not answer in the newest window is gone with the next run, and a result
that is older than three steps is not shown: old numbers would look as if all was well.
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitoring.metrics import LAST_SUCCESS, gauges_of
from monitoring.watching.trigger import CAUSES
from monitoring.watching.turns import Result, Turn

Kind = Literal["drift", "quality"]
Fault = Literal["drift", "quality", "reports", "retraining"]

_LAST_SUCCESS_HELP = "When the result was made; of no model: when the last run ended that could read the log."


class Newest:
    """Written by the schedule, read by scrapes."""

    def __init__(self, stale_after: timedelta) -> None:
        self._lock = threading.Lock()
        self._stale_after = stale_after
        self._results: dict[Kind, tuple[Result, ...]] = {}
        self._succeeded_at: dict[Kind, float] = {}
        self._seconds: dict[Kind, float] = {}
        self._due: dict[tuple[str, str], Collection[str]] = {}
        self._failures: Counter[Fault] = Counter()

    def took(self, kind: Kind, seconds: float) -> None:
        with self._lock:
            self._seconds[kind] = seconds

    def found(self, kind: Kind, turn: Turn) -> None:
        """Replaces the results of a kind; of a version whose judgement failed the one before stays, until it is old."""
        with self._lock:
            before = [r for r in self._results.get(kind, ()) if f"{r.model}:{r.version}" in turn.failed]
            self._results[kind] = (*turn.results, *before)
            if not turn.is_failure:
                self._succeeded_at[kind] = time.time()

    def failed(self, kind: Fault, n_failures: int = 1) -> None:
        with self._lock:
            self._failures[kind] += n_failures

    def due(self, of_version: Mapping[tuple[str, str], Collection[str]]) -> None:
        """Which causes to retrain hold now, by model and version."""
        with self._lock:
            self._due = dict(of_version)

    def results(self) -> list[Result]:
        """Those that are not stale."""
        oldest = datetime.now(UTC) - self._stale_after
        with self._lock:
            return [r for results in self._results.values() for r in results if r.made_at >= oldest]

    def registry(self) -> CollectorRegistry:
        """Of one scrape."""
        registry = CollectorRegistry()
        registry.register(_Scrape(self.results(), list(self._own())))
        return registry

    def _own(self) -> Iterator[Metric]:
        with self._lock:
            seconds, succeeded_at, due = dict(self._seconds), dict(self._succeeded_at), dict(self._due)
            failures = Counter(self._failures)
        shown = {(result.model, result.version) for result in self.results()}
        successes = GaugeMetricFamily(LAST_SUCCESS, _LAST_SUCCESS_HELP, labels=["model", "model_version", "kind"])
        for kind, at in succeeded_at.items():
            successes.add_metric(["", "", kind], at)
        yield successes
        durations = GaugeMetricFamily(
            "tabserve_monitor_run_duration_seconds", "How long the last run took, without reports.", labels=["kind"]
        )
        for kind, took in seconds.items():
            durations.add_metric([kind], took)
        yield durations
        counted = CounterMetricFamily(
            "tabserve_monitor_failures", "Runs, reports and calls to retrain that failed.", labels=["kind"]
        )
        for fault in get_args(Fault):
            counted.add_metric([fault], failures[fault])
        yield counted
        retraining = GaugeMetricFamily(
            "tabserve_retraining_due",
            "1 where this is a reason to train again, whether or not somebody was called.",
            labels=["model", "model_version", "reason"],
        )
        for (model, version), causes in due.items():
            if (model, version) in shown:
                for cause in CAUSES:
                    retraining.add_metric([model, version, cause], float(cause in causes))
        yield retraining


class _Scrape(Collector):
    def __init__(self, results: Sequence[Result], own: Sequence[Metric]) -> None:
        self._results = results
        self._own = own

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {**gauges_of(self._results).families}
        for family in self._own:
            if family.name in families:  # a family may stand there only once
                families[family.name].samples += family.samples
            elif family.samples:
                families[family.name] = family
        yield from families.values()
