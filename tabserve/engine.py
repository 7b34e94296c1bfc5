"""Rows in, probabilities or values out: by ONNX Runtime where it was proved to match scikit-learn, else by that.

A compiled model is array arithmetic in float64 (`Preprocessing`) and an estimator in ONNX, which computes in float32.
Scaling in float32 as well would move values across the splits of a tree and probabilities by up to 9e-5.
"""

import json
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tabserve.contract import Contract, Rows
from tabserve.preprocessing import Preprocessing

Scores = npt.NDArray[np.float64]
"""Probabilities, shape (rows, classes) in the contract's order of classes; or values of a regression, shape (rows,)."""

COMPILED_FILE = "compiled.json"
ONNX_FILE = "estimator.onnx"
PIPELINE_FILE = "pipeline.pkl"


LARGEST_DIFFERENCE = 1e-6
"""By which two engines may differ: of a probability; of a value, relative to the larger of 1 and the value."""


class Engine(Protocol):
    """What answers rows; `name` is the library that does it."""

    name: str

    def predict(self, rows: Rows) -> Scores:
        """Scores for rows of shape (n, features), in the same order. Thread-safe, one thread a call."""


def finite(scores: Scores) -> Scores:
    """The same scores, which may go to a caller.

    Raises:
        RuntimeError: where one is no finite number: JSON has none, and the label beside it would mean nothing.
    """
    if not np.isfinite(scores).all():
        raise RuntimeError("the model gave a score that is no finite number")
    return scores


class Parity(BaseModel):
    """What comparing the compiled model with scikit-learn found: on the rows of the table, and on probes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["onnxruntime", "scikit-learn"]
    reason: str
    rows_compared: int = 0
    largest_difference: float | None = None
    labels_that_differ: int | None = None


class Compiled(BaseModel):
    """The file beside the model that says which engine serves, and how the rows are prepared for ONNX."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parity: Parity
    preprocessing: Preprocessing | None = None

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))


class OnnxEngine:
    """Array arithmetic and an ONNX Runtime session of one thread: the processes scale, not the threads."""

    name = "onnxruntime"

    def __init__(self, preprocessing: Preprocessing, onnx_model: bytes, *, is_classifier: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; it warns about every machine without a GPU
        self._session = onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        # A classifier's outputs are labels and probabilities; the label follows from the probabilities.
        self._output = [self._session.get_outputs()[1 if is_classifier else 0].name]
        self._prepare = preprocessing.function()
        self._is_classifier = is_classifier

    def predict(self, rows: Rows) -> Scores:
        """As `Engine.predict`."""
        inputs = self._prepare(rows).astype(np.float32)
        (found,) = self._session.run(self._output, {self._input: inputs})
        scores: Scores = found.astype(np.float64)
        if not self._is_classifier:
            return scores.reshape(-1)
        # Sums in float32 leave the range by parts of a millionth, and add up to 1 only to seven digits. The bare
        # functions, because numpy's wrappers of them take longer than the work on a few rows.
        np.maximum(scores, 0.0, out=scores)
        np.minimum(scores, 1.0, out=scores)
        scores /= np.add.reduce(scores, axis=1, keepdims=True)
        return scores


class SklearnEngine:
    """The fitted pipeline itself."""

    name = "scikit-learn"

    def __init__(self, pipeline: Any, contract: Contract) -> None:
        self._contract = contract
        self._predict = pipeline.predict if contract.task == "regression" else pipeline.predict_proba

    def predict(self, rows: Rows) -> Scores:
        """As `Engine.predict`."""
        scores: Scores = np.asarray(self._predict(self._contract.to_frame(rows)), dtype=np.float64)
        return scores


def load_engine(directory: Path, contract: Contract) -> Engine:
    """The engine of a verified model's directory, as training decided it.

    scikit-learn is imported, and the pipeline unpickled, only where scikit-learn serves.
    """
    compiled = Compiled.load(directory / COMPILED_FILE)
    if compiled.parity.engine == "onnxruntime" and compiled.preprocessing is not None:
        onnx_model = (directory / ONNX_FILE).read_bytes()
        return OnnxEngine(compiled.preprocessing, onnx_model, is_classifier=contract.task != "regression")
    return SklearnEngine(load_pipeline(directory), contract)


def load_pipeline(directory: Path) -> Any:
    """Unpickles the pipeline: only of a verified model, unpickling runs what the file says."""
    import cloudpickle

    with warnings.catch_warnings():
        # A version that differs was refused before this point, in a clearer sentence.
        warnings.simplefilter("ignore", category=UserWarning)
        return cloudpickle.loads((directory / PIPELINE_FILE).read_bytes())
