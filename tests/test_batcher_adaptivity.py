"""How large batches get and how long callers wait while speed and load change: the real batcher in simulated time."""

import numpy as np
import pytest

from loadtest.simulation import (
    ANSWERED,
    DEADLINE,
    Arrival,
    BatchRecord,
    KeenClient,
    SimulatedModel,
    Simulation,
    poisson,
)
from tabserve.batcher import INLINE_SECONDS, TURN_SECONDS, WORTHWHILE
from tabserve.contract import MAX_ROWS
from tabserve.service_time import REMEMBERED_BATCHES

SETTLED = 2 * REMEMBERED_BATCHES  # batches after a change, when nothing from before it is remembered

MEDIUM = {"fixed": 0.010, "per_row": 0.0001}
MEDIUM_BUDGET, MEDIUM_CAP = 0.02, 100  # 10 ms + 100 · 0.1 ms
LIGHT = {"fixed": 30e-6, "per_row": 3.3e-6}  # about what the built-in model takes
HEAVY = {"fixed": 0.020, "per_row": 0.0004}
BUDGET = 0.05


def right_cap(fixed: float, per_row: float, budget: float) -> float:
    """What the cap is where the cost of a batch is known."""
    return min(MAX_ROWS, max(1.0, min((budget - fixed) / per_row, fixed / (WORTHWHILE * per_row))))


def caps(batches: list[BatchRecord]) -> np.ndarray:
    return np.array([batch.cap for batch in batches])


# --- the cap


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("rate", [1000, 4500, 6000])
def test_the_cap_settles_at_what_the_budget_allows(rate: float, is_warm: bool) -> None:
    warm_up = {} if is_warm else {"warm_up": ()}
    simulation = Simulation(SimulatedModel(**MEDIUM), budget_seconds=MEDIUM_BUDGET, **warm_up)

    settled = simulation.run(poisson(rate, 2.5, seed=1, timeout_seconds=1.0)).batches[SETTLED:]

    assert caps(settled).min() >= 0.95 * MEDIUM_CAP
    assert caps(settled).max() <= 1.05 * MEDIUM_CAP
    assert max(batch.seconds for batch in settled) <= 1.05 * MEDIUM_BUDGET


@pytest.mark.parametrize("rate", [2000, 6000])
def test_the_cap_holds_though_batches_of_one_size_take_10_percent_more_or_less(rate: float) -> None:
    model = SimulatedModel(**MEDIUM, noise=0.1, seed=1)
    simulation = Simulation(model, budget_seconds=MEDIUM_BUDGET)

    settled = simulation.run(poisson(rate, 3.5, seed=1, timeout_seconds=1.0)).batches[SETTLED:]

    assert caps(settled).min() >= MEDIUM_CAP / 1.5
    assert caps(settled).max() <= MEDIUM_CAP * 1.5


@pytest.mark.parametrize("number", [5, 40])
@pytest.mark.parametrize("rate", [500, 2000, 6000])
def test_one_batch_that_takes_a_hundred_times_as_long_does_not_move_the_cap(rate: float, number: int) -> None:
    model = SimulatedModel(**MEDIUM, slow_batches={number: 100.0})

    found = Simulation(model, budget_seconds=MEDIUM_BUDGET).run(poisson(rate, 3.0, seed=3)).batches

    assert found[number].seconds > 1.0
    assert len(found) > number + SETTLED
    assert caps(found).min() >= 0.95 * MEDIUM_CAP
    assert caps(found).max() <= 1.05 * MEDIUM_CAP


def with_slow_phase(model: dict, budget: float, arrivals: list[Arrival], since: float, until: float) -> Simulation:
    """Ten times slower for a while."""
    simulated = SimulatedModel(**model, slowness=lambda now: 10.0 if since <= now < until else 1.0)
    return Simulation(simulated, budget_seconds=budget).run(arrivals)


@pytest.mark.parametrize("rate", [300, 2000])
def test_the_cap_falls_in_a_slow_phase_and_comes_back_after_it(rate: float) -> None:
    arrivals = poisson(rate, 11.0, seed=1, timeout_seconds=1.0)

    found = with_slow_phase(MEDIUM, MEDIUM_BUDGET, arrivals, 1.0, 8.0).batches

    slow = [batch for batch in found if 1.0 <= batch.started < 8.0]
    after = [batch for batch in found if batch.started >= 8.0]
    assert slow[-1].cap == 1  # 100 ms are more than the budget, whatever the rows
    assert len(after) > SETTLED
    assert caps(after[SETTLED:]) == pytest.approx(MEDIUM_CAP, rel=0.1)


@pytest.mark.parametrize(
    ("model", "budget", "rate", "slow_seconds", "seconds_after"),
    [
        (MEDIUM, MEDIUM_BUDGET, 100, 2.0, 5.0),
        (MEDIUM, MEDIUM_BUDGET, 300, 3.0, 5.0),
        (HEAVY, BUDGET, 30, 0.75, 10.0),
        (LIGHT, BUDGET, 6_000, 0.03, 0.1),
        (LIGHT, BUDGET, 60_000, 0.03, 0.1),
    ],
)
def test_a_slow_phase_of_a_few_batches_leaves_nothing_behind(
    model: dict, budget: float, rate: float, slow_seconds: float, seconds_after: float
) -> None:
    """While speed changes, large batches may have been fast and small ones slow, which says nothing of their cost."""
    since = slow_seconds / 2
    until = since + slow_seconds
    arrivals = poisson(rate, until + seconds_after, seed=7, timeout_seconds=slow_seconds)

    found = with_slow_phase(model, budget, arrivals, since, until).batches

    late = [batch for batch in found if batch.started >= until + seconds_after / 2]
    assert len(late) > 0
    assert caps(late) == pytest.approx(right_cap(**model, budget=budget), rel=0.1)


def test_a_model_that_was_too_slow_for_the_deadline_is_asked_again_when_it_is_not() -> None:
    """For 5 s each batch takes longer than callers wait: they are refused, and must not be for ever."""
    arrivals = poisson(500, 30.0, seed=1, timeout_seconds=0.05)

    simulation = with_slow_phase(MEDIUM, MEDIUM_BUDGET, arrivals, 2.0, 7.0)

    assert simulation.rows_per_second(1.0, 2.0) > 450
    assert simulation.rows_per_second(29.0, 30.0) > 450


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("fixed", "noise"), [(0.0, 0.0), (1e-5, 0.0), (0.0, 0.1), (1e-5, 0.1)])
def test_batches_stay_small_where_each_row_costs_the_same_and_nothing_is_lost_by_it(
    fixed: float, noise: float, seed: int
) -> None:
    per_row = 0.001
    simulation = Simulation(SimulatedModel(fixed=fixed, per_row=per_row, noise=noise, seed=seed))

    simulation.run(poisson(2 / per_row, 3.0, seed=seed))

    n_rows = [batch.n_rows for batch in simulation.batches[SETTLED:]]
    assert np.median(n_rows) <= (1 if noise == 0 else 8)
    assert max(n_rows) <= (1 if noise == 0 else 32)
    assert simulation.rows_per_second(1.0, 3.0) >= 0.95 * MAX_ROWS / (fixed + per_row * MAX_ROWS)


# --- callers


@pytest.mark.parametrize("model", [MEDIUM, LIGHT])
def test_a_lone_request_waits_for_nothing(model: dict) -> None:
    found = Simulation(SimulatedModel(**model)).run([Arrival(0.5 * i) for i in range(20)]).latencies()

    assert found == pytest.approx(model["fixed"] + model["per_row"], rel=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize(("model", "budget"), [(MEDIUM, MEDIUM_BUDGET), (HEAVY, BUDGET)])
def test_at_twice_the_capacity_what_can_be_answered_in_time_is_and_the_rest_is_refused_at_once(
    model: dict, budget: float, noise: float
) -> None:
    cap, timeout, end = right_cap(**model, budget=budget), 10 * budget, 100 * budget
    peak = cap / (model["fixed"] + model["per_row"] * cap)
    simulation = Simulation(SimulatedModel(**model, noise=noise), budget_seconds=budget)

    simulation.run(poisson(2 * peak, end, seed=1, timeout_seconds=timeout))

    for request in simulation.requests:
        if request.outcome == DEADLINE:
            assert request.done - request.arrived > timeout
        elif request.outcome != ANSWERED:
            assert request.done - request.arrived <= INLINE_SECONDS  # who comes while a batch runs on the event loop
    assert simulation.rows_per_second(end / 4, end) >= 0.8 * peak


@pytest.mark.parametrize(("model", "end"), [(LIGHT, 0.1), (HEAVY, 40.0)])
def test_a_client_that_keeps_512_rows_open_makes_others_wait_no_more_than_three_times_as_long(
    model: dict, end: float
) -> None:
    """Half of what is left is asked for: the places in full batches beside one slice of 64 rows.

    A light engine is faster than the event loop: there a few turns of the loop are what others wait.
    """
    cap = right_cap(**model, budget=BUDGET)
    left = (cap - 64) / (model["fixed"] + model["per_row"] * cap)
    arrivals = poisson(0.5 * left, end, seed=2)

    without = Simulation(SimulatedModel(**model)).run(arrivals).latencies()
    beside = Simulation(SimulatedModel(**model)).run(arrivals, [KeenClient(MAX_ROWS, end)]).latencies()

    assert len(beside) == len(arrivals)
    assert np.quantile(beside, 0.99) <= max(3 * np.quantile(without, 0.99), 6 * TURN_SECONDS)
