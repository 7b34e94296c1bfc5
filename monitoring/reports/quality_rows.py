"""Labelled rows as Evidently takes them: the class or value that was predicted beside the one that came true."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.reports.files import NoReportError
from monitoring.reports.rows import new_name, of_unequal_weight, to_numbers
from tabserve.contract import Contract, Task

TRUE_CLASS, PREDICTED_CLASS = "true class", "predicted class"
TRUE_VALUE, PREDICTED_VALUE = "true value", "predicted value"


@dataclass
class QualityRows:
    """The table of a quality report, and what is in it; `notes` say what was left out."""

    table: pd.DataFrame
    task: Task
    probabilities: list[str] = field(default_factory=list)
    """Columns of the probabilities, in the order of the classes; none where Evidently could not use them."""
    positive: str | None = None
    """Of two classes the last, as at training."""
    notes: list[str] = field(default_factory=list)

    def definition(self) -> Any:
        """Evidently's DataDefinition of the table; imports Evidently."""
        from evidently import BinaryClassification, DataDefinition, MulticlassClassification, Regression

        if self.task == "regression":
            columns = [TRUE_VALUE, PREDICTED_VALUE]
            kind = Regression(target=TRUE_VALUE, prediction=PREDICTED_VALUE)
            return DataDefinition(numerical_columns=columns, regression=[kind])
        said: dict[str, Any] = {"target": TRUE_CLASS, "prediction_labels": PREDICTED_CLASS}
        if self.task == "binary":
            if self.probabilities:
                said["prediction_probas"] = self.probabilities[1]
            kind = BinaryClassification(**said, pos_label=self.positive)
        else:
            if self.probabilities:
                said["prediction_probas"] = self.probabilities
            kind = MulticlassClassification(**said)
        classes = [TRUE_CLASS, PREDICTED_CLASS]
        return DataDefinition(categorical_columns=classes, numerical_columns=self.probabilities, classification=[kind])

    def preset(self) -> Any:
        """Evidently's preset for the task; imports Evidently."""
        from evidently.presets import ClassificationPreset, RegressionPreset

        return RegressionPreset() if self.task == "regression" else ClassificationPreset()


def regression_rows(labelled: pd.DataFrame, contract: Contract) -> QualityRows:
    """Values that are finite on both sides.

    Raises:
        NoReportError: where fewer than two rows are left, a column is missing, or all true values are 0.
    """
    _need(labelled, ["value", "true_value"])
    values = {
        name: to_numbers(labelled[source]) for name, source in ((PREDICTED_VALUE, "value"), (TRUE_VALUE, "true_value"))
    }
    is_whole = np.isfinite(values[PREDICTED_VALUE]) & np.isfinite(values[TRUE_VALUE])
    notes = _left_out(is_whole, f"a finite {contract.target} on both sides")
    notes += of_unequal_weight(labelled)
    table = pd.DataFrame({name: column[is_whole] for name, column in values.items()})
    if not _enough(table)[TRUE_VALUE].any():
        raise NoReportError(f"every true {contract.target} is 0, and Evidently divides the errors by it")
    return QualityRows(table, contract.task, notes=notes)


def classification_rows(labelled: pd.DataFrame, contract: Contract) -> QualityRows:
    """Rows whose label and prediction are both of the contract's classes.

    Evidently takes probabilities only where every class has rows; else they are left out.

    Raises:
        NoReportError: where fewer than two rows are left, or a column is missing, or all labels are of one class.
    """
    _need(labelled, ["label", "true_label"])
    taken = {TRUE_CLASS, PREDICTED_CLASS}  # Evidently wants the columns of the probabilities named as the classes
    names = [new_name(str(label), taken) for label in contract.classes]
    columns: dict[str, Any] = {
        TRUE_CLASS: _classes(labelled["true_label"], contract, names),
        PREDICTED_CLASS: _classes(labelled["label"], contract, names),
    }
    sources = [f"probability:{key}" for key in contract.probability_keys]
    has_probabilities = set(sources) <= set(labelled.columns)
    if has_probabilities:
        columns |= {name: to_numbers(labelled[source]) for name, source in zip(names, sources, strict=True)}
    table = pd.DataFrame(columns)
    is_whole = table.replace([np.inf, -np.inf], np.nan).notna().all(axis=1).to_numpy(bool)
    rows = QualityRows(
        _enough(table.loc[is_whole].reset_index(drop=True)),
        contract.task,
        notes=[
            *_left_out(is_whole, "a label and a prediction of the contract's classes"),
            *of_unequal_weight(labelled),
        ],
        positive=names[-1],
    )
    absent = [name for name in names if not (rows.table[TRUE_CLASS] == name).any()]
    if len(absent) == len(names) - 1:
        only = rows.table[TRUE_CLASS][0]
        raise NoReportError(f"all {len(rows.table):,} labelled rows are of the class {only}, a report needs two")
    if has_probabilities and not absent:
        rows.probabilities = names
    else:
        why = f"no row is labelled {', '.join(absent)}" if absent else "the rows have no probabilities"
        rows.notes.append(f"{why}: so Evidently gives no ROC-AUC, log loss or curves")
        rows.table = rows.table[[TRUE_CLASS, PREDICTED_CLASS]]
    if rows.probabilities and contract.task == "binary":
        # Evidently reads the class from the probability and takes a tie as positive; argmax takes the first class.
        second = rows.table[names[1]]
        rows.table[names[1]] = second.mask(second == 0.5, float(np.nextafter(0.5, 0)))
    return rows


def _classes(column: "pd.Series[Any]", contract: Contract, names: list[str]) -> Any:
    """The names of the classes; None for what is none of them. An integer label may have become a float or a text."""
    known: dict[Any, str] = {}
    for label, name in zip(contract.classes, names, strict=True):
        known |= {label: name, str(label): name}
        if isinstance(label, int):
            known[f"{label}.0"] = name
    is_missing = column.isna().to_numpy(bool)
    return [
        None if is_none or not isinstance(value, str | int | float) else known.get(value)
        for value, is_none in zip(column.to_numpy(object), is_missing, strict=True)
    ]


def _need(table: pd.DataFrame, columns: list[str]) -> None:
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise NoReportError(f"the labelled rows have no column {' and '.join(absent)}")


def _left_out(is_whole: npt.NDArray[np.bool_], without: str) -> list[str]:
    n_rows, n_without = len(is_whole), int((~is_whole).sum())
    return [f"{n_without:,} of {n_rows:,} rows are left out, without {without}"] if n_without else []


def _enough(table: pd.DataFrame) -> pd.DataFrame:
    if len(table) < 2:
        raise NoReportError(f"a report needs two labelled rows, here are {len(table)}")
    return table
