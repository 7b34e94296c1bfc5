"""A version that was just trained as the shadow of the champion, where that changes nobody's plans."""

from pathlib import Path

from tabserve.lifecycle import changes
from tabserve.rollout_state import ROLLOUT_FILE, Challenger, read_rollout

WHOLE = 100.0  # percent: a shadow is dropped first where there is too much for it


def offer_as_shadow(home: Path, tag: str, came_from: str, why: str) -> str:
    """Has the champion be shadowed by a new version; says what became of it.

    Where there is no rollout file the model that it came from is made the champion by name: a service would serve the
    newest, which now is this version, and nobody has promoted it.

    Raises:
        BadRolloutError, ModelRefusedError, BrokenChainError, OSError: as `changes.challenge`.
    """
    state = read_rollout(home / ROLLOUT_FILE)
    if state is None:
        state = changes.promote(home, came_from, "the newest until it was trained again")
    if state.challenger is not None:
        return f"{state.challenger.model} is the challenger already ({state.challenger.mode}), it stays that"
    if state.champion != came_from:
        return f"the champion is {state.champion} and not {came_from}, it gets no shadow that it was not compared with"
    changes.challenge(home, Challenger(model=tag, mode="shadow", share=WHOLE), why)
    return f"{tag} is the shadow of {state.champion}"
