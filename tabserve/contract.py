"""The contract: what one row is, and what an answer is. Written down by training; everything else is derived from it.

Inside the program a row is a line of a float64 matrix in contract order, whatever the kinds of its features:

    number, integer   the value
    boolean           0.0 or 1.0
    category          its index in `Feature.categories`
    missing           NaN

`Contract.to_frame` turns such a matrix into the table that a scikit-learn pipeline is fitted on and asked with.
Training and serving both go this way, so that a model cannot see a row differently in one than in the other.
"""

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    import pandas as pd

Rows = npt.NDArray[np.float64]
"""Rows in contract order, shape (rows, features), coded as the module's docstring says."""

Kind = Literal["number", "integer", "category", "boolean"]
Task = Literal["binary", "multiclass", "regression"]
Category = str | int
ClassLabel = str | int

LARGEST_EXACT_INTEGER = 2**53 - 1  # beyond, two whole numbers share one float64
LARGEST_NUMBER = float(np.finfo(np.float32).max)  # scikit-learn's trees compare in float32 and refuse larger ones
MAX_ROWS = 512  # rows of one request: bounds its memory and the time that others wait behind it


class Feature(BaseModel):
    """One column: what a caller may send in it, and what training saw in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    may_be_missing: bool = False
    categories: tuple[Category, ...] = ()
    """The categories seen in training, sorted; their order is their code."""
    hard_minimum: float | None = None
    hard_maximum: float | None = None
    """Bounds that a rule states; a value beyond them is refused."""
    personal: bool = False
    """Says who somebody is: no value of it stands in examples, samples or cards, and no range in the contract."""

    minimum: float | None = None
    maximum: float | None = None
    """The range of the training rows; a value beyond it is answered, with a warning. None for a category or boolean."""
    quantiles: tuple[float, ...] = ()
    """The nine deciles of the training rows, 0.1 to 0.9; the fixed bins of the drift statistics."""

    @property
    def lowest(self) -> float:
        """The least number that is answered."""
        return -self._largest if self.hard_minimum is None else max(-self._largest, self.hard_minimum)

    @property
    def highest(self) -> float:
        """The greatest number that is answered."""
        return self._largest if self.hard_maximum is None else min(self._largest, self.hard_maximum)

    @property
    def lowest_usual(self) -> float:
        """The least number that is answered without a warning."""
        return self.lowest if self.minimum is None else max(self.lowest, self.minimum)

    @property
    def highest_usual(self) -> float:
        """The greatest number that is answered without a warning."""
        return self.highest if self.maximum is None else min(self.highest, self.maximum)

    @property
    def _largest(self) -> float:
        return LARGEST_EXACT_INTEGER if self.kind == "integer" else LARGEST_NUMBER

    def clip(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The values of a number or integer, each moved to the nearest one that a caller may send; NaN stays."""
        if self.kind == "integer":
            return np.clip(np.floor(values), math.ceil(self.lowest), math.floor(self.highest))
        return np.clip(values, self.lowest, self.highest)


class Contract(BaseModel):
    """What one row is (`features`, in order) and what is answered (`task`, `target`, `classes`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[Feature, ...]
    task: Task
    target: str
    classes: tuple[ClassLabel, ...] = ()
    """The labels, in the order of the model's probabilities; empty for a regression."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.features:
            raise ValueError("a contract needs at least one feature")
        if len(set(self.names)) != len(self.names):
            raise ValueError("feature names must be unique")
        if (self.task == "regression") != (not self.classes):
            raise ValueError("a classification has classes and a regression has none")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @cached_property
    def personal(self) -> tuple[int, ...]:
        """The positions of the personal features."""
        return tuple(position for position, feature in enumerate(self.features) if feature.personal)

    @cached_property
    def is_all_numbers(self) -> bool:
        """Whether every feature is a number or an integer that may not be missing: a row is then a list of floats."""
        return all(feature.kind in ("number", "integer") and not feature.may_be_missing for feature in self.features)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what callers depend on: names, order, kinds, what is allowed, target and classes.

        The statistics of the training rows (minimum, maximum, quantiles) are left out: training on next month's rows
        of the same table makes a new model under the same contract.
        """
        observed = {"minimum", "maximum", "quantiles"}
        features = [feature.model_dump(mode="json", exclude=observed) for feature in self.features]
        promise = {"features": features, "task": self.task, "target": self.target, "classes": self.classes}
        return hashlib.sha256(json.dumps(promise, sort_keys=True).encode()).hexdigest()

    @cached_property
    def probability_keys(self) -> tuple[str, ...]:
        """The keys of `probabilities` in an answer: a class's name, or `class_k` for the integer class k."""
        return tuple(label if isinstance(label, str) else f"class_{label}" for label in self.classes)

    def to_frame(self, rows: Rows) -> "pd.DataFrame":
        """The table a pipeline sees: float64 columns, and text for categories (missing is NaN in both).

        Args:
            rows: shape (rows, features), as the module's docstring says.
        """
        import pandas as pd  # here, because a compiled model is served without pandas

        frame = pd.DataFrame(rows, columns=list(self.names), copy=False)
        if self.is_all_numbers:
            return frame
        columns: dict[str, Any] = {}
        for position, feature in enumerate(self.features):
            column = rows[:, position]
            if feature.kind == "category":  # dtype=object: pandas would choose another dtype where all are missing
                columns[feature.name] = pd.Series(_decode(column, feature.categories), dtype=object)
            else:
                columns[feature.name] = column
        return pd.DataFrame(columns, copy=False)

    def to_values(self, row: Rows) -> list[float | int | bool | str | None]:
        """One row, shape (features,), as a caller would send it."""
        values: list[float | int | bool | str | None] = []
        for feature, value in zip(self.features, row.tolist(), strict=True):
            if math.isnan(value):
                values.append(None)
            elif feature.kind == "category":
                values.append(feature.categories[int(value)])
            elif feature.kind == "boolean":
                values.append(bool(value))
            else:
                values.append(int(value) if feature.kind == "integer" else value)
        return values

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def _decode(codes: npt.NDArray[np.float64], categories: tuple[Category, ...]) -> npt.NDArray[np.object_]:
    """Category codes to text, NaN staying NaN; an object array of the same length."""
    texts = np.array([*(str(category) for category in categories), np.nan], dtype=object)
    known = np.where(np.isnan(codes), len(categories), codes).astype(np.intp)
    return texts[known]
