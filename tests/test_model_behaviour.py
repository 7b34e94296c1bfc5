"""What the models must do whatever their scores are: minimum function, invariance, direction."""

import numpy as np
import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, TrainedModels

from tabserve.model_store import LoadedModel
from tabserve.training.table import builtin_table
from tabserve.validation import RowReader

CUSTOMER = {"age": 50, "income": 20000.0, "city": "Bergen", "member": False, "visits": 3}


def scores(model: LoadedModel, *instances: object) -> np.ndarray:
    return model.engine.predict(RowReader(model.contract).read(list(instances)).values)


# --- minimum function: what nobody would get wrong


def test_the_typical_tumour_of_each_kind_is_told_apart(models: TrainedModels) -> None:
    model, table = models.load(BUILT_IN), builtin_table()
    malignant, benign = (np.median(table.rows[table.target == label], axis=0).tolist() for label in (0, 1))

    of_malignant, of_benign = scores(model, malignant, benign)

    assert of_malignant[0] > 0.95
    assert of_benign[1] > 0.95


def test_the_clearest_customers_get_the_clearest_plans(models: TrainedModels) -> None:
    model = models.load(CUSTOMERS)
    poor = {**CUSTOMER, "age": 20, "income": 3000.0}
    rich = {**CUSTOMER, "age": 85, "income": 200000.0, "city": "Oslo", "member": True}

    found = [model.contract.classes[code] for code in scores(model, poor, rich).argmax(axis=1)]

    assert found == ["basic", "pro"]


# --- invariance: what must not matter


def test_the_order_and_the_neighbours_of_a_row_do_not_matter(models: TrainedModels) -> None:
    for name in (BUILT_IN, CUSTOMERS, SPEND):
        model = models.load(name)
        instances = model.examples["instances"]

        forwards, backwards = scores(model, *instances), scores(model, *instances[::-1])[::-1]

        np.testing.assert_array_equal(forwards, backwards)


def test_asking_twice_gives_the_same_answer(models: TrainedModels) -> None:
    for name in (BUILT_IN, CUSTOMERS, SPEND):
        model = models.load(name)

        np.testing.assert_array_equal(
            scores(model, *model.examples["instances"]), scores(model, *model.examples["instances"])
        )


def test_a_cause_that_is_none_moves_little(models: TrainedModels) -> None:
    """Visits have nothing to do with the spending: over their range it moves far less than over that of age."""
    model = models.load(SPEND)

    over_visits = scores(model, *({**CUSTOMER, "visits": visits} for visits in range(9)))
    over_age = scores(model, *({**CUSTOMER, "age": age} for age in range(20, 90, 8)))

    assert np.ptp(over_visits) < np.ptp(over_age) / 3


# --- direction: which way a change must move the answer


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"age": 22}, {"age": 80}),
        ({"income": 4000.0}, {"income": 150000.0}),
        ({"city": "Bergen"}, {"city": "Oslo"}),
        ({"member": False}, {"member": True}),
    ],
    ids=["age", "income", "city", "member"],
)
def test_what_raises_the_spending_raises_the_prediction(models: TrainedModels, less: dict, more: dict) -> None:
    low, high = scores(models.load(SPEND), {**CUSTOMER, **less}, {**CUSTOMER, **more})

    assert high > low


def test_a_larger_and_rougher_nucleus_is_not_taken_for_more_benign(models: TrainedModels) -> None:
    model, table = models.load(BUILT_IN), builtin_table()
    row = np.median(table.rows, axis=0)
    worse = row.copy()
    for name in ("worst area", "worst perimeter", "worst radius", "worst concave points", "mean concave points"):
        position = model.contract.names.index(name)
        worse[position] = np.quantile(table.rows[:, position], 0.95)

    before, after = scores(model, row.tolist(), worse.tolist())

    assert after[0] > before[0]
