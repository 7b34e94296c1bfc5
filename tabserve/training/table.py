"""A file to a table that may be trained on, and the contract that it implies; what is wrong with it is named first."""

import collections
import csv
import decimal
import hashlib
import io
import logging
import re
import warnings as python_warnings
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from sklearn.datasets import load_breast_cancer

from tabserve.contract import LARGEST_EXACT_INTEGER, LARGEST_NUMBER, ClassLabel, Contract, Rows, Task
from tabserve.training.columns import BadTableError, Rule, check_values, code, example, infer_feature

logger = logging.getLogger(__name__)

FEWEST_ROWS = 50  # below, a 20 % test set of 10 rows says nothing
FEWEST_OF_A_CLASS = 10  # 8 to train on in 5 folds, 2 to test on
LONGEST_NAME = 40  # of a model; the store takes 63 characters
MISSING_TEXTS = ["NA", "N/A", "na", "n/a", "NaN", "nan", "NULL", "null", "None", "none", "?", "-"]
MOST_CLASSES_OF_INTEGERS = 20  # --task auto takes an integer target with more values for a quantity


class _RulesFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    features: dict[str, Rule] = {}


@dataclass(frozen=True)
class Source:
    """Where a table came from, as the metadata of the model tells it."""

    name: str
    description: str
    sha256: str  # of the file, or of the built-in table's values


@dataclass(frozen=True)
class Table:
    """A table ready for training: coded rows, coded target, and the contract without the training rows' statistics."""

    contract: Contract
    rows: Rows
    target: np.ndarray[Any, Any]
    """Regression: float64 values. Else the index of each row's class in `contract.classes`."""
    times: "pd.Series[Any] | None"
    source: Source
    class_names: Mapping[Any, str]
    warnings: tuple[str, ...]
    n_recent: int = 0
    """So many of the latest rows are of a window of the prediction log; see `evaluation.split`."""


@dataclass(frozen=True)
class Columns:
    """Which column of a file is what."""

    target: str
    ids: tuple[str, ...] = ()
    time: str | None = None


def builtin_table() -> Table:
    """The breast-cancer table of scikit-learn, 569 rows of 30 numbers."""
    data = load_breast_cancer(as_frame=True)
    frame = data.frame
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    source = Source("breast_cancer", "breast cancer Wisconsin (diagnostic), from scikit-learn", digest)
    names = {index: str(name) for index, name in enumerate(data.target_names)}
    return prepare(frame, Columns("target"), source, class_names=names)


def read_table(path: Path, columns: Columns, *, task: Task | None = None, rules: Mapping[str, Rule]) -> Table:
    """The table of a CSV or Parquet file.

    Raises:
        BadTableError: naming every column that is wrong.
    """
    frame, source = read_frame(path)
    return prepare(frame, columns, source, task=task, rules=rules)


def read_frame(path: Path) -> tuple[pd.DataFrame, Source]:
    """What a CSV or Parquet file holds, not checked yet.

    Raises:
        BadTableError: where it cannot be read.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise BadTableError(f"expected a .csv or .parquet file, got {path}")
    try:
        content = path.read_bytes()
        frame = readers[path.suffix.lower()](content)
    except OSError as error:
        raise BadTableError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error, pd.errors.ParserWarning) as error:
        raise BadTableError(f"{path} is no readable {path.suffix[1:]} file: {str(error).splitlines()[0]}") from error
    return frame, Source(_model_name(path.stem), path.name, hashlib.sha256(content).hexdigest())


def _read_csv(content: bytes) -> pd.DataFrame:
    header = next(csv.reader(io.StringIO(content.decode("utf-8-sig"))), [])
    if len(set(header)) != len(header):  # pandas would rename them
        raise ValueError(f"the header has a column twice: {header}")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise ValueError("its columns seem to be separated by semicolons or tabs, expected commas")

    def read(missing: dict[str, list[str]]) -> pd.DataFrame:
        # Nullable types tell a column of whole numbers with gaps from one of fractions; the default ones do not.
        options: Any = {"dtype_backend": "numpy_nullable", "keep_default_na": False, "index_col": False}
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
            frame: pd.DataFrame = pd.read_csv(
                io.BytesIO(content), na_values={name: ["", *missing.get(name, [])] for name in header}, **options
            )
        return frame

    frame = read({})
    # "NA" may be a category. It is a gap only where everything else in the column is a number.
    texts = frame.select_dtypes(include=["string", "object"])
    gaps = {str(name): MISSING_TEXTS for name in texts if _are_numbers_with_gaps(texts[name].dropna())}
    return read(gaps) if gaps else frame


def _are_numbers_with_gaps(texts: "pd.Series[Any]") -> bool:
    others = texts[~texts.isin(MISSING_TEXTS)]
    return bool(len(others) and pd.to_numeric(others, errors="coerce").notna().all())


def _read_parquet(content: bytes) -> pd.DataFrame:
    frame = pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable")
    for name in frame.columns:
        present = frame[name].dropna()
        if len(present) and isinstance(present.iloc[0], decimal.Decimal):
            frame[name] = frame[name].astype("Float64")
    return frame


def read_rules(path: Path) -> Mapping[str, Rule]:
    """The rules file: `features: {NAME: {kind, min, max, missing, personal}}`.

    Raises:
        BadTableError: for a file that cannot be read, an unknown key or a value of the wrong type.
    """
    try:
        return _RulesFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {}).features
    except OSError as error:
        raise BadTableError(f"the rules {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadTableError(f"the rules {path} are no YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        expected = "expected features: {NAME: {kind, min, max, missing, personal}}"
        raise BadTableError(f"the rules {path} are wrong: {faults}; {expected}") from error


def prepare(
    frame: pd.DataFrame,
    columns: Columns,
    source: Source,
    *,
    task: Task | None = None,
    rules: Mapping[str, Rule] | None = None,
    class_names: Mapping[Any, str] | None = None,
) -> Table:
    """Checks a data frame, infers its contract and codes its rows.

    Raises:
        BadTableError: naming every column that is wrong.
    """
    rules = rules or {}
    frame = frame.rename(columns=str)
    warnings: list[str] = []
    _check_columns(frame, columns, rules)
    unlabelled = frame[columns.target].isna()
    if unlabelled.any():
        warnings.append(f'{unlabelled.sum()} rows without a value of the target "{columns.target}" are left out')
        frame = frame[~unlabelled].reset_index(drop=True)
    if len(frame) < FEWEST_ROWS:
        raise BadTableError(f"expected at least {FEWEST_ROWS} rows with a target, got {len(frame)}")

    task, classes, target = _read_target(frame[columns.target], task)
    times = _read_times(frame[columns.time]) if columns.time else None
    inputs = frame.drop(columns=[columns.target, *columns.ids, *([columns.time] if columns.time else [])])
    faults: list[str] = []
    features = []
    for name in inputs.columns:
        try:
            features.append(infer_feature(inputs[name], rules.get(name, Rule()), target, warnings))
        except BadTableError as error:
            faults.append(str(error))
    if faults:
        raise BadTableError("; ".join(faults))
    if not features:
        raise BadTableError("expected at least one column beside the target, ids and time, got none")
    contract = Contract(features=tuple(features), task=task, target=columns.target, classes=classes)
    check_values(inputs, contract)
    rows = np.column_stack([code(inputs[feature.name], feature) for feature in contract.features])
    for warning in warnings:
        logger.warning(warning)
    return Table(contract, rows, target, times, source, class_names or {}, tuple(warnings))


def _check_columns(frame: pd.DataFrame, columns: Columns, rules: Mapping[str, Rule]) -> None:
    duplicated = sorted(set(frame.columns[frame.columns.duplicated()]))
    if duplicated:
        raise BadTableError(f"expected each column once, got {duplicated} several times")
    wanted = {"--target": [columns.target], "--id-columns": columns.ids, "--rules": rules}
    if columns.time:
        wanted["--time-column"] = [columns.time]
    for option, names in wanted.items():
        unknown = sorted(set(names) - set(frame.columns))
        if unknown:
            raise BadTableError(f"{option} names {unknown}, but the table has the columns {list(frame.columns)}")
    roles = [columns.target, *columns.ids, *([columns.time] if columns.time else [])]
    ruled = sorted(set(rules) & set(roles))
    if ruled:
        raise BadTableError(f"rules are for features, {ruled} are target, ids or time")
    if len(set(roles)) != len(roles):
        raise BadTableError(f"expected target, ids and time to be different columns, got {roles}")


def _read_target(target: "pd.Series[Any]", task: Task | None) -> tuple[Task, tuple[ClassLabel, ...], Any]:
    """Task, classes and coded target."""
    name = target.name
    if not all(isinstance(value, Hashable) for value in target):
        raise BadTableError(f'the target "{name}" holds {type(target.iloc[0]).__name__}s, expected numbers or texts')
    if pd.api.types.is_bool_dtype(target):
        target = target.astype("int64")
    distinct = target.nunique()
    if distinct < 2:
        raise BadTableError(f'the target "{name}" is constant: {example(target)}')
    values = _numbers_of_target(target)
    is_whole = values is not None and bool((values == np.floor(values)).all())
    if task is None:
        is_classes = values is None or (is_whole and distinct <= MOST_CLASSES_OF_INTEGERS)
        task = ("binary" if distinct == 2 else "multiclass") if is_classes else "regression"
        logger.info('the target "%s" has %d values: %s (--task says otherwise)', name, distinct, task)
    if task == "regression":
        if values is None:
            raise BadTableError(f'a regression needs a number as target, "{name}" holds {example(target)}')
        return task, (), values
    if task == "binary" and distinct != 2:
        raise BadTableError(f'a binary target has 2 classes, "{name}" has {distinct}; use --task multiclass')
    if values is not None and not is_whole:
        raise BadTableError(f'classes are texts or whole numbers, "{name}" holds fractions; use --task regression')
    classes, codes = _code_classes([str(value) for value in target] if values is None else list(map(int, values)), name)
    return ("binary" if distinct == 2 else "multiclass"), classes, codes


def _numbers_of_target(target: "pd.Series[Any]") -> np.ndarray[Any, Any] | None:
    if not pd.api.types.is_numeric_dtype(target):
        return None
    values = target.astype("float64").to_numpy()
    if not (np.abs(values) <= LARGEST_NUMBER).all():
        raise BadTableError(f'the target "{target.name}" holds values that are infinite or beyond {LARGEST_NUMBER:.2g}')
    return values


def _code_classes(labels: list[Any], name: object) -> tuple[tuple[ClassLabel, ...], np.ndarray[Any, Any]]:
    """The classes in order, and each label's place among them."""
    counts = collections.Counter(labels)
    if any(isinstance(label, int) and abs(label) > LARGEST_EXACT_INTEGER for label in counts):
        raise BadTableError(f'the target "{name}" holds whole numbers beyond 2^53 - 1, use texts as classes')
    rare = {label: count for label, count in counts.items() if count < FEWEST_OF_A_CLASS}
    if rare:
        raise BadTableError(
            f'each class of "{name}" needs at least {FEWEST_OF_A_CLASS} rows, got {_few(rare)}; '
            "merge or drop rare classes, or use --task regression if the target is a quantity"
        )
    classes = tuple(sorted(counts))
    places = {label: place for place, label in enumerate(classes)}
    return classes, np.array([places[label] for label in labels], dtype=np.int64)


def _few(counts: Mapping[Any, int]) -> str:
    shown = dict(list(counts.items())[:5])
    return f"{shown}" + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")


def _read_times(times: "pd.Series[Any]") -> "pd.Series[Any]":
    if pd.api.types.is_numeric_dtype(times):  # a year, or a running number
        parsed = times
    else:
        parsed = pd.to_datetime(times, errors="coerce", utc=True, format="ISO8601")
    bad = parsed.isna()
    if bad.any():
        raise BadTableError(
            f'the time column "{times.name}" has {bad.sum()} values that are no dates, such as {example(times[bad])}'
        )
    return parsed


def _model_name(text: str) -> str:
    """A name that the model store takes: lower case, words joined by underscores, not too long."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower())[:LONGEST_NAME].strip("_") or "model"
