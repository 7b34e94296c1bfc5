"""The compose stack: accepted by the schema, and every file that it mounts by the program that reads it."""

import ipaddress
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, environment, free_port
from stores import PASSWORD, PostgresqlServer

from loadtest.processes import find_program, running
from monitoring.watching.options import parser
from tabserve.access.api_keys import KeyFile
from tabserve.prediction_log.places import place_of
from tabserve.settings import SETTINGS, Settings

pytestmark = pytest.mark.deploy

COMPOSE = ROOT / "deploy" / "compose.yaml"
FOLDER = ROOT / "deploy" / "compose"
ONCE = "prepare"  # the only one that ends
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
        assert service["deploy"]["resources"]["limits"] == {"cpus": "2", "memory": "2g"}
        if name == ONCE:
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped"
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


@pytest.mark.needs_program("openssl")
def test_secrets_are_made_once_and_none_is_known_beforehand(stack: dict[str, Any], tmp_path: Path) -> None:
    def made(name: str) -> dict[str, str]:
        command = [str(FOLDER / "secrets.sh"), str(tmp_path / name)]
        variables = environment(tmp_path / "home", PYTHON=sys.executable)
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / name).glob("[!.]*")} == {0o444}
        found = {path.name: path.read_text() for path in (tmp_path / name).glob("[!.]*")}
        assert not any(found[one].strip() in done.stdout + done.stderr for one in ("caller-key", "grafana-password"))
        return found

    first, other = made("first"), made("other")

    files = {Path(secret["file"]).name for secret in stack["secrets"].values()}
    assert files <= set(first)
    of_others = {"chat-url", "pager-key"}
    assert {name for name in first if first[name] == other[name]} == of_others
    keys = KeyFile.parse(first["api-keys.yaml"].encode()).keys
    assert [(key.name, key.scopes) for key in keys] == [
        ("caller", ("predict", "feedback")),
        ("prometheus", ("metrics",)),
    ]
    assert made("first") == first


@pytest.mark.needs_program("postgres")
def test_the_log_finds_the_database_and_its_password_by_the_service_file(
    stack: dict[str, Any], postgresql: PostgresqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the address that compose.yaml says, and the variable that it sets; the file is for all to read, as there."""
    (url,) = re.findall(r"TABSERVE_LOG_URL=(postgresql:\S+)", COMPOSE.read_text())
    for name in ("tabserve", "monitor"):
        service = stack["services"][name]
        assert service["environment"]["PGSERVICEFILE"] == "/run/secrets/postgresql-service"
        assert "postgresql-service" in service["secrets"]
    of_script = re.findall(r"printf '(\[tabserve\].*)' ", (FOLDER / "secrets.sh").read_text())[0].replace("\\n", "\n")
    assert "password=%s" in of_script
    (tmp_path / "service").write_text(of_script.replace("%s", PASSWORD))
    (tmp_path / "service").chmod(0o444)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "service"))

    assert url.startswith("postgresql://postgresql/tabserve?")
    there = url.replace("postgresql/tabserve", f"127.0.0.1:{postgresql.port}/postgres")
    place = place_of(there, tmp_path)
    assert place is not None
    place.sink.expire(date.min)  # as the service asks it, with a connection


def test_volumes_belong_to_who_writes_to_them_and_have_the_models(stack: dict[str, Any]) -> None:
    services = stack["services"]
    prepare = services[ONCE]
    prepared = {volume.partition(":")[0] for volume in prepare["volumes"] if not volume.startswith(".")}
    for name in ("tabserve", "monitor"):
        assert services[name]["depends_on"][ONCE] == {"condition": "service_completed_successfully"}
        assert {volume.partition(":")[0] for volume in services[name]["volumes"]} <= prepared
    script, *changes = prepare["command"][0].strip().splitlines()
    assert script == "sh /copy-models.sh /home/bentoml/bento/models /models"
    assert f"./kubernetes/jobs/copy-models.sh:{script.split()[1]}:ro" in prepare["volumes"]
    owned = {path.strip("/") for change in changes for path in change.split() if path.startswith("/")}
    assert owned == prepared
    assert all("1001:1001" in change for change in changes)


def test_the_monitor_has_options_that_it_knows(stack: dict[str, Any]) -> None:
    python, module, name, *options = stack["services"]["monitor"]["command"]
    assert (python, module, name) == ("python", "-m", "monitoring.watch")
    parser().parse_args(options)


def test_every_variable_of_the_service_is_one_that_it_reads(stack: dict[str, Any]) -> None:
    environment = stack["services"]["tabserve"]["environment"]
    known = {setting.variable for setting in SETTINGS.values()} | {"BENTOML_HOME", "PGSERVICEFILE"}
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


def write_with(here: dict[str, str], configuration: Path, folder: Path) -> None:
    """Writes a configuration of nginx into a folder, with places of this machine; each must have been there."""
    text = configuration.read_text()
    for there, replacement in {" /tmp/": f" {folder}/", **here}.items():
        assert there in text
        text = text.replace(there, replacement)
    (folder / "nginx.conf").write_text(text)


def nginx_of(folder: Path, port: int, service: str) -> list[str]:
    """The command of the stack's nginx on this machine: its names and places are all that is changed."""
    certificate = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    ran("openssl", "req", *certificate, *names, "-keyout", "tls-key", "-out", "tls-certificate", cwd=folder)
    here = {
        "/run/secrets/": f"{folder}/",
        "server tabserve:3000": f"server {service}",
        "listen 8443": f"listen 127.0.0.1:{port}",
    }
    write_with(here, FOLDER / "nginx.conf", folder)
    (folder / "canary.conf").write_bytes((FOLDER / "canary.conf").read_bytes())
    name, *options = yaml.safe_load(COMPOSE.read_text())["services"]["nginx"]["command"]
    assert name == "nginx"
    return [str(find_program(name)), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"), *options]


@pytest.mark.needs_program("nginx", "openssl")
def test_nginx_takes_its_configuration_and_ends_tls(tmp_path: Path) -> None:
    """Upstreams that are not there are a 502."""
    port = free_port()
    nginx, *options = nginx_of(tmp_path, port, f"127.0.0.1:{free_port()}")
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
