"""What an evaluation found, as lines that a person reads in ten seconds."""

from collections.abc import Sequence

import numpy as np

from tabserve.lifecycle.comparison import Decision, amount
from tabserve.lifecycle.evaluation import Evaluation
from tabserve.lifecycle.guards import FEWEST_ROWS, Group
from tabserve.lifecycle.pairs import Floats, Pairs
from tabserve.statistics.quality import Counts, Metric, of_counts, of_scores, of_values

MOST_GROUPS = 10  # the worst are the first


def text_of(found: Evaluation, decision: Decision) -> str:
    """The verdict, then what it rests on."""
    comparison, of = found.comparison, found.contenders
    lines = [
        f"{comparison.verdict.upper()}: {comparison.because}",
        f"challenger {of.challenger.tag}, champion {of.champion.tag}",
        rows_of(found),
    ]
    if found.n_refused:
        lines.append(f"{found.n_refused:,} rows are left out: one of the models would refuse them")
    if comparison.effect is not None:
        lines += ["", f"{'metric':<12}{'champion':>12}{'challenger':>12}"]
        lines += [f"{name:<12}{before:>12.4f}{after:>12.4f}" for name, before, after in metrics_of(found.pairs)]
        effect = comparison.effect
        between = f"95 % interval {amount(effect, effect.low)} to {amount(effect, effect.high)}"
        lines += ["", f"{effect.metric}: {amount(effect, effect.difference)}, {between}; {effect.test}"]
        lines += ["", *_groups(comparison.groups)]
    if not decision.is_met:
        lines += ["", f"not what was asked for: {decision.need}"]
    return "\n".join(lines)


def rows_of(found: Evaluation) -> str:
    """Which rows were compared."""
    n_rows = f"{len(found.pairs):,} labelled rows of {found.source}"
    if found.since is None:
        return n_rows
    return f"{n_rows}, from {found.since:%Y-%m-%d %H:%M} UTC on: neither model was trained on them"


def metrics_of(pairs: Pairs) -> list[tuple[str, float, float]]:
    """The metrics of monitoring, of both models; what the rows leave undefined is not among them."""
    champion, challenger = (_measured(pairs, scores) for scores in (pairs.champion, pairs.challenger))
    other = {metric.name: metric.value for metric in challenger}
    return [(metric.name, metric.value, other[metric.name]) for metric in champion if metric.name in other]


def _measured(pairs: Pairs, scores: Floats) -> Sequence[Metric]:
    if pairs.task == "regression":
        return of_values(pairs.true, scores, pairs.weights).metrics
    n_classes = scores.shape[1]
    counts = Counts(*(np.zeros((n_classes, n_classes)) for _ in range(3)))
    for part, values in zip(
        (counts.rows, counts.weights, counts.squares),
        (np.ones(len(pairs)), pairs.weights, pairs.weights**2),
        strict=True,
    ):
        np.add.at(part, (pairs.true, scores.argmax(axis=1)), values)
    classes = tuple(map(str, range(n_classes)))
    return (*of_counts(counts, classes).metrics, *of_scores(pairs.true, scores, pairs.weights, classes).metrics)


def _groups(groups: Sequence[Group]) -> list[str]:
    if not groups:
        return [f"no group of rows has {FEWEST_ROWS} labels to be looked at apart"]
    lines = [f"{len(groups)} groups of at least {FEWEST_ROWS} rows, those that fare worst first:"]
    for group in groups[:MOST_GROUPS]:
        stopped = "  WORSE, more than chance" if group.is_worse else ""
        lines.append(
            f"  {group!s:<48}{group.champion:>8.4f} → {group.challenger:.4f}{100 * group.difference:>+8.2f}{stopped}"
        )
    return lines
