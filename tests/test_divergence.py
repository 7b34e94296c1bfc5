"""Divergences of counts, what chance alone would give, and when a number is an alarm."""

import math

import numpy as np
import pytest

from monitoring import verdict
from monitoring.verdict import Binned, Level, compare, confirmed
from tabserve.statistics.divergence import effective_rows, kl, kl_by_chance, psi, psi_by_chance, shares

# Half a row is added to each bin: these are shares of 0.5 and 0.5, and of 0.2 and 0.8.
HALVES, FIFTHS = (49.5, 49.5), (19.5, 79.5)


def judged(
    reference: tuple[float, ...], window: tuple[float, ...], *, is_prediction: bool = False, n_columns: int = 1
) -> verdict.Divergence:
    return compare(
        Binned(counts=reference, n_rows=sum(reference)),
        Binned(counts=window, n_rows=sum(window)),
        is_prediction=is_prediction,
        n_columns=n_columns,
    )


# --- divergences


def test_psi_and_kl_are_what_a_hand_computes() -> None:
    assert psi(HALVES, FIFTHS) == pytest.approx(0.3 * math.log(4))
    of_current = 0.2 * math.log(0.4) + 0.8 * math.log(1.6)
    of_reference = 0.5 * math.log(2.5) + 0.5 * math.log(0.625)
    assert kl(HALVES, FIFTHS) == pytest.approx(max(of_current, of_reference))
    assert of_current + of_reference == pytest.approx(psi(HALVES, FIFTHS))


def test_equal_shares_do_not_diverge_and_the_sides_may_be_swapped() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        some, others = random.integers(0, 100, 8).astype(float), random.integers(0, 100, 8).astype(float)
        assert psi(some, some) == kl(some, some) == 0
        assert psi(some, others) == pytest.approx(psi(others, some))
        assert kl(some, others) == pytest.approx(kl(others, some))
        assert psi(some, others) / 2 <= kl(some, others) + 1e-12
        assert kl(some, others) <= psi(some, others)


def test_an_empty_bin_is_half_a_row_and_no_number_is_infinite() -> None:
    assert shares((0, 9)).tolist() == [0.05, 0.95]
    assert psi((0, 2000), (1, 999)) == pytest.approx(0.0022, abs=0.0005)
    assert math.isfinite(psi((100, 0), (0, 100)))
    assert math.isfinite(kl((0, 0), (0, 0)))


def test_a_missing_share_that_falls_is_seen_as_one_that_rises() -> None:
    assert kl((1980, 20), (900, 100)) > 0.13
    assert kl((1800, 200), (990, 10)) > 0.13


def test_an_outlier_is_one_row_of_a_thousand() -> None:
    without = tuple([100.0] * 10)
    assert kl(without, (*without[:-1], 101.0)) < 0.001


def test_weighted_rows_are_worth_what_kish_says() -> None:
    assert effective_rows(4, 4) == 4
    assert effective_rows(3 + 1, 9 + 1) == pytest.approx(1.6)
    assert effective_rows(0, 0) == 0


# --- chance


@pytest.mark.parametrize(("n_reference", "n_current"), [(2000, 1000), (455, 5000), (455, 500)])
def test_chance_exceeds_its_bound_as_often_as_was_asked(n_reference: int, n_current: int) -> None:
    random = np.random.default_rng(1)
    runs, asked, n_bins = 4000, 0.05, 10
    reference = random.multinomial(n_reference, [1 / n_bins] * n_bins, runs)
    current = random.multinomial(n_current, [1 / n_bins] * n_bins, runs)
    psi_bound = psi_by_chance(n_bins, n_reference, n_current, asked)
    kl_bound = kl_by_chance(n_bins, n_reference, n_current, asked)

    beyond_psi = np.mean([psi(r, c) > psi_bound for r, c in zip(reference, current, strict=True)])
    beyond_kl = np.mean([kl(r, c) > kl_bound for r, c in zip(reference, current, strict=True)])

    assert beyond_psi == pytest.approx(asked, abs=0.015)
    assert beyond_kl == pytest.approx(asked, abs=0.02)  # the larger direction, so a little more


def test_a_side_without_rows_is_never_beyond_chance() -> None:
    assert psi_by_chance(10, 0, 1000, 0.001) == math.inf
    assert kl_by_chance(10, 1000, 0, 0.001) == math.inf


def test_the_bound_is_lower_with_more_rows_and_higher_with_more_columns() -> None:
    bounds = [judged((n / 2, n / 2), (n / 2, n / 2)).by_chance for n in (500, 5000, 50_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert (
        judged(HALVES, (500.0, 500.0), n_columns=100).by_chance > judged(HALVES, (500.0, 500.0), n_columns=1).by_chance
    )


# --- verdicts


@pytest.mark.parametrize(("is_prediction", "name", "measure"), [(False, "KL_ALARM", kl), (True, "PSI_ALARM", psi)])
def test_a_number_exactly_at_the_threshold_is_no_alarm(
    monkeypatch: pytest.MonkeyPatch, is_prediction: bool, name: str, measure
) -> None:
    reference, window = (5000.0, 5000.0), (400.0, 600.0)
    found = measure(reference, window)

    def level_at(threshold: float) -> Level:
        monkeypatch.setattr(verdict, name, threshold)
        return judged(reference, window, is_prediction=is_prediction).level

    assert level_at(found) == "warning"
    assert level_at(found * 0.999) == "alarm"
    assert level_at(found / verdict.WARNING) == "quiet"
    assert level_at(found / verdict.WARNING * 0.999) == "warning"


def test_499_rows_are_too_few_and_500_are_enough() -> None:
    assert judged((1000.0, 1000.0), (49.0, 450.0)).level == "too few rows"
    assert judged((1000.0, 1000.0), (50.0, 450.0)).level == "alarm"


def test_a_large_number_that_chance_would_give_is_quiet() -> None:
    few = judged((6.0, 14.0), (300.0, 300.0))
    assert few.kl < few.by_chance
    assert few.level == "quiet"
    many = judged((600.0, 1400.0), (300.0, 300.0))
    assert many.level == "warning"


def test_features_are_judged_by_kl_and_predictions_by_psi() -> None:
    reference, window = (1000.0, 1000.0), (270.0, 730.0)
    found = judged(reference, window)
    assert found.kl > verdict.KL_ALARM
    assert found.psi > verdict.PSI_ALARM
    rising = (990.0, 10.0), (910.0, 90.0)
    assert judged(*rising).kl > verdict.KL_ALARM > judged(*rising).psi / 2
    assert judged(*rising).level == "alarm"
    assert judged(*rising, is_prediction=True).level == "warning"


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["alarm"], "warning"),
        (["alarm", "alarm"], "alarm"),
        (["warning", "alarm"], "warning"),
        (["too few rows", "alarm"], "warning"),
        (["alarm", "quiet", "alarm"], "warning"),
        (["quiet", "alarm", "alarm"], "alarm"),
        (["alarm", "alarm", "quiet"], "quiet"),
        (["alarm", "warning"], "warning"),
        (["alarm", "too few rows"], "too few rows"),
    ],
)
def test_an_alarm_needs_two_windows_running(levels: list[Level], expected: Level) -> None:
    assert confirmed(levels) == expected
