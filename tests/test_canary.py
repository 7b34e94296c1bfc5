"""The canary that goes up by itself and back by itself: its judge, and the watch over a service's metrics."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from alert_programs import serving
from conftest import home_in_use
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from rollouts import Versions
from test_rollout_changes import home  # noqa: F401  # a fixture

from tabserve import cli, deployments
from tabserve.lifecycle import canary_watch, changes
from tabserve.lifecycle.canary_judge import Limits, Seen, judge
from tabserve.lifecycle.canary_watch import Look, Plan, counts_of, quantile, watch
from tabserve.lifecycle.comparison import Decision, Verdict
from tabserve.telemetry import DURATION_BUCKETS

GOOD = Seen(10_000, 10, 0.05)


# --- the judge


@pytest.mark.parametrize(
    ("canary", "stable", "judgement", "reason"),
    [
        (Seen(500, 1, 0.05), GOOD, "go", "0.20 % errors, p99 50 ms"),
        (Seen(500, 50, 0.05), GOOD, "back", "10.00 % of 500 requests failed, at most 1.00 % may"),
        (Seen(500, 1, 0.4), GOOD, "back", "p99 is 400 ms, at most 300 ms may be"),
        (Seen(30, 30, 0.05), GOOD, "back", "100.00 % of 30 requests failed"),
        (Seen(30, 1, 2.0), GOOD, "hold", "30 requests, 200 are needed"),
        (Seen(0, 0), GOOD, "hold", "0 requests"),
        (Seen(500, 7, 0.05), GOOD, "go", "1.40 % errors"),  # 5 are what the limit allows, 7 come by chance
        (Seen(500, 50, 0.05), Seen(9500, 950, 0.05), "hold", "and so is what is stable"),
        (Seen(500, 0, 0.4), Seen(9500, 0, 0.5), "hold", "and so is what is stable"),
        (Seen(500, 200, 0.05), Seen(9500, 950, 0.05), "back", "40.00 % of 500"),
        (Seen(500, 0, 0.05, 400, 320), Seen(9500, 0, 0.05, 4000, 3800), "back", "80.00 % of 400 labels"),
        (Seen(500, 0, 0.05, 400, 372), Seen(9500, 0, 0.05, 4000, 3800), "go", "0.00 % errors"),
        (Seen(500, 0, 0.05, 100, 10), Seen(9500, 0, 0.05, 4000, 3800), "go", "0.00 % errors"),
    ],
)
def test_the_judge_says_go_hold_or_back_and_why(canary: Seen, stable: Seen, judgement: str, reason: str) -> None:
    verdict = judge(stable, canary, Limits())

    assert verdict.judgement == judgement
    assert reason in "; ".join(verdict.reasons)


def test_a_canary_at_its_limit_is_called_bad_in_less_than_one_of_a_hundred_and_a_bad_one_is_found() -> None:
    random = np.random.default_rng(0)

    def share_back(error_share: float, n_requests: int = 1000) -> float:
        ends = []
        for _ in range(1000):
            steps = [Seen(n_requests, int(n), 0.05) for n in random.binomial(n_requests, error_share, 4)]
            ends.append(any(judge(GOOD, step, Limits()).judgement == "back" for step in steps))
        return float(np.mean(ends))

    assert share_back(0.005) == 0
    assert share_back(0.01) <= 0.01
    assert share_back(0.03) >= 0.99


def test_the_quantile_is_that_of_prometheus() -> None:
    inf = float("inf")
    assert quantile(0.5, {0.1: 10, 0.2: 30, inf: 40}) == pytest.approx(0.15)
    assert quantile(0.99, {0.1: 10, 0.2: 30, inf: 40}) == 0.2, "beyond the last bound it is that"
    assert quantile(0.99, {0.1: 0, inf: 0}) is None
    assert quantile(0.99, {}) is None


# --- the watch


@dataclass
class Service:
    """A service whose counters a test drives, at a real /metrics; each look at it is an observation later."""

    behaves: Callable[[int], tuple[int, int, float]]
    """Look to requests of the canary, errors among them, and the latency of all in seconds."""
    tag: str
    looks: int = 0
    is_away: bool = False
    url: str = ""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        labels = ["model_version", "variant"]
        self.requests = Counter("tabserve_variant_requests", "", [*labels, "status"], registry=self.registry)
        self.duration = Histogram(
            "tabserve_variant_duration_seconds", "", labels, registry=self.registry, buckets=DURATION_BUCKETS
        )

    def exposition(self) -> bytes:
        n_requests, n_errors, seconds = self.behaves(self.looks)
        self.looks += 1
        for _ in range(1000):
            self.duration.labels("m:1", "champion").observe(0.01)
        self.requests.labels("m:1", "champion", "200").inc(1000)
        for _ in range(n_requests):
            self.duration.labels(self.tag, "challenger").observe(seconds)
        self.requests.labels(self.tag, "challenger", "500").inc(n_errors)
        self.requests.labels(self.tag, "challenger", "200").inc(n_requests - n_errors)
        return generate_latest(self.registry)


@pytest.fixture
def service(versions: Versions) -> Iterator[Service]:
    found = Service(lambda _: (300, 0, 0.02), versions.small)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if found.is_away else 200)
            self.end_headers()
            self.wfile.write(b"" if found.is_away else found.exposition())

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url:
        found.url = f"{url}/metrics"
        yield found


def canary(versions: Versions, service: Service, *more: str) -> list[str]:
    steps = ["--steps", "5,50,100", "--every", "1s", "--no-labels"]
    return ["canary", versions.small, "--metrics", service.url, *steps, *more]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An observation is over as soon as it has begun; the service answers as if it had lasted."""
    seconds_of = canary_watch.Plan.__init__

    def hurried(self: Plan, tag: str, steps: list[float], _seconds: float, *more: object) -> None:
        seconds_of(self, tag, steps, 0.001, *more)

    monkeypatch.setattr(canary_watch.Plan, "__init__", hurried)


@pytest.mark.usefixtures("at_once")
def test_a_good_canary_goes_up_step_by_step_and_is_promoted(home: Path, versions: Versions, service: Service) -> None:
    changes.promote(home, versions.first, "the first one")

    assert cli.main(canary(versions, service, "--by", "header:x-user", "--needs", "nothing")) == 0

    done = deployments.history(home)[1:]
    assert [change.action for change in done] == ["canary", "canary", "canary", "canary_promote"]
    shares = [change.after.challenger.share for change in done[:-1] if change.after.challenger]
    assert shares == [5, 50, 100]
    assert {c.after.challenger.by for c in done[:-1] if c.after.challenger} == {"header:x-user"}
    assert changes.current(home).champion == versions.small
    assert "canary passed 5, 50, 100 %" in done[-1].why


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("behaves", "reason"),
    [
        (lambda look: (300, 30 if look >= 3 else 0, 0.02), "10.00 % of 300 requests failed"),
        (lambda look: (300, 0, 0.9 if look >= 3 else 0.02), "p99 is "),
        (lambda look: (0 if look >= 3 else 300, 0, 0.02), "nothing could be said in 6 observations: 0 requests"),
    ],
    ids=["failing", "slow", "without requests"],
)
def test_a_canary_that_gets_bad_at_the_second_step_goes_back_by_itself(
    home: Path, versions: Versions, service: Service, behaves: Callable, reason: str
) -> None:
    service.behaves = behaves
    changes.promote(home, versions.first, "the first one")

    assert cli.main(canary(versions, service)) == 1

    done = deployments.history(home)
    assert [change.action for change in done] == ["promote", "canary", "canary", "stop"]
    assert "canary at 50 %: " in done[-1].why
    assert reason in done[-1].why
    assert changes.current(home).challenger is None
    assert changes.current(home).champion == versions.first


@pytest.mark.usefixtures("at_once")
def test_a_canary_stays_at_its_last_step_where_labels_do_not_show_it_better_and_nobody_said_that_they_need_not(
    home: Path, versions: Versions, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tabserve.cli")
    changes.promote(home, versions.first, "the first one")

    assert cli.main(canary(versions, service, "--log-url", (tmp_path / "log").as_uri())) == 3

    challenger = changes.current(home).challenger
    assert challenger is not None
    assert (challenger.model, challenger.share) == (versions.small, 100)
    assert "canary passed 5, 50, 100 %: 0.00 % errors" in caplog.text
    assert "asked for better, found inconclusive: 0 labelled rows, at least 2,000 are needed" in caplog.text
    assert f"`tabserve promote {versions.small} --why TEXT`" in caplog.text


def test_a_canary_that_could_not_be_proved_in_the_end_is_not_begun(
    home: Path, versions: Versions, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    changes.promote(home, versions.first, "the first one")

    assert cli.main(canary(versions, service, "--log-url", "null:")) == 2

    assert "nothing is kept: the address of the prediction log is null:" in caplog.text
    assert changes.current(home).challenger is None
    assert service.looks == 0


@pytest.mark.parametrize(("verdict", "action"), [("better", "canary_promote"), ("worse", "stop")])
def test_what_labelled_rows_say_after_the_last_step_decides_and_stands_in_the_history(
    home: Path, versions: Versions, verdict: Verdict, action: str
) -> None:
    changes.promote(home, versions.first, "the first one")
    n_requests = iter(range(0, 10_000, 1000))

    def look() -> Look:
        return Look({("r", canary_watch.REQUESTS, "challenger", "200"): float(next(n_requests))})

    ended = watch(
        home,
        Plan(versions.small, [100], 0.001),
        look,
        threading.Event(),
        lambda: Decision("better", verdict, "2 points"),
    )

    assert ended is not None
    assert ended.is_promoted == (verdict == "better")
    last = deployments.history(home)[-1]
    assert (last.action, last.why) == (action, ended.why)
    assert last.why.endswith(f"; asked for better, found {verdict}: 2 points")


@pytest.mark.usefixtures("at_once")
def test_a_service_that_does_not_answer_is_waited_for_and_then_given_up(
    home: Path, versions: Versions, service: Service
) -> None:
    service.is_away = True
    changes.promote(home, versions.first, "the first one")

    assert cli.main(canary(versions, service)) == 1
    assert "the service did not answer" in deployments.history(home)[-1].why


def test_whoever_stops_a_canary_meanwhile_has_the_last_word(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")

    def look() -> Look:
        if len(deployments.history(home)) == 2:
            changes.stop(home, "enough")
        return Look({})

    assert watch(home, Plan(versions.small, [5, 100], 0.001), look, threading.Event()) is None
    assert changes.current(home) == deployments.history(home)[0].after


def test_who_ends_the_watch_leaves_the_canary_at_its_share(home: Path, versions: Versions) -> None:
    changes.promote(home, versions.first, "the first one")
    is_over = threading.Event()
    is_over.set()

    assert watch(home, Plan(versions.small, [5, 100], 60), lambda: Look({}), is_over) is None
    challenger = changes.current(home).challenger
    assert challenger is not None
    assert challenger.share == 5


def test_metrics_that_are_none_are_a_fault_that_is_said(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"\xff<html>")

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as url, home_in_use(tmp_path), pytest.raises(ValueError, match="."):
        counts_of([url], "m:2")
