"""What is saved of a trained model: every file but the contract, which the store writes, and the manifest."""

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from tabserve import model_store
from tabserve.audit import audit_log
from tabserve.chained_log import BrokenChainError
from tabserve.contract import Contract
from tabserve.engine import COMPILED_FILE, ONNX_FILE, PIPELINE_FILE, Scores
from tabserve.reference import Reference
from tabserve.settings import BadSettingError, Settings
from tabserve.training.compilation import CompiledModel
from tabserve.training.evaluation import Split
from tabserve.training.model_card import write_card, write_plots
from tabserve.training.table import Table
from tabserve.validation import RowReader

logger = logging.getLogger(__name__)

REFERENCE_SAMPLE_ROWS = 5000  # enough for a report; the bins count all training rows
EXAMPLES = 4


@dataclass(frozen=True)
class TrainedModel:
    """Everything that the artifact is written from."""

    contract: Contract
    pipeline: Pipeline
    compiled: CompiledModel
    reference: Reference
    split: Split
    out_of_fold: Scores
    test_scores: Scores
    metadata: dict[str, Any]


def save(
    model: TrainedModel,
    table: Table,
    name: str,
    modules: Sequence[ModuleType] = (),
    *,
    same_pipeline_hash: str | None = None,
) -> str:
    """Saves a trained model in the model store and returns its tag.

    Args:
        modules: the user's modules that the pipeline came from, whose code has to travel with the pickle.
        same_pipeline_hash: that of the model whose pipeline this is, code and all, where the modules are not here.
    """
    pickled = _pickled(model.pipeline, modules)
    fingerprint = same_pipeline_hash or pipeline_hash(model.pipeline, modules)
    metadata = {
        "format": model_store.FORMAT,
        "name": name,
        **model.metadata,
        "pipeline_hash": fingerprint,
        "pickled_packages": _packages_in(pickled),
    }

    def write(directory: Path, semantic_version: str) -> None:
        metadata["semantic_version"] = semantic_version
        _write_json(directory / model_store.METADATA_FILE, metadata)
        _write_json(directory / model_store.EXAMPLES_FILE, _examples(model, table))
        (directory / PIPELINE_FILE).write_bytes(pickled)
        model.compiled.compiled.save(directory / COMPILED_FILE)
        if model.compiled.onnx_model is not None:
            (directory / ONNX_FILE).write_bytes(model.compiled.onnx_model)
        model.reference.save(directory / model_store.REFERENCE_FILE)
        _write_reference_sample(directory / model_store.REFERENCE_SAMPLE_FILE, model, table)
        test = model.split.test
        plots = write_plots(
            directory / "plots",
            contract=model.contract,
            pipeline=model.pipeline,
            rows=table.rows[test],
            target=table.target[test],
            scores=model.test_scores,
        )
        write_card(directory / model_store.CARD_FILE, model.contract, metadata, plots)

    headline = {key: f"{value:.4g}" for key, value in model.metadata["test_metrics"].items() if value is not None}
    tag = model_store.save(name, model.contract, fingerprint, write, {"task": model.contract.task, **headline})
    _record(tag)
    return tag


def _record(tag: str) -> None:
    try:
        audit_log(Settings.from_environment(), model_store.home()).append("save_model", model=tag)
    except (OSError, BrokenChainError, BadSettingError) as error:  # the model is saved, whatever else fails
        logger.warning("the audit log does not say that %s was saved: %s", tag, error)


def pipeline_hash(pipeline: Pipeline, modules: Sequence[ModuleType]) -> str:
    """SHA-256 (hex) of the pipeline's classes and parameters, and of the user's modules that it came from."""
    source = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules)
    return hashlib.sha256((json.dumps(describe(pipeline), sort_keys=True) + source).encode()).hexdigest()


def describe(value: Any) -> Any:
    """Estimators and their parameters as JSON, the same in each run (a repr may hold an address)."""
    if isinstance(value, BaseEstimator):
        parameters = {} if isinstance(value, Pipeline) else value.get_params(deep=False)
        steps = {name: describe(step) for name, step in value.steps} if isinstance(value, Pipeline) else {}
        return {"class": type(value).__name__, **{name: describe(item) for name, item in parameters.items()}, **steps}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, float) or np.isfinite(value) else str(value)
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, np.generic):
        return value.item()
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _examples(model: TrainedModel, table: Table) -> dict[str, Any]:
    """Test rows as a caller would send them, and what the served engine says to them."""
    rows = table.rows[model.split.test[:EXAMPLES]].copy()
    for position, feature in enumerate(model.contract.features):
        if feature.personal:  # nobody's own values on a public page
            rows[:, position] = feature.clip(np.array(np.mean(feature.quantiles))) if feature.quantiles else 0.0
    scores = model.compiled.engine(model.pipeline, model.contract).predict(rows)
    instances = [model.contract.to_values(row) for row in rows]
    RowReader(model.contract).read(instances)  # what the service will do with them before it is ready
    return {"instances": instances, "scores": scores.tolist()}


def _write_reference_sample(path: Path, model: TrainedModel, table: Table) -> None:
    """Training rows with their target and out-of-fold scores; personal columns are left out."""
    n_rows = min(REFERENCE_SAMPLE_ROWS, len(model.split.train))
    chosen = np.sort(np.random.default_rng(model.metadata["seed"]).permutation(len(model.split.train))[:n_rows])
    positions = model.split.train[chosen]
    contract = model.contract
    frame = contract.to_frame(table.rows[positions]).drop(columns=[f.name for f in contract.features if f.personal])
    sample: dict[str, Any] = {f"feature:{name}": frame[name] for name in frame.columns}
    target, scores = table.target[positions], model.out_of_fold[chosen]
    if contract.task == "regression":
        sample |= {"target": target, "score:value": scores}
    else:
        labels = np.array(contract.classes)
        sample |= {"target": labels[target], "prediction": labels[scores.argmax(axis=1)]}
        sample |= {f"score:{key}": scores[:, code] for code, key in enumerate(contract.probability_keys)}
    type(frame)(sample).to_parquet(path, index=False)


def _pickled(pipeline: Pipeline, modules: Sequence[ModuleType]) -> bytes:
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(pipeline))
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


class _RecordingUnpickler(pickle.Unpickler):
    """Loads a pickle of our own and notes which packages that took: serving needs them too."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.packages: set[str] = set()

    def find_class(self, module_name: str, global_name: str) -> Any:
        self.packages.add(module_name.partition(".")[0])
        return super().find_class(module_name, global_name)


def _packages_in(pickled: bytes) -> list[str]:
    unpickler = _RecordingUnpickler(pickled)
    unpickler.load()
    return sorted(unpickler.packages)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
