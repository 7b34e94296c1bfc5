"""A canary that goes up by itself, and back by itself: looked at by the metrics of the service.

At each step both sides are observed for a while; the difference of two looks at the counters says what they did. Those
of a replica that was started again in between count from zero. Where a replica does not answer nothing is said.
"""

import json
import logging
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from tabserve.history.records import UnreadableError, opened
from tabserve.history.window import Window
from tabserve.lifecycle import changes
from tabserve.lifecycle.canary_judge import Limits, Seen, Verdict, judge
from tabserve.prediction_log.places import Place
from tabserve.rollout_state import BadRolloutError, Challenger

if TYPE_CHECKING:
    from tabserve.lifecycle.comparison import Decision

logger = logging.getLogger(__name__)

REQUESTS = "tabserve_variant_requests_total"
DURATION = "tabserve_variant_duration_seconds_bucket"
STABLE, CHALLENGER = "stable", "challenger"
MOST_HOLDS = 6  # observations in which nothing could be said, in a row; then it is given up
TIMEOUT_SECONDS = 5.0

Counts = dict[tuple[str, str, str, str], float]
"""Replica, metric, side, and status or upper bound of a bucket in seconds, to a count."""

Proof = Callable[[], "Decision"]

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
    """Percent, rising."""
    observation_seconds: float
    by: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Ended:
    """How a canary ended."""

    is_promoted: bool
    why: str


def watch(
    home: Path, plan: Plan, look: Callable[[], Look], is_over: threading.Event, proof: Proof | None = None
) -> Ended | None:
    """Raises the share step by step, and promotes the canary or ends it; one that is under way goes on at its share.
    None where somebody else changed it, `is_over` was set, or nothing is proved: the canary then stays at its share.

    Args:
        look: at the counters, as `counts_of` has them, and at labels so far.
        proof: what labelled rows say of it after the last step; None where it is promoted for having passed.
    """
    try:
        return _up_or_back(home, plan, look, is_over, proof)
    except changes.ChangedMeanwhileError as error:
        logger.warning("%s", error)
        return None


def _up_or_back(
    home: Path, plan: Plan, look: Callable[[], Look], is_over: threading.Event, proof: Proof | None
) -> Ended | None:
    state = changes.current(home)
    if state.champion == plan.tag:
        return Ended(is_promoted=True, why=f"{plan.tag} is champion already")
    there = state.challenger
    is_under_way = there is not None and (there.model, there.mode, there.by) == (plan.tag, "canary", plan.by)
    at = there.share if there is not None and is_under_way else 0.0
    verdict = None
    steps = [step for step in plan.steps if step >= at] or plan.steps[-1:]
    for share in steps:
        why = f"canary of {plan.tag}: {share:g} %"
        said = Challenger(model=plan.tag, mode="canary", share=share, by=plan.by)
        if there != said:
            changes.challenge(home, said, why, only_beside=there)
        there = said
        logger.info("%s, observed for %g s", why, plan.observation_seconds)
        verdict = _observed(home, plan, said, look, is_over)
        if verdict is None:
            return None
        if verdict.judgement == "back":
            why = f"canary at {share:g} %: {'; '.join(verdict.reasons)}"
            changes.stop(home, why, only_beside=said)
            return Ended(is_promoted=False, why=why)
        logger.info("at %g %%: %s", share, "; ".join(verdict.reasons))
    passed = ", ".join(f"{share:g}" for share in steps)
    why = f"canary passed {passed} %: {'; '.join(verdict.reasons if verdict else ())}"
    if proof is not None:
        decision = proof()
        why = f"{why}; {decision}"
        if decision.verdict == "worse":
            changes.stop(home, why, only_beside=there)
            return Ended(is_promoted=False, why=why)
        if not decision.is_met:
            logger.warning("%s", why)
            return None
    changes.promote(home, plan.tag, why, action="canary_promote", only_beside=there)
    return Ended(is_promoted=True, why=why)


def _observed(
    home: Path, plan: Plan, said: Challenger, look: Callable[[], Look], is_over: threading.Event
) -> Verdict | None:
    """The verdict on one step: go or back."""
    reasons: list[str] = []
    before = None
    for _ in range(MOST_HOLDS):
        before = before or _looked(look)
        if is_over.wait(plan.observation_seconds) or _is_elsewhere(home, said):
            return None
        after = _looked(look)
        reasons = ["the service did not answer"]
        if before is not None and after is not None:
            stable, canary = sides(before, after, plan.limits.p99_seconds)
            verdict = judge(stable, canary, plan.limits)
            if verdict.judgement != "hold":
                return verdict
            reasons = verdict.reasons
            if canary.n_requests >= plan.limits.fewest_requests:
                before = after  # where there were too few they are counted on
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


def counts_of(urls: Iterable[str], tag: str, key: str | None = None) -> Counts:
    """The counters of the arms, of each replica.

    Args:
        tag: the canary; what an earlier challenger did is counted on no side.
        key: with the scope `metrics`, where the service asks for one.

    Raises:
        OSError, ValueError: where one of them does not answer with metrics.
    """
    found: Counts = defaultdict(float)
    for url in urls:
        for family in text_string_to_metric_families(_read(url, {"x-api-key": key} if key else {})):
            for sample in family.samples:
                if sample.name in (REQUESTS, DURATION):
                    _add(found, (url, sample.name), sample.labels, sample.value, tag)
    return dict(found)


def counts_in_prometheus(url: str, job: str, tag: str) -> Counts:
    """The same as a Prometheus scraped it last of a job; a replica that it does not reach any more is not there.

    Raises:
        OSError, ValueError: where it does not answer, or no such job is up.
    """
    names = f'{{__name__=~"{REQUESTS}|{DURATION}",job={json.dumps(job)}}}'
    if not _asked(url, f"up{{job={json.dumps(job)}}} == 1"):
        raise OSError(f"no replica of the job {job!r} is up, as Prometheus says")
    found: Counts = defaultdict(float)
    for series in _asked(url, names):
        labels = series["metric"]
        _add(found, (labels["instance"], labels["__name__"]), labels, float(series["value"][1]), tag)
    return dict(found)


def _asked(url: str, expression: str) -> list[dict[str, Any]]:
    answer = json.loads(_read(f"{url.rstrip('/')}/api/v1/query?{urlencode({'query': expression})}", {}))
    try:
        series: list[dict[str, Any]] = answer["data"]["result"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected an answer of Prometheus's API, {error!r} is missing") from error
    return series


def _read(url: str, headers: Mapping[str, str]) -> str:
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310  # the command line takes http alone
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        text: str = answer.read().decode("utf-8")
    return text


def _add(found: Counts, of: tuple[str, str], labels: Mapping[str, str], value: float, tag: str) -> None:
    replica, name = of
    side = CHALLENGER if labels.get("variant") == CHALLENGER else STABLE
    if side == CHALLENGER and labels.get("model_version") != tag:
        return  # of before: it may have grown since Prometheus looked last
    what = labels.get("status") if name == REQUESTS else labels.get("le")
    if what is None:
        raise ValueError(f"{name} has no label {'status' if name == REQUESTS else 'le'}")
    found[replica, name, side, what] += value


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


def sides(before: Look, after: Look, slow_seconds: float) -> tuple[Seen, Seen]:
    """What was stable and the canary did between two looks, and the labels of both up to the second.

    Args:
        slow_seconds: what takes longer is counted as slow; within a bucket by its share of it.
    """
    # Of a replica that was started again every counter is below what it was, or was not there.
    anew = {key[0] for key, count in before.counts.items() if after.counts.get(key, 0.0) < count}
    grown: dict[tuple[str, str, str], float] = defaultdict(float)
    for (replica, *what), count in after.counts.items():
        earlier = 0.0 if replica in anew else before.counts.get((replica, what[0], what[1], what[2]), 0.0)
        grown[what[0], what[1], what[2]] += count - earlier
    stable, canary = (_seen(grown, side, after.labelled, slow_seconds) for side in (STABLE, CHALLENGER))
    return stable, canary


def _seen(grown: Mapping[tuple[str, str, str], float], side: str, labelled: Labelled, slow_seconds: float) -> Seen:
    by_status = {what: count for (name, whose, what), count in grown.items() if (name, whose) == (REQUESTS, side)}
    buckets = {float(what): count for (name, whose, what), count in grown.items() if (name, whose) == (DURATION, side)}
    n_errors = sum(count for status, count in by_status.items() if status.startswith("5"))
    n_labels, n_correct = labelled.get(side, (0, 0))
    return Seen(
        round(sum(by_status.values())),
        round(n_errors),
        quantile(0.99, buckets),
        n_labels,
        n_correct,
        n_slow=slower_than(slow_seconds, buckets),
    )


def slower_than(seconds: float, buckets: dict[float, float]) -> int | None:
    """How many of a histogram are above a bound; linear within a bucket, as the quantile is. None where it is empty."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] == 0:
        return None
    lower, below = 0.0, 0.0
    for bound in bounds:
        if bound >= seconds:
            share = 0.0 if bound == float("inf") else (seconds - lower) / (bound - lower)
            return round(buckets[bounds[-1]] - below - share * (buckets[bound] - below))
        lower, below = bound, buckets[bound]
    return 0


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
