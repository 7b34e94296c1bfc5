"""Labels under a contract: which are accepted, and what is said of the others."""

import math
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_log_parts import CONTRACT
from uuid_utils import uuid7

from tabserve.contract import Contract, Feature
from tabserve.labels import LabelReader, Labels, made_at
from tabserve.prediction_log import NoRoomError
from tabserve.prediction_log.labels import MOST_ROWS, LabelSource

ID = str(uuid7())
FEATURES = (Feature(name="x", kind="number"),)
BINARY = Contract(features=FEATURES, task="binary", target="y", classes=(0, 1))
QUANTITY = Contract(features=FEATURES, task="regression", target="y")


def read(contract: Contract, entry: object) -> tuple[Labels, list[str]]:
    labels = Labels()
    return labels, [violation.rule for violation in LabelReader(contract).read(0, entry, labels)]


@pytest.mark.parametrize(
    ("contract", "entry", "kept"),
    [
        (BINARY, {"prediction_id": ID, "label": 1}, ("1", None)),
        (BINARY, {"prediction_id": ID, "label": 0.0}, ("0", None)),
        (CONTRACT, {"prediction_id": ID.upper(), "label": "plus"}, ("plus", None)),
        (QUANTITY, {"prediction_id": ID, "value": 2}, (None, 2.0)),
        (QUANTITY, {"label": -1.5, "prediction_id": ID}, (None, -1.5)),
    ],
)
def test_a_label_is_accepted_as_it_stands_in_answers(contract: Contract, entry: dict, kept: tuple) -> None:
    labels, rules = read(contract, entry)

    assert rules == []
    assert (labels.ids, labels.classes, labels.values) == ([ID], [kept[0]], [kept[1]])


def test_what_a_prediction_was_worth_comes_with_its_label_or_alone() -> None:
    for contract, entry, kept in (
        (BINARY, {"label": 1, "business_value": -3}, ("1", None, -3.0)),
        (BINARY, {"business_value": 12.5}, (None, None, 12.5)),
        (QUANTITY, {"value": 2, "business_value": 0}, (None, 2.0, 0.0)),
        (QUANTITY, {"business_value": 7}, (None, None, 7.0)),
    ):
        labels, rules = read(contract, {"prediction_id": ID, **entry})
        assert rules == []
        assert (labels.classes, labels.values, labels.business_values) == tuple([value] for value in kept)
        assert labels.labelled_ids() == ([ID] if kept[:2] != (None, None) else [])


@pytest.mark.parametrize(
    ("contract", "entry", "rules"),
    [
        (BINARY, {"prediction_id": ID, "label": 2}, ["class"]),
        (BINARY, {"prediction_id": ID, "label": "1"}, ["class"]),
        (BINARY, {"prediction_id": ID, "label": "class_1"}, ["class"]),
        (BINARY, {"prediction_id": ID, "label": True}, ["class"]),
        (BINARY, {"prediction_id": ID, "label": None}, ["class"]),
        (BINARY, {"prediction_id": ID, "label": [1]}, ["class"]),
        (BINARY, {"prediction_id": ID, "value": 1}, ["unknown_key"]),
        (BINARY, {"prediction_id": ID}, ["class"]),
        (BINARY, {"label": 1}, ["uuid"]),
        (BINARY, {"prediction_id": 7, "label": 7}, ["uuid", "class"]),
        (BINARY, {"prediction_id": ID + "0", "label": 1}, ["uuid"]),
        (BINARY, {"prediction_id": ID.replace("-", ""), "label": 1}, ["uuid"]),
        (BINARY, {"prediction_id": ID + "\n", "label": 1}, ["uuid"]),
        (CONTRACT, {"prediction_id": ID, "label": "Plus"}, ["class"]),
        (QUANTITY, {"prediction_id": ID, "value": math.nan}, ["finite"]),
        (QUANTITY, {"prediction_id": ID, "value": 10**400}, ["finite"]),
        (QUANTITY, {"prediction_id": ID, "value": False}, ["kind"]),
        (QUANTITY, {"prediction_id": ID, "value": "1"}, ["kind"]),
        (QUANTITY, {"prediction_id": ID, "value": 1, "label": 1}, ["shape"]),
        (BINARY, [ID, 1], ["row_shape"]),
        (BINARY, {"prediction_id": ID, "business_value": None}, ["kind"]),
        (BINARY, {"prediction_id": ID, "business_value": "12"}, ["kind"]),
        (BINARY, {"prediction_id": ID, "business_value": math.inf}, ["finite"]),
        (BINARY, {"prediction_id": ID, "business_value": 1, "label": 2}, ["class"]),
        (BINARY, {"prediction_id": ID, "business_value": True, "label": 1}, ["kind"]),
    ],
)
def test_what_is_no_label_is_refused_with_its_rule_and_nothing_is_kept(
    contract: Contract, entry: object, rules: list[str]
) -> None:
    labels, found = read(contract, entry)

    assert found == rules
    assert len(labels) == 0


@given(
    st.lists(st.text(), min_size=2, unique=True) | st.lists(st.integers(-(2**53), 2**53), min_size=2, unique=True),
    st.data(),
)
def test_every_class_is_a_label_as_it_stands_and_as_the_text_of_a_file(classes: list, data: st.DataObject) -> None:
    contract = Contract(features=FEATURES, task="multiclass", target="y", classes=tuple(classes))
    reader, labels = LabelReader(contract), Labels()
    label = data.draw(st.sampled_from(classes))

    assert reader.read(0, {"prediction_id": ID, "label": label}, labels) == []
    assert reader.add(0, ID, reader.from_text(str(label)), labels) == []
    assert labels.classes == [str(label)] * 2


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_a_label_as_it_stands_and_as_the_text_of_a_file(number: float) -> None:
    reader, labels = LabelReader(QUANTITY), Labels()

    assert reader.read(0, {"prediction_id": ID, "value": number}, labels) == []
    assert reader.add(0, ID, reader.from_text(str(number)), labels) == []
    assert labels.values == [number] * 2


def test_an_id_of_ours_tells_when_it_was_made_and_another_does_not() -> None:
    assert made_at("01a1ff47-2cd4-7152-8ad0-d82ed3f88a73") == 1795284217.044
    assert made_at(str(uuid.uuid4())) is None


def test_labels_that_come_in_one_moment_keep_their_order_and_what_is_too_much_is_refused() -> None:
    source = LabelSource()
    for label in ("basic", "plus", "pro"):
        source.put(Labels([ID], [label], [None]))
    ((partition, batch),) = source.batches()

    times = batch.column("time").cast("int64").to_pylist()
    assert partition.startswith("date=")
    assert times == sorted(set(times))
    assert batch.column("label").to_pylist() == ["basic", "plus", "pro"]

    many = Labels([ID] * MOST_ROWS, ["pro"] * MOST_ROWS, [None] * MOST_ROWS)
    source.put(many)
    with pytest.raises(NoRoomError, match="100000 labels wait"):
        source.put(Labels([ID], ["pro"], [None]))
    assert list(source.batches())
    source.put(many)
