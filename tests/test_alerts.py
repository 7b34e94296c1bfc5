"""Alerts: they fire at the thresholds that stand elsewhere, somebody is told, and the whole way with real programs."""

import contextlib
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from alert_programs import (
    ALERTS,
    KEY,
    SOON,
    Prometheus,
    Rung,
    alertmanager,
    exposing,
    program,
    prometheus,
    pushgateway,
    receiving,
)
from conftest import ROOT, wait_for
from monitoring_results import quality_of
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from test_drift import BEFORE, NEWEST, find, older, plan_rows, write

from loadtest import slo
from monitoring.dashboards import limits
from monitoring.live.verdict import ACCURACY_ALARM, ERROR_ALARM
from monitoring.metrics import push, registry_of
from monitoring.results import DriftResult, QualityResult
from monitoring.verdict import ENOUGH_LABELS, ENOUGH_ROWS, KL_ALARM, PSI_ALARM, WARNING
from monitoring.watching.newest import Newest
from monitoring.watching.turns import Turn
from tabserve.http_api import BENTOML_API
from tabserve.lifecycle import guard
from tabserve.settings import Settings
from tabserve.telemetry import DURATION_BUCKETS, Telemetry

GROUPS = yaml.safe_load((ALERTS / "rules.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
RULE = {(rule["alert"], rule["labels"]["severity"]): rule for rule in RULES}
CASES = yaml.safe_load((ALERTS / "rules_test.yaml").read_text())["tests"]
PREDICTIONS = "/predict|/predict/batch|/bento/predict"

needs_prometheus = pytest.mark.needs_program("promtool", "prometheus")
needs_alertmanager = pytest.mark.needs_program("amtool", "prometheus-alertmanager")
needs_pushgateway = pytest.mark.needs_program("prometheus-pushgateway")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program(str(command[0])), *map(str, command[1:])], capture_output=True, text=True)


# --- rules


@needs_prometheus
def test_the_rules_and_the_configuration_are_prometheuss() -> None:
    done = run("promtool", "check", "config", ALERTS / "prometheus.yaml")

    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(RULES)} rules found" in done.stdout


@needs_prometheus
def test_the_rules_pass_their_unit_tests() -> None:
    done = run("promtool", "test", "rules", ALERTS / "rules_test.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


def broken_ways(rule: dict) -> Iterator[tuple[str, dict]]:
    """The rule with one thing changed each time that its unit tests have to notice."""
    expression = rule["expr"]
    for match in re.finditer(r"([<>=]=?) ([\d.]+)( \+ 1e-9)?", expression):
        operator, number, speck = match.groups()
        if speck:
            changes = [f"{operator} {number} - 1e-9"]
        elif operator == ">=":
            changes = [f"> {number}", ">= 0"]
        elif operator == ">":
            changes = [f">= {number}"]
        else:
            changes = [">= 0", "< 0"]
        for change in changes:
            found = expression[: match.start()] + change + expression[match.end() :]
            yield f"{match[0]} became {change}", {**rule, "expr": found}
    for gate in re.findall(r"\nand max by \(model, model_version\) \(tabserve_quality_(?:high|low).*\n.*", expression):
        yield "chance was forgotten", {**rule, "expr": expression.replace(gate, "")}
    if rule["for"] != "0m":
        yield "it did not wait", {name: value for name, value in rule.items() if name != "for"}
    if PREDICTIONS in expression:
        yield "every route counted", {**rule, "expr": expression.replace(PREDICTIONS, ".*")}


@needs_prometheus
def test_the_unit_tests_notice_a_threshold_a_gate_or_a_wait_that_is_gone(tmp_path: Path) -> None:
    """Above and exactly at each threshold, with as many rows as are enough and one less."""
    ways = [(key, *way) for key, rule in RULE.items() for way in broken_ways(rule)]

    def is_noticed(number: int) -> bool:
        (name, severity), _, broken = ways[number]
        folder = tmp_path / str(number)
        folder.mkdir()
        others = [rule for rule in RULES if rule["alert"] == name and rule["labels"]["severity"] != severity]
        cases = [
            {**case, "alert_rule_test": asked}
            for case in CASES
            if (asked := [one for one in case["alert_rule_test"] if one["alertname"] == name])
        ]
        rules = {"groups": [{"name": "g", "rules": [broken, *others]}]}
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        (folder / "test.yaml").write_text(
            yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases})
        )
        done = run("promtool", "test", "rules", folder / "test.yaml")
        assert "FAILED" in done.stdout + done.stderr or done.returncode == 0, done.stderr
        return done.returncode != 0

    with ThreadPoolExecutor(2) as pool:
        noticed = list(pool.map(is_noticed, range(len(ways))))

    assert len(ways) > 70
    assert [ways[n][:2] for n, was in enumerate(noticed) if not was] == []


def threshold(alert: str, severity: str, place: int = 0) -> float:
    """What stands behind a `>`, or `>=`; the first of the expression, or another one."""
    return float(re.findall(r">=? ([\d.]+)", RULE[alert, severity]["expr"])[place])


def test_the_thresholds_are_those_of_the_load_test_the_monitor_and_the_settings() -> None:
    objectives = slo.from_file()
    errors = objectives["errors"].limit_percent / 100

    assert set(objectives) == {"p99", "errors"}
    assert threshold("TabserveLatencyHigh", "critical") == objectives["p99"].limit_ms / 1000
    assert threshold("TabserveLatencyHigh", "critical") in DURATION_BUCKETS
    assert {threshold(f"Tabserve{what}High", "critical") for what in ("Errors", "Refusals")} == {errors}
    assert threshold("TabserveErrorsHigh", "warning") == errors
    assert threshold("TabserveFeatureDrift", "critical") == KL_ALARM
    assert threshold("TabserveFeatureDrift", "warning") == WARNING * KL_ALARM
    assert threshold("TabservePredictionDrift", "critical") == PSI_ALARM
    assert threshold("TabservePredictionDrift", "warning") == WARNING * PSI_ALARM
    assert threshold("TabserveAccuracyLow", "critical") == ACCURACY_ALARM
    assert threshold("TabserveErrorGrown", "critical") == 1 + ERROR_ALARM
    assert {threshold(f"Tabserve{a}", "critical", -1) for a in ("AccuracyLow", "ErrorGrown")} == {ENOUGH_LABELS}
    of_rows = ("OutOfRange", "UnknownCategories", "MissingRisen")
    assert {threshold(f"Tabserve{alert}", "warning", -1) for alert in of_rows} == {ENOUGH_ROWS}
    assert threshold("TabserveLogSpoolFilling", "warning") == Settings().log_spool_bytes / 2


def test_the_thresholds_that_only_stand_in_the_rules_are_those_that_were_asked_for() -> None:
    assert threshold("TabserveLatencyHigh", "warning") == 0.3
    assert threshold("TabserveErrorsHigh", "warning") == 0.01
    assert threshold("TabserveCpuHigh", "warning") == 0.8


@pytest.mark.parametrize(("alert", "severity"), RULE)
def test_an_alert_tells_its_threshold_and_where_to_read_what_to_do(alert: str, severity: str) -> None:
    rule = RULE[alert, severity]
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    summary = rule["annotations"]["summary"]

    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{alert.lower()}"
    assert headings.count(alert) == 1
    assert severity in {"critical", "warning", "info"}
    assert "for" in rule
    assert "humanize" not in summary  # 0.15 would be 150m
    if "%.3f" in summary:
        assert f"{threshold(alert, severity):g}" in summary


def test_the_runbook_has_no_alert_that_does_not_exist() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text().split("\n## Alerts\n")[1].split("\n## ")[0]

    assert set(re.findall(r"^### (\w+)$", runbook, re.MULTILINE)) == {alert for alert, _ in RULE}


def test_rules_on_predictions_ask_for_every_route_that_predicts() -> None:
    routes = {route for rule in RULES for route in re.findall(r'route=~"([^"]+)"', rule["expr"])}

    assert routes == {PREDICTIONS}
    assert PREDICTIONS.rsplit("|", maxsplit=1)[-1] == BENTOML_API


# --- names

SERVICE = """
import asyncio, sys
from tabserve.telemetry import Telemetry
telemetry = Telemetry()
telemetry.ready.set(True)
async def answer():
    for status in (200, 422, 500, 503, 504):
        telemetry.request_done("/predict", status, 0.1)
asyncio.run(answer())
log = telemetry.of_prediction_log()
log.rows_dropped("queue_full", 3)
log.spool_holds(7)
access = telemetry.of_access()
access.file_is_stale("api_keys", is_stale=True)
access.limited_alone()
telemetry.of_audit_log().refusals_dropped(1)
sys.stdout.write(telemetry.exposition().decode())
"""


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DriftResult]:
    """What the monitor finds in logs of two days, 2000 rows each: customers of the training's age, and older ones."""
    found = {}
    for name, is_older in (
        ("normal", (False, False)),
        ("shifted since yesterday", (False, True)),
        ("shifted", (True, True)),
    ):
        folder = tmp_path_factory.mktemp("log")
        for number, window in enumerate((BEFORE, NEWEST)):
            rows = plan_rows(2000, 1 + number)
            write(folder, window, older(rows) if is_older[number] else rows, seed=1 + number)
        found[name] = find(folder)
    return found


def samples_of(exposition: str) -> dict[str, set[str]]:
    """The names of samples, each with all labels it was seen with."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def exposed(drifted: dict[str, DriftResult], tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """All that a service and a monitor tell."""
    variables = {"TABSERVE_METRICS_DIR": str(tmp_path_factory.mktemp("metrics")), "PATH": "/usr/bin"}
    command = [sys.executable, "-c", SERVICE]
    service = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout
    watch = Newest(stale_after=timedelta(days=3650))  # the results are of made-up days
    drift, quality = drifted["shifted"], quality_of(0.9, 400)
    watch.found("drift", Turn((drift,), failed=()))
    watch.found("quality", Turn((quality,), failed=()))
    watch.due({(drift.model, drift.version): ["drift"]})
    return samples_of(service) | samples_of(generate_latest(watch.registry()).decode())


def test_every_metric_and_label_of_a_rule_is_told_by_the_service_or_the_monitor(exposed: dict[str, set[str]]) -> None:
    scraped = {"job", "instance", "model", "model_version"}  # Prometheus's own, and every gauge's of the monitor

    for rule in RULES:
        for name, matchers in re.findall(r"\b(tabserve_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", matchers))
            assert name in exposed, (rule["alert"], name)
            assert labels <= exposed[name] | scraped, (rule["alert"], name)
        names = re.findall(r"\b(tabserve_\w+)", rule["expr"])
        made = set(re.findall(r'label_replace\(.*?, "(\w+)"', rule["expr"]))
        labels = {label for found in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]) for label in found.split(", ")}
        assert labels <= scraped | made | {label for name in names for label in exposed[name]}, rule["alert"]


def test_the_lines_in_the_dashboards_are_where_the_rules_ring() -> None:
    for name, limit, pattern in (
        ("TabserveCpuHigh", limits.CPU_CORES, r"> ([\d.]+)"),
        ("TabserveRejectedHigh", limits.REJECTED_REQUESTS, r"> ([\d.]+)"),
        ("TabserveOutOfRange", limits.OUT_OF_RANGE, r"> ([\d.]+)"),
        ("TabserveUnknownCategories", limits.UNKNOWN, r"> ([\d.]+)"),
        ("TabserveMonitorSilent", limits.MONITOR_AGE_SECONDS, r"> ([\d.]+(?: \* [\d.]+)*)"),
    ):
        (expression,) = [rule["expr"] for rule in RULES if rule["alert"] == name]
        found = re.findall(pattern, expression)
        assert limit in [math.prod(float(part) for part in one.split(" * ")) for one in found], (name, found)


# --- who is told


@needs_alertmanager
def test_the_alertmanager_takes_its_configuration_in_which_is_no_secret() -> None:
    text = (ALERTS / "alertmanager.yaml").read_text()
    done = run("amtool", "check-config", ALERTS / "alertmanager.yaml")

    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^ +-? *(api_url|routing_key|service_key|url|password|credentials):", text, re.MULTILINE)
    assert len(re.findall(r"_file: /run/secrets/", text)) == 2


@needs_alertmanager
@pytest.mark.parametrize(
    ("alert", "severity", "told"),
    [
        ("TabserveErrorsHigh", "critical", "guard,pager"),
        ("TabserveAccuracyLow", "critical", "guard,pager"),
        ("TabserveErrorsHigh", "warning", "chat"),
        ("TabserveLatencyHigh", "critical", "pager"),
        ("TabserveSegmentWorse", "warning", "guard,chat"),
    ],
)
def test_with_its_optional_lines_the_guard_is_told_of_what_a_model_may_be_the_cause_of(
    alert: str, severity: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "alertmanager.yaml"
    path.write_text((ALERTS / "alertmanager.yaml").read_text().replace("#guard ", ""))
    (matcher,) = re.findall(r'#guard - matchers: \[.alertname=~"([^"]+)"', (ALERTS / "alertmanager.yaml").read_text())

    taken = run("amtool", "check-config", path)
    labels = (f"alertname={alert}", f"severity={severity}")
    routed = run("amtool", "config", "routes", "test", f"--config.file={path}", *labels)

    assert taken.returncode == 0, taken.stdout + taken.stderr
    assert routed.stdout.strip() == told, routed.stderr
    assert set(matcher.split("|")) == guard.ALERTS


@needs_alertmanager
@pytest.mark.parametrize(("alert", "severity"), RULE)
def test_critical_rings_the_pager_and_all_else_is_read_in_the_chat(alert: str, severity: str) -> None:
    component = RULE[alert, severity]["labels"]["component"]
    expected = "pager" if severity == "critical" else "chat"
    labels = (f"alertname={alert}", f"severity={severity}", f"component={component}")
    done = run("amtool", "config", "routes", "test", f"--config.file={ALERTS / 'alertmanager.yaml'}", *labels)

    assert done.stdout.strip() == expected, done.stderr


@needs_alertmanager
def test_nobody_gets_up_for_staging() -> None:
    labels = ("alertname=TabserveLatencyHigh", "severity=critical", "job=tabserve-staging")
    done = run("amtool", "config", "routes", "test", f"--config.file={ALERTS / 'alertmanager.yaml'}", *labels)

    assert done.stdout.strip() == "chat", done.stderr


def test_what_silences_and_what_is_silenced_are_alerts_and_labels_that_exist() -> None:
    names = {alert for alert, _ in RULE}
    config = yaml.safe_load((ALERTS / "alertmanager.yaml").read_text())

    matchers = [m for rule in config["inhibit_rules"] for m in rule["source_matchers"] + rule["target_matchers"]]
    for matcher in matchers:
        label, values = re.fullmatch(r'(\w+)(?:=~|!=|=)"(.*)"', matcher).groups()
        known = names if label == "alertname" else {rule["labels"][label] for rule in RULES}
        assert set(values.split("|")) <= known, matcher


# --- the whole way


class Monitor:
    """The real gauges of what was found last, as the monitor tells them; the times of results are now."""

    def __init__(self, *results: DriftResult | QualityResult) -> None:
        self.results: Sequence[DriftResult | QualityResult] = results

    def exposition(self) -> bytes:
        now = datetime.now(UTC)
        return generate_latest(registry_of([r.model_copy(update={"made_at": now}) for r in self.results]))


@pytest.fixture
def rung() -> Iterator[Rung]:
    with receiving() as found:
        yield found


def wait_for_end(prometheus: Prometheus, rung: Rung, *, n_resolved: int) -> None:
    wait_for(lambda: len(rung.said(resolved=True)) == n_resolved, SOON)
    assert prometheus.alerts() == set()


@needs_prometheus
@needs_alertmanager
def test_accuracy_that_falls_and_a_service_that_dies_ring_the_pager_once_and_their_end_is_told(
    drifted: dict[str, DriftResult], rung: Rung, tmp_path: Path
) -> None:
    """Each is one message, and what follows from it is left out. Of drift tests/test_monitoring_service.py tells."""
    good, bad = quality_of(0.95, 1000), quality_of(0.85, 1000, level="alarm")
    monitor, service = Monitor(drifted["normal"], good), Telemetry()
    service.ready.set(True)
    with (
        alertmanager(tmp_path, rung) as to,
        exposing(monitor.exposition) as monitor_address,
        contextlib.ExitStack() as until_it_dies,
    ):
        service_address = until_it_dies.enter_context(exposing(service.exposition))
        with prometheus(tmp_path, to, tabserve=service_address, tabserve_monitor=monitor_address) as found:
            found.wait_for_rules()
            assert found.has("tabserve_drift_window_rows == 2000")
            assert found.has("tabserve_ready == 1")
            assert found.alerts() == set()

            monitor.results = [drifted["normal"], bad]
            wait_for(lambda: rung.pager, SOON)
            assert "is 0.100 below what it was at training" in rung.said(resolved=False)[0]
            assert rung.pager[0]["routing_key"] == KEY
            assert "docs/operations.md#tabserveaccuracylow" in str(rung.pager[0])
            assert rung.chat == []
            monitor.results = [drifted["normal"], good]
            wait_for_end(found, rung, n_resolved=1)

            until_it_dies.close()
            wait_for(lambda: len(rung.said(resolved=False)) == 2, SOON)
            assert "TabserveServiceAbsent: no replica of tabserve answers." in rung.said(resolved=False)[1]
            assert found.alerts() == {"TabserveServiceAbsent", "TabserveReplicaDown"}
            # What ends together Alertmanager may note one by one, and then it tells of what followed: with its groups
            # looked at once a second that happens, with every five minutes hardly.
            assert rung.chat == []
            with exposing(service.exposition, int(service_address.rpartition(":")[2])):
                wait_for_end(found, rung, n_resolved=2)

    assert len(rung.said(resolved=False)) == 2


@needs_prometheus
@needs_alertmanager
@needs_pushgateway
def test_what_a_job_pushes_rings_too_and_a_warning_is_read_in_the_chat(
    drifted: dict[str, DriftResult], rung: Rung, tmp_path: Path
) -> None:
    service = Telemetry()
    service.ready.set(True)
    with (
        alertmanager(tmp_path, rung) as to,
        pushgateway(tmp_path) as gateway,
        exposing(service.exposition) as service_address,
    ):

        def push_now(name: str) -> None:
            push([drifted[name].model_copy(update={"made_at": datetime.now(UTC)})], f"http://{gateway}")

        push_now("normal")
        with prometheus(tmp_path, to, tabserve=service_address, pushgateway=gateway) as found:
            found.wait_for_rules()
            assert found.has("tabserve_drift_window_rows == 2000")
            assert found.alerts() == set()

            push_now("shifted since yesterday")
            wait_for(lambda: rung.chat, SOON)
            assert "feature age of plans:1.0.0-abcdef drifts: KL" in rung.written()
            assert "docs/operations.md#tabservefeaturedrift" in rung.written()
            assert rung.pager == []

            push_now("shifted")
            wait_for(lambda: rung.pager, SOON)
            push_now("normal")
            wait_for_end(found, rung, n_resolved=1)
            wait_for(lambda: "over: TabserveFeatureDrift" in rung.written(), SOON)
