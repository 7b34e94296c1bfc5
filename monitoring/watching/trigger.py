"""Whether a model should be trained again. A decision from what is known, and nothing else: `retraining` calls.

Nothing here, nor what it calls, puts a model into service. Drift says that rows have changed, not that another model
would be better; whether it is, a comparison on labelled rows says, after the training.

Causes:
- drift: a column is in alarm in every run over at least one length of the window. An alarm is two windows running
  already; where the step is as long as the window this asks for two consecutive runs, three windows. Where windows
  overlap, the next run sees nearly the same rows again and confirms nothing, so there it asks for as many runs as pass
  until a window shares no row with the first one.
- quality: the newest run is an alarm, which is a loss that matters and that is outside of its 99 % interval.
- age: the model was trained longer ago than that.
- labels: so many labels came for predictions made since the training.

A cause that was called for does not call again until a run was quiet, below half of the threshold and not only below
it, or another version answers. Age and labels are quiet only for another version. Two calls for a model are never
closer than the cool-down. A call that failed did not serve its causes: they may call again after the cool-down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from monitoring.reports.wording import headline
from monitoring.results import DriftResult, QualityResult

Cause = Literal["drift", "quality", "age", "labels"]
CAUSES: tuple[Cause, ...] = get_args(Cause)

COOL_DOWN = timedelta(hours=24)
OLDEST_DAYS = 90
ENOUGH_NEW_LABELS = 5000
MOST_NAMED = 5  # columns in a reason


class Call(BaseModel):
    """What was called for a trigger, and how it ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["command", "webhook"]
    outcome: Literal["not known", "succeeded", "failed"] = "not known"
    """Not known: it has not ended, or the monitor was killed before it had."""
    said: str = ""


class Trigger(BaseModel):
    """A time when retraining was called for, as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    turn: datetime
    """The end of the windows that it was decided on."""
    model: str
    version: str
    causes: tuple[Cause, ...]
    reasons: tuple[str, ...]
    """A sentence for each cause."""
    key: str
    """The idempotency key."""
    calls: tuple[Call, ...] = Field(default=())

    @property
    def served(self) -> bool:
        return all(call.outcome != "failed" for call in self.calls)


@dataclass(frozen=True)
class Rules:
    """0 turns age or labels off."""

    cool_down: timedelta = COOL_DOWN
    oldest_days: int = OLDEST_DAYS
    new_labels: int = ENOUGH_NEW_LABELS


@dataclass(frozen=True)
class Facts:
    """What is known of a model: of that of its versions that answers and was trained last, since who trained again
    already need not do so for the version before. Runs are the oldest first.
    """

    model: str
    version: str
    now: datetime
    turn: datetime
    trained_at: datetime
    drift: Sequence[DriftResult] = ()
    quality: Sequence[QualityResult] = ()
    new_labels: int = 0


@dataclass(frozen=True)
class Decision:
    """Whether to call now, and for what; a reason for each cause."""

    due: bool
    causes: tuple[Cause, ...] = ()
    reasons: tuple[str, ...] = ()


def decide(facts: Facts, rules: Rules, past: Sequence[Trigger]) -> Decision:
    """Decides for one model; `past` are its triggers so far, of all versions."""
    holds = standing(facts, rules)
    fresh = tuple(cause for cause in holds if not _was_called(cause, facts, past))
    is_cooling = any(facts.now - trigger.at < rules.cool_down for trigger in past)
    if is_cooling or not fresh:
        return Decision(due=False)
    return Decision(due=True, causes=fresh, reasons=tuple(holds[cause] for cause in fresh))


def standing(facts: Facts, rules: Rules) -> dict[Cause, str]:
    """The causes that hold now, called for or not, each with its reason."""
    return {cause: reason for cause in CAUSES if (reason := _reason(cause, facts, rules))}


def _reason(cause: Cause, facts: Facts, rules: Rules) -> str:
    """Why a cause holds; empty where it does not."""
    if cause == "drift":
        return _drift(facts.drift)
    if cause == "quality":
        newest = facts.quality[-1] if facts.quality else None
        return headline(newest) if newest is not None and newest.level == "alarm" else ""
    if cause == "age":
        age = facts.now - facts.trained_at
        is_old = rules.oldest_days and age > timedelta(days=rules.oldest_days)
        return f"trained {age.days} days ago, {rules.oldest_days} are allowed" if is_old else ""
    enough = rules.new_labels and facts.new_labels >= rules.new_labels
    return (
        f"{facts.new_labels:,} labels of predictions since the training, {rules.new_labels:,} wanted" if enough else ""
    )


def _drift(runs: Sequence[DriftResult]) -> str:
    """The columns that were in alarm in each run that had rows enough, over one length of the window."""
    if not runs or runs[-1].level != "alarm":
        return ""
    newest = runs[-1].windows[-1]
    length = newest.until - newest.since
    lasting = _in_alarm(runs[-1])
    for run in reversed(runs[:-1]):
        window = run.windows[-1]
        is_alike = run.against == runs[-1].against and window.until - window.since == length
        if run.level == "too few rows" or not is_alike:  # it says nothing; or was made by hand, of another window
            continue
        lasting = [name for name in lasting if name in _in_alarm(run)]
        if not lasting:
            return ""
        if newest.until - window.until >= length:
            shown = ", ".join(lasting[:MOST_NAMED])
            more = f" and {len(lasting) - MOST_NAMED} more" if len(lasting) > MOST_NAMED else ""
            return f"drift since {window.until:%Y-%m-%d %H:%M} UTC or longer: {shown}{more}"
    return ""


def _in_alarm(run: DriftResult) -> list[str]:
    return [f"{column.what} {column.name}" for column in run.columns if column.level == "alarm"]


def _was_called(cause: Cause, facts: Facts, past: Sequence[Trigger]) -> bool:
    """Whether it was called for, for this version, and no run has been quiet since."""
    turns = [t.turn for t in past if t.version == facts.version and cause in t.causes and t.served]
    if not turns:
        return False
    quiet: list[datetime] = []
    if cause == "drift":
        quiet = [run.windows[-1].until for run in facts.drift if run.level == "quiet"]
    elif cause == "quality":
        quiet = [run.until for run in facts.quality if run.level == "quiet"]
    return not any(until > max(turns) for until in quiet)
