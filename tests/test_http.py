"""What callers see: real `bentoml serve` processes, one a model, asked over HTTP."""

import concurrent.futures
import http.client
import json
import socket
import time
import uuid
from urllib.parse import urlsplit

import httpx
import numpy as np
import pandas as pd
import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, Service, TrainedModels, lines_of, wait_for
from contracts import Broken, broken_rows, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import TABLES, random_rows

from tabserve.contract import MAX_ROWS, Contract
from tabserve.engine import SklearnEngine, load_pipeline
from tabserve.training.evaluation import split

TUTORIAL_ROW = [
    *(17.99, 10.38, 122.8, 1001.0, 0.1184, 0.2776, 0.3001, 0.1471, 0.2419, 0.07871, 1.095, 0.9053, 8.589, 153.4),
    *(0.006399, 0.04904, 0.05373, 0.01587, 0.03003, 0.006193, 25.38, 17.33, 184.6, 2019.0, 0.1622, 0.6656, 0.7119),
    *(0.2654, 0.4601, 0.1189),
]
CUSTOMER = {"age": 40, "income": 30000.5, "city": "Oslo", "member": True, "visits": 3}

over_http = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_is_our_error(response: httpx.Response, status: int) -> list[dict]:
    """The one shape of all errors of our routes."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "detail"}
    assert len(body["error"]) > 10
    for entry in body["detail"]:
        assert set(entry) == {"row", "feature", "rule", "got"}
    assert "Traceback" not in response.text
    return body["detail"]


def post_text(client: httpx.Client, path: str, text: str | bytes, **headers: str) -> httpx.Response:
    return client.post(path, content=text, headers={"content-type": "application/json", **headers})


# --- answers


def test_the_tutorials_row_is_answered_as_it_stands(built_in: httpx.Client, models: TrainedModels) -> None:
    body = built_in.post("/predict", json={"features": TUTORIAL_ROW}).raise_for_status().json()

    assert body["label"] == 0
    assert set(body["probabilities"]) == {"class_0", "class_1"}
    assert sum(body["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    assert body["model_version"] == models.tag(BUILT_IN)
    assert body["n_features_in"] == 30
    assert body["latency_ms"] > 0
    assert uuid.UUID(body["prediction_id"]).version == 7


def test_a_row_by_name_in_any_order_is_the_row_in_order(built_in: httpx.Client) -> None:
    contract = Contract.model_validate(built_in.get("/metadata").json()["contract"])
    by_name = dict(reversed(list(zip(contract.names, TUTORIAL_ROW, strict=True))))

    in_order = built_in.post("/predict", json={"features": TUTORIAL_ROW}).json()
    named = built_in.post("/predict", json={"features": by_name}).json()

    assert named["probabilities"] == in_order["probabilities"]
    assert named["prediction_id"] != in_order["prediction_id"]


def test_a_batch_answers_each_row_in_order_with_an_id_of_its_own(built_in: httpx.Client, models: TrainedModels) -> None:
    other = [value * 0.5 for value in TUTORIAL_ROW]

    body = built_in.post("/predict/batch", json={"instances": [TUTORIAL_ROW, other, TUTORIAL_ROW]}).json()

    first, second, third = body["predictions"]
    assert (body["model_version"], body["n_instances"]) == (models.tag(BUILT_IN), 3)
    assert first["probabilities"] == third["probabilities"] != second["probabilities"]
    assert len({prediction["prediction_id"] for prediction in body["predictions"]}) == 3


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_single_is_batch_is_bentomls_api_is_scikit_learn_on_every_row_of_the_test_set(
    services: dict[str, Service], models: TrainedModels, name: str
) -> None:
    contract = models.load(name).contract
    table = TABLES[name]()
    test = table.rows[split(table.contract, table.target, None, seed=42).test]
    expected = SklearnEngine(load_pipeline(models.directory(name)), contract).predict(test)
    instances = [contract.to_values(row) for row in test]

    with services[name].client() as client:
        singles = [client.post("/predict", json={"features": row}).raise_for_status().json() for row in instances]
        batch = client.post("/predict/batch", json={"instances": instances}).raise_for_status().json()["predictions"]
        bento = client.post("/bento/predict", json={"rows": instances}).raise_for_status().json()

    for answers in (singles, batch, bento):
        if name == SPEND:
            np.testing.assert_allclose([answer["value"] for answer in answers], expected, rtol=1e-6)
            continue
        found = [[answer["probabilities"][key] for key in contract.probability_keys] for answer in answers]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert [answer["label"] for answer in answers] == [contract.classes[code] for code in expected.argmax(axis=1)]


def test_whole_numbers_may_come_with_a_fraction_of_zero(customers: httpx.Client) -> None:
    whole = customers.post("/predict", json={"features": CUSTOMER}).json()
    fraction = customers.post("/predict", json={"features": {**CUSTOMER, "age": 40.0, "visits": 3.0}}).json()

    assert whole["probabilities"] == fraction["probabilities"]


def test_what_may_be_missing_may_be_null_or_left_out(customers: httpx.Client) -> None:
    as_null = customers.post("/predict", json={"features": {**CUSTOMER, "visits": None, "city": None}}).json()
    left_out = customers.post("/predict", json={"features": {"age": 40, "income": 30000.5, "member": True}}).json()

    assert as_null["probabilities"] == left_out["probabilities"]


def test_a_regression_answers_a_value(spend: httpx.Client) -> None:
    body = spend.post("/predict", json={"features": CUSTOMER}).raise_for_status().json()

    assert isinstance(body["value"], float)
    assert not {"label", "probabilities"} & set(body)


def test_a_value_outside_of_the_training_range_is_answered_with_a_warning_and_counted(customers: httpx.Client) -> None:
    body = customers.post("/predict", json={"features": {**CUSTOMER, "age": 120}}).raise_for_status().json()

    (warning,) = body["warnings"]
    assert (warning["feature"], warning["got"]) == ("age", 120)
    assert warning["rule"].startswith("range: expected 18 to 89")
    assert 'tabserve_out_of_range_values_total{feature="age"}' in customers.get("/metrics").text


def test_512_rows_are_answered(built_in: httpx.Client) -> None:
    body = built_in.post("/predict/batch", json={"instances": [TUTORIAL_ROW] * MAX_ROWS}).raise_for_status().json()

    assert body["n_instances"] == MAX_ROWS


def test_callers_at_the_same_time_get_their_own_answers(services: dict[str, Service], models: TrainedModels) -> None:
    model = models.load(BUILT_IN)
    random = random_rows(model.contract, 300)
    expected = model.engine.predict(random)

    def ask(rows: list[int]) -> None:
        with services[BUILT_IN].client() as client:
            for row in rows:
                if row % 5 == 0:
                    assert client.post("/predict", json={"features": ["bad"]}).status_code == 422
                body = client.post("/predict", json={"features": random[row].tolist()}).json()
                assert list(body["probabilities"].values()) == pytest.approx(expected[row].tolist(), abs=1e-12)

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(ask, list(range(start, 300, 10))) for start in range(10)]:
            done.result()


# --- refusals


@pytest.mark.parametrize(
    ("text", "place", "rule"),
    [
        ('{"features": []}', (0, None), "count: expected 30 values"),
        (json.dumps({"features": TUTORIAL_ROW[1:]}), (0, None), "count: expected 30 values"),
        (json.dumps({"features": [True, *TUTORIAL_ROW[1:]]}), (0, "mean radius"), "kind: expected a number"),
        (json.dumps({"features": ["17.99", *TUTORIAL_ROW[1:]]}), (0, "mean radius"), "kind: expected a number"),
        (json.dumps({"features": [None, *TUTORIAL_ROW[1:]]}), (0, "mean radius"), "missing: "),
        (json.dumps({"features": [*TUTORIAL_ROW[:29], float("nan")]}), (0, "worst fractal dimension"), "finite: "),
        (json.dumps({"features": [*TUTORIAL_ROW[:29], float("inf")]}), (0, "worst fractal dimension"), "finite: "),
        (json.dumps({"features": [*TUTORIAL_ROW[:29], float("-inf")]}), (0, "worst fractal dimension"), "finite: "),
        (json.dumps({"features": TUTORIAL_ROW}).replace("17.99", "1e999"), (0, "mean radius"), "finite: "),
        (json.dumps({"features": TUTORIAL_ROW}).replace("17.99", "9" * 5000), (0, "mean radius"), "finite: "),
        ('{"features": {"mean radius": 1}}', (0, "mean texture"), "missing_name: "),
        ('{"features": 3}', (0, None), "row_shape: "),
        ('{"features": null}', (0, None), "row_shape: "),
        ('{"instances": []}', (None, None), "missing_key: "),
        ('{"features": [1], "more": 2}', (None, None), "unknown_key: "),
        ("[]", (None, None), "shape: "),
        ("3", (None, None), "shape: "),
        ("null", (None, None), "shape: "),
    ],
)
def test_a_row_that_breaks_the_contract_is_422_with_row_feature_and_rule(
    built_in: httpx.Client, text: str, place: tuple, rule: str
) -> None:
    detail = assert_is_our_error(post_text(built_in, "/predict", text), 422)

    assert (detail[0]["row"], detail[0]["feature"]) == place
    assert detail[0]["rule"].startswith(rule)


@pytest.mark.parametrize(
    ("instances", "row", "rule"),
    [
        ([], None, "row_count: expected 1 to 512 rows"),
        ([TUTORIAL_ROW] * 513, None, "row_count: expected 1 to 512 rows"),
        ([[]] * 1000, None, "row_count: expected 1 to 512 rows"),
        ([TUTORIAL_ROW, TUTORIAL_ROW[1:]], 1, "count: "),
        ([TUTORIAL_ROW, [*TUTORIAL_ROW[1:], "x"]], 1, "kind: "),
        ([TUTORIAL_ROW, 7], 1, "row_shape: "),
        ("rows", None, "shape: "),
        ({"a": 1}, None, "shape: "),
    ],
    ids=["none", "513", "1000", "short row", "text", "no row", "text for rows", "object for rows"],
)
def test_a_batch_that_breaks_the_contract_is_422_and_names_the_row(
    built_in: httpx.Client, instances: object, row: int | None, rule: str
) -> None:
    detail = assert_is_our_error(built_in.post("/predict/batch", json={"instances": instances}), 422)

    assert detail[0]["row"] == row
    assert detail[0]["rule"].startswith(rule)
    if rule.startswith("row_count"):
        assert detail[0]["got"] == len(instances)


@over_http
@given(st.data())
def test_a_valid_row_of_mixed_kinds_is_always_200(
    customers: httpx.Client, models: TrainedModels, data: st.DataObject
) -> None:
    contract = models.load(CUSTOMERS).contract
    instances = data.draw(st.lists(rows(contract), min_size=1, max_size=3))

    assert customers.post("/predict", json={"features": instances[0]}).status_code == 200
    assert customers.post("/predict/batch", json={"instances": instances}).status_code == 200


@over_http
@given(st.data())
def test_a_broken_rule_is_always_422_with_the_right_row_and_feature(
    customers: httpx.Client, models: TrainedModels, data: st.DataObject
) -> None:
    contract = models.load(CUSTOMERS).contract
    broken: Broken = data.draw(broken_rows(contract))
    before = data.draw(st.lists(rows(contract), max_size=2))

    response = post_text(customers, "/predict/batch", json.dumps({"instances": [*before, broken.row]}))

    (entry,) = assert_is_our_error(response, 422)
    assert (entry["row"], entry["feature"]) == (len(before), broken.feature)
    assert entry["rule"].startswith(f"{broken.rule}: ")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"not json", b'{"features": [1,]}', b"\xff\xfe", b'{"features": [1]} {}', b"[" * 100_000, b"{'a': 1}"],
    ids=["empty", "open", "words", "comma", "no UTF-8", "two documents", "nested", "single quotes"],
)
def test_what_is_no_json_is_400(built_in: httpx.Client, body: bytes) -> None:
    assert_is_our_error(post_text(built_in, "/predict", body), 400)
    assert_is_our_error(post_text(built_in, "/predict/batch", body), 400)


def test_half_a_character_is_refused_and_not_a_fault_of_the_service(customers: httpx.Client) -> None:
    for text in (r'{"features": {"\ud800": 1}}', r'{"features": [40, 1, "\ud800", true, 1]}', r'{"\ud800": 1}'):
        assert_is_our_error(post_text(customers, "/predict", text), 422)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle"]
)
def test_another_media_type_is_415(built_in: httpx.Client, media_type: str) -> None:
    response = built_in.post("/predict", content=b"{}", headers={"content-type": media_type})

    assert_is_our_error(response, 415)


def test_json_may_say_its_character_set(built_in: httpx.Client) -> None:
    text = json.dumps({"features": TUTORIAL_ROW})

    for media_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert post_text(built_in, "/predict", text, **{"content-type": media_type}).status_code == 200


def test_a_body_over_the_limit_is_413_announced_or_not(built_in: httpx.Client) -> None:
    large = b'{"features": "' + b"x" * 5_000_000 + b'"}'

    def in_pieces():
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]

    for path in ("/predict", "/predict/batch", "/bento/predict"):
        assert_is_our_error(post_text(built_in, path, large), 413)
        assert_is_our_error(post_text(built_in, path, in_pieces()), 413)


def test_a_client_that_reads_only_after_it_has_sent_everything_gets_its_413(services: dict[str, Service]) -> None:
    connection = http.client.HTTPConnection(urlsplit(services[BUILT_IN].url).netloc, timeout=10)

    connection.request("POST", "/predict", b"x" * 5_000_000, {"Content-Type": "application/json"})

    assert connection.getresponse().status == 413


def test_an_odd_but_valid_content_length_is_read(services: dict[str, Service]) -> None:
    body = json.dumps({"features": TUTORIAL_ROW}).encode()
    head = "POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"

    answer = raw(services[BUILT_IN], f"{head}content-length: {'0' * 5000}{len(body)}\r\n\r\n".encode() + body)

    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "body",
    [
        '{"features": {' + ", ".join(f'"x{number}": 1' for number in range(60_000)) + "}}",
        '{"instances": [' + ", ".join(["[]"] * 200_000) + "]}",
        "{" + ", ".join(f'"x{number}": 1' for number in range(60_000)) + "}",
    ],
    ids=["60,000 unknown names", "200,000 rows", "60,000 keys"],
)
def test_a_refusal_of_a_large_body_is_small_and_holds_up_nobody(
    services: dict[str, Service], built_in: httpx.Client, body: str
) -> None:
    path = "/predict/batch" if "instances" in body else "/predict"
    with concurrent.futures.ThreadPoolExecutor(1) as pool, services[BUILT_IN].client() as other:
        refused = pool.submit(post_text, built_in, path, body)
        slowest, n_probes = 0.0, 0
        while not refused.done() or not n_probes:
            n_probes += 1
            started = time.perf_counter()
            other.get("/health").raise_for_status()
            slowest = max(slowest, time.perf_counter() - started)

    assert_is_our_error(refused.result(), 422)
    assert len(refused.result().content) < 50_000
    assert slowest < 1  # it was up to 3 s when the event loop read the rows


def test_an_unknown_path_is_404_and_a_wrong_method_405_in_the_same_shape(built_in: httpx.Client) -> None:
    for path in ("/nope", "/predict/", "/predict/batch/x", "/Predict", "/bento", "/bento/x", "/docs/none.js"):
        assert_is_our_error(built_in.post(path, json={}), 404)
    assert "/predict" in built_in.get("/nope").json()["error"]
    for method, path, allowed in (
        ("GET", "/predict", "POST"),
        ("DELETE", "/predict/batch", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
    ):
        response = built_in.request(method, path)
        assert_is_our_error(response, 405)
        assert response.headers["allow"] == allowed


def test_the_callers_row_is_not_echoed_beyond_the_value_at_fault(customers: httpx.Client) -> None:
    response = customers.post("/predict", json={"features": {**CUSTOMER, "income": 98765.4321, "age": "forty-one"}})

    assert_is_our_error(response, 422)
    assert "forty-one" in response.text
    assert "98765.4321" not in response.text


# --- about the service


def test_health_says_alive_with_model_version_and_uptime(built_in: httpx.Client, models: TrainedModels) -> None:
    first = built_in.get("/health").raise_for_status().json()

    assert first["status"] == "alive"
    assert (first["model"], first["model_version"], first["model_loaded"]) == (BUILT_IN, models.tag(BUILT_IN), True)
    assert first["uptime_seconds"] > 0
    wait_for(lambda: built_in.get("/health").json()["uptime_seconds"] > first["uptime_seconds"])


def test_metadata_has_version_dates_metrics_and_contract(customers: httpx.Client, models: TrainedModels) -> None:
    body = customers.get("/metadata").raise_for_status().json()
    contract = models.load(CUSTOMERS).contract

    assert body["model_version"] == models.tag(CUSTOMERS)
    assert Contract.model_validate(body["contract"]) == contract
    assert body["contract_hash"] == contract.hash
    assert pd.Timestamp(body["trained_at"]) < pd.Timestamp(body["in_service_since"])
    assert body["metrics"]["test"]["accuracy"] > body["metrics"]["baseline"]["accuracy"]
    nothing_else = dict.fromkeys(("challenger", "paused", "refused"))
    # A model that TABSERVE_MODEL names follows no rollout file.
    assert body["rollout"] == {"champion": models.tag(CUSTOMERS), **nothing_else, "followed": False}


def test_metrics_count_requests_predictions_and_refusals(built_in: httpx.Client, models: TrainedModels) -> None:
    def samples() -> dict[str, float]:
        lines = (line for line in built_in.get("/metrics").text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = samples()
    built_in.post("/predict/batch", json={"instances": [TUTORIAL_ROW] * 3})
    built_in.post("/predict", json={"features": []})
    refused = 'tabserve_requests_total{route="/predict",status="422"}'
    wait_for(lambda: samples().get(refused, 0) > before.get(refused, 0))
    after = samples()

    for name, increase in {
        'tabserve_requests_total{route="/predict/batch",status="200"}': 1,
        'tabserve_requests_total{route="/predict",status="422"}': 1,
        'tabserve_rejected_values_total{rule="count"}': 1,
        f'tabserve_predictions_total{{model_version="{models.tag(BUILT_IN)}"}}': 3,
        'tabserve_request_duration_seconds_count{route="/predict/batch"}': 1,
    }.items():
        assert after[name] - before.get(name, 0) == increase, name
    assert any(name.startswith("tabserve_ready") and value == 1 for name, value in after.items())


def test_requests_to_bentomls_api_are_counted_and_their_failures_logged(services: dict[str, Service]) -> None:
    with services[SPEND].client() as client:
        client.post("/bento/predict", json={"rows": [CUSTOMER]})
        client.post("/bento/predict", json={"rows": [7]})
        for status in ("200", "400"):
            counted = f'tabserve_requests_total{{route="/bento/predict",status="{status}"}}'
            wait_for(lambda counted=counted: counted in client.get("/metrics").text)

    def refused() -> list[dict]:
        return [line for line in lines_of(services[SPEND]) if line["message"] == "request refused by BentoML"]

    wait_for(refused)
    failed = refused()
    assert (failed[-1]["route"], failed[-1]["status"]) == ("/bento/predict", 400)


def test_unknown_paths_share_one_label_in_the_metrics(built_in: httpx.Client) -> None:
    for number in range(5):
        built_in.get(f"/unknown/{number}")

    text = built_in.get("/metrics").text
    assert 'tabserve_requests_total{route="other",status="404"}' in text
    assert "/unknown/" not in text


def test_bentomls_own_routes_stay_as_its_users_know_them(built_in: httpx.Client) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/schema.json", "/docs.json"):
        assert built_in.get(path).status_code == 200, path
    assert "/bento/predict" in built_in.get("/docs.json").json()["paths"]


def test_bentomls_client_gets_predictions(services: dict[str, Service]) -> None:
    import bentoml

    with bentoml.SyncHTTPClient(services[BUILT_IN].url) as client:
        (prediction,) = client.predict(rows=[TUTORIAL_ROW])

    answer = prediction if isinstance(prediction, dict) else prediction.model_dump()
    assert answer["label"] == 0


def test_one_bad_row_in_bentomls_api_fails_its_caller_alone(services: dict[str, Service]) -> None:
    def ask(number: int) -> int:
        row = ["bad"] if number % 4 == 0 else TUTORIAL_ROW
        with services[BUILT_IN].client() as client:
            response = client.post("/bento/predict", json={"rows": [row]})
        if number % 4 == 0:
            assert "expected 30 values, got 1" in response.text
        else:
            assert response.json()[0]["label"] == 0
        return response.status_code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(64)))

    assert found == [400 if number % 4 == 0 else 200 for number in range(64)]


def test_bentomls_api_takes_rows_by_name_no_rows_and_up_to_512(customers: httpx.Client) -> None:
    assert len(customers.post("/bento/predict", json={"rows": [CUSTOMER, list(CUSTOMER.values())]}).json()) == 2
    assert customers.post("/bento/predict", json={"rows": []}).json() == []
    assert len(customers.post("/bento/predict", json={"rows": [CUSTOMER] * MAX_ROWS}).json()) == MAX_ROWS
    assert customers.post("/bento/predict", json={"rows": [CUSTOMER] * (MAX_ROWS + 1)}).status_code == 400


def test_a_pickle_is_accepted_nowhere(built_in: httpx.Client) -> None:
    for path in ("/predict", "/predict/batch", "/bento/predict"):
        response = built_in.post(
            path, content=b"\x80\x05N.", headers={"content-type": "application/vnd.bentoml+pickle"}
        )
        assert response.status_code == 415


# --- logs


def test_each_request_that_fails_is_a_json_line_with_the_rule_and_no_value_of_the_caller(
    services: dict[str, Service], models: TrainedModels
) -> None:
    service, secret = services[CUSTOMERS], "a-name-nobody-may-read"

    def refused(rule: str) -> list[dict]:
        return [line for line in lines_of(service) if line.get("rules", [])[:1] == [rule]]

    with service.client() as client:
        client.post("/predict", json={"features": {**CUSTOMER, "city": secret}})
        client.post("/predict", json={"features": {**CUSTOMER, secret: 1}})
        client.post("/bento/predict", json={"rows": [{**CUSTOMER, "city": secret}]})

    wait_for(lambda: refused("category") and refused("unknown_name"))
    wait_for(lambda: [x for x in lines_of(service) if x["message"] == "request refused by BentoML"])
    (line,) = [line for line in refused("category") if line["rules"] == ["category", "category:city"]][-1:]
    assert (line["status"], line["route"]) == (422, "/predict")
    assert line["model_version"] == models.tag(CUSTOMERS)
    assert secret not in service.log


def test_a_logged_success_has_prediction_id_and_model_version(
    services: dict[str, Service], models: TrainedModels
) -> None:
    with services[BUILT_IN].client() as client:
        prediction = client.post("/predict", json={"features": TUTORIAL_ROW}).json()

    def found() -> list[dict]:
        lines = lines_of(services[BUILT_IN])
        return [line for line in lines if prediction["prediction_id"] in line.get("prediction_ids", ())]

    wait_for(found)
    (line,) = found()
    assert (line["status"], line["model_version"]) == (200, models.tag(BUILT_IN))
    assert line["latency_ms"] > 0


# --- the wire


def raw(service: Service, sent: bytes, *, hang_up: bool = False) -> bytes:
    """What comes back to bytes on a connection, until the service closes it."""
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(sent)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_caller_that_hangs_up_in_the_middle_harms_nobody(
    services: dict[str, Service], built_in: httpx.Client
) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    before = services[BUILT_IN].log

    for _ in range(20):
        raw(services[BUILT_IN], head + b'{"features": [1,', hang_up=True)

    assert built_in.post("/predict", json={"features": TUTORIAL_ROW}).status_code == 200
    assert "Traceback" not in services[BUILT_IN].log.removeprefix(before)


def test_head_has_the_headers_of_get_and_no_body(built_in: httpx.Client) -> None:
    response = built_in.head("/health")

    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 0
