import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from tables import CITIES, customers

from tabserve.reference import Bins, build_reference, deciles
from tabserve.training.columns import BadTableError, Rule
from tabserve.training.evaluation import Gates, guess, measure, split
from tabserve.training.recipe import with_statistics
from tabserve.training.table import Columns, Source, Table, builtin_table, prepare, read_rules, read_table

SOURCE = Source("made", "made by a test", "0" * 64)


def numbers(n_rows: int = 100) -> pd.DataFrame:
    random = np.random.default_rng(1)
    a = random.normal(size=n_rows)
    return pd.DataFrame({"a": a, "b": random.normal(size=n_rows), "y": (a > 0).astype(int)})


def prepared(frame: pd.DataFrame, target: str = "y", **options: object) -> Table:
    return prepare(frame.convert_dtypes(), Columns(target), SOURCE, **options)  # type: ignore[arg-type]


def test_kinds_gaps_and_categories_are_read_off_the_table(tmp_path) -> None:
    customers().drop(columns="spend").to_csv(tmp_path / "c.csv", index=False)
    customers().drop(columns="spend").to_parquet(tmp_path / "c.parquet", index=False)

    for file in ("c.csv", "c.parquet"):
        table = read_table(tmp_path / file, Columns("plan", ("customer",), "since"), rules={})

        described = [(f.name, f.kind, f.may_be_missing) for f in table.contract.features]
        assert described == [
            ("age", "integer", False),
            ("income", "number", True),
            ("city", "category", True),
            ("member", "boolean", False),
            ("visits", "integer", True),
        ]
        assert table.contract.features[2].categories == CITIES
        assert (table.contract.task, table.contract.classes) == ("multiclass", ("basic", "plus", "pro"))
        assert [table.contract.classes[code] for code in table.target] == customers()["plan"].tolist()


def test_rows_are_coded_so_that_decoding_gives_the_values_back() -> None:
    frame = customers().drop(columns=["spend", "since", "customer"]).convert_dtypes()

    table = prepare(frame, Columns("plan"), SOURCE)

    for row, coded in enumerate(table.rows):
        expected = [None if pd.isna(value) else value for value in frame.drop(columns="plan").iloc[row]]
        assert table.contract.to_values(coded) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(c=np.nan), 'column "c" is all missing'),
        (lambda f: f.assign(c=[f"row{i}" for i in range(len(f))]), 'column "c" is unique per row.*--id-columns c'),
        (lambda f: f.assign(c=f["y"].map({0: "no", 1: "yes"})), 'column "c" is a copy of the target'),
        (lambda f: f.assign(c=pd.date_range("2026-01-01", periods=len(f))), 'column "c" holds dates.*--time-column c'),
        (lambda f: f.assign(c=[f"2026-01-{1 + i % 28:02d}" for i in range(len(f))]), 'column "c" holds dates'),
        (lambda f: f.assign(c=["1.5"] * 99 + ["?"]), r'column "c" holds numbers as texts, and \[.\?.\]'),
        (
            lambda f: f.assign(c=[1.0] * 99 + [np.inf]),
            r'column "c": expected finite numbers of at most 3.4e\+38, got 1 other values, such as inf',
        ),
        (lambda f: f.assign(c=[1] * 99 + [2**53 + 1]), 'column "c": expected whole numbers of at most 2\\^53'),
        (lambda f: f.assign(c=pd.Series([1, "x"] * 50, dtype=object)), 'column "c" holds int and str; expected'),
        (lambda f: f.head(20), "expected at least 50 rows with a target, got 20"),
        (lambda f: f.assign(y=1), 'the target "y" is constant'),
        (lambda f: f.assign(y=[0] * 95 + [1] * 5), r'each class of "y" needs at least 10 rows, got \{1: 5\}'),
        (lambda f: f[["y"]], "expected at least one column beside the target"),
        (lambda f: f.rename(columns={"b": "a"}), r"expected each column once, got \['a'\] several times"),
        (lambda f: f.drop(columns="y"), "--target names"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_column_that_cannot_be_used_is_named(change, message: str) -> None:
    with pytest.raises(BadTableError, match=message):
        prepared(change(numbers()))


def test_all_columns_that_are_wrong_are_named_at_once() -> None:
    frame = numbers().assign(c=np.nan, d=[f"row{i}" for i in range(100)])

    with pytest.raises(BadTableError, match=r'column "c".*column "d"'):
        prepared(frame)


def test_what_is_odd_but_usable_is_a_warning() -> None:
    frame = numbers().assign(constant=5, key=range(100))
    frame.loc[:4, "y"] = np.nan

    table = prepared(frame)

    assert len(table.rows) == 95
    assert '5 rows without a value of the target "y"' in table.warnings[0]
    assert 'column "constant" is constant (5)' in table.warnings[1]
    assert 'column "key" is unique per row' in table.warnings[2]


@pytest.mark.parametrize(
    ("target", "task", "classes"),
    [
        ([0, 1], "binary", (0, 1)),
        ([0.0, 1.0], "binary", (0, 1)),
        ([False, True], "binary", (0, 1)),
        (["no", "yes"], "binary", ("no", "yes")),
        (["a", "b", "c", "d"], "multiclass", ("a", "b", "c", "d")),
        ([3, 1, 2, 7], "multiclass", (1, 2, 3, 7)),
        ([0.5, 1.5], "regression", ()),
        (list(range(25)), "regression", ()),
    ],
    ids=str,
)
def test_the_task_follows_from_the_target(target: list, task: str, classes: tuple) -> None:
    frame = numbers(200).assign(y=[target[i % len(target)] for i in range(200)])

    contract = prepared(frame).contract

    assert (contract.task, contract.classes) == (task, classes)


def test_a_task_that_the_target_cannot_be_is_refused() -> None:
    with pytest.raises(BadTableError, match="a binary target has 2 classes"):
        prepared(numbers().assign(y=[1, 2, 3, 4] * 25), task="binary")
    with pytest.raises(BadTableError, match="a regression needs a number as target"):
        prepared(numbers().assign(y=["a", "b"] * 50), task="regression")


def test_rules_state_what_the_data_cannot_and_go_into_the_contract_and_its_hash() -> None:
    frame = numbers().assign(zone=[1, 2, 3, 4] * 25)
    rules = {
        "a": Rule(min=-10, max=10, personal=True),
        "b": Rule(missing=True),
        "zone": Rule(kind="category"),
    }

    plain, ruled = prepared(frame).contract, prepared(frame, rules=rules).contract

    a, b, zone = ruled.features
    assert (a.hard_minimum, a.hard_maximum, a.personal) == (-10, 10, True)
    assert b.may_be_missing
    assert (zone.kind, zone.categories) == ("category", (1, 2, 3, 4))
    assert ruled.hash != plain.hash


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"a": Rule(min=0)}, r'column "a": expected at least 0, got \d+ other values, such as -'),
        ({"a": Rule(kind="integer")}, 'column "a": expected whole numbers'),
        ({"a": Rule(kind="boolean")}, 'column "a": expected values of kind boolean'),
        ({"a": Rule(kind="category")}, 'column "a": expected texts or whole numbers'),
        ({"nope": Rule()}, r"--rules names \['nope'\]"),
    ],
    ids=["bound", "integer", "boolean", "category", "unknown"],
)
def test_data_that_break_a_rule_are_refused(rules: dict, message: str) -> None:
    with pytest.raises(BadTableError, match=message):
        prepared(numbers(), rules=rules)


def test_a_value_that_may_not_be_missing_by_rule_is_looked_for() -> None:
    frame = numbers()
    frame.loc[3, "a"] = np.nan

    with pytest.raises(BadTableError, match='column "a" may not be missing by the rules, but 1 rows'):
        prepared(frame, rules={"a": Rule(missing=False)})


def test_a_rules_file_is_read_and_its_mistakes_are_named(tmp_path) -> None:
    good, bad, broken = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "broken.yaml"
    good.write_text("features:\n  a: {min: 0, personal: true}\n")
    bad.write_text("features:\n  a: {minimum: 0, max: high}\n  b: {min: .inf}\n  c: {min: 2, max: 1}\n")
    broken.write_text("features: [\n")

    assert read_rules(good) == {"a": Rule(min=0, personal=True)}
    with pytest.raises(BadTableError, match=r"a\.max.*a\.minimum.*b\.min.*min 2 is larger than max 1"):
        read_rules(bad)
    with pytest.raises(BadTableError, match="are no YAML"):
        read_rules(broken)
    with pytest.raises(BadTableError, match="cannot be read"):
        read_rules(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"a,b\n", r"expected a \.csv or \.parquet file"),
        ("t.csv", b"", "is no readable csv file"),
        ("t.parquet", b"not parquet", "is no readable parquet file"),
        ("t.csv", None, "cannot be read"),
        ("t.csv", "a,y\né,1\n".encode("latin-1"), "is no readable csv file"),
    ],
    ids=["ending", "empty", "no parquet", "absent", "latin-1"],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(BadTableError, match=message):
        read_table(tmp_path / name, Columns("y"), rules={})


def test_a_row_that_is_longer_than_the_header_is_no_shift_of_all_columns(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + "1,2,0,9\n" * 60)

    with pytest.raises(BadTableError, match="is no readable csv file"):
        read_table(tmp_path / "t.csv", Columns("y"), rules={})


def test_a_column_twice_in_the_header_is_refused(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,a,y\n" + "1,2,0\n" * 60)

    with pytest.raises(BadTableError, match="the header has a column twice"):
        read_table(tmp_path / "t.csv", Columns("y"), rules={})


def test_na_is_a_gap_among_numbers_and_a_category_among_texts(tmp_path) -> None:
    lines = [
        f"{'NA' if i % 5 == 0 else i},{'NA' if i % 2 else 'EU'},{i % 2 if i > 9 else 1 - i % 2}" for i in range(80)
    ]
    (tmp_path / "t.csv").write_text("size,region,y\n" + "\n".join(lines))

    size, region = read_table(tmp_path / "t.csv", Columns("y"), rules={}).contract.features

    assert (size.kind, size.may_be_missing) == ("integer", True)
    assert (region.categories, region.may_be_missing) == (("EU", "NA"), False)


def test_decimals_are_numbers_and_dates_are_told_from_texts(tmp_path) -> None:
    frame = numbers().assign(price=[Decimal(i) / 8 for i in range(100)])
    frame.to_parquet(tmp_path / "t.parquet")
    frame.assign(day=[dt.date(2026, 1, 1 + i % 28) for i in range(100)]).to_parquet(tmp_path / "d.parquet")

    assert read_table(tmp_path / "t.parquet", Columns("y"), rules={}).contract.features[2].kind == "number"
    with pytest.raises(BadTableError, match='column "day" holds dates'):
        read_table(tmp_path / "d.parquet", Columns("y"), rules={})


def test_a_copy_of_the_target_with_a_gap_is_still_a_copy() -> None:
    frame = numbers()
    frame["copy"] = frame["y"].map({0: "no", 1: "yes"})
    frame.loc[3, "copy"] = None

    with pytest.raises(BadTableError, match='column "copy" is a copy of the target'):
        prepared(frame)


def test_rules_for_what_is_no_feature_are_refused() -> None:
    with pytest.raises(BadTableError, match=r"rules are for features, \['y'\] are target"):
        prepared(numbers(), rules={"y": Rule(min=0)})


def test_times_may_change_their_offset_or_be_numbers() -> None:
    berlin = pd.date_range("2026-03-27", periods=100, freq="h", tz="Europe/Berlin")  # the clocks change on the 29th
    offsets = [time.isoformat() for time in berlin]

    for times in (offsets, list(range(100))):
        table = prepare(numbers().assign(t=times).convert_dtypes(), Columns("y", time="t"), SOURCE)
        assert split(table.contract, table.target, table.times, seed=42).train.max() == 79


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([2**53, 2**53 + 2] * 50, "whole numbers beyond 2\\^53 - 1"),
        ([1e39, 1.5] * 50, "infinite or beyond"),
        ([[1], [2]] * 50, "holds lists, expected numbers or texts"),
        ([f"row{i}" for i in range(100)], r"got \{'row0': 1, .* and 95 more; merge"),
    ],
    ids=["huge classes", "huge values", "lists", "a class a row"],
)
def test_a_target_that_cannot_be_learned_is_refused(target: list, message: str) -> None:
    with pytest.raises(BadTableError, match=message):
        prepared(numbers().assign(y=target))


def test_two_classes_are_binary_whatever_they_are_called() -> None:
    assert prepared(numbers(), task="multiclass").contract.task == "binary"


def test_a_split_is_stratified_and_by_time_it_tests_on_the_latest_fifth() -> None:
    table = builtin_table()
    times = pd.Series(pd.date_range("2026-01-01", periods=len(table.rows))[::-1])

    stratified = split(table.contract, table.target, None, seed=42)
    by_time = split(table.contract, table.target, times, seed=42)

    assert (len(stratified.train), len(stratified.test)) == (455, 114)
    assert table.target[stratified.test].mean() == pytest.approx(table.target.mean(), abs=0.005)
    assert times[by_time.test].min() > times[by_time.train].max()
    assert (len(by_time.train), len(by_time.test)) == (455, 114)
    assert sorted([*by_time.train, *by_time.test]) == list(range(569))


def test_times_that_are_no_dates_are_counted() -> None:
    frame = numbers().assign(t=["2026-01-01"] * 98 + ["soon", "later"]).convert_dtypes()

    with pytest.raises(BadTableError, match='the time column "t" has 2 values that are no dates'):
        prepare(frame, Columns("y", time="t"), SOURCE)


def test_statistics_and_bins_are_those_of_the_training_rows_with_a_bin_for_missing() -> None:
    table = prepare(customers().drop(columns=["spend", "since", "customer"]).convert_dtypes(), Columns("plan"), SOURCE)
    contract = with_statistics(table.contract, table.rows)
    scores = np.full((len(table.rows), 3), 1 / 3)

    reference = build_reference(contract, table.rows, scores)

    age, income = contract.features[:2]
    assert (age.minimum, age.maximum) == (table.rows[:, 0].min(), table.rows[:, 0].max())
    assert len(income.quantiles) == 9
    for name, bins in reference.features.items():
        column = table.rows[:, contract.names.index(name)]
        assert sum(bins.counts) == len(column)
        assert bins.counts[-1] == np.isnan(column).sum()
    income_counts = reference.features["income"].counts[:-1]
    assert max(income_counts) - min(income_counts) <= 1
    assert reference.features["city"].codes == (0, 1, 2)


def test_bins_have_open_ends_and_new_categories_fall_into_other() -> None:
    wild = np.array([-1e9, 0.0, 1.0, 5.0, np.nan, 1e9])

    assert Bins(edges=(0.0, 2.0)).count(wild) == (1, 2, 2, 1)
    assert Bins(codes=(0, 1)).count(np.array([0.0, 1.0, 1.0, 7.0, np.nan])) == (1, 2, 1, 1)
    assert deciles(np.array([np.nan])) == ()


def test_the_baseline_knows_only_the_shares_of_the_training_target() -> None:
    table = builtin_table()

    scores = guess(table.contract, table.target, 4)

    assert scores[0].tolist() == pytest.approx([212 / 569, 357 / 569])
    assert measure(table.contract, table.target, guess(table.contract, table.target, 569))["roc_auc"] == 0.5


def test_a_gate_says_what_was_missed_and_by_how_much() -> None:
    contract = builtin_table().contract
    good = {"accuracy": 0.9, "roc_auc": 0.95, "log_loss": 0.2}
    latency = {"rows_1_p50_ms": 300.0}

    failures = Gates(min_accuracy=0.92, min_roc_auc=0.9, max_latency_ms=200).failures(
        contract, good, {"log_loss": 0.2}, latency
    )

    assert failures == [
        "log_loss is 0.2, the baseline's log_loss asks for less than 0.2: missed by 0",
        "accuracy is 0.9, --min-accuracy asks for at least 0.92: missed by 0.02",
        "median latency of one row (ms) is 300, --max-latency-ms asks for at most 200: missed by 1e+02",
    ]
    assert Gates(max_mae=1).failures(contract, good, {"log_loss": 0.5}, {"rows_1_p50_ms": 1.0}) == [
        "--max-mae asks for mae, which this model does not have or its test rows leave undefined"
    ]
