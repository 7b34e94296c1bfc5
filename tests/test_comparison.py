"""The verdict on a challenger: its tests against numbers by hand and scikit-learn, and how often it is wrong."""

from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score, root_mean_squared_error

from monitoring.soundness import challengers, promotion
from tabserve.lifecycle import bootstrap
from tabserve.lifecycle.comparison import LEAST_ROWS, Comparison, Decision, Need, Verdict, compare, decide
from tabserve.lifecycle.effects import UndefinedMetricError, measured
from tabserve.lifecycle.guards import calibration_of, groups_of
from tabserve.lifecycle.paired_tests import Discordant, discordant, interval, mcnemar, worse_by
from tabserve.lifecycle.pairs import Pairs
from tabserve.statistics.quality import area_under_curve

SEED = 1000  # not among those of the published run
MANY = 20_000


def two_classes(n_rows: int, difference: float = 0.0, share: float = 0.08, seed: int = SEED) -> Pairs:
    """With exactly so many discordant rows as that says."""
    random = np.random.default_rng(seed)
    only_challenger, only_champion = (round(n_rows * (share + sign * difference) / 2) for sign in (1, -1))
    kind = np.zeros(n_rows)
    kind[:only_challenger], kind[only_challenger : only_challenger + only_champion] = 1, 2
    kind[-n_rows // 20 :] = 3
    random.shuffle(kind)
    true = random.integers(0, 2, n_rows)
    said = [np.where(right, true, 1 - true) for right in (np.isin(kind, (0, 2)), np.isin(kind, (0, 1)))]
    scores = [np.where(one[:, None] == np.arange(2), 0.9, 0.1) for one in said]
    return Pairs("binary", true, scores[0], scores[1], np.ones(n_rows))


def with_groups(pairs: Pairs, groups: np.ndarray) -> Pairs:
    return replace(pairs, segments={"city": groups.astype(object)})


# --- the tests, by hand


def test_mcnemars_exact_test_is_the_one_computed_by_hand() -> None:
    # P(X >= 10) of 12 fair coins is (66 + 12 + 1) / 4096.
    assert mcnemar(Discordant(1000, 10, 2)) == pytest.approx(2 * 79 / 4096)
    assert mcnemar(Discordant(1000, 2, 10)) == mcnemar(Discordant(50, 10, 2))
    assert mcnemar(Discordant(1000, 5, 5)) == mcnemar(Discordant(1000, 0, 0)) == 1
    assert mcnemar(Discordant(1000, 5, 0)) == pytest.approx(2 / 32)


def test_the_score_test_is_tangos_with_half_a_row_less() -> None:
    # Tango's (1998) first example: 44 patients, one discordant, margin 0.1: Z = 1.709, which is 3.4 / sqrt(3.96).
    p_value = worse_by(0.1, Discordant(44, 0, 1))

    assert pytest.approx(1.709, abs=5e-4) == 3.4 / 3.96**0.5
    assert p_value == pytest.approx(1 - NormalDist().cdf((3.4 - 0.5) / 3.96**0.5))


def test_the_interval_ends_where_its_own_test_does_and_holds_the_difference() -> None:
    rows = Discordant(2000, 90, 60)
    low, high = interval(rows, 0.10)

    assert low < rows.difference < high
    assert worse_by(-low, rows) == pytest.approx(0.05)
    assert interval(Discordant(2000, 60, 90), 0.10) == pytest.approx((-high, -low))
    assert interval(Discordant(2000, 0, 0))[0] == pytest.approx(-interval(Discordant(2000, 0, 0))[1]) != 0


def test_equal_weights_change_nothing_and_unequal_ones_count_as_fewer_rows() -> None:
    random = np.random.default_rng(SEED)
    champion, challenger = (random.random(MANY) < share for share in (0.90, 0.91))
    one = discordant(champion, challenger, np.ones(MANY))
    seven = discordant(champion, challenger, np.full(MANY, 7.0))
    weights = np.where(random.random(MANY) < 0.5, 1.0, 10.0)
    unequal = discordant(champion, challenger, weights)

    assert one.n_rows == pytest.approx(MANY)
    assert one.only_challenger == pytest.approx(np.sum(challenger & ~champion))
    assert (seven.n_rows, seven.only_champion) == pytest.approx((one.n_rows, one.only_champion))
    # Weights that have nothing to do with the answers: Kish's (1965) number.
    assert unequal.n_rows == pytest.approx(weights.sum() ** 2 / np.sum(weights**2), rel=0.05)
    assert unequal.difference == pytest.approx(
        np.average(challenger, weights=weights) - np.average(champion, weights=weights)
    )


# --- the bootstrap


def test_the_metrics_that_are_bootstrapped_are_scikit_learns_with_weights_and_ties() -> None:
    random = np.random.default_rng(SEED)
    weights = random.choice([1.0, 10.0], 500)
    for n_classes in (2, 3):
        true = random.integers(0, n_classes, 500)
        scores = [random.dirichlet(np.full(n_classes, 1.0), 500).round(1) for _ in range(2)]
        scores = [(each + 0.01) / (each + 0.01).sum(axis=1, keepdims=True) for each in scores]
        pairs = Pairs("multiclass", true, scores[0], scores[1], weights)
        areas = [
            roc_auc_score(true, s[:, 1], sample_weight=weights)
            if n_classes == 2
            else roc_auc_score(true, s, multi_class="ovr", sample_weight=weights)
            for s in scores
        ]
        assert bootstrap.roc_auc(pairs)(weights[None])[0] == pytest.approx(areas)
        losses = [log_loss(true, s, sample_weight=weights) for s in scores]
        assert bootstrap.log_loss(pairs)(weights[None])[0] == pytest.approx(losses)
    values = random.standard_normal((3, 500))
    pairs = Pairs("regression", values[0], values[1], values[2], weights)
    errors = [root_mean_squared_error(values[0], values[n], sample_weight=weights) for n in (1, 2)]
    assert bootstrap.rmse(pairs)(weights[None])[0] == pytest.approx(errors)


def test_the_bootstrap_of_an_area_has_the_deviation_of_delong_and_the_same_rows_the_same_answer() -> None:
    pairs = challengers.of_area(np.random.default_rng(SEED), 2000, 0.0, correlation=0.8)
    found = measured(pairs, "roc_auc")
    influences = [
        area_under_curve(pairs.true, scores, pairs.weights)[1] for scores in (pairs.champion, pairs.challenger)
    ]

    assert found.differences is not None
    assert found.differences.std() == pytest.approx(np.sum((influences[1] - influences[0]) ** 2) ** 0.5, rel=0.08)
    assert measured(pairs, "roc_auc").at_least == found.at_least


def test_an_area_without_rows_of_a_class_and_a_share_of_no_loss_are_refused() -> None:
    pairs = two_classes(3000)
    with pytest.raises(UndefinedMetricError, match="10 rows of each class, one has 0"):
        compare(replace(pairs, true=np.zeros(3000, int)), "roc_auc")
    values = np.arange(3000.0)
    with pytest.raises(UndefinedMetricError, match="rmse of 0"):
        compare(Pairs("regression", values, values, values + 1, np.ones(3000)))


# --- the verdict


@pytest.mark.parametrize(
    ("n_rows", "difference", "share", "verdict"),
    [
        (5000, 0.02, 0.08, "better"),
        (5000, 0.0, 0.04, "not worse"),
        (5000, -0.03, 0.08, "worse"),
        (2000, 0.0, 0.30, "inconclusive"),
        (LEAST_ROWS - 1, 0.03, 0.04, "inconclusive"),
        (400_000, -0.002, 0.04, "not worse"),  # surely worse, by what does not matter
    ],
)
def test_the_verdict_is_better_not_worse_worse_or_inconclusive(
    n_rows: int, difference: float, share: float, verdict: str
) -> None:
    found = compare(two_classes(n_rows, difference, share))

    assert found.verdict == verdict, found.because
    if n_rows < LEAST_ROWS:
        assert found.because == "1,999 labelled rows, at least 2,000 are needed"
        assert found.effect is None


def test_what_was_asked_for_decides_and_the_decision_says_what_that_was() -> None:
    def exit_codes(need: Need) -> list[int]:
        verdicts: tuple[Verdict, ...] = ("better", "not worse", "worse", "inconclusive")
        return [decide(Comparison(verdict, "because", 5000), need).exit_code for verdict in verdicts]

    assert exit_codes("not worse") == [0, 0, 1, 3]
    assert exit_codes("better") == [0, 3, 1, 3]
    assert str(Decision("better", "not worse", "so it is")) == "asked for better, found not worse: so it is"
    assert not Decision("better", "not worse", "").is_met


def test_a_group_that_loses_stops_a_model_that_is_better_as_a_whole_and_a_small_group_does_not() -> None:
    pairs = two_classes(8000, 0.03)
    loses = np.flatnonzero(pairs.is_right[0] & pairs.is_right[1])[:40]
    challenger = pairs.challenger.copy()
    challenger[loses] = challenger[loses, ::-1]
    pairs = replace(pairs, challenger=challenger)
    groups = np.full(8000, "Oslo", dtype=object)
    others = np.setdiff1d(np.flatnonzero(pairs.is_right[0] == pairs.is_right[1]), loses)
    groups[loses] = groups[others[:260]] = "Bergen"
    small = groups.copy()
    small[others[:150]] = "Oslo"

    stopped, passed = compare(with_groups(pairs, groups)), compare(with_groups(pairs, small))

    assert stopped.verdict == "worse"
    assert stopped.because.startswith("in city = Bergen (300 rows) accuracy")
    assert "as a whole: accuracy" in stopped.because
    assert passed.verdict == "better"
    assert [group.value for group in passed.groups] == ["Oslo"]


def test_a_model_as_good_in_each_of_forty_groups_is_stopped_in_at_most_one_case_of_twenty() -> None:
    random, stopped, runs = np.random.default_rng(SEED), 0, 150
    draw = partial(challengers.of_accuracy, discordant=0.08)
    for _ in range(runs):
        pairs = draw(random, 12_000, 0.0)
        stopped += any(group.is_worse for group in groups_of(with_groups(pairs, random.integers(0, 40, 12_000))))

    assert stopped <= 0.05 * runs


def test_probabilities_that_became_dishonest_stop_a_model_that_says_the_same() -> None:
    pairs = two_classes(5000, 0.0, 0.02)
    pairs = replace(pairs, champion=np.where(pairs.champion > 0.5, 0.7, 0.3))
    pairs = replace(pairs, challenger=np.where(pairs.challenger > 0.5, 0.7, 0.3))
    unsure = np.where(pairs.challenger > 0.5, 0.51, 0.49)
    found = compare(replace(pairs, challenger=unsure))

    assert found.verdict == "worse"
    assert found.because.startswith("the probabilities are worse, Brier 0.1")
    calibration = calibration_of(pairs)
    assert calibration is not None
    assert not calibration.is_worse


def test_a_regression_is_judged_by_its_rmse_as_a_share_of_the_champions() -> None:
    draw = partial(challengers.of_errors, correlation=0.95, degrees=np.inf)
    better, worse = (compare(draw(np.random.default_rng(SEED), 5000, difference)) for difference in (0.05, -0.05))

    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.effect is not None
    assert better.effect.difference == pytest.approx(0.05, abs=0.02)
    assert better.calibration is None
    assert "%" in better.because


# --- how often it is wrong


@pytest.mark.parametrize("n_rows", [2000, 5000])
@pytest.mark.parametrize("share", [0.012, 0.04, 0.16, 0.30])
def test_of_all_outcomes_an_equal_model_is_better_in_5_percent_and_a_worse_one_hardly_ever(
    n_rows: int, share: float
) -> None:
    equal, worse = (promotion.computed(n_rows, share, difference) for difference in (0.0, -0.01))

    assert sum(equal.verdicts.values()) == pytest.approx(1, abs=1e-6)
    assert equal.share("better") <= 0.05
    assert worse.share("better", "not worse") <= 0.05
    assert worse.share("better") <= 0.001
    assert equal.share("better", "not worse") > (0.15 if n_rows == 2000 else 0.3)  # or nobody would ever pass


@pytest.mark.parametrize(
    ("part", "setting"), [("rmse", "normal errors, correlated 0.95"), ("roc_auc", "scores correlated 0.80")]
)
def test_of_simulated_rows_a_model_that_is_one_percent_worse_is_hardly_ever_not_worse(part: str, setting: str) -> None:
    found = promotion.simulated(part, setting, 2000, -0.01, runs=60, resamples=200, seed=SEED)

    # 8 of 60 or more would be seen in 1.3 % of cases at 5 %.
    assert found.verdicts.get("better", 0) == 0
    assert found.verdicts.get("not worse", 0) < 8
