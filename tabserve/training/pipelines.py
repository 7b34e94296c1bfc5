"""The pipelines we bring, each with its preprocessor and its model as steps of these names, and the user's own."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sklearn.base import is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tabserve.contract import Contract
from tabserve.training.columns import BadTableError

SEED = 42


def builtin_pipeline() -> Pipeline:
    """The pipeline of the built-in table."""
    model = GradientBoostingClassifier(
        n_estimators=200, learning_rate=0.05, max_depth=4, subsample=0.8, random_state=SEED
    )
    return Pipeline([("preprocessor", StandardScaler()), ("model", model)])


def default_pipeline(contract: Contract) -> Pipeline:
    """Imputation and one-hot encoding before histogram gradient boosting, for any table."""
    categories = [feature.name for feature in contract.features if feature.kind == "category"]
    numbers = [feature.name for feature in contract.features if feature.kind != "category"]
    preprocessor = ColumnTransformer(
        [
            # The indicator keeps what a missing value says; the encoder gives missing a column of its own.
            ("numbers", SimpleImputer(strategy="median", add_indicator=True), numbers),
            ("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories),
        ]
    )
    boosting = HistGradientBoostingRegressor if contract.task == "regression" else HistGradientBoostingClassifier
    return Pipeline([("preprocessor", preprocessor), ("model", boosting(random_state=SEED))])


@dataclass(frozen=True)
class UserPipeline:
    """A user's own unfitted pipeline, and those modules of theirs whose code has to travel inside of the pickle."""

    pipeline: Pipeline
    modules: tuple[ModuleType, ...]


def user_pipeline(reference: str, contract: Contract) -> UserPipeline:
    """The unfitted pipeline that `module:function` returns, called without arguments.

    Raises:
        BadTableError: where the reference leads nowhere, or to something else than a pipeline for this task.
    """
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise BadTableError(f"--estimator takes module:function, got {reference!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    before = set(sys.modules)
    try:
        pipeline = getattr(importlib.import_module(module_name), function_name)()
        is_pipeline = isinstance(pipeline, Pipeline) and len(pipeline.steps) > 0
        fits = is_pipeline and (is_regressor(pipeline) if contract.task == "regression" else is_classifier(pipeline))
    except (Exception, SystemExit) as error:  # the code of a user may do anything
        raise BadTableError(f"--estimator {reference} does not work: {type(error).__name__}: {error}") from error
    if not is_pipeline:
        raise BadTableError(
            f"--estimator {reference}: expected a scikit-learn Pipeline with steps, got {type(pipeline).__name__}"
        )
    if not fits:
        needed = "a regressor" if contract.task == "regression" else "a classifier"
        raise BadTableError(f"--estimator {reference}: a {contract.task} table needs {needed}, got {pipeline[-1]!r}")
    loaded = [sys.modules[name] for name in sorted({*sys.modules} - before | {module_name})]
    return UserPipeline(pipeline, tuple(module for module in loaded if _is_users(module)))


def _is_users(module: ModuleType) -> bool:
    """Whether a module is a file below the folder that training runs in, and not of an installed package or ours."""
    file = Path(getattr(module, "__file__", None) or "/")
    is_ours = module.__name__.partition(".")[0] in ("tabserve", "train")
    return file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts and not is_ours
