"""What an evaluation found, as a page of its own with plots: nothing of it lies elsewhere."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tabserve.lifecycle.comparison import Decision, amount
from tabserve.lifecycle.effects import MARGIN, Effect
from tabserve.lifecycle.evaluation import Evaluation
from tabserve.lifecycle.evaluation_text import metrics_of, rows_of
from tabserve.lifecycle.guards import MOST_LOST
from tabserve.lifecycle.pairs import Floats, Pairs
from tabserve.statistics.drawing import drawn

TEMPLATE = Path(__file__).with_name("evaluation_page.html")
MOST_GROUPS = 25  # in the plot; the worst are the first
MOST_DISAGREEMENTS = 20  # lines of the table
CALIBRATION_BINS = 10
BLUE, RED, GREY = "#3b5f8a", "#c0504d", "#888888"


def write_page(found: Evaluation, decision: Decision, folder: Path) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    Raises:
        OSError: where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{found.contenders.challenger.tag}-against-{found.contenders.champion.tag}".replace(":", "-")
    path = folder / f"{name}.html"
    unfinished = path.with_suffix(".html.unfinished")
    unfinished.write_text(page(found, decision), encoding="utf-8")
    unfinished.replace(path)
    return path


def page(found: Evaluation, decision: Decision) -> str:
    # A category may hold markup: it is text.
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    has_effect = found.comparison.effect is not None
    return template.render(
        found=found,
        comparison=found.comparison,
        decision=decision,
        rows=rows_of(found),
        made_at=datetime.now(UTC),
        metrics=metrics_of(found.pairs) if has_effect else [],
        plots=_plots(found) if has_effect else [],
        disagreements=_disagreements(found) if has_effect and found.pairs.task != "regression" else [],
    )


def _plots(found: Evaluation) -> list[tuple[str, str]]:
    """A title and a picture each."""
    effect = found.comparison.effect
    plots = []
    if effect is not None:
        plots.append(("The difference, its 95 % interval, and the margin", _difference(effect)))
    if found.comparison.groups:
        plots.append(("By group, those that fare worst first", _groups(found)))
    if found.pairs.task == "regression":
        plots.append(("Errors of both", _errors(found.pairs)))
    else:
        plots.append(("Calibration: how often the most probable class came true", _calibration(found.pairs)))
    plots.append(("Where they disagree", _changes(found.pairs)))
    return plots


def _difference(effect: Effect) -> str:
    with drawn() as (plt, picture):
        _, axis = plt.subplots(figsize=(8, 2.4))
        if effect.differences is not None:
            axis.hist(100 * effect.differences, bins=60, color="#c9d6e6", density=True)
        middle = axis.get_ylim()[1] / 2
        axis.plot([100 * effect.low, 100 * effect.high], [middle, middle], color=BLUE, linewidth=3)
        axis.plot(100 * effect.difference, middle, "o", color=BLUE)
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.axvline(-100 * MARGIN, color=RED, linewidth=0.8, linestyle="--")
        axis.set(xlabel=f"{effect.metric}: {amount(effect, effect.difference)}; right is better", yticks=[])
        axis.spines[["top", "right", "left"]].set_visible(False)
    return picture.getvalue()


def _groups(found: Evaluation) -> str:
    groups = found.comparison.groups[:MOST_GROUPS]
    with drawn() as (plt, picture):
        _, axis = plt.subplots(figsize=(8, 1 + 0.26 * len(groups)))
        places = np.arange(len(groups))[::-1]
        axis.barh(
            places, [100 * group.difference for group in groups],
            color=[RED if group.is_worse else "#8fa8c8" for group in groups], height=0.6,
        )  # fmt: skip
        # A dollar would begin a formula.
        axis.set_yticks(places, [str(group).replace("$", r"\$") for group in groups], fontsize=7)
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.axvline(-100 * MOST_LOST, color=RED, linewidth=0.8, linestyle="--")
        axis.set_xlabel("points of accuracy" if found.pairs.task != "regression" else "% of the RMSE")
        axis.spines[["top", "right"]].set_visible(False)
    return picture.getvalue()


def _calibration(pairs: Pairs) -> str:
    with drawn() as (plt, picture):
        _, axis = plt.subplots(figsize=(4.6, 4.2))
        for name, scores, is_right, colour in zip(
            ("champion", "challenger"), (pairs.champion, pairs.challenger), pairs.is_right, (GREY, BLUE), strict=True
        ):
            axis.plot(*_bins(scores.max(axis=1), is_right, pairs.weights), "o-", color=colour, label=name)
        low = axis.get_xlim()[0]
        axis.plot([low, 1], [low, 1], color=GREY, linewidth=0.8, linestyle=":")
        axis.set(xlabel="mean probability of the most probable class", ylabel="share that came true")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return picture.getvalue()


def _bins(sure: Floats, is_right: Any, weights: Floats) -> tuple[Floats, Floats]:
    """The mean probability and the share of right answers in ten bins of equally many rows."""
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    means = [np.average(sure[part], weights=weights[part]) for part in parts]
    shares = [np.average(is_right[part], weights=weights[part]) for part in parts]
    return np.array(means), np.array(shares)


def _errors(pairs: Pairs) -> str:
    with drawn() as (plt, picture):
        _, axis = plt.subplots(figsize=(8, 3))
        errors = [scores - pairs.true for scores in (pairs.champion, pairs.challenger)]
        edges = np.quantile(np.concatenate(errors), (0.005, 0.995))
        for name, values, colour in zip(("champion", "challenger"), errors, (GREY, BLUE), strict=True):
            axis.hist(values, bins=60, range=edges, weights=pairs.weights, histtype="step", color=colour, label=name)
        axis.set(xlabel="predicted less what came true", yticks=[])
        axis.legend(frameon=False)
        axis.spines[["top", "right", "left"]].set_visible(False)
    return picture.getvalue()


def _changes(pairs: Pairs) -> str:
    """How far the challenger's score is from the champion's: of the class that came true, or of the value."""
    if pairs.task == "regression":
        changes, what = pairs.challenger - pairs.champion, "the value"
    else:
        rows = np.arange(len(pairs))
        changes = pairs.challenger[rows, pairs.true] - pairs.champion[rows, pairs.true]
        what = "the probability of what came true"
    with drawn() as (plt, picture):
        _, axis = plt.subplots(figsize=(8, 2.6))
        axis.hist(changes, bins=80, weights=pairs.weights, color="#8fa8c8")
        axis.set(xlabel=f"challenger less champion, of {what}", yscale="log", ylabel="rows")
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    return picture.getvalue()


def _disagreements(found: Evaluation) -> list[tuple[str, str, str, int]]:
    """What champion and challenger said and what came true, where they said different classes; most rows first."""
    pairs, classes = found.pairs, found.contenders.champion.contract.classes
    said = np.stack(
        [pairs.champion.argmax(axis=1), pairs.challenger.argmax(axis=1), pairs.true.astype(np.intp)], axis=1
    )
    kinds, counts = np.unique(said[said[:, 0] != said[:, 1]], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_DISAGREEMENTS]
    return [(*(str(classes[code]) for code in kinds[place]), int(counts[place])) for place in order]  # type: ignore[misc]
