"""Trains a model again, as it was trained before, on its table and a recent window of labelled rows of the log.

The table stays in, so that a few odd weeks do not make the model. The test rows are the latest fifth of the window:
what a model is wanted for comes after what it was trained on. On them the model is held beside the one it comes from.
"""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from sklearn.base import clone

from tabserve import model_store
from tabserve.contract import Contract
from tabserve.engine import Scores, load_pipeline
from tabserve.history.records import opened
from tabserve.history.window import Which, Window
from tabserve.lifecycle.comparison import Comparison, compare
from tabserve.lifecycle.labelled_rows import Counts, LabelledRows, WindowRows, check_features
from tabserve.lifecycle.pairs import Pairs
from tabserve.lifecycle.training_rows import Known, original_table, with_window
from tabserve.model_store import StoredModel
from tabserve.prediction_log.places import Place
from tabserve.training import artifact, evaluation, recipe
from tabserve.training.arguments import Arguments
from tabserve.training.table import FEWEST_ROWS

logger = logging.getLogger(__name__)

ENOUGH_LABELS = 500  # a hundred of them are the test, which know an accuracy of 0.9 to 6 points
LOCK_FILE = "retraining.lock"


class NotNowError(Exception):
    """A retraining that cannot begin yet; the message says what it waits for."""


@dataclass(frozen=True)
class Retrained:
    """A model that was trained again, and saved."""

    tag: str
    contract: Contract
    target: np.ndarray[Any, Any]
    before: Scores
    """Of the test rows, by the model that it was retrained from."""
    after: Scores


def retrain(
    model: StoredModel,
    place: Place,
    window: Window,
    *,
    original: Path | None = None,
    original_share: float | None = None,
    enough_labels: int = ENOUGH_LABELS,
    why: str = "",
) -> Retrained:
    """Trains and saves a new version of a model; one at a time in a home.

    Args:
        original: where the table is now, if it is no longer where it was.
        original_share: percent of the training rows that may be the table's; None for all of it.
        enough_labels: with fewer nothing is trained.
        why: for the metadata.

    Raises:
        NotNowError: while another one runs, or where labels are too few.
        BadQuestionError, BadTableError: where it cannot be trained again, or not on this table.
        GateFailedError: where the new version is not good enough; nothing is saved.
        ModelRefusedError: for a model that must not be loaded.
        OSError, UnreadableError: where the log cannot be read or the version not be saved.
    """
    with _alone(model_store.home()):
        before = model_store.load(model)
        told = Arguments.of(model.tag, before.metadata)
        check_features(before.contract)
        counts, found = _window_rows(place, window, before.contract, model.name, enough_labels)
        table = original_table(told, before.contract, before.metadata["dataset"]["sha256"], original)
        known = Known.of(before.metadata)
        both = table
        if found is not None:
            both = with_window(table, found, known, original_share=original_share, seed=told.seed)
        n_original = len(both.rows) - both.n_recent
        logger.info(
            "%d rows of the table and %d of the window, %.0f %% of all",
            *(n_original, both.n_recent, 100 * both.n_recent / len(both.rows)),
        )
        trained = recipe.train(both, clone(load_pipeline(model.directory)), told)
        lineage = {
            "retrained_from": model.tag,
            "why": why,
            "table_trained_on_at": known.table_at.isoformat(),
            "window": {"since": window.since.isoformat(), "until": window.until.isoformat()},
            "rows": {"original": n_original, "window": counts.n_usable, "used": both.n_recent},
            "labels": {
                "predictions_in_window": counts.n_predictions,
                "labelled": counts.n_usable,
                "coverage": counts.coverage,
            },
            "log": urlsplit(place.url).scheme,
        }
        trained = replace(trained, metadata={**trained.metadata, "lineage": lineage})
        tag = artifact.save(trained, both, model.name, same_pipeline_hash=model.pipeline_hash)
    test = trained.split.test
    return Retrained(
        tag, before.contract, both.target[test], before.engine.predict(both.rows[test]), trained.test_scores
    )


def compared(retrained: Retrained, tag_before: str) -> list[str]:
    """Both models on the test rows, as lines."""
    before, after = (
        evaluation.measure(retrained.contract, retrained.target, scores)
        for scores in (retrained.before, retrained.after)
    )
    n_test = f"{len(retrained.target)} latest rows"
    width = max(len(n_test), *map(len, before))
    lines = [f"{n_test:<{width}}  {tag_before}  {retrained.tag}"]
    for name, value in before.items():
        lines.append(f"{name:<{width}}  {_shown(value):<{len(tag_before)}}  {_shown(after[name])}")
    return lines


def judged(retrained: Retrained) -> Comparison:
    """The verdict on the new version from the test rows, on which neither was trained; groups of rows are not seen."""
    target = retrained.target
    return compare(Pairs(retrained.contract.task, target, retrained.before, retrained.after, np.ones(len(target))))


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """The kernel frees the lock of a process that dies."""
    with (home / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotNowError(f"another retraining runs in {home}: wait for it, or end it") from error
        yield


def _window_rows(
    place: Place, window: Window, contract: Contract, name: str, enough: int
) -> tuple[Counts, WindowRows | None]:
    """None where there are too few for a test of their own, which only a low `enough` allows."""
    with opened(place, window, Which(name)) as records:
        labelled = LabelledRows(records, contract)
        counts = labelled.counts()
        logger.info(
            "%d predictions of %s in the window, %d with a label that can be used (%.1f %%)",
            *(counts.n_predictions, name, counts.n_usable, 100 * counts.coverage),
        )
        if counts.n_other_contract:
            logger.info("%d predictions under another contract are left out", counts.n_other_contract)
        if counts.n_labels > counts.n_usable:
            logger.warning(
                "%d labels are left out: they are %s",
                counts.n_labels - counts.n_usable,
                "no finite numbers" if contract.task == "regression" else "no classes of this contract",
            )
        if counts.n_usable < enough:
            raise NotNowError(
                f"{counts.n_usable} labelled rows of {name} since {window.since:%Y-%m-%d %H:%M} UTC, expected at least "
                f"{enough}: wait for labels, or choose a longer --window or a lower --minimum-labels"
            )
        if counts.n_usable < FEWEST_ROWS:
            if counts.n_usable:
                logger.warning("%d labelled rows are too few to test on, they are left out", counts.n_usable)
            return counts, None
        least, greatest = counts.weights
        if greatest > 1:
            logger.warning(
                "the log keeps a sample: a row stands for %s predictions, and is trained on once%s",
                f"{least:g}" if least == greatest else f"{least:g} to {greatest:g}",
                "" if least == greatest else "; hours of which less was kept count for less than they had",
            )
        found = labelled.read(counts.n_usable)
    if len(found) < counts.n_usable:
        logger.warning("%d of %d labelled rows are used, chosen by chance", len(found), counts.n_usable)
    return counts, found
