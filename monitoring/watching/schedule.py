"""When the long-running monitor looks, and at which windows.

A turn is a whole multiple of the step since 1970-01-01T00:00Z: for a step that divides a day the same as since midnight
UTC, and for another one no window overlaps the next at midnight. The windows of a turn end there, whenever it is that
somebody gets to it, so that where the step is as long as the window each row is in one window, also after a restart.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tabserve.history.window import BadQuestionError, Window, length_of

START = datetime(1970, 1, 1, tzinfo=UTC)
SETTLED = timedelta(seconds=2)  # after its end a window is whole: the log has a prediction within a second
STALE_STEPS = 3  # a result that is older is not shown any more
LONGEST_SLEEP_SECONDS = 30.0  # clocks are set, and machines sleep


@dataclass(frozen=True)
class Schedule:
    every: timedelta

    def newest(self, now: datetime) -> datetime:
        """The last turn that can be looked at."""
        return START + (now - SETTLED - START) // self.every * self.every

    def seconds_until_after(self, turn: datetime, now: datetime) -> float:
        """How long to wait until the turn after this one can be looked at; 0 where it can be now."""
        return max(0.0, (turn + self.every + SETTLED - now).total_seconds())

    @property
    def stale_after(self) -> timedelta:
        return STALE_STEPS * self.every


def before(turn: datetime, length: timedelta) -> Window:
    """The window of this length that ends with a turn."""
    return Window(turn - length, turn)


def step_of(text: str) -> timedelta:
    """As `tabserve.history.window.length_of`, and `20s` too: for those who watch a demonstration.

    Raises:
        BadQuestionError: for anything else.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})s", text, re.ASCII)
    if match:
        return timedelta(seconds=int(match[1]))
    try:
        return length_of(text)
    except BadQuestionError as error:
        raise BadQuestionError(f"seconds, minutes, hours or days such as 20s, 90m, 24h or 7d, got {text!r}") from error
