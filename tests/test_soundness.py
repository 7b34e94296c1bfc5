"""The claims of the proof of soundness, in small: quiet without drift, loud with it, deaf to one absurd value."""

import numpy as np
import pandas as pd
import pytest

from monitoring.soundness import evidently_default, ours, page, power, stationary
from monitoring.verdict import PSI_ALARM
from tabserve.reference import PROBABILITY_STEP, edges_of_probability

SEED = 1000  # not among those of the published run


@pytest.mark.parametrize("which", range(len(stationary.POPULATIONS)))
def test_without_drift_60_days_have_at_most_one_false_alarm(which: int) -> None:
    found = stationary.simulate(which, SEED, n_days=60, n_evidently=-1, sizes=(1000,))

    assert found.days[stationary.OURS, 1000] == 60
    assert found.alarms[stationary.OURS, 1000] <= 1, found.columns
    out_of_fold, in_sample, deciles_alone, _ = found.prediction_psi[0]
    assert out_of_fold < PSI_ALARM / 2
    assert max(in_sample, deciles_alone) > PSI_ALARM  # why neither is the reference


def test_a_shift_of_six_tenths_of_a_standard_deviation_is_found_within_two_windows() -> None:
    kinds = [power.NORMAL.name, "lognormal, in the logarithm", "heavy tails (t, 3 degrees)", "counts (Poisson, mean 3)"]

    found = power.of_columns(kinds, 2000, (0.0, 0.6), runs=20, evidently_runs=0, seed=SEED)

    assert {one.column for one in found if one.shift} == set(kinds)
    for one in found:
        if one.shift:
            assert one.within_2 >= 18 / 20, one
        else:
            assert one.within_4 == 0, one


def test_a_missing_share_that_rises_from_1_to_10_percent_is_found() -> None:
    (found,) = power.of_columns([power.MISSING.name], 2000, (1.0,), runs=20, evidently_runs=0, seed=SEED)

    assert found.within_4 >= 18 / 20


def test_one_absurd_value_neither_hides_a_shift_nor_makes_one() -> None:
    found = {one.what: one for one in power.outliers(runs=5, seed=SEED)}

    assert len(found) == 5
    for what, one in found.items():
        assert one.tabserve == (0 if what.startswith("no shift") else 1), what
    # What it does to the others, or the page would compare with something else than it says.
    assert found["no shift, 1e9 in each window"].evidently == 1
    assert found["shift of 1 sd, 1e9 in each window"].evidently_psi == 0


def test_evidentlys_statistics_called_directly_say_what_its_preset_says() -> None:
    random = np.random.default_rng(SEED)

    def rows(n: int, shift: float) -> pd.DataFrame:
        gaps = np.where(random.random(n) < 0.1, np.nan, random.normal(shift, 1, n))
        letters = random.choice(["a", "b", "c"], n, p=[0.5 - shift / 3, 0.3, 0.2 + shift / 3])
        return pd.DataFrame({"same": random.normal(0, 1, n), "gaps": gaps, "letter": letters})

    for n_reference in (800, 1500):  # either side of where Evidently changes its statistics
        frames = rows(n_reference, 0), rows(1000, 1.0)
        directly = evidently_default.drifted(*frames, ["letter"])
        assert directly == evidently_default.by_the_preset(*frames, ["letter"])
        assert directly[1:] == [True, True]


def test_edges_of_a_probability_keep_a_percentage_point_apart() -> None:
    random = np.random.default_rng(SEED)
    saturated = np.concatenate([random.random(400) / 1000, random.random(200), 1 - random.random(400) / 1000])

    edges = edges_of_probability(saturated)

    assert min(edges) == PROBABILITY_STEP
    assert max(edges) <= 1 - PROBABILITY_STEP + 1e-12
    assert np.diff(edges).min() >= PROBABILITY_STEP
    assert len(edges_of_probability(random.random(1000))) == 9  # where deciles are apart, they are the edges
    assert edges_of_probability(random.random(1000) / 1000) == (PROBABILITY_STEP,)


def test_counts_of_a_day_are_those_of_its_parts() -> None:
    counts = ours.cumulated({500: [(500, 0), (1, 499)], 1000: [(400, 100), (0, 500)]})

    assert counts == {500: [(500, 0), (1, 499)], 1000: [(900, 100), (1, 999)]}


def test_flags_two_days_running_are_those_of_the_same_column() -> None:
    days = [[True, False], [False, True], [True, True], [True, False]]

    assert evidently_default.alarms(days, running=1) == days
    assert evidently_default.alarms(days, running=2) == [[False, False], [False, False], [False, True], [True, False]]


def test_no_false_alarm_in_1000_days_is_at_most_three_tenths_in_100() -> None:
    assert page.upper_bound(0, 1000) == pytest.approx(0.29957, abs=1e-4)  # the rule of three
    assert page.upper_bound(3, 1000) == pytest.approx(0.7754, abs=1e-3)
