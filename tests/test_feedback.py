"""What callers of /feedback see: real services, one a model, asked over HTTP."""

import json
import uuid
from datetime import timedelta

import httpx
import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, Service, TrainedModels, running_service, wait_for
from test_http import CUSTOMER, TUTORIAL_ROW, assert_is_our_error, post_text

from tabserve.contract import MAX_ROWS
from tabserve.history.records import opened as records_of
from tabserve.history.records import readable_place
from tabserve.history.window import last
from tabserve.prediction_log.places import default_url

EXAMPLE = {BUILT_IN: TUTORIAL_ROW, CUSTOMERS: CUSTOMER, SPEND: CUSTOMER}
NEW_ID = "01a1ff47-2cd4-7152-8ad0-d82ed3f88a73"


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_what_an_answer_says_can_be_sent_back_as_the_label_alone_or_in_a_list(
    services: dict[str, Service], name: str
) -> None:
    with services[name].client() as client:
        before = metric(client, "tabserve_labels_total"), metric(client, "tabserve_label_delay_seconds_count")
        answer = client.post("/predict", json={"features": EXAMPLE[name]}).json()
        outcome = "value" if name == SPEND else "label"
        label = {"prediction_id": answer["prediction_id"], outcome: answer[outcome]}
        one = client.post("/feedback", json=label)
        many = client.post("/feedback", json={"labels": [label] * MAX_ROWS})
        unknown = client.post("/feedback", json={**label, "prediction_id": str(uuid.uuid4())})

        assert [response.status_code for response in (one, many, unknown)] == [200] * 3
        assert (one.json(), many.json(), unknown.json()) == ({"accepted": 1}, {"accepted": MAX_ROWS}, {"accepted": 1})
        after = metric(client, "tabserve_labels_total"), metric(client, "tabserve_label_delay_seconds_count")
    # The last one is of an id that does not tell when it was made.
    assert (after[0] - before[0], after[1] - before[1]) == (MAX_ROWS + 2, MAX_ROWS + 1)


def test_what_a_prediction_was_worth_is_taken_alone_or_in_a_list_and_is_no_label(
    models: TrainedModels, services: dict[str, Service]
) -> None:
    with services[CUSTOMERS].client() as client:
        before = metric(client, "tabserve_labels_total")
        ids = [client.post("/predict", json={"features": CUSTOMER}).json()["prediction_id"] for _ in range(3)]
        bodies: list[dict] = [
            {"prediction_id": ids[0], "business_value": 12.5},
            {"prediction_id": ids[0], "label": "plus"},
            {
                "labels": [
                    {"prediction_id": ids[1], "label": "pro", "business_value": 1},
                    {"prediction_id": ids[1], "business_value": -2},
                    {"prediction_id": ids[2], "business_value": 0},
                ]
            },
        ]
        assert [client.post("/feedback", json=body).json() for body in bodies] == [{"accepted": n} for n in (1, 1, 3)]
        assert metric(client, "tabserve_labels_total") - before == 2
        (entry,) = assert_is_our_error(
            post_text(client, "/feedback", f'{{"prediction_id": "{ids[0]}", "business_value": 1e999}}'), 422
        )
        assert (entry["feature"], entry["rule"].partition(":")[0]) == ("business_value", "finite")
    expected = [(ids[0], "plus", 12.5, True), (ids[1], "pro", -2.0, True), (ids[2], None, 0.0, False)]
    place = readable_place(default_url(models.home))

    def joined() -> list[tuple[object, ...]]:
        columns = "prediction_id, true_label, business_value, labelled_at IS NOT NULL"
        with records_of(place, last(timedelta(hours=1))) as found:
            return found.rows(f"SELECT {columns} FROM joined WHERE business_value IS NOT NULL ORDER BY prediction_id")

    wait_for(lambda: joined() == expected)


@pytest.mark.parametrize(
    ("body", "row", "feature", "rule", "got"),
    [
        ({"prediction_id": NEW_ID, "label": 2}, 0, "label", "class: expected one of 0, 1", 2),
        ({"prediction_id": NEW_ID, "label": "class_1"}, 0, "label", "class: expected one of 0, 1", "class_1"),
        ({"prediction_id": "7", "label": 1}, 0, "prediction_id", "uuid: expected the prediction_id", "7"),
        ({"prediction_id": NEW_ID}, 0, "label", "class", None),
        ({"labels": []}, None, None, "row_count", 0),
        ({"labels": [{"prediction_id": NEW_ID, "label": 1}] * 513}, None, None, "row_count", 513),
        ({"labels": {"prediction_id": NEW_ID, "label": 1}}, None, None, "shape", "an object"),
        ({"labels": [], "more": 1}, None, None, "unknown_key", "more"),
        ({"prediction_id": NEW_ID, "label": 1, "why": "x"}, 0, None, "unknown_key", "why"),
        ([{"prediction_id": NEW_ID, "label": 1}], None, None, "shape", "a list of 1"),
        ({"labels": [{"prediction_id": NEW_ID, "label": 1}, {"prediction_id": NEW_ID}]}, 1, "label", "class", None),
        ("label", None, None, "shape", "a text of 5"),
    ],
)
def test_what_is_no_label_is_a_422_in_the_one_shape(
    built_in: httpx.Client, body: object, row: int | None, feature: str | None, rule: str, got: object
) -> None:
    detail = assert_is_our_error(built_in.post("/feedback", json=body), 422)

    assert (detail[0]["row"], detail[0]["feature"], detail[0]["got"]) == (row, feature, got)
    assert detail[0]["rule"].startswith(rule)


def test_a_request_with_one_bad_label_leaves_none(built_in: httpx.Client) -> None:
    before = metric(built_in, "tabserve_labels_total")
    labels = [{"prediction_id": NEW_ID, "label": label} for label in (0, 1, 7)]

    detail = assert_is_our_error(built_in.post("/feedback", json={"labels": labels}), 422)

    assert [entry["row"] for entry in detail] == [2]
    assert metric(built_in, "tabserve_labels_total") == before


def test_a_quantity_must_be_finite(spend: httpx.Client) -> None:
    for text in ("NaN", "Infinity", "1e999"):
        body = f'{{"prediction_id": "{NEW_ID}", "value": {text}}}'
        (entry,) = assert_is_our_error(post_text(spend, "/feedback", body), 422)
        assert (entry["feature"], entry["rule"].partition(":")[0]) == ("value", "finite")


def test_bodies_types_and_methods_are_checked_as_on_all_routes(built_in: httpx.Client) -> None:
    label = json.dumps({"prediction_id": NEW_ID, "label": 1})

    assert_is_our_error(post_text(built_in, "/feedback", label[:-1]), 400)
    assert_is_our_error(post_text(built_in, "/feedback", b'{"\xff": 1}'), 400)
    assert_is_our_error(post_text(built_in, "/feedback", " " * 2_000_000 + label), 413)
    assert_is_our_error(post_text(built_in, "/feedback", label, **{"content-type": "text/plain"}), 415)
    assert_is_our_error(built_in.get("/feedback"), 405)


def test_where_nothing_is_kept_a_label_is_refused_with_a_sentence(models: TrainedModels, tmp_path) -> None:
    with (
        running_service(models.home, tmp_path / "log", TABSERVE_LOG_URL="null:") as service,
        service.client() as client,
    ):
        response = client.post("/feedback", json={"prediction_id": NEW_ID, "label": 1})

    assert_is_our_error(response, 503)
    assert response.json()["error"] == ("The labels were not accepted: TABSERVE_LOG_URL is null:, which keeps nothing.")
