import json

import numpy as np
import pandas as pd
import pytest
from contracts import broken_rows, contracts, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tabserve.answers import HttpError
from tabserve.bodies import BodyReader
from tabserve.contract import MAX_ROWS, Contract, Feature
from tabserve.validation import InvalidRowsError, RowReader


def contract_of(*features: Feature) -> Contract:
    return Contract(features=features, task="binary", target="y", classes=(0, 1))


AGE = Feature(name="age", kind="integer", minimum=18, maximum=90)
HEIGHT = Feature(name="height", kind="number", minimum=1.5, maximum=2.1)
CITY = Feature(name="city", kind="category", categories=("Bergen", "Oslo"), may_be_missing=True)
MEMBER = Feature(name="member", kind="boolean")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_row_that_keeps_the_contract_is_read_as_it_was_sent(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    sent = data.draw(st.lists(rows(contract), min_size=1, max_size=4))

    read = RowReader(contract).read(sent)

    for instance, coded in zip(sent, read.values, strict=True):
        expected = [instance.get(name) for name in contract.names] if isinstance(instance, dict) else instance
        assert contract.to_values(coded) == expected


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_row_that_breaks_a_rule_is_refused_by_row_feature_and_rule(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    broken = data.draw(broken_rows(contract))
    before = data.draw(st.lists(rows(contract), max_size=3))

    with pytest.raises(InvalidRowsError) as refused:
        RowReader(contract).read([*before, broken.row])

    (violation,) = refused.value.violations
    assert (violation.row, violation.feature, violation.rule) == (len(before), broken.feature, broken.rule)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_quick_reading_of_a_body_agrees_with_the_close_look(data: st.DataObject) -> None:
    """Whatever a body says: decoded by the contract's own decoder, or value by value, the rows are the same."""
    contract = contract_of(
        AGE,
        HEIGHT,
        Feature(name="score", kind="number", hard_minimum=0, hard_maximum=100, may_be_missing=True),
        MEMBER,
    )
    odd = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.booleans() | st.none()
    good = st.tuples(st.integers(18, 90), st.floats(1.5, 2.1), st.none() | st.floats(0, 100), st.booleans()).map(list)
    row = good | st.tuples(odd | st.just(40), odd | st.just(1.8), odd, odd).map(list) | st.lists(odd)
    instances = data.draw(st.lists(good, min_size=1, max_size=4) | st.lists(row, max_size=4))
    reader = RowReader(contract)

    try:
        close = reader.read(instances)
    except InvalidRowsError as error:
        violations = error.violations
    else:
        violations = ()
    if violations:
        with pytest.raises(HttpError) as refused:
            BodyReader(reader).many(json.dumps({"instances": instances}).encode())
        assert refused.value.violations == violations
        return
    expected, _ = close
    for read in (
        BodyReader(reader).many(json.dumps({"instances": instances}).encode()),
        BodyReader(reader).one(json.dumps({"features": instances[0]}).encode()),
    ):
        rows, warnings = read
        assert np.array_equal(rows, expected[: len(rows)], equal_nan=True)
        assert all(warnings.get(number, []) == close.warnings.get(number, []) for number in range(len(rows)))


def test_a_usual_body_needs_no_close_look(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = BodyReader(RowReader(contract_of(AGE, HEIGHT)))
    monkeypatch.setattr(RowReader, "read", None)

    one, _ = reader.one(b'{"features": [40, 1.8]}')
    many, _ = reader.many(b'{"instances": [[40, 1.8], [18, 2.1]]}')

    assert one.tolist() == [[40.0, 1.8]]
    assert many.tolist() == [[40.0, 1.8], [18.0, 2.1]]


def test_rows_are_counted_from_one_to_512() -> None:
    reader = RowReader(contract_of(HEIGHT))

    assert len(reader.read([[1.8]] * MAX_ROWS).values) == MAX_ROWS
    for n_rows in (0, MAX_ROWS + 1):
        with pytest.raises(InvalidRowsError, match=f"expected 1 to 512 rows.*got {n_rows}"):
            reader.read([[1.8]] * n_rows)
        with pytest.raises(HttpError, match=f"expected 1 to 512 rows.*got {n_rows}"):
            BodyReader(reader).many(json.dumps({"instances": [[1.8]] * n_rows}).encode())


def test_a_value_outside_of_the_training_range_is_a_warning_and_with_strict_an_error() -> None:
    contract = contract_of(AGE, HEIGHT)

    read = RowReader(contract).read([[40, 1.8], [17, 2.5]])

    assert [str(warning) for warning in read.warnings[1]] == [
        'row 1, feature "age": expected 18 to 90, the range seen in training, got 17.0',
        'row 1, feature "height": expected 1.5 to 2.1, the range seen in training, got 2.5',
    ]
    assert 0 not in read.warnings
    with pytest.raises(InvalidRowsError, match="range seen in training"):
        RowReader(contract, strict=True).read([[17, 1.8]])


def test_every_fault_of_a_row_is_named_at_once() -> None:
    with pytest.raises(InvalidRowsError) as refused:
        RowReader(contract_of(AGE, HEIGHT, CITY, MEMBER)).read(
            [{"age": "x", "height": None, "city": "Rome", "size": 1}]
        )

    assert [(v.feature, v.rule) for v in refused.value.violations] == [
        ("size", "unknown_name"),
        ("age", "kind"),
        ("height", "missing"),
        ("city", "category"),
        ("member", "missing_name"),
    ]


def test_the_frame_holds_numbers_as_floats_and_categories_as_text_even_where_all_are_missing() -> None:
    contract = contract_of(AGE, CITY, MEMBER)

    frame = contract.to_frame(np.array([[40.0, 1.0, 0.0], [41.0, np.nan, 1.0]]))
    missing = contract.to_frame(np.array([[40.0, np.nan, 0.0]]))

    assert frame["city"].tolist()[0] == "Oslo"
    assert pd.isna(frame["city"][1])
    assert list(frame.dtypes) == list(missing.dtypes) == [np.dtype("float64"), np.dtype("O"), np.dtype("float64")]


def test_the_hash_follows_what_callers_depend_on_and_not_the_statistics_of_the_rows() -> None:
    base = contract_of(AGE, CITY)

    same = contract_of(AGE.model_copy(update={"minimum": 0.0, "quantiles": (1.0,)}), CITY)
    others = [
        contract_of(CITY, AGE),
        contract_of(AGE.model_copy(update={"name": "years"}), CITY),
        contract_of(AGE.model_copy(update={"kind": "number"}), CITY),
        contract_of(AGE.model_copy(update={"may_be_missing": True}), CITY),
        contract_of(AGE.model_copy(update={"hard_minimum": 0.0}), CITY),
        contract_of(AGE.model_copy(update={"personal": True}), CITY),
        contract_of(AGE, CITY.model_copy(update={"categories": ("Bergen",)})),
        base.model_copy(update={"classes": (0, 2)}),
        base.model_copy(update={"target": "z"}),
    ]

    assert same.hash == base.hash
    assert len({base.hash, *(other.hash for other in others)}) == len(others) + 1


def test_a_saved_contract_is_loaded_as_it_was(tmp_path) -> None:
    contract = contract_of(AGE, HEIGHT, CITY, MEMBER)

    contract.save(tmp_path / "contract.json")

    assert Contract.load(tmp_path / "contract.json") == contract


def test_classes_are_keyed_by_name_and_integers_by_class_k() -> None:
    assert contract_of(AGE).probability_keys == ("class_0", "class_1")
    assert contract_of(AGE).model_copy(update={"classes": ("no", "yes")}).probability_keys == ("no", "yes")


@pytest.mark.parametrize(
    ("got", "shown"),
    [
        ("x" * 500, "x" * 79 + "…"),
        ("\ud800", "\\ud800"),
        (10**5000, "a whole number of 16610 bits"),
        (float("nan"), "NaN"),
        ({"secret": 1}, "an object"),
        ([1, 2], "a list of 2"),
    ],
    ids=["long text", "half a character", "huge number", "NaN", "object", "list"],
)
def test_a_value_at_fault_is_shown_short_and_as_valid_json(got: object, shown: object) -> None:
    with pytest.raises(InvalidRowsError) as refused:
        RowReader(contract_of(MEMBER)).read([[got]])

    assert refused.value.violations[0].as_detail()["got"] == shown
