"""The manifests as kustomize renders them: accepted by the schemas, and true of the service that they are about."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import BUILT_IN, CUSTOMERS, ROOT, SPEND, TrainedModels, home_in_use

from deploy.copies import copies
from loadtest.processes import find_program
from loadtest.profiles import EXPECTED_PEAK_RATE
from monitoring import commands, drift, quality
from tabserve import cli, model_store
from tabserve.access.rate_limit import RateLimit
from tabserve.commands.retrain import NOT_GOOD_ENOUGH, NOT_NOW
from tabserve.http_api import FrontDoor
from tabserve.prediction_log import NoPredictionLog
from tabserve.rollout import Rollout
from tabserve.rollout_state import ROLLOUT_FILE, RolloutState
from tabserve.settings import SETTINGS, Settings
from tabserve.telemetry import Telemetry

KUBERNETES = ROOT / "deploy" / "kubernetes"
TOOLS = ROOT / ".venv-deploy" / "bin"
pytestmark = pytest.mark.deploy

VERSION = "1.34"  # of Kubernetes: preStop's `sleep` is there for everybody since
RENDERED = {folder.name: folder for folder in [*sorted((KUBERNETES / "overlays").iterdir()), KUBERNETES / "loadtest"]}
PRODUCTION = ("production", "canary", "blue-green", "rollout")

ANSWERS = {commands.ALARM, commands.TOO_FEW, NOT_GOOD_ENOUGH, NOT_NOW}  # exit codes that another attempt gives again

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rendered")
    paths = {}
    for name, source in RENDERED.items():
        kustomize = find_program("kustomize")
        command = [kustomize, "build"] if kustomize else [str(find_program("kubectl")), "kustomize"]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(done.stdout)
    return paths


@pytest.fixture(scope="module", params=sorted(RENDERED))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(rendered: dict[str, Path], name: str) -> list[Manifest]:
    return list(yaml.safe_load_all(rendered[name].read_text()))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and template of the pods of everything that has some."""
    for manifest in of_kind(manifests, "Deployment", "Job", "CronJob"):
        spec = manifest["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if manifest["kind"] == "CronJob" else spec["template"]
        yield manifest["metadata"]["name"], template


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for name, template in pods(manifests):
        for container in containers_of(template):
            yield name, container


def containers_of(template: Manifest) -> list[Manifest]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def volumes(manifests: list[Manifest]) -> Iterator[Manifest]:
    for _, template in pods(manifests):
        yield from template["spec"]["volumes"]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# --- the schemas


@pytest.mark.needs_program("kubectl")
def test_every_built_in_kind_keeps_its_strict_schema_and_no_kind_is_unknown(
    rendered: dict[str, Path], name: str
) -> None:
    command = [str(TOOLS / "kubernetes-validate"), "--strict", "-k", VERSION, str(rendered[name])]
    done = subprocess.run(command, capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    # It takes a kind that it does not know for a warning, a misspelt one too.
    unknown = {line.partition("kind ")[2].split()[0] for line in said if "Couldn't find schema" in line}

    assert done.returncode == 0, "\n".join(said)
    assert unknown <= set(custom_schemas()), "\n".join(said)
    assert sum("passed" in line for line in said) >= 4


def custom_schemas() -> dict[str, dict[str, Any]]:
    """Kind to what is known of it: group, version, and the schema of the project that defines it."""
    return {known["kind"]: known for known in (json.loads(p.read_text()) for p in (KUBERNETES / "schemas").iterdir())}


def strict(schema: Any) -> Any:
    """A schema under which a field that it does not name is a fault."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: strict(one) for name, one in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if isinstance(made.get("pattern"), str):
        made["pattern"] = made["pattern"].replace("^(?i)", "(?i)^")  # where Python wants what Go takes anywhere
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.needs_program("kubectl")
def test_every_other_kind_keeps_the_schema_of_the_project_that_defines_it(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        known = custom_schemas().get(manifest["kind"])
        if known is None:
            continue
        assert manifest["apiVersion"] == f"{known['group']}/{known['version']}"
        schema = strict(known["schema"])
        schema["properties"]["metadata"] = {}  # Kubernetes' own
        jsonschema.validate(manifest, schema)


def test_a_misspelt_field_of_such_a_kind_is_noticed() -> None:
    route = yaml.safe_load((KUBERNETES / "gateway" / "route.yaml").read_text())
    route["spec"]["rules"][0]["backendRefs"][0]["wieght"] = 5
    schema = strict(custom_schemas()["HTTPRoute"]["schema"])
    with pytest.raises(jsonschema.ValidationError, match="wieght"):
        jsonschema.validate(route, schema)


@pytest.mark.needs_program("kubectl")
def test_checkov_finds_nothing_that_is_not_argued_for(rendered: dict[str, Path], name: str) -> None:
    config = KUBERNETES / "checkov.yaml"
    command = [str(TOOLS / "checkov"), "--file", str(rendered[name]), "--config-file", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=rendered[name].parent)

    assert done.returncode == 0, done.stdout[-5000:]
    assert "Passed checks: " in done.stdout


# --- names that must meet


@pytest.mark.needs_program("kubectl")
def test_every_service_reaches_pods_by_a_port_that_they_name(manifests: list[Manifest]) -> None:
    for service in of_kind(manifests, "Service"):
        reached = [
            template
            for _, template in pods(manifests)
            if matches(service["spec"]["selector"], template["metadata"]["labels"])
        ]
        assert reached, service["metadata"]["name"]
        named = {port["name"] for template in reached for c in template["spec"]["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@pytest.mark.needs_program("kubectl")
def test_stable_and_canary_are_apart(rendered: dict[str, Path]) -> None:
    manifests = list(yaml.safe_load_all(rendered["canary"].read_text()))
    labels = {name: template["metadata"]["labels"] for name, template in pods(manifests) if "canary" in name}
    for manifest in of_kind(manifests, "Service", "PodDisruptionBudget"):
        selector = manifest["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        if manifest["metadata"]["name"] == "tabserve":
            assert not any(matches(selector, of_canary) for of_canary in labels.values())


@pytest.mark.needs_program("kubectl")
def test_probes_ask_what_the_service_has(manifests: list[Manifest]) -> None:
    door = FrontDoor(
        lambda *_: None,
        rollout=Rollout(),
        settings=Settings(),
        telemetry=Telemetry(),
        prediction_log=NoPredictionLog(),
    )
    for deployment in of_kind(manifests, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        probes = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")]
        assert [probe["path"] for probe in probes] == ["/ready", "/ready", "/health"]
        assert {probe["path"] for probe in probes} <= set(door._routes)
        assert {probe["port"] for probe in probes} <= {port["name"] for port in container["ports"]}


@pytest.mark.needs_program("kubectl")
def test_the_autoscaler_has_something_to_scale_and_the_budget_lets_a_node_be_drained(
    manifests: list[Manifest],
) -> None:
    deployments = {one["metadata"]["name"]: one for one in of_kind(manifests, "Deployment")}
    scaled = {}
    for autoscaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        target = autoscaler["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in deployments[target]["spec"], "each apply would set the autoscaler's number back"
        assert autoscaler["spec"]["minReplicas"] <= autoscaler["spec"]["maxReplicas"]
        scaled[target] = autoscaler["spec"]["minReplicas"]
    assert all(name in scaled or "replicas" in one["spec"] for name, one in deployments.items())
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        protected = [
            name
            for name, one in deployments.items()
            if matches(budget["spec"]["selector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"])
        ]
        assert protected
        assert budget["spec"]["maxUnavailable"] >= 1
    for deployment in deployments.values():
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.needs_program("kubectl")
def test_the_shares_of_a_route_are_a_whole_and_go_to_services_that_are_there(manifests: list[Manifest]) -> None:
    services = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for one in of_kind(manifests, "Service")
    }
    for route in of_kind(manifests, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            assert sum(backend["weight"] for backend in rule["backendRefs"]) == 100
            assert all(backend["port"] in services[backend["name"]] for backend in rule["backendRefs"])
            assert not any("metrics" in match["path"]["value"] for match in rule["matches"])


@pytest.mark.needs_program("kubectl")
def test_every_secret_that_somebody_names_is_there_with_its_key(manifests: list[Manifest]) -> None:
    secrets = {
        one["spec"]["target"]["name"]: {entry["secretKey"] for entry in one["spec"]["data"]}
        for one in of_kind(manifests, "ExternalSecret")
    }
    for _, container in containers(manifests):
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            assert reference is None or reference["key"] in secrets[reference["name"]]
        assert all(source["secretRef"]["name"] in secrets for source in container.get("envFrom", []))
    for volume in volumes(manifests):
        assert "secret" not in volume or volume["secret"]["secretName"] in secrets
    for _, template in pods(manifests):
        keys = {
            one["name"]: secrets[one["secret"]["secretName"]] for one in template["spec"]["volumes"] if "secret" in one
        }
        for container in containers_of(template):
            mounts = [mount for mount in container["volumeMounts"] if mount["name"] in keys]
            files = {f"{mount['mountPath']}/{key}" for mount in mounts for key in keys[mount["name"]]}
            said = [one.get("value", "") for one in container.get("env", [])]
            said += [option.partition("=")[2] for option in container.get("args", [])]
            named = {path for path in said if path.startswith("/run/secrets/")}
            assert named == files, "each is read, and each that is read is there"
    for monitor in of_kind(manifests, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            credentials = endpoint.get("authorization", {}).get("credentials")
            assert credentials is None or credentials["key"] in secrets[credentials["name"]]


@pytest.mark.needs_program("kubectl")
def test_the_readme_names_every_secret_that_the_store_has_to_have(rendered: dict[str, Path]) -> None:
    documented = set(
        re.findall(r"^\| `(tabserve/[\w-]+)` \|", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE)
    )
    asked = {
        entry["remoteRef"]["key"]
        for path in rendered.values()
        for one in of_kind(list(yaml.safe_load_all(path.read_text())), "ExternalSecret")
        for entry in one["spec"]["data"]
    }
    assert documented == asked


@pytest.mark.needs_program("kubectl")
def test_every_volume_and_account_that_a_pod_names_is_there(manifests: list[Manifest]) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    for _, template in pods(manifests):
        mounted = {mount["name"] for container in containers_of(template) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
        account = template["spec"].get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in there
    for volume in volumes(manifests):
        assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in there
        claim = volume.get("persistentVolumeClaim")
        assert claim is None or ("PersistentVolumeClaim", claim["claimName"]) in there


# --- what pods may do, and have


@pytest.mark.needs_program("kubectl")
def test_no_pod_is_root_writes_to_its_root_or_keeps_a_capability(manifests: list[Manifest]) -> None:
    for _, template in pods(manifests):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(template):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"requests", "limits"}


@pytest.mark.needs_program("kubectl")
def test_every_pod_is_inside_a_network_policy(manifests: list[Manifest]) -> None:
    policies = [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(manifests, "NetworkPolicy")]
    for _, template in pods(manifests):
        assert any(matches(selector, template["metadata"]["labels"]) for selector in policies)


@pytest.mark.needs_program("kubectl")
def test_images_have_a_version_that_is_not_latest(manifests: list[Manifest]) -> None:
    for _, container in containers(manifests):
        _, _, tag = container["image"].rpartition(":")
        assert tag
        assert "/" not in tag
        assert tag != "latest"


@pytest.mark.needs_program("kubectl")
def test_what_the_service_writes_has_a_place(manifests: list[Manifest]) -> None:
    for _, template in pods(manifests):
        for container in containers_of(template):
            mounts = container["volumeMounts"]
            writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
            assert "/tmp" in writable  # in the container
            for variable in container.get("env", []):
                if variable["name"] in ("BENTOML_HOME", "HOME"):
                    assert any(variable["value"].startswith(path) for path in writable)


@pytest.mark.needs_program("kubectl")
def test_a_pod_has_time_to_answer_what_it_took(manifests: list[Manifest]) -> None:
    for deployment in of_kind(manifests, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "config"]
        (config,) = [one for one in manifests if one["metadata"]["name"] == volume["configMap"]["name"]]
        longest = yaml.safe_load(config["data"]["configuration.yaml"])["services"]["tabserve"]["traffic"]["timeout"]
        assert spec["terminationGracePeriodSeconds"] >= waits + longest + 5


@pytest.mark.needs_program("kubectl")
def test_every_variable_is_one_that_somebody_reads(manifests: list[Manifest]) -> None:
    known = {setting.variable for setting in SETTINGS.values()} | {"BENTOML_CONFIG", "BENTOML_HOME", "HOME"}
    for _, container in containers(manifests):
        environment = {one["name"]: one.get("value") for one in container.get("env", [])}
        assert set(environment) <= known
        Settings.from_environment({name: value for name, value in environment.items() if value is not None})


@pytest.mark.needs_program("kubectl")
@pytest.mark.parametrize("overlay", PRODUCTION)
def test_keys_and_the_rate_limit_are_on_in_production(rendered: dict[str, Path], overlay: str) -> None:
    manifests = list(yaml.safe_load_all(rendered[overlay].read_text()))
    for deployment in of_kind(manifests, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        environment = {one["name"]: one for one in container["env"]}
        assert {"TABSERVE_API_KEYS_FILE", "TABSERVE_RATE_LIMIT", "TABSERVE_RATE_LIMIT_URL"} <= set(environment)
        assert "TABSERVE_ANONYMOUS" not in environment
        assert "valueFrom" in environment["TABSERVE_LOG_URL"]


@pytest.mark.needs_program("kubectl")
@pytest.mark.parametrize("overlay", PRODUCTION)
def test_the_least_replicas_take_twice_the_peak_by_the_figures_of_the_load_tests(
    rendered: dict[str, Path], overlay: str
) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    (cores,) = re.findall(r"`requests\.cpu: (\d+)`", text)
    manifests = list(yaml.safe_load_all(rendered[overlay].read_text()))
    for autoscaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        (metric,) = autoscaler["spec"]["metrics"]
        percent = metric["resource"]["target"]["averageUtilization"]
        assert f"target is {percent} %" in text
        (rate,) = re.findall(rf"^\| {percent}% \| (\d+) \|", text, re.MULTILINE)
        assert autoscaler["spec"]["minReplicas"] * int(rate) >= 2 * EXPECTED_PEAK_RATE
        (target,) = [
            one
            for one in of_kind(manifests, "Deployment")
            if one["metadata"]["name"] == autoscaler["spec"]["scaleTargetRef"]["name"]
        ]
        (container,) = target["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["requests"]["cpu"] == cores, "what the figures are of"


# --- the network


def admits(policy: Manifest, direction: str, peer: dict[str, str], port: str | int, protocol: str = "TCP") -> bool:
    """Whether a policy lets pods of such labels (`namespace` is where they are, a name) through at a port.

    A rule without peers is for everybody, one without ports for all of them.
    """
    who = {"ingress": "from", "egress": "to"}[direction]
    in_namespace = {"kubernetes.io/metadata.name": peer.get("namespace", "")}
    for rule in policy["spec"].get(direction, []):
        is_peer = who not in rule or any(
            matches(one["namespaceSelector"]["matchLabels"], in_namespace)
            if "namespaceSelector" in one
            else matches(one["podSelector"]["matchLabels"], peer)
            for one in rule[who]
        )
        is_port = "ports" not in rule or any(
            (one["port"], one["protocol"]) == (port, protocol) for one in rule["ports"]
        )
        if is_peer and is_port:
            return True
    return False


SERVICE, JOBS, LOADTEST = ({"app.kubernetes.io/name": f"tabserve{part}"} for part in ("", "-jobs", "-loadtest"))
DNS, MONITORING, GATEWAY = ({"namespace": name} for name in ("kube-system", "monitoring", "gateway"))
ELSEWHERE = {"namespace": "another"}
BUCKET, POSTGRESQL, REDIS, TRACES, PUSHGATEWAY = 443, 5432, 6379, 4318, 9091  # what their addresses say by default


@pytest.mark.needs_program("kubectl")
def test_the_network_lets_through_what_is_needed_and_nothing_else(rendered: dict[str, Path]) -> None:
    policies = {}
    for name in ("production", "loadtest"):
        for policy in of_kind(list(yaml.safe_load_all(rendered[name].read_text())), "NetworkPolicy"):
            assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
            policies[policy["metadata"]["name"]] = policy
    service, jobs, loadtest = (policies[f"tabserve{part}"] for part in ("", "-jobs", "-loadtest"))

    for peer in (GATEWAY, MONITORING, LOADTEST):
        assert admits(service, "ingress", peer, "http")
    assert not any(admits(service, "ingress", peer, "http") for peer in (ELSEWHERE, JOBS))
    assert not admits(service, "ingress", GATEWAY, 22)
    for port in (BUCKET, POSTGRESQL, REDIS, TRACES):
        assert admits(service, "egress", ELSEWHERE, port)
    assert not admits(service, "egress", ELSEWHERE, 25)
    for policy in (service, jobs, loadtest):
        assert all(admits(policy, "egress", DNS, 53, protocol) for protocol in ("TCP", "UDP"))
    assert not jobs["spec"].get("ingress")
    assert admits(jobs, "egress", MONITORING, PUSHGATEWAY)
    assert all(admits(jobs, "egress", ELSEWHERE, port) for port in (BUCKET, POSTGRESQL))
    assert admits(loadtest, "egress", SERVICE, 3000)
    assert admits(loadtest, "egress", LOADTEST, 5557)
    assert admits(loadtest, "ingress", LOADTEST, "locust")
    assert not admits(loadtest, "egress", ELSEWHERE, BUCKET)


@pytest.mark.needs_program("kubectl")
def test_prometheus_finds_every_service_by_a_port_that_it_names(manifests: list[Manifest]) -> None:
    for monitor in of_kind(manifests, "ServiceMonitor"):
        services = of_kind(manifests, "Service")
        found = [
            one for one in services if matches(monitor["spec"]["selector"]["matchLabels"], one["metadata"]["labels"])
        ]
        assert found == services
        for endpoint in monitor["spec"]["endpoints"]:
            assert all(endpoint["port"] in [port["name"] for port in one["spec"]["ports"]] for one in found)


# --- jobs, load tests


@pytest.mark.needs_program("kubectl")
def test_jobs_run_commands_that_are_there_one_at_a_time_and_not_for_ever(rendered: dict[str, Path]) -> None:
    manifests = list(yaml.safe_load_all(rendered["production"].read_text()))
    parsers = {"monitoring.drift": drift.parser, "monitoring.quality": quality.parser, "tabserve": cli.parser}
    jobs = of_kind(manifests, "CronJob")
    assert len(jobs) == len(parsers)
    for job in jobs:
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        assert job["spec"]["startingDeadlineSeconds"] > 0
        spec = job["spec"]["jobTemplate"]["spec"]
        assert spec["activeDeadlineSeconds"] > 0
        (container,) = spec["template"]["spec"]["containers"]
        python, module, name, *arguments = container["args"]
        assert (python, module) == ("python", "-m")
        parsers[name]().parse_args(arguments)
        (policy,) = spec["podFailurePolicy"]["rules"]
        assert policy["onExitCodes"]["containerName"] == container["name"]
        assert set(policy["onExitCodes"]["values"]) == ANSWERS


@pytest.mark.needs_program("kubectl")
def test_a_monitor_is_called_silent_after_three_nights_and_not_each_day(rendered: dict[str, Path]) -> None:
    manifests = list(yaml.safe_load_all(rendered["production"].read_text()))
    (rules,) = of_kind(manifests, "PrometheusRule")
    (silent,) = [
        rule
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
        if rule.get("alert") == "TabserveMonitorSilent"
    ]
    looks = [
        job["spec"]["schedule"] for job in of_kind(manifests, "CronJob") if "retraining" not in job["metadata"]["name"]
    ]

    assert all(re.fullmatch(r"\d+ \d+ \* \* \*", schedule) for schedule in looks), "once a day"
    assert silent["expr"].endswith("> 3 * 86400")


@pytest.mark.needs_program("kubectl")
def test_a_job_first_has_the_models_of_the_image_each_whole_and_once(
    rendered: dict[str, Path], models: TrainedModels, tmp_path: Path
) -> None:
    manifests = list(yaml.safe_load_all(rendered["production"].read_text()))
    jobs = [container for _, template in pods(of_kind(manifests, "CronJob")) for container in containers_of(template)]
    (command,) = {tuple(container["command"]) for container in jobs if container["name"] == "models"}
    assert command == ("sh", "/scripts/copy-models.sh", "/home/bentoml/bento/models", "/models")
    (script,) = {
        one["data"]["copy-models.sh"] for one in manifests if "tabserve-job-scripts" in one["metadata"]["name"]
    }
    home = tmp_path / "home"
    half = home / ".copied" / "half"  # of a run that was ended in between
    half.mkdir(parents=True)

    def copied() -> list[Path]:
        command = ["sh", "-c", script, "sh", str(models.home / "models"), str(home)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return sorted(home.glob("models/*/*/"))

    assert [path.parent.name for path in copied()] == sorted([BUILT_IN, CUSTOMERS, SPEND])
    with home_in_use(home):
        for name in (BUILT_IN, CUSTOMERS, SPEND):
            model_store.verify(model_store.find(models.tag(name)))
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    copied()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


@pytest.mark.needs_program("kubectl")
def test_a_load_test_waits_for_all_its_workers_and_may_ask_as_often_as_it_does(rendered: dict[str, Path]) -> None:
    manifests = list(yaml.safe_load_all(rendered["loadtest"].read_text()))
    ((_, master),) = [(name, one["args"]) for name, one in containers(manifests) if "--master" in one["args"]]
    told = dict(option.removeprefix("--").partition("=")[::2] for option in master)
    (workers,) = [job["spec"] for job in of_kind(manifests, "Job") if "parallelism" in job["spec"]]
    assert int(told["expect-workers"]) == workers["parallelism"] == workers["completions"]
    (service,) = of_kind(list(yaml.safe_load_all(rendered["staging"].read_text())), "Deployment")
    (container,) = service["spec"]["template"]["spec"]["containers"]
    (text,) = [one["value"] for one in container["env"] if one["name"] == "TABSERVE_RATE_LIMIT"]
    limit = RateLimit.parse(text)
    assert limit.requests / limit.seconds > float(told["arrival-rate"]) * 1.5, "arrivals come by chance"


# --- models on a volume


@pytest.mark.needs_program("kubectl")
def test_the_rollout_file_is_one_that_the_service_reads_from_where_it_looks(rendered: dict[str, Path]) -> None:
    manifests = list(yaml.safe_load_all(rendered["rollout"].read_text()))
    (deployment,) = of_kind(manifests, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (home,) = [one["value"] for one in container["env"] if one["name"] == "BENTOML_HOME"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = mounts[f"{home}/{ROLLOUT_FILE}"]
    (config,) = [
        one for one in manifests if one["metadata"]["name"] == volumes[mounted["name"]].get("configMap", {}).get("name")
    ]

    RolloutState.parse(config["data"][mounted["subPath"]])
    assert "emptyDir" in volumes[mounts[home]["name"]]
    assert mounts[f"{home}/models"]["readOnly"] is True
    assert "TABSERVE_MODEL" not in [one["name"] for one in container["env"]], "it would win over the file"
    assert container["args"][:2] == ["bentoml", "serve"]
    assert (ROOT / f"{container['args'][2].partition(':')[0]}.py").exists()
    claims = [
        one for one in of_kind(manifests, "PersistentVolumeClaim") if one["spec"]["accessModes"] == ["ReadWriteMany"]
    ]
    assert [one["metadata"]["name"] for one in claims] == ["tabserve-models"]


def test_what_kustomize_has_copies_of_is_up_to_date() -> None:
    for path, text in copies().items():
        assert path.read_text() == text, "python -m deploy.copies"
