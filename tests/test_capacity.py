"""The search for the highest rate within the objectives, and what an autoscaler makes of measured CPU."""

import subprocess
import sys

import pytest
from conftest import ROOT

from loadtest import slo
from loadtest.benchmark import autoscaling
from loadtest.benchmark.autoscaling import CpuCurve
from loadtest.benchmark.capacity import Step, in_turn, keeps_up, search
from loadtest.benchmark.load import Measured


class Service:
    """Meets the objectives up to a rate; from another on only for a few seconds, because its queue grows slowly."""

    def __init__(self, *, up_to: float, for_long_up_to: float | None = None, stalls_at: tuple[int, ...] = ()) -> None:
        self.up_to, self.for_long_up_to = up_to, for_long_up_to or up_to
        self.stalls_at = stalls_at
        self.rates: list[float] = []

    def __call__(self, _name: str, rate: float, seconds: float) -> Step:
        self.rates.append(rate)
        limit = self.up_to if seconds == 1 else self.for_long_up_to
        is_met = rate <= limit and len(self.rates) not in self.stalls_at
        return Step(rate, min(rate, limit), 1.0, 1.0, 1.0, 0, 0, [slo.Finding(is_met=is_met, sentence="")])


def found(service: Service, above: float = 13_000) -> float:
    best = in_turn({"it": search(above=above, seconds=1, precision=0.03)}, service)["it"]
    assert best is not None
    return best.rate


def test_the_highest_rate_is_found_to_the_precision_that_was_asked_for() -> None:
    for limit in (900, 5_000, 9_999, 12_900):
        assert limit * 0.96 <= found(Service(up_to=limit)) <= limit


def test_a_limit_above_what_anybody_expected_is_found_too() -> None:
    assert 40_000 * 0.96 <= found(Service(up_to=40_000), above=5_000) <= 40_000


def test_a_stall_of_the_machine_does_not_decide() -> None:
    every_fifth = tuple(range(2, 100, 5))

    assert 9_000 * 0.96 <= found(Service(up_to=9_000, stalls_at=every_fifth)) <= 9_000


def test_what_holds_only_for_seconds_is_not_the_capacity() -> None:
    service = Service(up_to=10_000, for_long_up_to=9_000)

    assert 9_000 * 0.94 <= found(service) <= 9_000


def test_a_queue_that_grows_is_not_kept_up_with_however_short_it_is_yet() -> None:
    steady = Measured(duration=1.0, in_time=990, latencies=[0.01] * 1000)
    growing = Measured(duration=1.0, in_time=900, latencies=[0.1] * 1000)

    assert keeps_up(steady).is_met
    assert not keeps_up(growing).is_met
    assert "0.11 s behind at the end of 1.0 s" in keeps_up(growing).sentence


def test_a_service_that_meets_the_objectives_at_no_rate_has_no_capacity() -> None:
    assert in_turn({"it": search(above=1_000, seconds=1, precision=0.03)}, Service(up_to=0)) == {"it": None}


def test_services_are_searched_in_turn_so_that_a_slow_minute_falls_on_all() -> None:
    services = {"a": Service(up_to=9_000), "b": Service(up_to=3_000)}
    asked: list[str] = []

    def attempt(name: str, rate: float, seconds: float) -> Step:
        asked.append(name)
        return services[name](name, rate, seconds)

    best = in_turn({name: search(above=13_000, seconds=1, precision=0.03) for name in services}, attempt)

    for name, limit in (("a", 9_000), ("b", 3_000)):
        step = best[name]
        assert step is not None
        assert limit * 0.96 <= step.rate <= limit
    assert asked[:8] == ["a", "b"] * 4


# A service with batches: cheap requests where there are many.
CURVE = CpuCurve([(1_000, 0.25), (5_000, 0.6), (10_000, 0.9), (12_000, 1.0)])


@pytest.mark.parametrize(
    ("rate", "cores"), [(0, 0), (500, 0.125), (1_000, 0.25), (3_000, 0.425), (12_000, 1), (99_999, 1)]
)
def test_cpu_is_read_off_the_measured_curve(rate: float, cores: float) -> None:
    assert CURVE.cores(rate) == pytest.approx(cores)


def test_the_rate_at_a_share_of_the_cpu_is_read_off_the_same_curve() -> None:
    assert CURVE.rate(0.65) == pytest.approx(5_000 + 5_000 / 6)
    assert CURVE.rate(0.125) == pytest.approx(500)
    assert CURVE.rate(2.0) == 12_000


def test_replicas_are_rounded_up_and_never_fewer_than_two() -> None:
    assert [autoscaling.needed(rate, 5_000) for rate in (100, 10_000, 10_001)] == [2, 2, 3]


def test_the_autoscaler_goes_up_until_cpu_is_near_its_target() -> None:
    steps = autoscaling.autoscaled(100_000, CURVE)

    assert steps[:3] == [2, 4, 7]  # at most 1 / 0.65 times as many a step: a core has no more than 100 % to show
    assert abs(CURVE.cores(100_000 / steps[-1]) / autoscaling.TARGET - 1) <= autoscaling.TOLERANCE + 0.05
    assert steps == sorted(steps)


def test_the_autoscaler_leaves_a_quiet_service_at_two_and_goes_down_to_them() -> None:
    assert autoscaling.autoscaled(100, CURVE) == [2]
    assert autoscaling.autoscaled(100, CURVE, replicas=10)[-1] == 2


@pytest.mark.alone
def test_the_search_runs_on_a_real_replica_with_batching_and_without() -> None:
    command = [sys.executable, "-m", "loadtest.benchmark.capacity", "--seconds", "0.2"]

    done = subprocess.run(
        [*command, "--precision", "0.3", "--slo", "p99=5s"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stderr
    assert "| tabserve |" in done.stdout
    assert "| tabserve, batching off |" in done.stdout
    assert "| 65% | " in done.stdout
    assert "Objectives: p99 5000 ms, errors 1 %." in done.stdout


def test_objectives_that_cannot_be_read_end_the_search_with_one_sentence() -> None:
    command = [sys.executable, "-m", "loadtest.benchmark.capacity", "--slo", "p99=fast"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert done.stderr.startswith("capacity: --slo has p99=fast: expected p and a percentile with a time")
    assert len(done.stderr.splitlines()) == 1
