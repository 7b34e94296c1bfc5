"""Changes of the rollout file: checked, written by one at a time, and recorded in the deployment history.

A change is recorded before the file is written, so that nothing takes effect of which nobody knows who did it and why.
A process that dies in between leaves a line that did not come true; the next change finds that, and says so in a line
of its own, as it does where somebody has edited the file by hand.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tabserve import deployments, model_store
from tabserve.audit import audit_log
from tabserve.lifecycle.compatibility import breaking_changes
from tabserve.model_store import StoredModel
from tabserve.rollout_state import HEADER, ROLLOUT_FILE, BadRolloutError, Challenger, RolloutState, read_rollout
from tabserve.settings import Settings

MOST_CHARACTERS = 2000  # of a reason
MOST_FAULTS = 10  # that are named, of a contract that has little to do with the other one


class ChangedMeanwhileError(BadRolloutError):
    """Somebody else changed the challenger that was to be changed."""


def current(home: Path) -> RolloutState:
    """What the rollout file says.

    Raises:
        BadRolloutError: where there is none yet, or it cannot be used.
    """
    path = home / ROLLOUT_FILE
    state = read_rollout(path)
    if state is not None:
        return state
    if lost := deployments.last_champion(deployments.history(home)):
        raise BadRolloutError(
            f"{path} is gone, in which {lost} was champion: `tabserve promote {lost} --why TEXT` makes it again"
        )
    raise BadRolloutError(
        f"there is no {path} yet, the service serves the model trained last: "
        "`tabserve promote TAG --why TEXT` makes one"
    )


def promote(
    home: Path,
    tag: str,
    why: str,
    *,
    allow_contract_change: bool = False,
    action: str = "promote",
    only_beside: Challenger | None = None,
    only_from: str | None = None,
) -> RolloutState:
    """Makes a version champion. A challenger beside the old one ends with it.

    Args:
        only_beside: does so only while this challenger is as it was.
        only_from: does so only where this version is champion.

    Raises:
        BadRolloutError: where it is champion already, or its contract would break callers and that is not allowed.
        ChangedMeanwhileError: where there is another challenger than `only_beside`, or none.
        ModelRefusedError: where it is not in the store, or damaged.
    """
    model = _usable(tag)

    def to(state: RolloutState | None) -> RolloutState:
        if state is None:
            return RolloutState(champion=tag)
        if state.champion == tag:
            raise BadRolloutError(f"{tag} is champion already")
        _check_from(state, only_from)
        _check_beside(state, only_beside)
        if not allow_contract_change:
            _check_callers(state.champion, model)
        return RolloutState(champion=tag, paused=state.paused)

    return _change(home, action, to, why)


def rollback(home: Path, why: str, *, key: str | None = None, only_from: str | None = None) -> RolloutState:
    """Goes back to the champion before the current one; once more, to the one before that.

    Args:
        key: of who asks, such as an alert's; the same key goes back once.
        only_from: goes back only where this version is champion.

    Raises:
        BadRolloutError: where there is none before, `only_from` is not champion any more, or `key` has gone back.
        ModelRefusedError: where the one before is gone from the store, or damaged.
    """

    def to(state: RolloutState | None) -> RolloutState:
        if state is None:
            return current(home)  # which says what to do
        _check_from(state, only_from)
        changes = deployments.happened(home)
        if key is not None and any(change.key == key for change in changes):
            raise BadRolloutError("that was gone back from already")
        earlier = deployments.champions_before(changes)
        if not earlier:
            raise BadRolloutError(
                f"the history knows no champion before {state.champion}: promote the version that should answer, "
                "`tabserve models` lists them"
            )
        try:
            _usable(earlier[-1])
        except model_store.ModelRefusedError as error:
            raise model_store.ModelRefusedError(
                f"{earlier[-1]} was champion before and cannot answer, promote another version: {error}"
            ) from error
        return RolloutState(champion=earlier[-1], paused=state.paused)

    return _change(home, "rollback", to, why, key)


def challenge(home: Path, challenger: Challenger, why: str, *, only_beside: Challenger | None = None) -> RolloutState:
    """Puts a challenger beside the champion, or changes the share of the one that is there.

    Args:
        only_beside: does so only while this challenger is as it was.

    Raises:
        BadRolloutError: where it is champion, its contract is another one, `by` is no feature, or another challenger is
            there.
        ChangedMeanwhileError: where there is another challenger than `only_beside`, or none.
        ModelRefusedError: where it is not in the store, or damaged.
    """
    model = _usable(challenger.model)

    def to(state: RolloutState | None) -> RolloutState:
        if state is None:
            return current(home)  # which says what to do
        if challenger.model == state.champion:
            raise BadRolloutError(f"challenger and champion are the same version, {state.champion}")
        _check_beside(state, only_beside)
        there = state.challenger
        if there is not None and (there.model, there.mode) != (challenger.model, challenger.mode):
            raise BadRolloutError(
                f"{there.model} is challenger already ({there.mode}): `tabserve stop` ends that, or promote it"
            )
        ours, theirs = (model_store.read_contract(one) for one in (model_store.find(state.champion), model))
        if ours.hash != theirs.hash:
            raise BadRolloutError(
                f"{challenger.model} was trained for another contract than {state.champion}, so it cannot be asked the "
                "same rows: promote it in place of trying it beside the champion"
            )
        by = challenger.by
        if by is not None and not by.startswith(HEADER) and by not in ours.names:
            raise BadRolloutError(f"--by is {by!r}, expected header:NAME or a feature: {', '.join(ours.names)}")
        return state.model_copy(update={"challenger": challenger})

    return _change(home, challenger.mode, to, why)


def stop(home: Path, why: str, *, only_beside: Challenger | None = None) -> RolloutState:
    """Ends the challenger; the champion answers alone.

    Args:
        only_beside: does so only while this challenger is as it was.

    Raises:
        BadRolloutError: where there is none.
        ChangedMeanwhileError: where there is another challenger than `only_beside`, or none.
    """

    def to(state: RolloutState | None) -> RolloutState:
        _check_beside(state, only_beside)
        if state is None or state.challenger is None:
            raise BadRolloutError("there is no challenger to stop")
        return state.model_copy(update={"challenger": None})

    return _change(home, "stop", to, why)


def pause(home: Path, why: str, *, key: str | None = None) -> RolloutState:
    """Has no model answer, until `resume`; callers are told why.

    Args:
        key: of who asks, such as an alert's.
    """
    return _change(home, "pause", lambda _: current(home).model_copy(update={"paused": why}), why, key)


def resume(home: Path, why: str) -> RolloutState:
    """Has the models answer again.

    Raises:
        BadRolloutError: where they do.
    """

    def to(state: RolloutState | None) -> RolloutState:
        if state is None or state.paused is None:
            raise BadRolloutError("nothing is paused")
        return state.model_copy(update={"paused": None})

    return _change(home, "resume", to, why)


def _change(
    home: Path, action: str, to: Callable[[RolloutState | None], RolloutState], why: str, key: str | None = None
) -> RolloutState:
    # What is no UTF-8 on the command line comes as half characters, which the rollout file cannot hold.
    if not why.strip() or len(why) > MOST_CHARACTERS or not why.isprintable():
        raise BadRolloutError(
            f"--why says nothing, more than {MOST_CHARACTERS} characters, or some that cannot be printed; "
            "expected a sentence in one line"
        )
    path = home / ROLLOUT_FILE
    with _one_at_a_time(home):
        for unfinished in home.glob(f".{ROLLOUT_FILE}-*"):
            unfinished.unlink(missing_ok=True)  # of somebody who died while he wrote
        try:
            before = read_rollout(path)
        except BadRolloutError as error:
            raise BadRolloutError(f"{error}. Nothing writes over that: mend it by hand, or move it away") from error
        history = deployments.history(home)
        if history and history[-1].after != before:
            how = "edited by hand" if before else "removed"
            because = f"the file was {how}, or the change before did not come true"
            with _written(home):
                _record(home, deployments.FOUND, (history[-1].after, before), because)
        after = RolloutState.model_validate(_said(to(before)))  # a copy with something else in it was not validated
        if after == before:
            raise BadRolloutError("that is how it is already")
        with _written(home):  # the file last: nothing is done that is in no log
            audit_log(Settings.from_environment(), home).append(action, to=_said(after), why=why.strip())
            _record(home, action, (before, after), why.strip(), key)
            after.save(path)
    return after


def _record(
    home: Path, action: str, states: tuple[RolloutState | None, RolloutState | None], why: str, key: str | None = None
) -> None:
    before, after = (_said(state) if state else None for state in states)
    said: dict[str, Any] = {"from": before, "to": after, "why": why}
    deployments.chain(home).append(action, **said, **({"key": key} if key is not None else {}))


@contextlib.contextmanager
def _written(home: Path) -> Iterator[None]:
    """Says in a sentence what cannot be written. It is said before the rollout file is another one."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or home, error.strerror or error
        raise OSError(f"nothing was changed: {where} cannot be written ({reason})") from error


def _said(state: RolloutState) -> dict[str, Any]:
    return state.model_dump(exclude_none=True)


def _check_callers(champion: str, model: StoredModel) -> None:
    """Whether who is answered by the champion could go on with a model."""
    theirs, tag = model_store.read_contract(model), model.tag
    try:
        faults = breaking_changes(model_store.read_contract(model_store.find(champion)), theirs)
    except model_store.ModelRefusedError as error:
        raise BadRolloutError(
            f"whether the contract of {tag} breaks callers of {champion} cannot be said: {error}. "
            "Where you know that it does not, promote it with --allow-contract-change"
        ) from error
    if faults:
        raise BadRolloutError(
            f"the contract of {tag} breaks callers of {champion}: {_some(faults)}. "
            "Tell them, then promote it with --allow-contract-change"
        )


def _some(faults: list[str]) -> str:
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return "; ".join(faults[:MOST_FAULTS]) + more


def _check_from(state: RolloutState, expected: str | None) -> None:
    if expected is not None and state.champion != expected:
        raise BadRolloutError(f"{expected} is not champion any more, {state.champion} is")


def _check_beside(state: RolloutState | None, expected: Challenger | None) -> None:
    if expected is not None and (state is None or state.challenger != expected):
        raise ChangedMeanwhileError("the rollout was changed by somebody else, who has the last word")


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Who comes second waits, and then sees what the first one did; the kernel frees the lock of who dies."""
    with _written(home):
        lock = (home / f".{ROLLOUT_FILE}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _usable(tag: str) -> StoredModel:
    if ":" not in tag:
        raise BadRolloutError(f"expected name:version, got {tag!r}: `tabserve models` lists them")
    model = model_store.find(tag)
    model_store.verify(model)
    return model
