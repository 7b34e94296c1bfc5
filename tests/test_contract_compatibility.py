"""A contract that breaks no caller refuses none of their requests: asked of the reader of rows itself."""

from typing import Any

from contracts import contracts, features, rows
from hypothesis import given
from hypothesis import strategies as st

from tabserve.contract import Contract, Feature
from tabserve.lifecycle.compatibility import breaking_changes
from tabserve.validation import RowReader


def of(*these: Feature, classes: tuple[str | int, ...] = ("no", "yes")) -> Contract:
    return Contract(features=these, task="binary", target="y", classes=classes)


@st.composite
def changed(draw: st.DrawFn, old: Contract) -> Contract:
    """The contract with some of it changed, for wider, for narrower, or for another one."""
    these = list(old.features)
    for position, feature in enumerate(these):
        updates: list[dict[str, Any]] = [{}, {"may_be_missing": not feature.may_be_missing}]
        if feature.kind == "category":
            more = ("zz",) if isinstance(feature.categories[0], str) else (77,)
            updates += [{"categories": (*feature.categories, *more)}, {"categories": feature.categories[:1]}]
        elif feature.kind != "boolean":
            updates += [{"kind": "number"}, {"kind": "integer"}, {"hard_minimum": None, "hard_maximum": None}]
            updates += [{"hard_minimum": -5.0, "hard_maximum": 5.0}]
        these[position] = feature.model_copy(update=draw(st.sampled_from(updates)))
    end = draw(st.sampled_from(["same", "same", "one more", "one less", "turned"]))
    if end == "one more":
        these.append(draw(features("a name that is not among the random ones")))
    if end == "one less" and len(these) > 1:
        these.pop()
    return old.model_copy(update={"features": tuple(these[::-1] if end == "turned" else these)})


@given(contracts(), st.data())
def test_what_breaks_nobody_takes_every_row_that_was_taken(old: Contract, data: st.DataObject) -> None:
    new = Contract.model_validate(data.draw(changed(old)).model_dump())
    row = data.draw(rows(old))
    RowReader(old).read([row])

    if not breaking_changes(old, new):
        RowReader(new).read([row])


def test_a_new_feature_that_may_be_missing_breaks_the_rows_that_are_lists() -> None:
    age = Feature(name="age", kind="number")
    more = Feature(name="city", kind="category", categories=("Oslo",), may_be_missing=True)

    assert breaking_changes(of(age), of(age, more)) == ["a row that is a list has 2 values, and had 1"]


def test_a_label_of_another_kind_is_another_answer_although_its_key_is_the_same() -> None:
    age = Feature(name="age", kind="number")
    old, new = of(age, classes=(0, 1)), of(age, classes=("class_0", "class_1"))

    assert old.probability_keys == new.probability_keys
    assert breaking_changes(old, new) == ["its classes are class_0, class_1, and were 0, 1"]
