"""Every version in the store as a table: how good, how old, under which contract, where it is used."""

from datetime import UTC, datetime
from pathlib import Path

from tabserve import model_store
from tabserve.deployments import champions_before, happened, history, last_champion
from tabserve.history.stats import duration
from tabserve.model_store import ModelRefusedError, StoredModel
from tabserve.rollout_state import ROLLOUT_FILE, read_rollout

SHOWN = {"regression": ("rmse", "mae"), "binary": ("accuracy", "roc_auc"), "multiclass": ("accuracy", "f1_macro")}
HASH_DIGITS = 12
MOST_CHARACTERS = 100  # of a line: what a terminal beside an editor has


def table(home: Path) -> list[str]:
    """For each model a header and a line for each version, the newest first; where that would be too long, the use of a
    version is on a line of its own.

    Raises:
        ModelRefusedError: where the store has none.
        BadRolloutError, BrokenChainError: where rollout file or history cannot be read.
    """
    models = model_store.stored_models()
    if not models:
        model_store.find(None)  # which says what to do
    uses = _uses(home, models)
    of_name: dict[str, list[tuple[str, ...]]] = {}
    for model in reversed(models):
        names, row = _row(model, ", ".join(uses.pop(model.tag, [])))
        rows = of_name.setdefault(model.name, [])
        if not rows or not rows[0][2]:  # of the first that can be read
            rows[:1] = [("version", "trained", *names, "contract", "used as")]
        rows.append(row)
    widths = [max(len(row[column]) for rows in of_name.values() for row in rows) for column in range(5)]
    lines: list[str] = []
    for rows in of_name.values():
        lines += [""] if lines else []
        for *cells, use in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            is_short = len(line) + 2 + len(use) <= MOST_CHARACTERS
            lines += [f"{line}  {use}".rstrip()] if is_short else [line.rstrip(), f"    {use}"]
    lines += [f"{tag} is not in the store: {', '.join(said)}" for tag, said in uses.items()]
    return lines


def _uses(home: Path, models: list[StoredModel]) -> dict[str, list[str]]:
    uses: dict[str, list[str]] = {}
    state = read_rollout(home / ROLLOUT_FILE)
    if state is None:
        lost = last_champion(history(home))
        uses[models[-1].tag] = ["newest, none promoted" if lost is None else f"newest, {ROLLOUT_FILE} is gone"]
        if lost is not None:
            uses.setdefault(lost, []).append("last champion")
        return uses
    uses.setdefault(state.champion, []).append("champion" if state.paused is None else "champion, paused")
    if state.challenger is not None:
        of = state.challenger
        uses.setdefault(of.model, []).append(f"{of.mode} {of.share:g} %" + (f" by {of.by}" if of.by else ""))
    earlier = champions_before(happened(home))
    if earlier:
        uses.setdefault(earlier[-1], []).append("champion before")
    return uses


def _row(model: StoredModel, use: str) -> tuple[tuple[str, str], tuple[str, ...]]:
    """The names of two metrics, empty where the metadata cannot be read, and the line of a version."""
    try:
        metadata = model_store.read_metadata(model)
        age = (datetime.now(UTC) - datetime.fromisoformat(metadata["trained_at"])).total_seconds()
        names = SHOWN[metadata["task"]]
        found = [metadata["test_metrics"].get(name) for name in names]
        shown = ["-" if value is None else f"{value:.4f}" for value in found]
    except (OSError, ValueError, KeyError, TypeError, ModelRefusedError):
        return ("", ""), (model.tag, "?", "?", "?", "?", ", ".join(filter(None, ("damaged", use))))
    return names, (model.tag, f"{duration(age)} ago", *shown, model.contract_hash[:HASH_DIGITS], use)
