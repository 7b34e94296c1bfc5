"""The result of an A/B test: rows that were answered as `control` and as `challenger`, and what became of them.

What was chosen by chance is the key, not the row: where the log knows it, the rows of a key count as one observation,
by the delta method (Deng et al. 2018). The means are ratios of sums over keys, whose variance is that of
(sum of a key's outcomes - mean * its weight) over the keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Literal

from scipy.stats import chi2

from tabserve.contract import Contract
from tabserve.history.records import opened
from tabserve.history.sql import quoted, text
from tabserve.history.window import Window, length_of
from tabserve.lifecycle.comparison import Verdict
from tabserve.lifecycle.effects import ALPHA, MARGIN
from tabserve.lifecycle.experiment_plan import Outcome, Plan
from tabserve.lifecycle.logged_rows import FEATURE
from tabserve.prediction_log.places import Place
from tabserve.rollout_state import HEADER

POWER = 0.80
FEWEST_UNITS = 200  # of an arm with an outcome: of fewer the normal distribution is not that of a mean
BROKEN = 0.001  # a split this unlikely is no chance: Fabijan et al. (2019)
FEWEST_EXPECTED = 5.0  # units of an arm, for chi-square

_NORMAL = NormalDist()
Variant = Literal["control", "challenger"]


@dataclass(frozen=True)
class AbTest:
    """Which rows belong to it."""

    control: str
    challenger: str
    share: float
    """Percent of the keys that the challenger answers."""
    by: str | None
    """What the choice is sticky by: a feature, or `header:<name>`, which the log does not have."""
    since: datetime | None = None
    """When it began, by the deployment history; None where that does not know it. An earlier test of the same versions
    dealt the keys anew, or is over: its rows are none of these."""
    until: datetime | None = None
    """When it was ended; None while it runs."""

    @property
    def name(self) -> str:
        began = f" since {self.since:%Y-%m-%d %H:%M:%S}" if self.since else ""
        return f"{self.challenger} against {self.control}{began}"


@dataclass(frozen=True)
class Arm:
    """One side."""

    n_units: int = 0
    """Keys, or rows where the log does not know the key; with an outcome or without."""
    n_rows: int = 0
    n_with_outcome: int = 0
    """Units with an outcome."""
    mean: float = math.nan
    variance: float = math.nan
    """Of the mean."""


@dataclass(frozen=True)
class Experiment:
    """What was found."""

    test: AbTest
    plan: Plan
    control: Arm
    challenger: Arm
    since: datetime | None
    until: datetime
    key: str | None
    """What the rows were put together by; None where they are taken as independent."""
    split_p: float | None
    """Of the split between the arms, under the share that was chosen."""
    verdict: Verdict
    because: str
    n_keyless: int = 0
    """Rows without a value of the key, which are left out."""

    @property
    def is_broken(self) -> bool:
        """The arms are not of the sizes that chance gives; rows of an unknown key come in clusters, and cannot say."""
        return self.split_p is not None and self.split_p < BROKEN and (self.key is not None or self.test.by is None)


def find(test: AbTest, plan: Plan, contract: Contract, place: Place, window: Window) -> Experiment:
    """The result so far, or what is missing.

    Args:
        window: in which the first row of the test is looked for.

    Raises:
        UnreadableError: where the log cannot be read.
    """
    models = {"control": test.control, "challenger": test.challenger}
    of_test = " OR ".join(
        f"(variant = {text(variant)} AND model || ':' || version = {text(tag)})" for variant, tag in models.items()
    )
    with opened(place, window) as records:
        known = next(records.batches("SELECT * FROM joined LIMIT 0")).schema.names
        ((first,),) = records.rows(f"SELECT min(time) FROM joined WHERE {of_test}")
        since = first if isinstance(first, datetime) else None
        until = window.until
        if since is not None and plan.horizon:
            until = min(until, since + length_of(plan.horizon))
        column = FEATURE + (test.by or "")
        key = test.by if column in known else None
        unit = f"CAST({quoted(column)} AS VARCHAR)" if key else "prediction_id"
        in_time = f"({of_test}) AND time < TIMESTAMPTZ {text(until.isoformat())}"
        # Whatever was done with those, they are either one key, and all on one side, or none.
        ((n_keyless,),) = records.rows(f"SELECT count(*) FROM joined WHERE {in_time} AND {unit} IS NULL")
        found = records.rows(f"""
            WITH units AS (
                SELECT variant, {unit} AS unit, count(*) AS n_rows, count(y) AS n_outcomes,
                       sum(weight) FILTER (y IS NOT NULL) AS w, sum(weight * y) AS s
                FROM (SELECT *, {_outcome(plan.outcome, contract)} AS y FROM joined
                      WHERE {in_time} AND {unit} IS NOT NULL)
                GROUP BY ALL)
            SELECT variant, count(*), sum(n_rows), count(w), sum(w), sum(s), sum(w * w), sum(w * s), sum(s * s)
            FROM units GROUP BY variant
        """)
    arms = {str(variant): _arm(*map(_number, sums)) for variant, *sums in found}
    result = judged(test, plan, arms, since=since, until=until, now=window.until, key=key)
    return replace(result, n_keyless=int(_number(n_keyless)))


def judged(
    test: AbTest, plan: Plan, arms: Mapping[str, Arm], *, since: datetime | None, until: datetime, now: datetime,
    key: str | None,
) -> Experiment:  # fmt: skip
    """The verdict on two arms."""
    control, challenger = arms.get("control", Arm()), arms.get("challenger", Arm())
    split_p = split(control.n_units, challenger.n_units, test.share / 100)
    found = Experiment(test, plan, control, challenger, since, until, key, split_p, "inconclusive", "")
    missing = _missing(found, now)
    if found.is_broken:
        verdict, because = _broken(found)
    elif missing:
        verdict, because = "inconclusive", f"not enough data: {missing}"
    else:
        verdict, because = _verdict(found)
    return replace(found, verdict=verdict, because=because)


def split(n_control: int, n_challenger: int, share: float) -> float | None:
    """The p-value of the arms' sizes by chi-square with one degree of freedom; None where they are too few to say."""
    total = n_control + n_challenger
    expected = total * (1 - share), total * share
    if min(expected) < FEWEST_EXPECTED:
        return None
    distance = sum((n - e) ** 2 / e for n, e in zip((n_control, n_challenger), expected, strict=True))
    return float(chi2.sf(distance, 1))


def difference(found: Experiment) -> tuple[float, float]:
    """The challenger's mean less the control's, and its standard error."""
    return found.challenger.mean - found.control.mean, math.sqrt(found.control.variance + found.challenger.variance)


def _arm(n_units: float, n_rows: float, n_outcomes: float, *sums: float) -> Arm:
    w, s, ww, ws, ss = sums
    mean = s / w if n_outcomes and w else math.nan
    if n_outcomes < 2 or not w:
        return Arm(int(n_units), int(n_rows), int(n_outcomes), mean)
    spread = max(0.0, ss - 2 * mean * ws + mean**2 * ww) * n_outcomes / (n_outcomes - 1)
    return Arm(int(n_units), int(n_rows), int(n_outcomes), mean, spread / w**2)


def _outcome(outcome: Outcome, contract: Contract) -> str:
    """Larger is better; null where there is none."""
    if outcome == "business-value":
        return "business_value"
    if contract.task == "regression":
        return "CASE WHEN isfinite(true_value) AND isfinite(value) THEN -abs(value - true_value) END"
    labels = ", ".join(text(str(label)) for label in contract.classes)
    return f"CASE WHEN true_label IN ({labels}) THEN CAST(is_correct AS DOUBLE) END"


def _missing(found: Experiment, now: datetime) -> str | None:
    """What is missing to the horizon; None where nothing is."""
    if found.since is None:
        return f"no row of {found.test.name} is in the log yet"
    if found.plan.horizon:
        left = found.since + length_of(found.plan.horizon) - now
        if left > timedelta():
            if found.test.until is not None:
                return f"it was ended {_days(left)} before its horizon of {found.plan.horizon}"
            return f"{_days(left)} of {found.plan.horizon} are left"
    few = [
        f"the {name} has {arm.n_with_outcome:,}"
        for name, arm in (("control", found.control), ("challenger", found.challenger))
        if arm.n_with_outcome < FEWEST_UNITS
    ]
    if few:
        return f"each arm needs {FEWEST_UNITS} {units(found)} with an outcome, {' and '.join(few)}"
    if found.plan.detect:
        # A test that ends with a fixed amount of information, which does not look at the effect: Mehta, Tsiatis (2001).
        _, error = difference(found)
        wanted = found.plan.detect / (_NORMAL.inv_cdf(1 - ALPHA / 2) + _NORMAL.inv_cdf(POWER))
        if error > wanted:
            more = (error / wanted) ** 2 - 1
            return (
                f"about {more * found.control.n_with_outcome:,.0f} {units(found)} more of the control and "
                f"{more * found.challenger.n_with_outcome:,.0f} of the challenger"
            )
    return None


def _broken(found: Experiment) -> tuple[Verdict, str]:
    total = found.control.n_units + found.challenger.n_units
    return "inconclusive", (
        f"the test is broken: {found.challenger.n_units / total:.2%} of {total:,} {units(found)} went to the "
        f"challenger, {found.test.share:g} % were to (p = {found.split_p:.1g}): find out why before you believe it"
    )


def _verdict(found: Experiment) -> tuple[Verdict, str]:
    gap, error = difference(found)
    is_share = found.plan.outcome == "label" and -0.0 <= found.control.mean <= 1
    margin = MARGIN if is_share else MARGIN * abs(found.control.mean)
    half = _NORMAL.inv_cdf(1 - ALPHA / 2) * error
    p_value = math.erfc(abs(gap) / error / math.sqrt(2)) if error > 0 else float(gap == 0)
    said = (
        f"{found.control.mean:.4g} → {found.challenger.mean:.4g}, {gap:+.4g} "
        f"(95 % interval {gap - half:+.4g} to {gap + half:+.4g}, p = {p_value:.2g})"
    )
    if found.key is None and found.test.by is not None:
        said += f", if no {found.test.by.removeprefix(HEADER)} has many of the rows"
    if p_value <= ALPHA:
        return ("better" if gap > 0 else "worse"), said
    if gap - _NORMAL.inv_cdf(1 - ALPHA) * error > -margin:
        return "not worse", f"{said}; the margin is {-margin:.4g}"
    return "inconclusive", f"no difference is shown: {said}"


def units(found: Experiment) -> str:
    return f"values of {found.key}" if found.key else "rows"


def _days(left: timedelta) -> str:
    return (
        f"{left / timedelta(days=1):.1f} days"
        if left >= timedelta(days=2)
        else f"{left / timedelta(hours=1):.1f} hours"
    )


def _number(value: object) -> float:
    return 0.0 if value is None else float(str(value))
