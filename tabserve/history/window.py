"""A window of time, and which model's predictions are meant."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

UNITS = {"m": "minutes", "h": "hours", "d": "days"}
LONGEST_DAYS = 3660  # ten years; much more than that no datetime could say


class BadQuestionError(Exception):
    """A question that cannot be answered as it was asked; the message says what was expected."""


@dataclass(frozen=True)
class Window:
    """From `since`, which is included, to `until`, which is not; both in UTC."""

    since: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        return (self.until - self.since).total_seconds()


def length_of(text: str) -> timedelta:
    """The length that `90m`, `24h` or `7d` says.

    Raises:
        BadQuestionError: for anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,7})([mhd])", text, re.ASCII)
    length = timedelta(**{UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < length <= timedelta(days=LONGEST_DAYS):
        raise BadQuestionError(f"a window is minutes, hours or days such as 90m, 24h or 7d, got {text!r}")
    return length


def last(length: timedelta) -> Window:
    """The window that ends now."""
    now = datetime.now(UTC)
    return Window(now - length, now)


@dataclass(frozen=True)
class Which:
    """Whose predictions are meant: of one model, of one version of it, or all."""

    model: str | None = None
    version: str | None = None


def which(model: str | None, version: str | None = None) -> Which:
    """`name`, `name:version`, or name and version apart.

    Raises:
        BadQuestionError: where that is said twice, or a version of no model is meant.
    """
    if model is not None and ":" in model:
        if version is not None:
            raise BadQuestionError(f"the version is said twice, in {model!r} and as {version!r}")
        model, _, version = model.partition(":")
    if version is not None and model is None:
        raise BadQuestionError(f"version {version!r} of which model?")
    return Which(model, version)
