"""A version that was just trained as the shadow of the champion, where that changes nobody's plans."""

from pathlib import Path

from tabserve.rollout_state import Challenger, RolloutState, read_rollout

WHOLE = 100.0  # percent: a shadow is dropped first where there is too much for it


def offer_as_shadow(tag: str, came_from: str, path: Path) -> str:
    """Has the champion of the rollout file at `path` be shadowed by a new version; says what became of it.

    Where there is no rollout file the model that it came from is made the champion by name: a service would serve the
    newest, which now is this version, and nobody has promoted it.

    Raises:
        BadRolloutError: for a file that cannot be used.
        OSError: where it cannot be written.
    """
    state = read_rollout(path) or RolloutState(champion=came_from)
    if state.challenger is not None:
        return f"{state.challenger.model} is the challenger already ({state.challenger.mode}), it stays that"
    if state.champion != came_from:
        return f"the champion is {state.champion} and not {came_from}, it gets no shadow that it was not compared with"
    shadow = Challenger(model=tag, mode="shadow", share=WHOLE)
    RolloutState.model_validate({**state.model_dump(), "challenger": shadow}).save(path)
    return f"{tag} is the shadow of {state.champion}"
