"""What a canary is judged by: its counters, of replicas that restart too, and what chance does to a p99."""

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from alert_programs import exposing, serving
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tabserve.lifecycle.canary_judge import Limits, Seen, judge
from tabserve.lifecycle.canary_watch import (
    Counts,
    Look,
    counts_in_prometheus,
    counts_of,
    quantile,
    sides,
    slower_than,
)
from tabserve.rollout_telemetry import ARM_BUCKETS

LIMITS = Limits()
TAG = "m:2"
INF = float("inf")
STABLE = Seen(9500, 5, 0.05, n_slow=0)


class Replica:
    """The counters of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["model_version", "variant"]
        self.requests = Counter("tabserve_variant_requests", "", [*labels, "status"], registry=self.registry)
        self.duration = Histogram(
            "tabserve_variant_duration_seconds", "", labels, buckets=ARM_BUCKETS, registry=self.registry
        )

    def answered(self, n_requests: int, *, by: str = TAG, status: str = "200", seconds: float = 0.02) -> None:
        for _ in range(n_requests):
            self.requests.labels(by, "challenger", status).inc()
            self.duration.labels(by, "challenger").observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


def look(*replicas: Replica) -> Counts:
    """At each of them, under an address that stays."""
    found: Counts = {}
    for number, replica in enumerate(replicas):
        with exposing(replica.exposition) as address:
            counts = counts_of([f"http://{address}/metrics"], TAG)
        found |= {(str(number), *key[1:]): count for key, count in counts.items()}
    return found


def test_a_replica_that_began_anew_counts_from_zero_and_the_other_one_goes_on() -> None:
    steady, restarted = Replica(), Replica()
    steady.answered(5000)
    restarted.answered(40)
    before = Look(look(steady, restarted))
    steady.answered(300)
    restarted = Replica()
    restarted.answered(7, status="500")

    _, canary = sides(before, Look(look(steady, restarted)), 0.3)

    assert (canary.n_requests, canary.n_errors) == (307, 7), "and not all that the steady one ever answered"


def test_what_is_slow_is_counted_within_its_bucket_as_the_quantile_is() -> None:
    buckets = {0.2: 90.0, 0.3: 95.0, 0.5: 99.0, INF: 100.0}

    assert slower_than(0.3, buckets) == 5
    assert slower_than(0.4, buckets) == 3
    assert slower_than(0.7, buckets) == 1
    assert slower_than(0.3, {}) is None
    assert quantile(0.95, buckets) == pytest.approx(0.3)


def test_what_an_earlier_challenger_did_is_no_fault_of_this_one() -> None:
    replica = Replica()
    before = Look(look(replica))
    replica.answered(300)
    replica.answered(900, by="m:1", status="500")

    stable, canary = sides(before, Look(look(replica)), 0.3)

    assert (canary.n_requests, canary.n_errors, stable.n_requests) == (300, 0, 0)


@pytest.mark.parametrize("n_requests", [200, 500, 2000])
def test_a_p99_that_is_above_its_limit_by_chance_sends_no_canary_back_and_one_that_is_slow_goes(
    n_requests: int,
) -> None:
    random = np.random.default_rng(0)

    def share_back(share_slow: float) -> float:
        ends = []
        for _ in range(1000):
            slow = [int(n) for n in random.binomial(n_requests, share_slow, 4)]
            steps = [Seen(n_requests, 0, 0.4 if n > n_requests / 100 else 0.2, n_slow=n) for n in slow]
            ends.append(any(judge(STABLE, step, LIMITS).judgement == "back" for step in steps))
        return float(np.mean(ends))

    assert share_back(0.005) <= 0.001, "under the limit"
    assert share_back(0.01) <= 0.01, "exactly at it"
    assert share_back(0.06) >= 0.99


def test_a_slow_canary_beside_a_slow_champion_is_no_canarys_fault() -> None:
    slow = Seen(9500, 0, 0.5, n_slow=900)

    assert judge(slow, Seen(500, 0, 0.5, n_slow=60), LIMITS).judgement == "hold"
    assert judge(STABLE, Seen(500, 0, 0.5, n_slow=60), LIMITS).judgement == "back"


def test_a_prometheus_is_asked_for_the_counters_of_a_job() -> None:
    asked: list[str] = []
    up: list[dict] = [{"metric": {"instance": "a"}, "value": [0, "1"]}]
    names = ("tabserve_variant_requests_total", "tabserve_variant_duration_seconds_bucket")
    labels = {"instance": "a", "variant": "challenger", "model_version": "m:2"}
    series = [
        {"metric": {**labels, "__name__": names[0], "status": "500"}, "value": [0, "12"]},
        {"metric": {**labels, "__name__": names[1], "le": "+Inf"}, "value": [0, "30"]},
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (expression,) = parse_qs(urlsplit(self.path).query)["query"]
            asked.append(expression)
            body = json.dumps({"data": {"result": up if expression.startswith("up{") else series}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        found = counts_in_prometheus(f"{url}/", 'the "job"', TAG)
        up.clear()
        with pytest.raises(OSError, match="is up, as Prometheus says"):
            counts_in_prometheus(url, "gone", TAG)

    assert found == {("a", names[0], "challenger", "500"): 12, ("a", names[1], "challenger", "+Inf"): 30}
    assert all(r'job="the \"job\""' in expression for expression in asked[:2])
