"""A canary that goes up by itself, and back by itself: looked at by the metrics of the service.

Between two steps both sides are observed for a while; the difference of two looks at /metrics says what they did. A
replica whose counters began anew in between counts from zero, one that did not answer both times not at all.
"""

import logging
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tabserve.history.records import UnreadableError, opened
from tabserve.history.window import Window
from tabserve.lifecycle import changes
from tabserve.lifecycle.canary_judge import Limits, Seen, Verdict, judge
from tabserve.prediction_log.places import Place
from tabserve.rollout_state import BadRolloutError, Challenger

logger = logging.getLogger(__name__)

REQUESTS = "tabserve_variant_requests_total"
DURATION = "tabserve_variant_duration_seconds_bucket"
STABLE, CHALLENGER = "stable", "challenger"
MOST_HOLDS = 6  # observations in which nothing could be said, in a row; then it is given up
TIMEOUT_SECONDS = 5.0

Counts = dict[tuple[str, str, str], float]
"""Metric, side, and status or upper bound of a bucket in seconds, to a count."""

Labelled = Mapping[str, tuple[int, int]]
"""Side to its labels, and how many of them are as predicted."""


@dataclass(frozen=True)
class Look:
    """What is known at one moment."""

    counts: Counts
    labelled: Labelled = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How a canary goes up."""

    tag: str
    steps: Sequence[float]
    """Percent, rising; after the last one it is promoted."""
    observation_seconds: float
    by: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Ended:
    """How a canary ended."""

    is_promoted: bool
    why: str


def watch(home: Path, plan: Plan, look: Callable[[], Look], is_over: threading.Event) -> Ended | None:
    """Raises the share step by step, and promotes the canary or ends it. None where somebody else ended it, or
    `is_over` was set: the canary then stays at its share.

    Args:
        look: at the counters, as `counts_of` has them, and at labels so far.
    """
    verdict = None
    for share in plan.steps:
        why = f"canary of {plan.tag}: {share:g} %"
        said = Challenger(model=plan.tag, mode="canary", share=share, by=plan.by)
        if changes.current(home).challenger != said:
            changes.challenge(home, said, why)
        logger.info("%s, observed for %g s", why, plan.observation_seconds)
        verdict = _observed(home, plan, said, look, is_over)
        if verdict is None:
            return None
        if verdict.judgement == "back":
            why = f"canary at {share:g} %: {'; '.join(verdict.reasons)}"
            changes.stop(home, why)
            return Ended(is_promoted=False, why=why)
        logger.info("at %g %%: %s", share, "; ".join(verdict.reasons))
    passed = ", ".join(f"{share:g}" for share in plan.steps)
    why = f"canary passed {passed} %: {'; '.join(verdict.reasons if verdict else ())}"
    changes.promote(home, plan.tag, why, action="canary_promote")
    return Ended(is_promoted=True, why=why)


def _observed(
    home: Path, plan: Plan, said: Challenger, look: Callable[[], Look], is_over: threading.Event
) -> Verdict | None:
    """The verdict on one step: go or back."""
    reasons: list[str] = []
    for _ in range(MOST_HOLDS):
        before = _looked(look)
        if is_over.wait(plan.observation_seconds) or _is_elsewhere(home, said):
            return None
        after = _looked(look)
        verdict = judge(*sides(before, after), plan.limits) if before is not None and after is not None else None
        if verdict is not None and verdict.judgement != "hold":
            return verdict
        reasons = verdict.reasons if verdict else ["the service did not answer"]
        logger.info("nothing can be said yet: %s", "; ".join(reasons))
    return Verdict("back", [f"nothing could be said in {MOST_HOLDS} observations: {'; '.join(reasons)}"])


def _is_elsewhere(home: Path, said: Challenger) -> bool:
    try:
        there = changes.current(home).challenger
    except BadRolloutError:
        there = None
    if there != said:
        logger.warning("the rollout was changed by somebody else, who has the last word")
    return there != said


def _looked(look: Callable[[], Look]) -> Look | None:
    try:
        return look()
    except (OSError, ValueError, UnreadableError) as error:
        logger.warning("the service cannot be looked at: %s", error)
        return None


def counts_of(urls: Iterable[str], key: str | None = None) -> Counts:
    """The counters of the arms, all replicas together.

    Raises:
        OSError, ValueError: where one of them does not answer with metrics.
    """
    found: dict[tuple[str, str, str], float] = defaultdict(float)
    for url in urls:
        request = urllib.request.Request(url, headers={"x-api-key": key} if key else {})  # noqa: S310  # checked
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            text = answer.read().decode("utf-8")
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in (REQUESTS, DURATION):
                    side = CHALLENGER if sample.labels["variant"] == CHALLENGER else STABLE
                    found[sample.name, side, sample.labels.get("status") or sample.labels["le"]] += sample.value
    return dict(found)


def labels_so_far(place: Place, champion: str, challenger: str, since: datetime) -> Labelled:
    """How many predictions of each side have a label, and how many of them it confirms; a regression has none of that.

    Raises:
        UnreadableError, OSError: where the log cannot be read.
        BadQuestionError: where DuckDB is missing.
    """
    with opened(place, Window(since, datetime.now(UTC))) as records:
        counted = records.rows(
            "SELECT model || ':' || version, count(*), count(*) FILTER (is_correct) FROM joined "
            "WHERE is_correct IS NOT NULL AND variant <> 'shadow' GROUP BY 1"
        )
    of = {str(tag): (int(str(n_labels)), int(str(n_correct))) for tag, n_labels, n_correct in counted}
    return {STABLE: of.get(champion, (0, 0)), CHALLENGER: of.get(challenger, (0, 0))}


def sides(before: Look, after: Look) -> tuple[Seen, Seen]:
    """What was stable and the canary did between two looks, and the labels of both up to the second."""
    began_anew = any(after.counts.get(key, 0.0) < count for key, count in before.counts.items())
    earlier = {} if began_anew else before.counts
    grown = {key: count - earlier.get(key, 0.0) for key, count in after.counts.items()}
    return _seen(grown, STABLE, after.labelled), _seen(grown, CHALLENGER, after.labelled)


def _seen(grown: Counts, side: str, labelled: Labelled) -> Seen:
    by_status = {what: count for (name, whose, what), count in grown.items() if (name, whose) == (REQUESTS, side)}
    buckets = {float(what): count for (name, whose, what), count in grown.items() if (name, whose) == (DURATION, side)}
    n_errors = sum(count for status, count in by_status.items() if status.startswith("5"))
    n_labels, n_correct = labelled.get(side, (0, 0))
    return Seen(round(sum(by_status.values())), round(n_errors), quantile(0.99, buckets), n_labels, n_correct)


def quantile(share: float, buckets: dict[float, float]) -> float | None:
    """The quantile of a histogram: linear within its bucket, as Prometheus' histogram_quantile has it; the last finite
    bound where it is beyond.

    Args:
        buckets: upper bound (seconds, inf) to the count of all that are at most so large.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] == 0:
        return None
    rank = share * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower
