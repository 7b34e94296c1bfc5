"""The verdict on a challenger, from labelled rows that both models answered and neither was trained on.

    better         it is better, more than chance gives
    not worse      it is not worse by the margin; better was not shown
    worse          it is worse, more than chance gives; or a guard stops it, which looks at groups and at probabilities
    inconclusive   none of these is shown, or there are too few labels

What the words mean in numbers is in `effects` and `guards`, how often they are wrong in docs/comparison.md. *Not worse*
goes before *worse*: with very many rows a loss can be sure and too small to matter.
"""

from dataclasses import dataclass
from typing import Literal

from tabserve.lifecycle import bootstrap
from tabserve.lifecycle.effects import LOSSES, MARGIN, Effect, Metric, measured, metrics_of
from tabserve.lifecycle.guards import Calibration, Group, calibration_of, groups_of
from tabserve.lifecycle.pairs import Pairs

Verdict = Literal["better", "not worse", "worse", "inconclusive"]
Need = Literal["better", "not worse"]

LEAST_ROWS = 2000  # with 4 % of the rows discordant, seven of ten models that are as good are then shown to be


@dataclass(frozen=True)
class Comparison:
    """What was found."""

    verdict: Verdict
    because: str
    n_rows: int
    effect: Effect | None = None
    """None where there are too few rows."""
    groups: tuple[Group, ...] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Decision:
    """Whether a challenger is what was asked for: the history keeps what that was."""

    need: Need
    verdict: Verdict
    because: str

    @property
    def is_met(self) -> bool:
        return self.verdict in ("better", self.need)

    @property
    def exit_code(self) -> int:
        """0 met, 1 worse, 3 not shown."""
        return 0 if self.is_met else 1 if self.verdict == "worse" else 3

    def __str__(self) -> str:
        return f"asked for {self.need}, found {self.verdict}: {self.because}"


def decide(comparison: Comparison, need: Need) -> Decision:
    """What a comparison means for who asks for *better*, as an automatic promotion must, or for *not worse*."""
    return Decision(need, comparison.verdict, comparison.because)


def compare(
    pairs: Pairs, metric: Metric | None = None, *, seed: int = 0, n_resamples: int = bootstrap.RESAMPLES
) -> Comparison:
    """Judges a challenger by a metric: accuracy or RMSE where none is named.

    Args:
        seed: of the bootstrap: the same rows give the same verdict.

    Raises:
        UndefinedMetricError: where the rows leave the metric undefined.
    """
    if len(pairs) < LEAST_ROWS:
        return Comparison(
            "inconclusive", f"{len(pairs):,} labelled rows, at least {LEAST_ROWS:,} are needed", len(pairs)
        )
    effect = measured(pairs, metric or metrics_of(pairs.task)[0], seed=seed, n_resamples=n_resamples)
    groups, calibration = groups_of(pairs), calibration_of(pairs)
    verdict, because = _verdict(effect)
    stopped = _stopped(pairs, groups, calibration)
    if stopped is not None and verdict != "worse":
        verdict, because = "worse", f"{stopped} (as a whole: {because})"
    return Comparison(verdict, because, len(pairs), effect, groups, calibration)


def _verdict(effect: Effect) -> tuple[Verdict, str]:
    found = f"{effect.metric} {effect.champion:.4f} → {effect.challenger:.4f}"
    between = f"95 % interval {amount(effect, effect.low)} to {amount(effect, effect.high)}"
    said = f"{found}, {amount(effect, effect.difference)}, {between}"
    margin = f"the margin is {amount(effect, -MARGIN)}"
    if effect.is_better:
        return "better", said
    if effect.is_not_worse:
        return "not worse", f"{said}; with 95 % confidence at least {amount(effect, effect.at_least)}, {margin}"
    if effect.is_worse:
        return "worse", said
    return "inconclusive", f"{said}: with 95 % confidence only at least {amount(effect, effect.at_least)}, {margin}"


def _stopped(pairs: Pairs, groups: tuple[Group, ...], calibration: Calibration | None) -> str | None:
    for group in groups:
        if group.is_worse:
            name = "RMSE" if pairs.task == "regression" else "accuracy"
            return f"in {group} {name} {group.champion:.4f} → {group.challenger:.4f}, more than chance"
    if calibration is not None and calibration.is_worse:
        return f"the probabilities are worse, Brier {calibration.champion:.4f} → {calibration.challenger:.4f}"
    return None


def amount(effect: Effect, difference: float) -> str:
    """A difference in words: points of accuracy, percent of a loss."""
    return f"{100 * difference:+.2f} {'%' if effect.metric in LOSSES else 'points'}"
