"""Labels, what came true of predictions: as callers and files say them, checked against the contract.

A label stands as it stands in answers: a class of the contract, or for a regression a finite number. Beside it, or
alone, may stand what the prediction was worth to the business, any finite number; larger is better.
"""

import contextlib
import math
import re
from dataclasses import dataclass, field
from typing import Any

from tabserve.contract import ClassLabel, Contract
from tabserve.validation import ABSENT, Violation, kind_of

ID = "prediction_id"
LABEL = "label"
VALUE = "value"
BUSINESS_VALUE = "business_value"
SHOWN_CLASSES = 20  # of a contract in a sentence

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(slots=True)
class Labels:
    """Labels that may be kept; the lists are of one length. Of a class there is its text, of a quantity its number.

    Without a class and a number there is a business value, which the others may have too.
    """

    ids: list[str] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    business_values: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.business_values:
            self.business_values = [None] * len(self.ids)

    def add(self, prediction_id: str, label: "str | float | None", business_value: float | None = None) -> None:
        self.ids.append(prediction_id)
        self.classes.append(label if isinstance(label, str) else None)
        self.values.append(None if isinstance(label, str) else label)
        self.business_values.append(business_value)

    def extend(self, others: "Labels") -> None:
        self.ids += others.ids
        self.classes += others.classes
        self.values += others.values
        self.business_values += others.business_values

    def labelled_ids(self) -> list[str]:
        """Those of which it is said what came true, and not only what it was worth."""
        parts = zip(self.ids, self.classes, self.values, strict=True)
        return [one for one, label, value in parts if label is not None or value is not None]

    def __len__(self) -> int:
        return len(self.ids)


def made_at(prediction_id: str) -> float | None:
    """When a prediction was made, in seconds since 1970, which an id of ours (UUIDv7) begins with; None for another."""
    return int(prediction_id[:8] + prediction_id[9:13], 16) / 1000 if prediction_id[14] == "7" else None


class LabelReader:
    """Reads labels under one contract."""

    def __init__(self, contract: Contract) -> None:
        self._is_regression = contract.task == "regression"
        self._classes: dict[ClassLabel, str] = {label: str(label) for label in contract.classes}
        self._of_text = any(isinstance(label, str) for label in contract.classes)
        shown = ", ".join(map(str, contract.classes[:SHOWN_CLASSES]))
        self._known = shown + (", …" if len(contract.classes) > SHOWN_CLASSES else "")
        # A regression answers `value`, so that is what a caller has in hand; `label` is what everybody calls it.
        self.names = (VALUE, LABEL) if self._is_regression else (LABEL,)
        self.expected = (
            f'expected {{"{ID}": id, "{self.names[0]}": what came true, "{BUSINESS_VALUE}": what it was worth}}, '
            "one of the two or both"
        )

    def read(self, row: int, entry: Any, into: Labels) -> list[Violation]:
        """Adds one `{"prediction_id", "label", "business_value"}`, or returns what is wrong with it."""
        if not isinstance(entry, dict):
            return [Violation(row, None, "row_shape", self.expected, kind_of(entry))]
        known = (ID, *self.names, BUSINESS_VALUE)
        unknown = next((name for name in entry if name not in known), None)
        if unknown is not None:
            return [Violation(row, None, "unknown_key", self.expected, unknown)]
        given = [name for name in self.names if name in entry]
        if len(given) > 1:
            return [Violation(row, None, "shape", f"expected either {VALUE} or {LABEL}", "both")]
        name = given[0] if given else self.names[0]
        label, worth = entry.get(name, ABSENT), entry.get(BUSINESS_VALUE, ABSENT)
        return self.add(row, entry.get(ID, ABSENT), label, into, name=name, business_value=worth)

    def add(
        self,
        row: int | None,
        prediction_id: Any,
        label: Any,
        into: Labels,
        *,
        name: str = LABEL,
        business_value: Any = ABSENT,
    ) -> list[Violation]:
        """Adds a label, or returns what is wrong with it; `name` is what the caller calls it.

        Either label or business value may be absent.
        """
        faults = []
        if not isinstance(prediction_id, str) or not _UUID.fullmatch(prediction_id):
            expected = "expected the prediction_id of an answer, a UUID like 01a1ff47-2cd4-7152-8ad0-d82ed3f88a73"
            faults.append(Violation(row, ID, "uuid", expected, prediction_id))
        came_true = worth = None
        if label is not ABSENT or business_value is ABSENT:
            came_true = _number(row, name, label) if self._is_regression else self._class(row, name, label)
        if business_value is not ABSENT:
            worth = _number(row, BUSINESS_VALUE, business_value)
        faults += [checked for checked in (came_true, worth) if isinstance(checked, Violation)]
        if not faults:
            into.add(prediction_id.lower(), came_true, worth)  # type: ignore[arg-type]  # neither is a fault
        return faults

    def from_text(self, text: str) -> Any:
        """A label of a file of texts as it would stand in an answer, where that can be; else the text itself."""
        return text if self._of_text else number_from_text(text)

    def _class(self, row: int | None, name: str, label: Any) -> str | Violation:
        fits = isinstance(label, str) if self._of_text else isinstance(label, int | float)
        text = self._classes.get(label) if fits and not isinstance(label, bool) else None
        return Violation(row, name, "class", f"expected one of {self._known}", label) if text is None else text


def number_from_text(text: str) -> Any:
    """The number that a text of a file is, else the text itself."""
    for kind in (int, float):  # pandas writes 1.0 where a column of whole numbers has a gap
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _number(row: int | None, name: str, value: Any) -> float | Violation:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Violation(row, name, "kind", "expected a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number if math.isfinite(number) else Violation(row, name, "finite", "expected a finite number", number)
