"""The two models that all candidates serve: the built-in one, and a forest that takes its time."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from tabserve.engine import ONNX_FILE, PIPELINE_FILE

ROOT = Path(__file__).parents[2]
QUICKSTART = "quickstart"
TRAINED = {
    "built-in": (),
    "forest": ("--estimator", "loadtest.benchmark.models:forest", "--engine", "scikit-learn"),
}
"""What train.py is told for each."""


def forest() -> Pipeline:
    """A model whose service time dominates everything else: milliseconds for one row."""
    model = RandomForestClassifier(n_estimators=300, random_state=42, n_jobs=1)
    return Pipeline([("preprocessor", StandardScaler()), ("model", model)])


@dataclass(frozen=True)
class BenchmarkModel:
    """A trained model in the forms that the candidates need, with rows and what scikit-learn says of them."""

    tag: str
    environment: Mapping[str, str]
    """What a candidate needs to know: the model store, the pipeline, the ONNX file."""
    rows: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


def environment_of(home: Path) -> dict[str, str]:
    """The environment of a candidate, with nothing of the settings around the benchmark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TABSERVE_", "BENTOML_"))}
    return {
        **kept,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",  # every candidate has one core
    }


def train(folder: Path, *arguments: str) -> BenchmarkModel:
    """Trains by train.py into a model store below a folder, and writes what the other candidates load.

    Raises:
        subprocess.CalledProcessError: where the training failed; it has said why.
    """
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", *arguments]
    environment = environment_of(home)
    trained = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    tag = trained.stdout.split()[-1]
    stored = home / "models" / tag.replace(":", "/")
    pipeline = cloudpickle.loads((stored / PIPELINE_FILE).read_bytes())
    for step in (pipeline, *(step for _, step in pipeline.steps)):
        vars(step).pop("feature_names_in_", None)  # as fitted on arrays: no warning about names in every request
    joblib.dump(pipeline, folder / "pipeline.joblib")
    rows: npt.NDArray[np.float64] = load_breast_cancer().data
    return BenchmarkModel(
        tag,
        {
            **environment,
            "TABSERVE_MODEL": tag,
            "BENCHMARK_PIPELINE": str(folder / "pipeline.joblib"),
            "BENCHMARK_ONNX": str(stored / ONNX_FILE),
        },
        rows,
        pipeline.predict_proba(rows),
    )


def save_for_quickstart(model: BenchmarkModel) -> None:
    """Puts the pipeline into the model store as BentoML's own pages do it."""
    save = (
        "import bentoml, joblib, os; "
        f"bentoml.sklearn.save_model({QUICKSTART!r}, joblib.load(os.environ['BENCHMARK_PIPELINE']))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", save], env=dict(model.environment), check=True)
