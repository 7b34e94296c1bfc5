"""The batcher of each model in service, made when it is first asked for, gone with its model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

from tabserve.batcher import Batcher, Observer, Predict
from tabserve.contract import MAX_ROWS
from tabserve.served_model import ServedModel
from tabserve.settings import Settings
from tabserve.telemetry import Telemetry

TraceBatches = Callable[[Predict, Observer, str], tuple[Predict, Observer]]


class Batchers:
    """A batcher for each model, with a thread of its own for long batches: a champion does not wait for its challenger.

    Args:
        trace_batches: puts engine and observer of a batcher, of the model so named, where their batches are recorded;
            None where nothing is traced.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry, trace_batches: TraceBatches | None) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._trace_batches = trace_batches
        self._batchers: WeakKeyDictionary[ServedModel, Batcher] = WeakKeyDictionary()

    def of(self, model: ServedModel) -> Batcher:
        """The batcher of a model."""
        batcher = self._batchers.get(model)
        if batcher is None:
            batcher = self._batchers[model] = self._make(model)
        return batcher

    def _make(self, model: ServedModel) -> Batcher:
        predict: Predict = model.loaded.engine.predict
        observer: Observer = self._telemetry.of_model(model.tag)
        if self._trace_batches is not None:
            predict, observer = self._trace_batches(predict, observer, model.tag)
        batcher = Batcher(
            predict,
            ThreadPoolExecutor(1, thread_name_prefix="tabserve-engine"),
            observer,
            max_rows=MAX_ROWS,
            max_queued_rows=self._settings.max_queued_rows,
            budget_seconds=self._settings.batch_budget_ms / 1000,
            merges=self._settings.batching,
        )
        for n_rows, seconds in model.warm_up_times:
            batcher.service_time.observe(n_rows, seconds)
        return batcher
