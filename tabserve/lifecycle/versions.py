"""Every version in the store as a table: how good, how old, under which contract, where it is used."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabserve import model_store
from tabserve.history.stats import duration
from tabserve.lifecycle.changes import champions_before, happened
from tabserve.model_store import ModelRefusedError, StoredModel
from tabserve.rollout_state import ROLLOUT_FILE, read_rollout

SHOWN = {"regression": ("rmse", "mae"), "binary": ("accuracy", "roc_auc"), "multiclass": ("accuracy", "f1_macro")}
HASH_DIGITS = 12


def table(home: Path) -> list[str]:
    """A header and a line for each version, the newest first.

    Raises:
        ModelRefusedError: where the store has none.
        BadRolloutError, BrokenChainError: where rollout file or history cannot be read.
    """
    models = model_store.stored_models()
    if not models:
        model_store.find(None)  # which says what to do
    uses = _uses(home, models)
    rows: list[tuple[str, ...]] = [("version", "trained", "metrics on test rows", "contract", "used as")]
    rows += [_row(model, uses.get(model.tag, []), is_last=model is models[-1]) for model in reversed(models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def _uses(home: Path, models: list[StoredModel]) -> dict[str, list[str]]:
    uses: dict[str, list[str]] = {}
    state = read_rollout(home / ROLLOUT_FILE)
    if state is None:
        uses[models[-1].tag] = ["served, nothing was promoted"]
        return uses
    uses.setdefault(state.champion, []).append("champion" if state.paused is None else "champion, paused")
    if state.challenger is not None:
        of = state.challenger
        uses.setdefault(of.model, []).append(f"{of.mode} {of.share:g} %" + (f" by {of.by}" if of.by else ""))
    earlier = champions_before(happened(home))
    if earlier:
        uses.setdefault(earlier[-1], []).append("champion before")
    return uses


def _row(model: StoredModel, uses: list[str], *, is_last: bool) -> tuple[str, ...]:
    try:
        metadata = model_store.read_metadata(model)
        trained = (
            f"{duration((datetime.now(UTC) - datetime.fromisoformat(metadata['trained_at'])).total_seconds())} ago"
        )
        metrics = _metrics(metadata)
    except (OSError, ValueError, KeyError, TypeError, ModelRefusedError):
        return (model.tag, "?", "damaged", "?", ", ".join(uses))
    if is_last:
        trained += ", last"
    return (model.tag, trained, metrics, model.contract_hash[:HASH_DIGITS], ", ".join(uses))


def _metrics(metadata: dict[str, Any]) -> str:
    found = metadata["test_metrics"]
    shown = [(name, found.get(name)) for name in SHOWN[metadata["task"]]]
    return ", ".join(f"{name} {value:.4f}" for name, value in shown if value is not None)
