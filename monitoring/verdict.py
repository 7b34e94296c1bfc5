"""When a number is an alarm: enough rows, an effect that matters, more than chance, and two windows running."""

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from tabserve.statistics.divergence import kl, kl_by_chance, psi, psi_by_chance

Level = Literal["too few rows", "quiet", "warning", "alarm"]
LEVELS: tuple[Level, ...] = get_args(Level)  # the worst last

ENOUGH_ROWS = 500
ENOUGH_LABELS = 300
KL_ALARM = 0.1  # of a feature; for a normal distribution a shift of 0.447 standard deviations, as is PSI 0.2
PSI_ALARM = 0.2  # of the predictions
WARNING = 0.5  # of the threshold
FALSE_ALARMS = 0.001  # of one window, all columns together, by the bound alone


class Binned(BaseModel):
    """The rows of one column in its fixed bins. Counts are weighted; `n_rows` is the effective number of rows."""

    model_config = ConfigDict(frozen=True)

    counts: tuple[float, ...]
    n_rows: float


class Divergence(BaseModel):
    """One column of one window against the reference."""

    # Where a side has no rows chance can give any number: infinity, which as null would not be read back.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    psi: float
    kl: float
    by_chance: float
    """What the number that decides exceeds by chance in `FALSE_ALARMS` of windows, all columns together."""
    level: Level
    """Of this window alone."""


def compare(reference: Binned, window: Binned, *, is_prediction: bool, n_columns: int) -> Divergence:
    """Compares one column; `n_columns` are looked at together (Bonferroni)."""
    found_psi, found_kl = psi(reference.counts, window.counts), kl(reference.counts, window.counts)
    share = FALSE_ALARMS / n_columns
    n_bins = len(reference.counts)
    if is_prediction:
        decides, threshold, chance = found_psi, PSI_ALARM, psi_by_chance
    else:
        decides, threshold, chance = found_kl, KL_ALARM, kl_by_chance
    by_chance = chance(n_bins, reference.n_rows, window.n_rows, share)
    level: Level = "quiet"
    if window.n_rows < ENOUGH_ROWS:
        level = "too few rows"
    elif decides > by_chance and decides > threshold:
        level = "alarm"
    elif decides > by_chance and decides > WARNING * threshold:
        level = "warning"
    return Divergence(psi=found_psi, kl=found_kl, by_chance=by_chance, level=level)


def confirmed(levels: Sequence[Level]) -> Level:
    """The level of a column by that of its windows, the newest last: an alarm needs two running, else it warns."""
    newest = levels[-1]
    if newest == "alarm" and tuple(levels[-2:]) != ("alarm", "alarm"):
        return "warning"
    return newest
