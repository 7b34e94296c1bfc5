"""What an A/B test was planned to be, kept from the first look on: a horizon that moves after a look is none.

Peeking twenty times at 5 % and stopping at the first success finds a difference in a quarter of tests without one.
"""

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from tabserve.history.window import BadQuestionError, length_of

PLANS_FILE = "ab-plans.json"

Outcome = Literal["label", "business-value"]


class Plan(BaseModel):
    """When a test ends, and what is compared then: one of `horizon` and `detect` is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome = "label"
    horizon: str | None = None
    """`14d`: rows of so long a time from the first on, and no others."""
    detect: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The least effect that matters, in the outcome's unit: the test ends when it would be found with 80 %."""
    planned_at: datetime

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if (self.horizon is None) == (self.detect is None):
            raise ValueError("expected either a horizon or the least effect that matters")
        return self

    def __str__(self) -> str:
        end = f"a horizon of {self.horizon}" if self.horizon else f"an effect of {self.detect:g} to be found with 80 %"
        return f"{self.outcome}, {end}, planned {self.planned_at:%Y-%m-%d %H:%M} UTC"


_PLANS = TypeAdapter(dict[str, Plan])


def planned(home: Path, test: str, *, outcome: Outcome | None, horizon: str | None, detect: float | None) -> Plan:
    """The plan of a test: as it was made at the first look, or made now.

    Args:
        test: names it, by its two versions.

    Raises:
        BadQuestionError: where there is none and none is said, or another one is said than was made.
    """
    path = home / PLANS_FILE
    try:
        plans = _PLANS.validate_json(path.read_bytes()) if path.exists() else {}
    except ValidationError as error:
        raise BadQuestionError(f"{path} holds no plans of A/B tests: mend it, or move it away") from error
    known = plans.get(test)
    if known is not None:
        said = {"outcome": outcome, "horizon": horizon, "detect": detect}
        if any(value is not None and value != getattr(known, name) for name, value in said.items()):
            raise BadQuestionError(f"this test was planned with {known}: what is moved after a look would be no test")
        return known
    if (horizon is None) == (detect is None):
        raise BadQuestionError(
            "the first look plans the test: say either --horizon 14d, or --detect and the least effect that matters"
        )
    if horizon is not None:
        length_of(horizon)
    try:
        plan = Plan(outcome=outcome or "label", horizon=horizon, detect=detect, planned_at=datetime.now(UTC))
    except ValidationError as error:
        raise BadQuestionError(f"--detect takes a number above 0, got {detect}") from error
    _save(path, {**plans, test: plan})
    return plan


def _save(path: Path, plans: dict[str, Plan]) -> None:
    content = {test: plan.model_dump(mode="json", exclude_none=True) for test, plan in plans.items()}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
