"""`tabserve ab-result`: arms, the horizon that is planned once, the key that was drawn, and a split that is none."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import CUSTOMERS, TrainedModels, home_in_use
from monitoring_parts import spread, write_predictions
from prediction_log_parts import CONTRACT, ROW, SCORES
from test_history import write_labels

from tabserve import cli
from tabserve.contract import Contract
from tabserve.history.records import readable_place
from tabserve.history.window import BadQuestionError, last
from tabserve.labels import Labels
from tabserve.lifecycle.experiment import AbTest, Arm, Experiment, difference, find, judged, split
from tabserve.lifecycle.experiment_plan import Plan, planned
from tabserve.lifecycle.experiment_text import text_of
from tabserve.rollout_state import Challenger, RolloutState

CONTROL, CHALLENGER = "plans:1.0.0-abcdef", "plans:1.1.0-abcdef"
TEST = AbTest(CONTROL, CHALLENGER, 50, "age")
HOUR = timedelta(hours=1)
SEED = 7


def plan(**more: object) -> Plan:
    end = {} if "detect" in more else {"horizon": "1h"}
    return Plan(planned_at=datetime.now(UTC) - 3 * HOUR, **{**end, **more})


def fill(
    folder: Path, variant: str, ages: np.ndarray, *, right: np.ndarray | None = None, worth: np.ndarray | None = None,
    ago: timedelta = 2 * HOUR, contract: Contract = CONTRACT, tag: str | None = None,
) -> None:  # fmt: skip
    """Rows of one arm, whose answer is always `plus`, and what became of them."""
    rows = np.tile(ROW, (len(ages), 1))
    rows[:, 0] = ages
    tag = tag or (CONTROL if variant == "control" else CHALLENGER)
    times = spread(len(ages), datetime.now(UTC) - ago, timedelta(minutes=30))
    ids = write_predictions(
        folder, contract, rows, np.tile(SCORES, (len(ages), 1)), times, model_version=tag, variant=variant
    )
    labels: list[str | None] = [None] * len(ids) if right is None else ["plus" if one else "pro" for one in right]
    worths = [None] * len(ids) if worth is None else worth.tolist()
    moments = [datetime.now(UTC).timestamp()] * len(ids)
    write_labels(
        folder, Labels(ids, labels, [None] * len(ids), worths), moments, f"{variant}-{ago.total_seconds():.0f}"
    )


def found(folder: Path, test: AbTest = TEST, a_plan: Plan | None = None) -> Experiment:
    return find(test, a_plan or plan(), CONTRACT, readable_place(folder.as_uri()), last(timedelta(days=1)))


def arms(random: np.random.Generator, n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the control, and of the challenger."""
    return 2 * random.integers(0, n_keys, 4000), 2 * random.integers(0, n_keys, 4000) + 1


def test_an_arm_is_its_mean_and_the_variance_of_its_keys(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    for variant, ages in zip(("control", "challenger"), arms(random, 1000), strict=True):
        fill(tmp_path, variant, ages, right=random.random(4000) < 0.5 + 0.4 * (ages % 3 == 0))

    result = found(tmp_path)

    random = np.random.default_rng(SEED)
    ages, _ = arms(random, 1000)
    right = random.random(4000) < 0.5 + 0.4 * (ages % 3 == 0)
    keys = np.unique(ages)
    totals = np.array([[np.sum(ages == key), np.sum(right[ages == key])] for key in keys], float)
    left = totals[:, 1] - right.mean() * totals[:, 0]
    assert result.control.mean == pytest.approx(right.mean())
    assert (result.control.n_units, result.control.n_rows) == (len(keys), 4000)
    assert result.control.variance == pytest.approx(len(keys) * left.var(ddof=1) / 4000**2, rel=1e-6)
    assert result.key == "age"
    assert result.verdict in ("inconclusive", "not worse")


def test_business_values_make_the_challenger_better_or_worse_and_rows_after_the_horizon_do_not_count(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(SEED)
    for variant, ages in zip(("control", "challenger"), arms(random, 1000), strict=True):
        fill(tmp_path, variant, ages, worth=random.normal(10 + (variant == "challenger"), 5, 4000))
        fill(tmp_path, variant, ages[:500], worth=np.full(500, -1e6), ago=timedelta(minutes=45))

    better = found(tmp_path, a_plan=plan(outcome="business-value"))

    assert better.verdict == "better"
    assert (better.challenger.n_rows, better.control.n_rows) == (4000, 4000)
    assert difference(better)[0] == pytest.approx(1, abs=0.4)
    assert re.match(r"BETTER: 9\.\d+ → 11\.\d+, \+1\.\d+ \(95 % interval \+0\.\d+ to \+1\.\d+, p = ", text_of(better))
    swapped = judged(
        TEST, plan(outcome="business-value"), {"control": better.challenger, "challenger": better.control},
        since=better.since, until=better.until, now=datetime.now(UTC), key="age",
    )  # fmt: skip
    assert swapped.verdict == "worse"


def test_before_its_horizon_a_test_says_what_is_missing_and_shows_no_effect(tmp_path: Path) -> None:
    nothing = found(tmp_path)
    assert (nothing.verdict, nothing.because) == (
        "inconclusive",
        f"not enough data: no row of {CHALLENGER} against {CONTROL} is in the log yet",
    )
    random = np.random.default_rng(SEED)
    for variant, ages in zip(("control", "challenger"), arms(random, 1000), strict=True):
        fill(tmp_path, variant, ages, right=random.random(4000) < (0.9 if variant == "challenger" else 0.5))

    early = text_of(found(tmp_path, a_plan=plan(horizon="5d")))
    assert early.startswith("INCONCLUSIVE: not enough data: 4.9 days of 5d are left\n")
    assert "→" not in early
    assert "0.9" not in early.replace("4.9", "")

    small = found(tmp_path, a_plan=plan(detect=0.001))
    missing = re.search(r"about ([\d,]+) values of age more of the control and ([\d,]+) of the chall", small.because)
    assert missing
    _, error = difference(small)
    wanted = 0.001 / (1.959964 + 0.841621)
    assert int(missing[1].replace(",", "")) == pytest.approx(
        ((error / wanted) ** 2 - 1) * small.control.n_units, rel=1e-3
    )
    assert found(tmp_path, a_plan=plan(detect=0.1)).verdict == "better"


def test_few_outcomes_are_not_enough_whatever_the_horizon(tmp_path: Path) -> None:
    for variant, odd in (("control", 0), ("challenger", 1)):
        fill(tmp_path, variant, 2 * np.arange(199) + odd, right=np.full(199, bool(odd)))

    result = found(tmp_path)

    assert result.because == (
        "not enough data: each arm needs 200 values of age with an outcome, "
        "the control has 199 and the challenger has 199"
    )


def test_a_split_that_is_not_the_chosen_one_breaks_the_test(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    fill(tmp_path, "control", 2 * np.arange(1200), right=random.random(1200) < 0.5)
    fill(tmp_path, "challenger", 2 * np.arange(1000) + 1, right=random.random(1000) < 0.9)

    broken = found(tmp_path)
    by_header = found(tmp_path, AbTest(CONTROL, CHALLENGER, 50, "header:x-user"))

    # (100^2 / 1100) * 2 = 18.18 with one degree of freedom.
    assert broken.split_p == pytest.approx(2.01e-5, rel=0.01)
    assert broken.verdict == "inconclusive"
    assert broken.because.startswith("the test is broken: 45.45% of 2,200 values of age went to the challenger, 50 %")
    # Rows of a key that the log does not have come in clusters: chance can do that to them.
    assert by_header.verdict == "better"
    assert "rows are taken as independent: the log does not have" in text_of(by_header)
    assert "an unlikely split" in text_of(by_header)
    assert found(tmp_path, AbTest(CONTROL, CHALLENGER, 45.45, "age")).verdict == "better"
    assert split(3, 4, 0.5) is None


def test_rows_without_the_key_are_left_out_and_counted(tmp_path: Path) -> None:
    random = np.random.default_rng(SEED)
    incomes = np.where(np.arange(900) < 300, np.nan, random.permutation(900) * 1.0)
    rows = np.tile(ROW, (900, 1))
    for variant, tag, some in (("control", CONTROL, incomes), ("challenger", CHALLENGER, incomes[300:] + 0.5)):
        rows_of_arm = rows[: len(some)].copy()
        rows_of_arm[:, 1] = some
        times = spread(len(some), datetime.now(UTC) - 2 * HOUR, timedelta(minutes=30))
        scores = np.tile(SCORES, (len(some), 1))
        write_predictions(tmp_path, CONTRACT, rows_of_arm, scores, times, model_version=tag, variant=variant)

    result = found(tmp_path, AbTest(CONTROL, CHALLENGER, 50, "income"))

    assert (result.control.n_units, result.challenger.n_units, result.n_keyless) == (600, 600, 300)
    assert "300 rows have no income and are left out" in text_of(result)


def test_keys_with_many_rows_find_no_difference_where_there_is_none() -> None:
    """Taken row by row, the same keys would be called different in most of the tests."""
    random, by_key, by_row, runs = np.random.default_rng(SEED), 0, 0, 200
    for _ in range(runs):
        sides: dict[str, Arm] = {}
        rows: dict[str, Arm] = {}
        for name in ("control", "challenger"):
            of_key = random.random(300) < 0.5  # all of a key's 20 rows end alike
            total = 20.0 * of_key
            mean = total.sum() / 6000
            variance = 300 * (total - 20 * mean).var(ddof=1) / 6000**2
            sides[name] = Arm(300, 6000, 300, mean, variance)
            rows[name] = Arm(300, 6000, 6000, mean, mean * (1 - mean) / 6000)
        now = datetime.now(UTC)
        for counted, some in (("key", sides), ("row", rows)):
            result = judged(TEST, plan(), some, since=now - 2 * HOUR, until=now - HOUR, now=now, key="age")
            is_found = result.verdict in ("better", "worse")
            by_key, by_row = by_key + (is_found and counted == "key"), by_row + (is_found and counted == "row")

    assert by_key <= 0.08 * runs
    assert by_row >= 0.5 * runs


def test_a_plan_is_made_once_and_a_horizon_that_moves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadQuestionError, match="the first look plans the test"):
        planned(tmp_path, "a", outcome=None, horizon=None, detect=None)
    with pytest.raises(BadQuestionError, match="such as 90m"):
        planned(tmp_path, "a", outcome=None, horizon="soon", detect=None)
    with pytest.raises(BadQuestionError, match="--detect takes a number above 0"):
        planned(tmp_path, "a", outcome=None, horizon=None, detect=float("nan"))
    first = planned(tmp_path, "a", outcome=None, horizon="14d", detect=None)

    assert planned(tmp_path, "a", outcome=None, horizon=None, detect=None) == first
    assert planned(tmp_path, "a", outcome="label", horizon="14d", detect=None) == first
    assert planned(tmp_path, "b", outcome="business-value", horizon=None, detect=2.0).detect == 2.0
    for change in ({"horizon": "7d"}, {"detect": 0.01}, {"outcome": "business-value"}):
        said = {"outcome": None, "horizon": None, "detect": None, **change}
        with pytest.raises(
            BadQuestionError, match="planned with label, a horizon of 14d, planned 20.*would be no test"
        ):
            planned(tmp_path, "a", **said)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["ab-plans.json"]
    (tmp_path / "ab-plans.json").write_text("{")
    with pytest.raises(BadQuestionError, match="holds no plans"):
        planned(tmp_path, "a", outcome=None, horizon="14d", detect=None)


def test_the_command_reads_the_test_of_the_rollout_file(
    models: TrainedModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = models.load(CUSTOMERS)
    home, other = tmp_path / "home", f"{model.tag[:-1]}x"
    (home / "models" / CUSTOMERS).mkdir(parents=True)
    (home / "models" / model.tag.replace(":", "/")).symlink_to(models.directory(CUSTOMERS))
    where = ["--log-url", (tmp_path / "log").as_uri()]
    with home_in_use(home):
        assert cli.main(["ab-result", *where]) == 2
        assert "no A/B test runs by rollout.yaml" in caplog.text
        challenger = Challenger(model=other, mode="ab", share=50, by="age")
        RolloutState(champion=model.tag, challenger=challenger).save(home / "rollout.yaml")
        assert cli.main(["ab-result", *where]) == 2
        assert cli.main(["ab-result", *where, "--horizon", "1h"]) == 3
        assert capsys.readouterr().out.startswith("INCONCLUSIVE: not enough data: no row of")

        random = np.random.default_rng(SEED)
        names = model.contract.names
        for variant, tag, share in (("control", model.tag, 0.5), ("challenger", other, 0.7)):
            ages = 2 * random.integers(0, 1000, 4000) + (variant == "challenger")
            rows = np.zeros((4000, len(names)))
            rows[:, names.index("age")] = ages
            times = spread(4000, datetime.now(UTC) - 2 * HOUR, timedelta(minutes=30))
            ids = write_predictions(
                tmp_path / "log", model.contract, rows, np.tile(SCORES, (4000, 1)), times, model_version=tag,
                variant=variant,
            )  # fmt: skip
            labels: list[str | None] = ["plus" if right else "pro" for right in random.random(4000) < share]
            write_labels(
                tmp_path / "log", Labels(ids, labels, [None] * 4000), [datetime.now(UTC).timestamp()] * 4000, tag
            )
        assert cli.main(["ab-result", *where]) == 0
        assert capsys.readouterr().out.startswith("BETTER: 0.")
        RolloutState(champion=model.tag).save(home / "rollout.yaml")
        over = ["--control", model.tag, "--challenger", other, "--share", "50", "--by", "age"]
        assert cli.main(["ab-result", *where, *over]) == 0
        assert cli.main(["ab-result", *where, *over[:4]]) == 2
        assert "of a test that is over say all" in caplog.text
