"""The compose stack: accepted by the schema, and every file that it mounts by the program that reads it."""

import ipaddress
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, free_port

from loadtest.processes import find_program, running
from tabserve.settings import SETTINGS, Settings

pytestmark = pytest.mark.deploy

COMPOSE = ROOT / "deploy" / "compose.yaml"
FOLDER = ROOT / "deploy" / "compose"
TOOLS = ROOT / ".venv-deploy" / "bin"


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def ran(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_keeps_the_compose_specification() -> None:
    ran(str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE), cwd=ROOT)


def test_every_service_has_a_version_limits_a_probe_and_comes_back(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        image = service["image"]
        assert image.startswith("${TABSERVE_") or re.search(r":v?\d+\.\d+", image), name
        assert "latest" not in image
        assert service["restart"] == "unless-stopped"
        assert service["deploy"]["resources"]["limits"] == {"cpus": "2", "memory": "2g"}
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["networks"] == ["inside"]


def test_nobody_from_outside_reaches_anything_but_nginx(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for port in service.get("ports", []):
            assert name == "nginx" or port.startswith("127.0.0.1:"), name


def test_grafana_lets_nobody_sign_up(stack: dict[str, Any]) -> None:
    environment = stack["services"]["grafana"]["environment"]
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_every_file_that_is_mounted_and_every_secret_that_is_named_is_there(stack: dict[str, Any]) -> None:
    for service in stack["services"].values():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), source
                assert volume.endswith(":ro")
            else:
                assert source in stack["volumes"], target
        assert set(service.get("secrets", [])) <= set(stack["secrets"])
    for secret in stack["secrets"].values():
        assert secret["file"].startswith("./compose/secrets/"), "which git ignores"


def test_every_variable_of_the_service_is_one_that_it_reads(stack: dict[str, Any]) -> None:
    environment = stack["services"]["tabserve"]["environment"]
    known = {setting.variable for setting in SETTINGS.values()} | {"BENTOML_HOME"}
    assert set(environment) <= known
    defaults = {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in environment.items()}
    Settings.from_environment(defaults)


def test_the_proxy_that_is_trusted_is_in_the_network(stack: dict[str, Any]) -> None:
    (subnet,) = [config["subnet"] for config in stack["networks"]["inside"]["ipam"]["config"]]
    trusted = stack["services"]["tabserve"]["environment"]["TABSERVE_TRUSTED_PROXIES"]
    assert ipaddress.ip_network(trusted) == ipaddress.ip_network(subnet)


@pytest.mark.needs_program("promtool")
def test_prometheus_takes_its_configuration_and_the_rules(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yaml").read_text()
    (tmp_path / "prometheus.yaml").write_text(text.replace("/run/secrets/metrics-key", "metrics-key"))
    (tmp_path / "metrics-key").write_text("key")
    (tmp_path / "rules.yaml").write_bytes((ROOT / "monitoring" / "alerts" / "rules.yaml").read_bytes())
    said = ran(str(find_program("promtool")), "check", "config", "prometheus.yaml", cwd=tmp_path)
    assert "rules found" in said
    ours = {job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]}
    assert {"tabserve", "tabserve_monitor"} <= ours, "by these names the rules go"


@pytest.mark.needs_program("amtool")
def test_alertmanager_takes_its_configuration(stack: dict[str, Any]) -> None:
    path = ROOT / "monitoring" / "alerts" / "alertmanager.yaml"
    ran(str(find_program("amtool")), "check-config", str(path), cwd=ROOT)
    files = set(re.findall(r"_file: /run/secrets/(\S+)", path.read_text()))
    assert files == set(stack["services"]["alertmanager"]["secrets"])


@pytest.mark.needs_program("nginx", "openssl")
def test_nginx_takes_its_configuration_and_ends_tls(tmp_path: Path) -> None:
    """With names and places of this machine, which is all that is changed; upstreams that are not there are a 502."""
    port = free_port()
    certificate = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    ran("openssl", "req", *certificate, "-keyout", "tls-key", "-out", "tls-certificate", cwd=tmp_path)
    text = (FOLDER / "nginx.conf").read_text()
    here = {
        " /tmp/": f" {tmp_path}/",
        "/run/secrets/": f"{tmp_path}/",
        "server tabserve:3000": f"server 127.0.0.1:{free_port()}",
        "listen 8443": f"listen 127.0.0.1:{port}",
    }
    for there, replacement in here.items():
        assert there in text
        text = text.replace(there, replacement)
    (tmp_path / "nginx.conf").write_text(text)
    (tmp_path / "canary.conf").write_bytes((FOLDER / "canary.conf").read_bytes())
    nginx = str(find_program("nginx"))
    options = ["-p", str(tmp_path), "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    ran(nginx, "-t", *options, cwd=tmp_path)

    def asked(path: str, *more: str) -> str:
        curl = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", *more, f"https://127.0.0.1:{port}{path}"]
        return ran(*curl, cwd=tmp_path)

    with running([nginx, *options], port, tmp_path / "log", cwd=tmp_path, environment={}):
        assert asked("/ready") == "502"
        assert asked("/metrics") == "404"
        assert "400" in ran(
            "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{port}/", cwd=tmp_path
        )
        codes = [asked("/predict", "-X", "POST", "-d", "{}") for _ in range(40)]
        assert set(codes) == {"502", "429"}
        assert 21 <= codes.count("502") <= 40, "a burst of 20 beside ten a second"
