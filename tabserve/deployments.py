"""The deployment history: every change of the rollout file, when, by whom, from what to what, and why.

Written by tabserve.lifecycle.changes alone. A service reads it once, for the champion to which one may go back.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tabserve.chained_log import ChainedLog
from tabserve.rollout_state import ROLLOUT_FILE, Challenger, RolloutState, read_rollout

HISTORY_FILE = "deployments.jsonl"
FOUND = "found"  # the action of a line about a file that is not as the line before says


@dataclass(frozen=True)
class Change:
    """One line of the deployment history; the states are as in the rollout file, None where there was no file."""

    time: str
    who: str
    action: str
    before: RolloutState | None
    after: RolloutState | None
    why: str
    key: str | None
    """What asked for it, where the same may ask twice."""


def chain(home: Path) -> ChainedLog:
    """The file."""
    return ChainedLog(home / HISTORY_FILE)


def history(home: Path) -> list[Change]:
    """Every change of a home's rollout, oldest first.

    Raises:
        BrokenChainError: where the history was tampered with.
    """
    return [
        Change(
            line["time"],
            line["who"],
            line["action"],
            RolloutState.model_validate(line["from"]) if line["from"] else None,
            RolloutState.model_validate(line["to"]) if line["to"] else None,
            line["why"],
            line.get("key"),
        )
        for line in chain(home).lines()
    ]


def happened(home: Path) -> list[Change]:
    """The same without what was recorded and never written, because its process died in between.

    Raises:
        BrokenChainError, BadRolloutError: where history or rollout file cannot be read.
    """
    done: list[Change] = []
    for change in history(home):
        if change.action == FOUND and done and done[-1].before == change.after:
            done.pop()
        else:
            done.append(change)
    now = read_rollout(home / ROLLOUT_FILE)
    if done and done[-1].before == now != done[-1].after:
        done.pop()
    return done


def champions_before(changes: list[Change]) -> list[str]:
    """The champions to which one can go back, the nearest last: a rollback takes the last one away, and a champion that
    was gone back from is none of them.

    Args:
        changes: that happened.
    """
    before: list[str] = []
    for change in changes:
        old, new = (state.champion if state else None for state in (change.before, change.after))
        is_back_again = old is None and before[-1:] == [new]  # the file was gone, and says the same again
        if is_back_again or (change.action == "rollback" and old != new and before):
            before.pop()
        elif old is not None and old != new:
            before.append(old)
    return before


def last_champion(changes: list[Change]) -> str | None:
    """The champion that a history names last, whether the rollout file is still there or not."""
    states = (state for change in reversed(changes) for state in (change.after, change.before) if state is not None)
    return next((state.champion for state in states), None)


def stood(done: list[Change], champion: str, challenger: Challenger) -> tuple[datetime, datetime | None] | None:
    """From when to when a challenger was last just so beside a champion: until None while it still is, and None at all
    where it never was.

    Args:
        done: changes that happened.
    """
    found: tuple[datetime, datetime | None] | None = None
    for change in done:
        now = change.after
        is_there = now is not None and (now.champion, now.challenger) == (champion, challenger)
        is_open = found is not None and found[1] is None
        if is_there and not is_open:
            found = datetime.fromisoformat(change.time), None
        elif found is not None and is_open and not is_there:
            found = found[0], datetime.fromisoformat(change.time)
    return found
