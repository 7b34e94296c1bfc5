"""What deploy/clouds/ tells clouds, held against what the service reads and answers; none of them was asked."""

import json
import os
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import BUILT_IN, ROOT, Service, free_port
from test_compose import write_with
from test_http import TUTORIAL_ROW

from loadtest.processes import find_program, running
from tabserve.access.callers import PROBES
from tabserve.settings import SETTINGS, Settings

pytestmark = pytest.mark.deploy

CLOUDS = ROOT / "deploy" / "clouds"


@dataclass(frozen=True)
class Told:
    """What one cloud is told of the container."""

    image: str
    port: int
    variables: dict[str, str | None]
    """None where the value is a secret."""
    probes: set[str]
    memory_mib: int
    files: set[str]
    """Where secrets are files, and folders that can be written."""


def ecs() -> Told:
    task = json.loads((CLOUDS / "ecs-task.json").read_text())
    prepare, service = task["containerDefinitions"]
    variables = {one["name"]: one["value"] for one in service["environment"]}
    variables |= {one["name"]: None for one in service["secrets"]}
    (written,) = re.findall(r">(\S+);", prepare["command"][0])
    return Told(
        service["image"],
        service["portMappings"][0]["containerPort"],
        variables,
        {"/ready"} if service["healthCheck"]["command"][-1].endswith("healthcheck.py") else set(),
        int(task["memory"]),
        {written},
    )


def cloud_run() -> Told:
    spec = yaml.safe_load((CLOUDS / "cloud-run.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (volume,) = spec["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    return Told(
        container["image"],
        container["ports"][0]["containerPort"],
        {one["name"]: one.get("value") for one in container["env"]},
        {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness")},
        1024 * int(container["resources"]["limits"]["memory"].removesuffix("Gi")),
        {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]},
    )


def container_app() -> Told:
    app = yaml.safe_load((CLOUDS / "container-app.yaml").read_text())
    properties = app["properties"]
    template, configuration = properties["template"], properties["configuration"]
    (container,) = template["containers"]
    (volume,) = template["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["volumeName"] == volume["name"]
    by = {one["identity"] for one in [*configuration["registries"], *configuration["secrets"]]}
    assert by == set(app["identity"]["userAssignedIdentities"]), "one that is there before the app is"
    secrets = {secret["name"] for secret in configuration["secrets"]}
    assert {one["secretRef"] for one in [*container["env"], *volume["secrets"]] if "secretRef" in one} == secrets
    return Told(
        container["image"],
        configuration["ingress"]["targetPort"],
        {one["name"]: one.get("value") for one in container["env"]},
        {probe["httpGet"]["path"] for probe in container["probes"]},
        1024 * int(container["resources"]["memory"].removesuffix("Gi")),
        {f"{mount['mountPath']}/{secret['path']}" for secret in volume["secrets"]},
    )


@pytest.mark.parametrize("told", [ecs(), cloud_run(), container_app()], ids=["ecs", "cloud-run", "container-app"])
def test_a_cloud_is_told_what_the_service_reads_and_answers(told: Told) -> None:
    assert told.image.endswith("/tabserve@DIGEST"), "an exact image"
    assert told.port == 3000
    assert set(told.variables) <= {setting.variable for setting in SETTINGS.values()}
    Settings.from_environment({name: value for name, value in told.variables.items() if value is not None})
    assert {"TABSERVE_API_KEYS_FILE", "TABSERVE_RATE_LIMIT", "TABSERVE_RATE_LIMIT_URL"} <= set(told.variables)
    assert told.variables["TABSERVE_API_KEYS_FILE"] in told.files
    assert "/ready" in told.probes
    assert told.probes <= PROBES
    assert told.memory_mib >= 1024, "as the limit in Kubernetes"


def test_what_goes_before_the_service_in_ecs_makes_room_and_writes_the_keys(tmp_path: Path) -> None:
    prepare, service = json.loads((CLOUDS / "ecs-task.json").read_text())["containerDefinitions"]
    assert prepare["entryPoint"] == ["sh", "-ec"]
    assert [one["name"] for one in prepare["secrets"]] == ["API_KEYS"]
    assert service["dependsOn"] == [{"containerName": "prepare", "condition": "SUCCESS"}]
    keys = "keys:\n- name: a\n  salt: '%s %d \\n \"'\n"
    (command,) = prepare["command"]
    tmp_path.chmod(0o755)
    here = ["sh", "-ec", command.replace("/tmp", str(tmp_path))]
    subprocess.run(here, env={**os.environ, "API_KEYS": keys}, check=True)

    assert (tmp_path / "api-keys.yaml").read_text() == keys
    assert stat.S_IMODE((tmp_path / "api-keys.yaml").stat().st_mode) == 0o444
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def nginx_of_sagemaker(folder: Path, port: int, service: str) -> list[str]:
    """Its command on this machine: names and places are all that is changed."""
    here = {
        "server 127.0.0.1:3000": f"server {service}",
        "listen 8080": f"listen 127.0.0.1:{port}",
    }
    write_with(here, CLOUDS / "sagemaker" / "nginx.conf", folder)
    (command,) = re.findall(r"^nginx (.*) &$", (CLOUDS / "sagemaker" / "serve").read_text(), re.MULTILINE)
    options = shlex.split(command.replace("/etc/nginx/sagemaker.conf", str(folder / "nginx.conf")))
    return [str(find_program("nginx")), "-p", str(folder), *options]


@pytest.mark.needs_program("nginx")
def test_sagemaker_asks_and_is_answered_through_nginx(services: dict[str, Service], tmp_path: Path) -> None:
    service, port = services[BUILT_IN], free_port()
    command = nginx_of_sagemaker(tmp_path, port, service.url.removeprefix("http://"))
    with (
        running(command, port, tmp_path / "log", cwd=tmp_path, environment={}),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        body = {"instances": [TUTORIAL_ROW, TUTORIAL_ROW]}
        answered, direct = client.post("/invocations", json=body), httpx.post(f"{service.url}/predict/batch", json=body)
        refused = client.post("/invocations", json={"instances": [[1]]})
        others = {client.get(path).status_code for path in ("/", "/metrics", "/predict", "/ready", "/ping/")}

        assert client.get("/ping").status_code == 200
        assert answered.status_code == direct.status_code == 200
        probabilities = [[one["probabilities"] for one in said.json()["predictions"]] for said in (answered, direct)]
        assert probabilities[0] == probabilities[1]
        assert refused.status_code == 422
        assert others == {404}


@pytest.mark.needs_program("nginx")
def test_sagemaker_is_told_where_the_service_is_gone(tmp_path: Path) -> None:
    port = free_port()
    command = nginx_of_sagemaker(tmp_path, port, f"127.0.0.1:{free_port()}")
    with running(command, port, tmp_path / "log", cwd=tmp_path, environment={}):
        assert httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 502
