"""The service with what production gives it, as kustomize renders that; beside it Redis, Prometheus, Locust."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from access_parts import add_key
from alert_programs import program
from conftest import BUILT_IN, ROOT, Service, TrainedModels, environment, free_port, running_service, wait_for
from locusts import finish, ports, start
from rollouts import JSON, ONE_ROW
from test_compose import nginx_of

from loadtest.processes import find_program, running

pytestmark = [pytest.mark.deploy, pytest.mark.needs_program("kubectl", "redis-server")]

KEYS = "/run/secrets/tabserve/keys.yaml"  # where access/deployment.yaml mounts them


@dataclass(frozen=True)
class Production:
    """A service as production's pod has it, its container as it was rendered, and keys in files."""

    service: Service
    manifests: list[dict[str, Any]]
    container: dict[str, Any]
    keys: Path

    def key(self, name: str) -> dict[str, str]:
        return {"x-api-key": (self.keys / name).read_text()}


def kustomized(folder: str) -> list[dict[str, Any]]:
    command = [str(find_program("kubectl")), "kustomize", folder]
    return list(yaml.safe_load_all(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout))


@pytest.fixture(scope="module")
def production(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    manifests = kustomized("deploy/kubernetes/overlays/production")
    (container,) = [
        container
        for one in manifests
        if one["kind"] == "Deployment"
        for container in one["spec"]["template"]["spec"]["containers"]
    ]
    for scope in ("predict", "metrics"):
        (folder / scope).write_text(add_key(folder / "keys.yaml", scope, scope))
    (config,) = [one for one in manifests if "configuration.yaml" in one.get("data", {})]
    (folder / "configuration.yaml").write_text(config["data"]["configuration.yaml"])
    port = free_port()
    here = {  # places of this machine, and what the secrets would hold; all else is as it was rendered
        "TABSERVE_API_KEYS_FILE": str(folder / "keys.yaml"),
        "TABSERVE_RATE_LIMIT_URL": f"redis://127.0.0.1:{port}/0",
        "TABSERVE_LOG_URL": f"file://{folder}/predictions",
        "BENTOML_CONFIG": str(folder / "configuration.yaml"),
    }
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["TABSERVE_API_KEYS_FILE"] == KEYS
    variables = {**variables, **here}
    del variables["BENTOML_HOME"]  # there the model is in the image, here in a home
    redis = [str(find_program("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with (
        running(redis, port, folder / "redis.log", cwd=folder, environment={}),
        running_service(models.home, folder / "service.log", TABSERVE_MODEL=models.tag(BUILT_IN), **variables) as one,
    ):
        yield Production(one, manifests, container, folder)


def smoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "smoke.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_nobody_is_answered_without_a_key_but_the_probes(production: Production) -> None:
    with production.service.client() as client:
        probes = {
            production.container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")
        }
        assert {client.get(path).status_code for path in probes} == {200}
        assert {client.get(path).status_code for path in ("/metadata", "/metrics", "/docs", "/openapi.json")} == {401}
        assert client.post("/predict", content=ONE_ROW, headers=JSON).status_code == 401
        assert (
            client.post("/predict", content=ONE_ROW, headers={**JSON, **production.key("predict")}).status_code == 200
        )


def test_smoke_passes_with_a_key_and_fails_with_one_that_is_not_known(
    production: Production, models: TrainedModels, tmp_path: Path
) -> None:
    asked = production.service.url, "--version", models.tag(BUILT_IN), "--key-file"
    (tmp_path / "unknown").write_text("ts_0123456789ab_" + "A" * 43)

    passed = smoke(*asked, str(production.keys / "predict"))
    refused = smoke(*asked, str(tmp_path / "unknown"))
    without = smoke(*asked[:-1])
    missing = smoke(*asked, str(tmp_path / "missing"))

    assert passed.returncode == 0, passed.stdout
    assert passed.stdout.count("ok ") == 5
    assert refused.returncode == without.returncode == 1
    for done in (refused, without):
        assert "FAILED  the version is the one that was deployed: /metadata: expected 200, got 401" in done.stdout
        assert "ok      ready" in done.stdout
        assert "AAAA" not in done.stdout + done.stderr
    assert missing.returncode == 2
    assert "cannot be read" in missing.stderr


@pytest.mark.needs_program("nginx", "openssl")
def test_smoke_passes_through_the_nginx_of_the_compose_stack_by_tls(production: Production, tmp_path: Path) -> None:
    port = free_port()
    command = nginx_of(tmp_path, port, production.service.url.removeprefix("http://"))
    asked = f"https://127.0.0.1:{port}", "--key-file", str(production.keys / "predict")
    with running(command, port, tmp_path / "log", cwd=tmp_path, environment={}):
        passed = smoke(*asked, "--ca-file", str(tmp_path / "tls-certificate"))
        stranger = smoke(*asked, "--wait", "0")

    assert passed.returncode == 0, passed.stdout
    assert stranger.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in stranger.stdout
    assert smoke(*asked, "--ca-file", str(tmp_path / "log")).returncode == 2


def test_the_load_test_of_the_cluster_shows_its_key_and_says_what_is_missing_without_one(
    production: Production, models: TrainedModels, tmp_path: Path
) -> None:
    """Master and workers with the options that their jobs have; shorter, and no faster than a caller may ask here."""
    rendered = kustomized("deploy/kubernetes/loadtest")
    jobs = [one["spec"]["template"]["spec"]["containers"][0]["args"] for one in rendered if one["kind"] == "Job"]
    (tmp_path / "key").write_bytes((production.keys / "predict").read_bytes())
    (tmp_path / "empty").write_text("\n")
    here = {
        "--host=http://tabserve": f"--host={production.service.url}",
        "--api-key-file=/run/secrets/tabserve/key": f"--api-key-file={tmp_path / 'key'}",
        "--master-host=tabserve-loadtest": "--master-host=127.0.0.1",
        "--arrival-rate=500": "--arrival-rate=4",
    }
    told = [[here.get(option, option) for option in options] for _, *options in jobs]
    assert all(any(there in options for options in told) for there in here.values())
    (master,) = [options for options in told if "--master" in options]
    (worker,) = [options for options in told if "--worker" in options]
    own_ports, patience = ports(), ("--duration-factor=0.01", "--slo=p99=60s")
    started = [
        start(models.home, *master, *own_ports, *patience),
        start(models.home, *worker, *own_ports),
        start(models.home, *worker, *own_ports),
    ]
    wrong = [[one for one in master if not one.startswith(("--master", "--expect", "--api-key"))] for _ in range(2)]
    wrong[1].append(f"--api-key-file={tmp_path / 'empty'}")
    without, empty = (finish(start(models.home, *options)) for options in wrong)
    done, *workers = map(finish, started)

    assert done.code == 0, done.log
    assert done.requests >= 5
    assert done.failures == 0
    assert [one.code for one in workers] == [0, 0]
    assert without.code == empty.code == 2
    assert "refuses us: GET /metadata gave 401; it wants --api-key-file" in without.log
    assert "has to hold one line, the key" in empty.log


def test_the_steps_of_a_release_ask_a_service_and_end_as_it_answers(
    production: Production, models: TrainedModels, tmp_path: Path
) -> None:
    """Smoke and load, with as much as a caller may ask here."""

    def step(name: str, model: str) -> subprocess.CompletedProcess[str]:
        here = {"URL": production.service.url, "API_KEY": (production.keys / "predict").read_text(), "MODEL": model}
        shorter = {"ARRIVAL_RATE": "4", "DURATION_FACTOR": "0.01", "RESULTS": str(tmp_path / "results")}
        variables = environment(models.home, **here, **shorter, TMPDIR=str(tmp_path))
        command = [str(ROOT / "deploy" / "release.sh"), name]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)

    passed, other, loaded = (
        step("smoke", models.tag(BUILT_IN)),
        step("smoke", "a:1.0.0-aaaaaa"),
        step("load", models.tag(BUILT_IN)),
    )

    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert other.returncode == 1
    assert "the version is the one that was deployed: expected a:1.0.0-aaaaaa" in other.stdout
    assert loaded.returncode == 0, loaded.stderr
    assert "SLO met: errors were 0 %" in loaded.stderr
    assert list(tmp_path.glob("results/*/*.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "no key is left"


@pytest.mark.needs_program("prometheus")
def test_prometheus_reaches_metrics_by_the_key_that_the_monitor_names(production: Production) -> None:
    (monitor,) = [one for one in production.manifests if one["kind"] == "ServiceMonitor"]
    (endpoint,) = monitor["spec"]["endpoints"]
    scrape = {
        "job_name": "tabserve",
        "scrape_interval": "1s",
        "metrics_path": endpoint["path"],
        "authorization": {
            "type": endpoint["authorization"]["type"],
            "credentials_file": str(production.keys / "metrics"),
        },
        "static_configs": [{"targets": [production.service.url.removeprefix("http://")]}],
    }
    folder, port = production.keys, free_port()
    (folder / "prometheus.yaml").write_text(json.dumps({"scrape_configs": [scrape]}))
    command = [program("prometheus"), "--config.file=prometheus.yaml", f"--web.listen-address=127.0.0.1:{port}"]

    def found(expression: str) -> list[Any]:
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression})
        return list(answer.json()["data"]["result"]) if answer.status_code == 200 else []  # else it still starts

    with running(command, port, folder / "prometheus.log", cwd=folder, environment={}):
        wait_for(lambda: found("up == 1"))
        wait_for(lambda: found("tabserve_requests_total"))


def test_a_caller_who_asks_too_often_is_refused_by_the_count_in_redis(production: Production) -> None:
    headers = {**JSON, **production.key("predict")}
    with production.service.client() as client:
        statuses = [client.post("/predict", content=ONE_ROW, headers=headers).status_code for _ in range(100)]

    assert set(statuses) == {200, 429}
    assert "redis" not in production.service.log.lower(), "it counts alone and says so, where Redis cannot be asked"


def test_a_pod_asks_for_the_memory_that_the_service_was_seen_to_take(production: Production) -> None:
    root = psutil.Process(production.service.process.pid)
    # What they share counts once, as the kernel counts for the container.
    taken = sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)]) / 2**20
    resources = production.container["resources"]
    asked, limit = (int(resources[which]["memory"].removesuffix("Mi")) for which in ("requests", "limits"))

    assert taken < asked
    assert limit >= 2 * taken, "two models at once while one takes the other's place"
    assert asked < 4 * taken, "what nobody uses is kept from others"
