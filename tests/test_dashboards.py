"""Grafana's dashboards: their structure, and every query of theirs asked of a real Prometheus that scraped a real load.

What Grafana draws of them is not seen here: there is no Grafana.
"""

import http.client
import itertools
import json
import math
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from conftest import CUSTOMERS, ROOT, Service, TrainedModels, free_port, home_in_use, running_service, wait_for
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from monitoring_results import batch, drift_of, quality_of, reference_of
from prometheus_client import CollectorRegistry, start_http_server
from tables import PLANS, customers

from loadtest.processes import find_program, running
from loadtest.slo import Errors, Latency, from_file
from monitoring.dashboards.__main__ import DIRECTORY, texts
from monitoring.drift import find_drift
from monitoring.live.verdict import ACCURACY_ALARM
from monitoring.live.version_quality import find_quality
from monitoring.models import load
from monitoring.results import DriftResult, QualityResult
from monitoring.verdict import ENOUGH_LABELS, ENOUGH_ROWS, KL_ALARM, PSI_ALARM, WARNING
from monitoring.watching.newest import Kind, Newest
from monitoring.watching.turns import Turn
from tabserve.history.records import opened, readable_place
from tabserve.history.segments import segment_column
from tabserve.history.window import last, length_of
from tabserve.settings import Settings

UIDS = {"service": "tabserve-service", "batching": "tabserve-batching", "model": "tabserve-model"}
BOARDS = {name: json.loads((DIRECTORY / f"{name}.json").read_text()) for name in UIDS}
VARIABLES = ["datasource", "model", "version", "instance"]

# What can be 0 in a healthy service, so that here it has to be there and no more; all other series have to be more.
MAY_BE_ZERO = {
    "Errors": "no caller can make the service fail",
    "Errors and refusals": "as above; refusals alone are in another panel",
    "Batches that failed": "as above",
    "Failures of the monitor": "it has not failed",
    "Rows dropped, and failed writes": "the disk has room",
    "Spool": "a local folder needs none",
    "Rows that wait": "they wait a quarter of a second, and a scrape may miss them",
    "Queue": "as above",
}


def panels(name: str) -> list[dict]:
    return [panel for panel in BOARDS[name]["panels"] if panel["type"] != "row"]


def panel_of(name: str, title: str) -> dict:
    (found,) = [panel for panel in panels(name) if panel["title"] == title]
    return found


EVERY_PANEL = [pytest.param(name, p, id=f"{name}: {p['title']}") for name in BOARDS for p in panels(name)]
TARGETS = [(name, panel["title"], target) for name in BOARDS for panel in panels(name) for target in panel["targets"]]


# --- structure


def test_the_files_are_what_the_generator_writes() -> None:
    assert {path.name: path.read_text() for path in DIRECTORY.glob("*.json")} == texts()


def test_the_command_without_the_sdk_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "grafana_foundation_sdk.py").write_text("raise ModuleNotFoundError(name=__name__)")
    blocked = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from monitoring.dashboards.__main__ import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked} sys.exit(main())"], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 2
    assert done.stderr == "error: grafana_foundation_sdk is not installed: make .venv/dev.installed\n"


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_the_same_after_the_sdk_has_read_it(name: str) -> None:
    register_default_plugins()

    assert json.loads(json.dumps(Dashboard.from_json(BOARDS[name]), cls=JSONEncoder)) == BOARDS[name]


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_has_a_stable_uid_the_four_variables_and_uses_them(name: str) -> None:
    board = BOARDS[name]
    asked = " ".join(target["expr"] for of, _, target in TARGETS if of == name)

    assert board["uid"] == UIDS[name]
    assert [variable["name"] for variable in board["templating"]["list"]] == VARIABLES
    assert all(re.search(rf"\$\{{?{variable}\b", asked) for variable in VARIABLES[1:])


@pytest.mark.parametrize("name", BOARDS)
def test_ids_and_titles_are_unique_and_panels_lie_beside_each_other_on_the_grid(name: str) -> None:
    everything = BOARDS[name]["panels"]
    cells = [
        cell
        for place in (panel["gridPos"] for panel in everything)
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]

    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    assert len(cells) == 24 * (1 + max(y for _, y in cells))  # and there is no hole


@pytest.mark.parametrize(("name", "panel"), EVERY_PANEL)
def test_a_panel_has_a_sentence_a_unit_and_the_chosen_datasource(name: str, panel: dict) -> None:
    assert panel["description"][0].isupper()
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all(target["legendFormat"] for target in panel["targets"])
    for asking in (panel, *panel["targets"]):
        assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def limits(name: str, title: str) -> list[float]:
    steps = panel_of(name, title)["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[0]["value"] is None
    return [step["value"] for step in steps[1:]]


def test_the_lines_are_where_the_alerts_ring() -> None:
    objectives = from_file()
    latency, errors = objectives["p99"], objectives["errors"]
    assert isinstance(latency, Latency)
    assert isinstance(errors, Errors)

    for title in ("Latency", "p99"):
        assert latency.limit_ms / 1000 in limits("service", title)
    for title in ("Errors and refusals", "Errors", "Refused"):
        assert limits("service", title) == [errors.limit_percent / 100]
    for title in ("KL of features now", "KL of features over time", "Largest KL of a feature"):
        assert limits("model", title) == [WARNING * KL_ALARM, KL_ALARM]
    assert limits("model", "PSI of predictions") == [WARNING * PSI_ALARM, PSI_ALARM]
    assert limits("model", "Rows of the window") == [ENOUGH_ROWS]
    assert limits("model", "Labelled rows") == [ENOUGH_LABELS]
    assert limits("model", "Spool") == [Settings().log_spool_bytes / 2]
    assert panel_of("model", "Accuracy")["targets"][-1]["expr"].endswith(f" - {ACCURACY_ALARM}")


def test_every_limit_is_drawn() -> None:
    for name, title, _ in TARGETS:
        panel = panel_of(name, title)
        if panel["type"] == "timeseries" and "thresholds" in panel["fieldConfig"]["defaults"]:
            custom = panel["fieldConfig"]["defaults"]["custom"]
            assert custom["thresholdsStyle"] == {"mode": "dashed"}, title
            assert custom["axisSoftMax"] > max(limits(name, title)), title


def test_what_grafana_is_provisioned_with_fits_the_dashboards() -> None:
    (source,) = yaml.safe_load((DIRECTORY / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DIRECTORY / "provisioning/dashboards/tabserve.yaml").read_text())["providers"]

    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert [
        v["query"] for board in BOARDS.values() for v in board["templating"]["list"] if v["type"] == "datasource"
    ] == [source["type"]] * len(BOARDS)
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")


# --- a real Prometheus


class Callers:
    """They ask for all that a panel shows, until they are told to end: more than the service takes in time, too."""

    def __init__(self, service: Service) -> None:
        self._address = urlsplit(service.url).netloc
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_for_all, args=(seed,)) for seed in range(4)]
        frame = customers(512, seed=1).drop(columns=["customer", "since", "plan", "spend"])
        self._rows = json.loads(frame.to_json(orient="records"))
        self.statuses: set[tuple[str, int]] = set()
        self.n_labels = 0

    def _ask_for_all(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._is_over.is_set():
            rows = chance.sample(self._rows, 300)
            answer = self._post("/predict/batch", {"instances": rows})
            said = answer.get("predictions", [])
            labels = [
                {"prediction_id": one["prediction_id"], "label": one["label"] if chance.random() < 0.9 else PLANS[0]}
                for one in said[:200]
            ]
            if labels:
                self._post("/feedback", {"labels": labels})
                self.n_labels += len(labels)
            self._post("/predict", {"features": {**rows[0], "age": 120}})  # out of range
            self._post("/predict", {"features": {**rows[1], "city": "Atlantis"}})  # unknown
            self._post("/predict", {"features": {**rows[2], "age": "forty"}})
            self._post("/bento/predict", {"rows": rows[:3]})

    def _post(self, path: str, body: dict) -> dict:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        self.statuses.add((path, response.status))
        return answer if isinstance(answer, dict) else {}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


@dataclass(frozen=True)
class Prometheus:
    """One that scrapes a loaded service and a monitor each second."""

    client: httpx.Client
    service: Service
    model: str
    version: str

    def get(self, path: str, **parameters: object) -> dict:
        response = self.client.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        found: dict = response.json()
        return found

    def series(self, target: dict, **chosen: str) -> list[dict]:
        """What a query gives of the last half minute, or now where it is asked so."""
        expr = filled(target["expr"], **chosen)
        if target["instant"]:
            found: list[dict] = self.get("query", query=expr)["data"]["result"]
            return [{"metric": one["metric"], "values": [one["value"]]} for one in found]
        now = float(self.get("query", query="time()")["data"]["result"][1])
        return list(self.get("query_range", query=expr, start=now - 30, end=now, step=1)["data"]["result"])

    def ask(self, target: dict, **chosen: str) -> list[float]:
        """All numbers of that."""
        values = (float(value) for one in self.series(target, **chosen) for _, value in one["values"])
        return [value for value in values if math.isfinite(value)]

    def names(self) -> set[str]:
        return set(self.get("label/__name__/values")["data"])


def filled(expr: str, **chosen: str) -> str:
    """A query as Grafana asks it: `.*` where all was chosen."""
    values = {"__rate_interval": "30s", "__range": "1h", "instance": ".*", "model": ".*", "version": ".*", **chosen}
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values[found[1] or found[2]], expr)


def as_grafana_writes(choice: str) -> str:
    """Two choices of a variable, one of which exists: within the quotes of a regular expression."""
    return "(" + re.sub(r"[$^*{}\[\]'+?.()|]", lambda found: "\\\\" + found[0], choice) + "|nobody)"


@pytest.fixture(scope="module")
def prometheus(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("dashboards")
    url = (folder / "prediction_log").as_uri()
    narrow = {"TABSERVE_BATCH_BUDGET_MS": "1", "TABSERVE_MAX_QUEUED_ROWS": "700"}
    program, port = find_program("prometheus"), free_port()
    assert program
    with (
        running_service(
            models.home, folder / "log", TABSERVE_MODEL=CUSTOMERS, TABSERVE_LOG_URL=url, **narrow
        ) as service,
        Callers(service) as callers,
    ):
        monitor_port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": "tabserve", "static_configs": [{"targets": [urlsplit(service.url).netloc]}]},
                {
                    "job_name": "monitor",
                    "honor_labels": True,
                    "static_configs": [{"targets": [f"127.0.0.1:{monitor_port}"]}],
                },
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with running(command, port, folder / "prometheus.log", cwd=folder, environment={}):
            wait_for(lambda: callers.n_labels > 2 * ENOUGH_LABELS, 120)
            wait_for(lambda: {("/predict/batch", 503), ("/bento/predict", 200)} <= callers.statuses, 120)
            wait_for(lambda: labels_in(url) > ENOUGH_LABELS)
            model, version = models.tag(CUSTOMERS).split(":")
            results = [*found_in(url, models, model, version), *made()]
            server, thread = start_http_server(monitor_port, addr="127.0.0.1", registry=with_a_monitor(results))
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                    yield Prometheus(client, service, model, version)
            finally:
                server.shutdown()
                server.server_close()
                thread.join()


def labels_in(url: str) -> int:
    with opened(readable_place(url), last(length_of("24h"))) as records:
        ((labelled,),) = records.rows("SELECT count(*) FROM joined WHERE is_correct IS NOT NULL")
    return int(labelled)


def found_in(url: str, models: TrainedModels, name: str, version: str) -> list:
    """What the monitor finds in the log of the service."""
    window = last(length_of("24h"))
    with home_in_use(models.home):
        model = load(name, version)
        quality = find_quality(readable_place(url), model, window, [segment_column(model.contract, "city")])
        return [find_drift(readable_place(url), model, window), quality.result]


def made() -> list:
    """What a log of some minutes cannot have: an alarm, which takes two windows, and a regression."""
    reference = reference_of(batch(2000, seed=1))
    drifted = [batch(1000, seed, older_by=25) for seed in (2, 3)]
    return [drift_of(drifted, reference), quality_of(0.9, 400, name="mae")]


def with_a_monitor(results: list) -> CollectorRegistry:
    """The gauges of results, and what the watch tells of itself."""
    watch = Newest(stale_after=timedelta(days=3650))  # some results are of made-up days
    kinds: tuple[Kind, ...] = ("drift", "quality")
    for kind, of_kind in zip(kinds, (DriftResult, QualityResult), strict=True):
        watch.found(kind, Turn(tuple(result for result in results if isinstance(result, of_kind)), failed=()))
        watch.took(kind, 1.5)
    watch.due({(result.model, result.version): ["drift"] for result in results})
    return watch.registry()


@pytest.mark.needs_program("prometheus")
def test_every_query_of_every_panel_has_data(prometheus: Prometheus) -> None:
    pending = {(name, title, target["expr"]): target for name, title, target in TARGETS}

    def all_have_data() -> bool:
        for key, target in list(pending.items()):
            values = prometheus.ask(target)
            if any(values) or (values and key[1] in MAY_BE_ZERO):
                del pending[key]
        return not pending

    try:
        wait_for(all_have_data, limit_seconds=120)
    except AssertionError:
        said = [
            f"{name}, {title}: {prometheus.ask(target)[:3]} {expr}" for (name, title, expr), target in pending.items()
        ]
        raise AssertionError("\n".join(said)) from None


# What has a label is there from its first count on; these wait for a fault, or for a second window.
ONLY_AFTER_A_FAULT = {"tabserve_prediction_log_dropped_rows_total", "tabserve_stale_access_file"}


@pytest.mark.needs_program("prometheus")
def test_every_metric_of_a_rule_is_in_what_a_real_prometheus_scraped(prometheus: Prometheus) -> None:
    rules = yaml.safe_load((ROOT / "monitoring/alerts/rules.yaml").read_text())
    named = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in re.findall(r"\btabserve_\w+", re.sub(r'"[^"]*"', "", rule["expr"]))
    }

    assert len(named) > 20
    assert named - prometheus.names() <= ONLY_AFTER_A_FAULT


@pytest.mark.needs_program("prometheus")
def test_a_legend_names_labels_that_the_series_have_and_tells_them_apart(prometheus: Prometheus) -> None:
    for name, title, target in TARGETS:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for one in prometheus.series(target):
            assert named >= set(one["metric"]) - {"model"}, (name, title)  # a version says enough
            assert named <= set(one["metric"]), (name, title)


@pytest.mark.needs_program("prometheus")
def test_every_metric_of_a_panel_is_in_a_scrape(prometheus: Prometheus) -> None:
    asked = {name for _, _, target in TARGETS for name in re.findall(r"\btabserve_\w+", target["expr"])}
    missing = asked - prometheus.names()

    # A counter with a label that has nothing to count yet has no series.
    assert missing <= {"tabserve_failed_batches_total", "tabserve_prediction_log_dropped_rows_total"}
    text = (ROOT / "tabserve/telemetry.py").read_text()
    assert all(f'"{name.removesuffix("_total")}"' in text for name in missing)


@pytest.mark.needs_program("prometheus")
def test_what_is_chosen_above_the_panels_decides_what_they_show(prometheus: Prometheus) -> None:
    chosen = {
        "model": as_grafana_writes(prometheus.model),
        "version": as_grafana_writes(prometheus.version),
        "instance": as_grafana_writes(urlsplit(prometheus.service.url).netloc),
    }
    with_data = [prometheus.ask(target, **chosen) for _, title, target in TARGETS if title != "Mean absolute error"]
    assert all(with_data)

    for _, title, target in TARGETS:
        for variable in chosen:
            if re.search(rf"\$\{{?{variable}\b", target["expr"]):
                assert not prometheus.ask(target, **{variable: "(nobody)"}), (title, variable)


@pytest.mark.needs_program("prometheus")
@pytest.mark.parametrize("name", BOARDS)
def test_the_choices_are_the_models_the_versions_and_the_replicas(prometheus: Prometheus, name: str) -> None:
    def choices(variable: dict) -> set[str]:
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert query
        picked = as_grafana_writes(prometheus.model)
        values = prometheus.get(f"label/{query[2]}/values", **{"match[]": filled(query[1], model=picked)})["data"]
        if not variable["regex"]:
            return set(values)
        part = re.compile(variable["regex"].strip("/"))
        return {found[1] for found in map(part.search, values) if found}

    model, version, instance = (choices(v) for v in BOARDS[name]["templating"]["list"][1:])
    assert model == ({prometheus.model, "plans"} if name == "model" else {prometheus.model})
    assert version == {prometheus.version}
    assert instance == {urlsplit(prometheus.service.url).netloc}
