"""The statistics of labelled rows: against numbers by hand, scikit-learn, training, and simulated truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from monitoring.live.verdict import Finding, estimate_holds, judge, worse_than_others
from tabserve.contract import Contract, Feature
from tabserve.statistics.intervals import Average, Interval, difference, effective, linearised, wilson
from tabserve.statistics.quality import (
    Counts,
    Measured,
    area_under_curve,
    calibration_error,
    mean_error,
    of_counts,
    of_scores,
    of_values,
)
from tabserve.training.evaluation import measure

RUNS = 300
BINARY, THREE = ("no", "yes"), ("basic", "plus", "pro")
A_FEATURE = (Feature(name="x", kind="number"),)


def counts_of(true: np.ndarray, said: np.ndarray, weights: np.ndarray, n_classes: int) -> Counts:
    parts = [np.zeros((n_classes, n_classes)) for _ in range(3)]
    for part, values in zip(parts, (np.ones(len(true)), weights, weights**2), strict=True):
        np.add.at(part, (true, said), values)
    return Counts(*parts)


def everything(true: np.ndarray, scores: np.ndarray, weights: np.ndarray, classes: tuple[str, ...]) -> Measured:
    counted = of_counts(counts_of(true, scores.argmax(axis=1), weights, len(classes)), classes)
    scored = of_scores(true, scores, weights, classes)
    return Measured(counted.metrics + scored.metrics, counted.left_out + scored.left_out)


def values(measured: Measured) -> dict[str, float]:
    return {metric.name: metric.value for metric in measured.metrics}


def honest_rows(n_rows: int, n_classes: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels that come true as often as the scores say."""
    scores = generator.dirichlet(np.full(n_classes, 0.5), n_rows)
    drawn = generator.random(n_rows)[:, None] > scores.cumsum(axis=1)
    return drawn.sum(axis=1).clip(0, n_classes - 1), scores


# --- numbers


def test_metrics_of_four_rows_are_those_computed_by_hand() -> None:
    true = np.array([0, 0, 1, 1])
    yes = np.array([0.1, 0.6, 0.7, 0.9])
    found = values(everything(true, np.stack([1 - yes, yes], axis=1), np.ones(4), BINARY))

    assert found["accuracy"] == 0.75
    assert found["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["roc_auc"] == 1.0
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.09 + 0.01) / 4)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.9]).mean())
    # Each row in a bin of its own but the two that are 0.9 sure: |0.0 - 0.6|, |1 - 0.7|, 2 * |1 - 0.9|.
    assert found["ece"] == pytest.approx((0.6 + 0.3 + 0.2) / 4)


def test_errors_of_three_rows_are_those_computed_by_hand() -> None:
    found = values(of_values(np.array([1.0, 2.0, 6.0]), np.array([2.0, 2.0, 4.0]), np.ones(3)))

    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx((5 / 3) ** 0.5)
    assert found["bias"] == pytest.approx(-1 / 3)
    assert found["r2"] == pytest.approx(1 - 5 / 14)


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_what_training_calls_by_a_name_is_the_same_number_here(classes: tuple[str, ...]) -> None:
    contract = Contract(
        features=A_FEATURE, task="binary" if classes is BINARY else "multiclass", target="y", classes=classes
    )
    true, scores = honest_rows(500, len(classes), np.random.default_rng(1))
    at_training = measure(contract, true, scores)

    found = values(everything(true, scores, np.ones(500), classes))
    assert set(found) - set(at_training) == {"ece"}
    assert {name: found[name] for name in set(found) & set(at_training)} == pytest.approx(
        {name: at_training[name] for name in set(found) & set(at_training)}
    )


def test_errors_of_a_regression_are_those_of_training_too() -> None:
    contract = Contract(features=A_FEATURE, task="regression", target="y")
    generator = np.random.default_rng(2)
    true = generator.normal(size=200)
    predicted = true + generator.normal(0.1, 0.5, 200)

    found = values(of_values(true, predicted, np.ones(200)))
    assert {name: found[name] for name in ("mae", "rmse", "r2")} == pytest.approx(measure(contract, true, predicted))


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_a_row_that_counts_twice_is_as_two_rows(classes: tuple[str, ...]) -> None:
    generator = np.random.default_rng(3)
    true, scores = honest_rows(200, len(classes), generator)
    twice = generator.integers(1, 3, 200)
    weighted = everything(true, scores, twice.astype(float), classes)
    repeated = everything(np.repeat(true, twice), np.repeat(scores, twice, axis=0), np.ones(twice.sum()), classes)
    assert values(weighted) == pytest.approx(values(repeated))

    predicted = scores[:, 0]
    of_weights = values(of_values(true.astype(float), predicted, twice.astype(float)))
    of_rows = values(of_values(np.repeat(true, twice).astype(float), np.repeat(predicted, twice), np.ones(twice.sum())))
    assert of_weights == pytest.approx(of_rows)


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_that_all_rows_count_five_times_makes_no_interval_narrower(classes: tuple[str, ...]) -> None:
    true, scores = honest_rows(200, len(classes), np.random.default_rng(4))
    once, often = (everything(true, scores, np.full(200, weight), classes) for weight in (1.0, 5.0))
    for one, other in zip(once.metrics, often.metrics, strict=True):
        assert (one.interval.low, one.interval.high) == pytest.approx((other.interval.low, other.interval.high))


def test_accuracy_and_f1_of_counts_are_those_of_the_rows() -> None:
    generator = np.random.default_rng(5)
    true, said, weights = generator.integers(0, 3, 300), generator.integers(0, 3, 300), generator.uniform(1, 9, 300)
    found = values(of_counts(counts_of(true, said, weights, 3), THREE))
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(true, said, sample_weight=weights),
            "f1_macro": f1_score(true, said, average="macro", sample_weight=weights),
        }
    )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_area_under_the_curve_is_scikit_learns_with_ties_and_weights(n_classes: int) -> None:
    generator = np.random.default_rng(6)
    true, scores = honest_rows(400, n_classes, generator)
    rough = scores.round(1)
    rough[:, -1] += 1 - rough.sum(axis=1)
    weights = generator.uniform(1, 5, 400)
    area, influences = area_under_curve(true, rough, weights)
    given = rough[:, 1] if n_classes == 2 else rough
    assert area == pytest.approx(roc_auc_score(true, given, multi_class="ovr", sample_weight=weights))
    assert influences.sum() == pytest.approx(0, abs=1e-12)


def test_the_spread_of_an_area_is_delongs() -> None:
    """Of the placements by hand: positives beat 2/3, 1 and 1 of the negatives, these lose to 1, 1 and 2/3."""
    true = np.array([0, 0, 0, 1, 1, 1])
    yes = np.array([0.1, 0.2, 0.5, 0.4, 0.6, 0.7])
    area, influences = area_under_curve(true, np.stack([1 - yes, yes], axis=1), np.ones(6))
    assert area == pytest.approx(8 / 9)
    both = np.var([2 / 3, 1, 1], ddof=1) / 3 + np.var([1, 1, 2 / 3], ddof=1) / 3
    assert np.sum(influences**2) == pytest.approx(both)


def test_wilsons_interval_is_that_of_the_books() -> None:
    found = wilson(0.9, 100)
    assert (found.low, found.high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    everyone = wilson(1.0, 100)
    assert (everyone.low, everyone.high) == pytest.approx((100 / (100 + 1.95996**2), 1.0))


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe (1998), table II, example (a), method 10: 56/70 - 48/80."""
    found = difference(Average(56 / 70, 70), Average(48 / 80, 80))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_rows_of_unequal_weight_are_worth_fewer() -> None:
    assert effective(np.array([1.0, 1.0, 1.0])) == 3
    assert effective(np.array([1.0, 3.0])) == pytest.approx(16 / 10)
    assert effective(np.empty(0)) == 0


# --- rows that leave something undefined


def test_a_window_of_one_class_has_no_f1_and_no_area_and_says_so() -> None:
    scores = np.tile([0.8, 0.2], (50, 1))
    found = everything(np.zeros(50, int), scores, np.ones(50), BINARY)
    assert set(values(found)) == {"accuracy", "brier", "log_loss", "ece"}
    assert found.left_out == ("f1_macro: no label is yes", "roc_auc: no label is yes")


def test_a_window_without_labels_has_no_metric() -> None:
    nothing = everything(np.empty(0, int), np.empty((0, 2)), np.empty(0), BINARY)
    assert nothing == Measured((), ("no metric: no row has a label",))
    assert of_values(*[np.empty(0)] * 3).metrics == ()
    assert mean_error(*[np.empty(0)] * 3).n_rows == 0


def test_a_window_where_all_are_right_has_intervals_that_say_how_few_they_were() -> None:
    true = np.tile([0, 1], 50)
    found = everything(true, np.eye(2)[true], np.ones(100), BINARY)
    intervals = {metric.name: metric.interval for metric in found.metrics}
    assert values(found) == pytest.approx(
        {"accuracy": 1, "f1_macro": 1, "roc_auc": 1, "brier": 0, "log_loss": 0, "ece": 0}
    )
    assert intervals["accuracy"].low == pytest.approx(wilson(1, 100).low)
    assert intervals["roc_auc"] == intervals["f1_macro"] == wilson(1, 50)


def test_a_regression_whose_labels_are_one_number_has_no_r2() -> None:
    found = of_values(np.full(5, 2.0), np.arange(5.0), np.ones(5))
    assert set(values(found)) == {"mae", "rmse", "bias"}
    assert found.left_out == ("r2: all labels are the same number",)


def test_a_single_row_is_no_crash() -> None:
    found = everything(np.array([1]), np.array([[0.3, 0.7]]), np.ones(1), BINARY)
    assert values(found)["accuracy"] == 1
    assert set(values(of_values(np.ones(1), np.zeros(1), np.ones(1)))) == {"mae", "rmse", "bias"}


@pytest.mark.parametrize("classes", [BINARY, THREE])
def test_a_number_lies_within_its_interval_and_the_interval_within_its_bounds(classes: tuple[str, ...]) -> None:
    generator = np.random.default_rng(7)
    for n_rows in (1, 2, 3, 10, 100):
        for _ in range(10):
            true, scores = honest_rows(n_rows, len(classes), generator)
            for metric in everything(true, scores, generator.uniform(1, 5, n_rows), classes).metrics:
                assert metric.interval.low <= metric.value + 1e-12, metric
                assert metric.value <= metric.interval.high + 1e-12, metric
                assert metric.interval.low >= 0, metric
                assert metric.interval.high <= (math.inf if metric.name in {"brier", "log_loss"} else 1), metric


# --- how often an interval holds the truth


def coverage(simulate: Callable[[np.random.Generator], Measured], truth: dict[str, float]) -> dict[str, float]:
    generator = np.random.default_rng(8)
    held = dict.fromkeys(truth, 0)
    for _ in range(RUNS):
        for metric in simulate(generator).metrics:
            if metric.name in truth:
                held[metric.name] += metric.interval.low <= truth[metric.name] <= metric.interval.high
    return {name: count / RUNS for name, count in held.items()}


@pytest.mark.parametrize("classes", [BINARY, THREE])
@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_of_a_classification_hold_the_truth_in_about_95_percent(
    classes: tuple[str, ...], weighted: bool
) -> None:
    truth = values(everything(*honest_rows(300_000, len(classes), np.random.default_rng(0)), np.ones(300_000), classes))
    truth.pop("ece")  # tested below: its interval is meant to be wide

    def simulate(generator: np.random.Generator) -> Measured:
        weights = generator.choice([1.0, 5.0], 500) if weighted else np.ones(500)
        return everything(*honest_rows(500, len(classes), generator), weights, classes)

    found = coverage(simulate, truth)
    assert all(0.90 <= share <= 0.99 for share in found.values()), found


def test_intervals_of_a_regression_hold_the_truth_in_about_95_percent() -> None:
    def simulate(generator: np.random.Generator) -> Measured:
        true = generator.normal(size=500)
        return of_values(true, true + generator.normal(0.1, 0.5, 500), generator.choice([1.0, 3.0], 500))

    found = coverage(simulate, values(simulate_large(simulate)))
    assert all(0.90 <= share <= 0.99 for share in found.values()), found


def simulate_large(simulate: Callable[[np.random.Generator], Measured]) -> Measured:
    generator = np.random.default_rng(9)
    true = generator.normal(size=500_000)
    return of_values(true, true + generator.normal(0.1, 0.5, len(true)), np.ones(len(true)))


def test_the_calibration_error_is_above_0_by_more_than_chance_only_where_scores_are_off() -> None:
    honest, proud, generator = 0, 0, np.random.default_rng(10)
    for _ in range(RUNS):
        sure = generator.uniform(0.5, 1, 500)
        drawn = generator.random(500)
        honest += calibration_error(sure, drawn < sure, np.ones(500)).interval.low > 0
        found = calibration_error(sure, drawn < sure - 0.1, np.ones(500))
        proud += found.interval.low <= 0.1 <= found.interval.high
        assert found.interval.low > 0 or found.value < 0.08
    assert honest / RUNS <= 0.10
    assert proud / RUNS >= 0.90


# --- verdicts


def draws(accuracy: float, now: float, n_baseline: int, n_labels: int, runs: int = RUNS) -> list[Finding]:
    generator = np.random.default_rng(11)
    before, after = generator.binomial(n_baseline, accuracy, runs), generator.binomial(n_labels, now, runs)
    return [
        judge(Average(right / n_labels, n_labels), Average(was / n_baseline, n_baseline), n_labels)
        for was, right in zip(before, after, strict=True)
    ]


@pytest.mark.parametrize("accuracy", [0.80, 0.90, 0.96])
def test_a_model_as_good_as_ever_is_an_alarm_in_at_most_one_window_of_a_hundred(accuracy: float) -> None:
    found = draws(accuracy, accuracy, n_baseline=114, n_labels=500, runs=10 * RUNS)
    assert sum(finding.level == "alarm" for finding in found) / len(found) <= 0.01


def test_a_drop_of_8_points_is_found() -> None:
    found = draws(0.90, 0.82, n_baseline=2000, n_labels=1000)
    assert sum(finding.level == "alarm" for finding in found) / RUNS >= 0.85


def test_a_drop_of_4_points_that_is_no_chance_warns() -> None:
    finding = judge(Average(0.86, 10_000), Average(0.90, 10_000), 10_000)
    assert finding == Finding("warning", "accuracy 0.86, at training 0.9: 4.0 points worse, more than chance")


@pytest.mark.parametrize(
    ("live", "baseline", "n_labels", "level"),
    [
        (0.85, 0.90, 1_000_000, "warning"),  # five points are no more than five points
        (0.84, 0.90, 1_000_000, "alarm"),
        (0.89, 0.90, 1_000_000, "quiet"),  # beyond chance, and of no matter
        (0.95, 0.90, 1_000_000, "quiet"),
        (0.10, 0.90, 299, "too few rows"),
    ],
)
def test_a_loss_must_matter_and_be_of_enough_labels(live: float, baseline: float, n_labels: int, level: str) -> None:
    assert judge(Average(live, n_labels), Average(baseline, 1_000_000), n_labels).level == level


def test_a_loss_that_few_test_rows_could_have_made_is_quiet_and_said() -> None:
    finding = judge(Average(0.84, 400), Average(0.90, 60), 400)
    assert finding == Finding("quiet", "accuracy 0.84, at training 0.9: 6.0 points worse, which may be chance")


def test_an_error_that_grew_by_a_fifth_is_an_alarm_and_one_that_shrank_is_not() -> None:
    before = Average(10.0, 1000, 8.0)
    found = {error: judge(Average(error, 1000, 8.0), before, 1000).level for error in (8.0, 10.5, 11.5, 13.0)}
    assert found == {8.0: "quiet", 10.5: "quiet", 11.5: "warning", 13.0: "alarm"}


def test_with_nothing_to_hold_it_against_a_model_is_quiet() -> None:
    assert judge(Average(0.5, 1000), None, 1000).level == "quiet"
    assert judge(Average(0.0, 1000, 0.0), Average(0.0, 100, 0.0), 1000).level == "quiet"
    assert judge(Average(1.0, 1000, 0.1), Average(0.0, 100, 0.0), 1000).level == "alarm"


def test_of_ten_segments_that_are_as_ever_hardly_a_window_has_one_that_alarms() -> None:
    generator = np.random.default_rng(12)
    windows = 0
    for _ in range(5 * RUNS):
        before, after = generator.binomial(50, 0.9, 10) / 50, generator.binomial(300, 0.9, 10) / 300
        windows += any(
            judge(Average(now, 300), Average(was, 50), 300, n_judged=10).level == "alarm"
            for was, now in zip(before, after, strict=True)
        )
    assert windows / (5 * RUNS) <= 0.01


def test_a_group_that_fares_worse_than_all_others_is_a_warning_and_never_an_alarm() -> None:
    found = worse_than_others(Average(0.7, 500), Average(0.9, 5000), 500, n_judged=4)
    assert found == Finding("warning", "accuracy 0.7, of the others 0.9: 20.0 points worse, more than chance")
    assert worse_than_others(Average(0.89, 500), Average(0.9, 5000), 500, n_judged=4) is None


def test_an_estimate_holds_within_chance_or_a_point_and_nobody_knows_of_few_labels() -> None:
    assert estimate_holds(0.92, Average(0.90, 500), 500) is True
    assert estimate_holds(0.97, Average(0.90, 500), 500) is False
    assert estimate_holds(0.905, Average(0.90, 10**6), 10**6) is True
    assert estimate_holds(0.97, Average(0.90, 299), 299) is None
    assert estimate_holds(None, Average(5.0, 500, 1.0), 500) is None


def test_an_interval_of_what_has_no_spread_is_the_value_alone() -> None:
    assert linearised(0.0, np.zeros(3), "log") == Interval(0.0, 0.0)
    assert Average(1.0, 0).interval() == Interval(-math.inf, math.inf)
