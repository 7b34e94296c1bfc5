"""Rejected values: counted while they come, one row a flush for each route, feature and rule."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from tabserve.prediction_log.columns import TIME, number_array, text_array
from tabserve.prediction_log.journal import partition_of
from tabserve.prediction_log.observer import Observer
from tabserve.validation import Violation

REJECTIONS = "rejections"
CALLERS_OWN_NAMES = "unknown_name"  # the rule of which the feature is what the caller wrote, and not one of ours
SCHEMA = pa.schema(
    [
        ("time", TIME),
        *((name, pa.string()) for name in ("route", "feature", "rule")),
        ("count", pa.int64()),
        ("model", pa.string()),
        ("version", pa.string()),
    ]
)


class Rejections:
    """Counts what broke which rule. A flood of it costs little: there are only so many features and rules.

    A source of the writer.
    """

    table = REJECTIONS
    n_rows = 0  # they are counts, which are written the better the later

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, str | None, str]] = Counter()

    def reject(self, route: str, violations: Sequence[Violation], model_version: str) -> None:
        with self._lock:
            for violation in violations:
                feature = None if violation.rule == CALLERS_OWN_NAMES else violation.feature
                self._counts[model_version, route, feature, violation.rule] += 1

    def batches(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        """As `Source.batches`."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        now = time.time()
        date = datetime.fromtimestamp(now, UTC).date().isoformat()
        of_model: defaultdict[str, list[tuple[str, str | None, str, int]]] = defaultdict(list)
        for (model_version, route, feature, rule), count in counts.items():
            of_model[model_version].append((route, feature, rule, count))
        for model_version, rows in of_model.items():
            model, _, version = model_version.partition(":")
            routes, features, rules, numbers = zip(*rows, strict=True)
            columns = [
                number_array(TIME, np.full(len(rows), int(now * 1e6))),
                text_array(routes),
                text_array(features),
                text_array(rules),
                number_array(pa.int64(), np.array(numbers, np.int64)),
                text_array([model] * len(rows)),
                text_array([version] * len(rows)),
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
            yield partition_of(model=model, version=version, date=date), batch

    def report(self, observer: Observer) -> None:
        """As `Source.report`."""
