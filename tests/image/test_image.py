"""The images, built as `make image` and `make image-tools` build them, and run as hardened as deploy/README.md says."""

import contextlib
import gzip
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import httpx
import numpy as np
import pytest
from conftest import BUILT_IN, ROOT, SPEND, TrainedModels, free_port, home_in_use, wait_for
from containers import HARDENED, Container, Containers
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from prediction_log_parts import ids_in
from redis import Redis
from test_project import pins
from test_shared_rate_limit import redis
from test_shared_rate_limit import url_of as redis_url

from deploy.image.sbom import document
from loadtest.payloads import Payloads, Wanted, make
from tabserve.build import git_commit, version

pytestmark = [
    pytest.mark.image,
    pytest.mark.needs_program("mmdebstrap", "buildah", "podman", "runc", "skopeo", "redis-server"),
    pytest.mark.timeout(900),  # the first test waits for the bases and the image
]

UNPACKED_BYTES = 600_000_000
COMPRESSED_BYTES = 190_000_000
USER = 1001


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    # Not below pytest's folders, which it keeps for three runs: an image is large.
    made = Containers(Path(tempfile.mkdtemp(prefix="tabserve-image-")))
    try:
        made.make_bases()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="session")
def image(containers: Containers, models: TrainedModels) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED_TOKEN", token_hex())  # what a builder's environment has, and no image may
        yield containers.build(models.home)


@pytest.fixture(scope="session")
def payloads(models: TrainedModels) -> Payloads:
    with home_in_use(models.home):
        contract = models.load(BUILT_IN).contract.model_dump(mode="json")
        return make(Wanted(contract, models.tag(BUILT_IN)))


@contextlib.contextmanager
def running(containers: Containers, image: str, *options: str, **settings: str) -> Iterator[Container]:
    container = Container(containers, image, *options, **settings)
    try:
        container.wait_until_ready()
        yield container
    finally:
        container.remove()


@contextlib.contextmanager
def as_in_production(
    containers: Containers, image: str, folder: Path, *options: str, **settings: str
) -> Iterator[tuple[Container, str]]:
    """A container that has keys in a file in `folder` and counts requests in a Redis; and a key with two a minute."""
    create = ("tabserve", "keys", "create", "shop", "--scopes", "predict", "--file", "/keys/keys.yaml")
    key = containers.podman("run", "--rm", "--volume", f"{folder}:/keys", image, *create).stdout.strip()
    # Root without capabilities may read no more than others.
    folder.chmod(0o755)
    (folder / "keys.yaml").chmod(0o644)
    port = free_port()
    settings |= {
        "TABSERVE_API_KEYS_FILE": "/keys/keys.yaml",
        "TABSERVE_RATE_LIMIT": "1/m:2",
        "TABSERVE_RATE_LIMIT_URL": redis_url(port),
    }
    with redis(port), running(containers, image, "--volume", f"{folder}:/keys:ro", *options, **settings) as container:
        yield container, key


@pytest.fixture(scope="module")
def service(containers: Containers, image: str) -> Iterator[Container]:
    with running(containers, image) as container:
        yield container


@pytest.fixture
def writable(tmp_path: Path) -> Iterator[Path]:
    """A folder of this machine that the container's user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="tabserve-volume-"))
    os.chown(folder, USER, USER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# --- what it says of itself


def test_name_labels_metadata_and_version_say_what_the_repository_and_the_model_store_do(
    service: Container, image: str, containers: Containers, models: TrainedModels
) -> None:
    commit, tag, contract = git_commit(), models.tag(BUILT_IN), models.load(BUILT_IN).contract.hash
    assert commit is not None
    labels = json.loads(containers.podman("image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    build = httpx.get(f"{service.url}/metadata").json()["build"]
    said = service.run("tabserve", "version").stdout

    digits, _, changed = commit.partition("-")
    short = digits[:12] + (f"-{changed}" if changed else "")
    assert image == f"tabserve:{version()}-{short}-{tag.partition(':')[2]}"
    assert labels["org.opencontainers.image.version"] == version()
    assert labels["org.opencontainers.image.revision"] == commit
    assert (labels["io.tabserve.model"], labels["io.tabserve.contract"]) == (tag, contract)
    expected = {"version": version(), "git_commit": commit, "model": tag, "contract_hash": contract}
    assert {**expected, "bento": build["bento"]} == build
    assert dict(line.split(": ", 1) for line in said.splitlines()) == build


# --- what it answers


def test_predictions_are_those_of_scikit_learn(service: Container, payloads: Payloads) -> None:
    assert payloads.scores is not None
    rows, scores = payloads.rows[:512], np.array(payloads.scores[:512])

    answer = httpx.post(f"{service.url}/predict/batch", json={"instances": rows}).raise_for_status().json()

    found = np.array([list(one["probabilities"].values()) for one in answer["predictions"]])
    assert np.abs(found - scores).max() <= 1e-6


def test_bad_input_is_a_422(service: Container, payloads: Payloads) -> None:
    assert len(payloads.bad_rows) > 3
    with httpx.Client(base_url=service.url) as client:
        for row in payloads.bad_rows:
            assert client.post("/predict", json={"features": row}).status_code == 422


def test_the_health_check_that_the_image_brings_follows_the_service(
    service: Container, containers: Containers, image: str
) -> None:
    (described,) = json.loads(containers.podman("image", "inspect", image).stdout)
    check = described["Healthcheck"]
    seconds = {name: check[name] / 1e9 for name in ("Interval", "Timeout", "StartPeriod")}

    assert (seconds, check["Retries"]) == ({"Interval": 30, "Timeout": 5, "StartPeriod": 15}, 3)
    assert service.run(*check["Test"][1:]).returncode == 0
    assert service.run("env", "PORT=1", *check["Test"][1:]).returncode == 1


# --- how it runs


def test_it_runs_as_nobody_in_particular_without_capabilities_and_can_change_nothing_of_itself(
    service: Container,
) -> None:
    status = service.run("cat", "/proc/1/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)

    assert set(fields["Uid"].split()) == {str(USER)}
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert service.run("cat", "/proc/1/cmdline").stdout.startswith("/app/.venv/bin/python\0")  # it gets the signals
    assert service.run("touch", "/app/.venv/it").returncode != 0
    # With a root that could be written to as well.
    its = ("(", "-user", str(USER), "-o", "-group", str(USER), "-o", "-perm", "-o=w", ")")
    found = service.run("find", "/", "-xdev", *its, "-not", "-type", "l").stdout.split()
    assert "/tmp" in found
    assert {path for path in found if not path.startswith(("/dev", "/proc"))} <= {
        "/tmp",
        "/var/tmp",
        "/run",
        "/run/lock",
    }


def test_it_has_one_worker_its_own_configuration_and_reports_to_nobody(service: Container) -> None:
    variables = dict(line.split("=", 1) for line in service.run("env").stdout.splitlines())
    processes = service.run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout

    assert processes.count("_bentoml_impl.worker.service") == 1
    assert service.run("cat", variables["BENTOML_CONFIG"]).stdout == (ROOT / "configuration.yaml").read_text()
    assert variables["BENTOML_DO_NOT_TRACK"] == "True"


def test_nothing_is_written_outside_of_tmp_even_where_it_could_be_not_even_bytecode(
    containers: Containers, image: str, payloads: Payloads, writable: Path
) -> None:
    could = ("--read-only=false", "--user", "0")

    # Python would write the bytecode of what it had to compile, and take longer to start each time.
    with as_in_production(containers, image, writable, *could, PYTHONDONTWRITEBYTECODE="") as (container, key):
        row, headers = {"features": payloads.rows[0]}, {"x-api-key": key}
        httpx.post(f"{container.url}/predict", json=row, headers=headers).raise_for_status()
        wait_for(lambda: container.run("sh", "-c", "ls /tmp/bentoml/prediction_log/*/*").returncode == 0)
        changed = containers.podman("diff", container.name).stdout.splitlines()

    # Podman itself makes the places where it mounts things.
    assert {line for line in changed if not re.match(r"[AC] /(tmp|run|etc|dev|proc|sys|keys)\b", line)} == set()
    assert not [line for line in changed if re.match(r"A /etc/(?!mtab|hosts|resolv)", line)]


def test_sigterm_under_load_answers_whatever_was_begun_and_ends_with_0(
    containers: Containers, image: str, payloads: Payloads, writable: Path
) -> None:
    body = json.dumps({"features": payloads.rows[1]})
    outcomes: list[int | str] = []
    is_over = threading.Event()

    def ask(address: str) -> None:
        while not is_over.is_set():
            with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
                try:
                    connection.request("POST", "/predict", body, {"content-type": "application/json"})
                    outcomes.append(connection.getresponse().status)
                except (OSError, http.client.HTTPException) as error:  # never let in
                    outcomes.append(type(error).__name__)
                    time.sleep(0.01)

    log = (writable / "log").as_uri().replace(str(writable), "/volume")
    options = ("--volume", f"{writable}:/volume")
    with running(containers, image, *options, TABSERVE_LOG_URL=log, TABSERVE_REQUEST_TIMEOUT_MS="20000") as container:
        callers = [threading.Thread(target=ask, args=(container.url.removeprefix("http://"),)) for _ in range(8)]
        for caller in callers:
            caller.start()
        try:
            wait_for(lambda: outcomes.count(200) > 500)
            containers.podman("stop", "--time", "30", container.name)
        finally:
            is_over.set()
            for caller in callers:
                caller.join()
        state = container.state()

    assert state["ExitCode"] == 0
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} == {200}
    # Each prediction that was made is in the log, and each went to its caller.
    assert len(ids_in((writable / "log").as_uri())) == outcomes.count(200)


def test_one_that_outgrows_its_memory_is_killed_and_serves_again_once_restarted(
    containers: Containers, image: str, payloads: Payloads
) -> None:
    # What is written to /tmp counts as memory.
    with running(containers, image, memory="300m", tmp="400m") as container:
        container.run("sh", "-c", "head -c 250M /dev/zero >/tmp/too-much")
        wait_for(lambda: not container.state()["Running"])
        ended = container.state()
        container.restart()
        container.wait_until_ready()
        answer = httpx.post(f"{container.url}/predict", json={"features": payloads.rows[0]})

    assert ended["ExitCode"] != 0
    assert answer.status_code == 200


def test_a_model_of_a_mounted_store_is_served_in_place_of_the_one_that_is_baked_in(
    containers: Containers, image: str, models: TrainedModels
) -> None:
    volume = ("--volume", f"{models.home}/models:/home/bentoml/bento/models:ro")

    with running(containers, image, *volume, TABSERVE_MODEL=models.tag(SPEND)) as container:
        found = httpx.get(f"{container.url}/metadata").json()

    assert found["model_version"] == models.tag(SPEND)
    assert found["build"]["model"] == models.tag(BUILT_IN)


def test_it_does_not_start_before_it_is_told_who_may_ask(containers: Containers, image: str) -> None:
    told_nothing = Container(containers, image, BENTOML_HOST="0.0.0.0")
    try:
        wait_for(lambda: not told_nothing.state()["Running"], 60)
        said, ended = told_nothing.log(), told_nothing.state()["ExitCode"]
    finally:
        told_nothing.remove()

    assert ended != 0
    assert "TABSERVE_API_KEYS_FILE" in said


def test_nor_does_the_image_that_bentoml_makes_alone(containers: Containers, image: str) -> None:
    """`bentoml containerize` by hand: without the service's answer nobody would know why nobody reaches it."""
    names = ("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=localhost/tabserve-bento")
    (of_bentoml,) = containers.podman(*names).stdout.split()
    options = ("--rm", "--network", "none", "--tmpfs", "/tmp", "--env", "BENTOML_HOME=/tmp/bentoml")

    done = containers.podman("run", *options, *HARDENED, of_bentoml, check=False)

    assert done.returncode != 0
    assert "TABSERVE_API_KEYS_FILE" in done.stdout + done.stderr


def test_as_in_production_it_knows_its_callers_by_their_keys_and_counts_their_requests_in_redis(
    containers: Containers, image: str, payloads: Payloads, writable: Path
) -> None:
    row = {"features": payloads.rows[0]}

    with as_in_production(containers, image, writable, BENTOML_HOST="0.0.0.0") as (container, key):
        without = httpx.post(f"{container.url}/predict", json=row).status_code
        headers = {"x-api-key": key}
        with_it = [httpx.post(f"{container.url}/predict", json=row, headers=headers).status_code for _ in range(3)]
        with Redis.from_url(container.settings["TABSERVE_RATE_LIMIT_URL"]) as connection:
            counted = connection.dbsize()
        said = container.log()

    assert without == 401
    assert with_it == [200, 200, 429]
    assert counted > 0, said


# --- what is in it


@pytest.fixture(scope="module")
def layers(containers: Containers, image: str) -> tuple[list[Path], Path]:
    """The layers of the image as they would be pushed, and its configuration."""
    manifest, folder = containers.layers(image)
    layers = [folder / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]
    return layers, folder / manifest["config"]["digest"].removeprefix("sha256:")


def test_it_is_as_small_as_it_says(containers: Containers, image: str, layers: tuple[list[Path], Path]) -> None:
    unpacked = int(containers.podman("image", "inspect", "--format", "{{.Size}}", image).stdout)

    assert unpacked <= UNPACKED_BYTES
    assert sum(layer.stat().st_size for layer in layers[0]) <= COMPRESSED_BYTES


def test_no_layer_holds_a_secret_an_address_of_a_package_index_or_what_building_needed(
    containers: Containers, image: str, layers: tuple[list[Path], Path]
) -> None:
    secrets = {
        value: name
        for name, value in os.environ.items()
        if re.search(r"TOKEN|SECRET|PASSWORD|_KEY$", name) and len(value) >= 8 and not value.startswith("/")
    }
    needles = secrets | dict.fromkeys(index_addresses(), "an index")
    assert "PLANTED_TOKEN" in needles.values()
    compressed, configuration = layers
    for content in (configuration.read_bytes(), *(gzip.decompress(layer.read_bytes()) for layer in compressed)):
        # By name: what is secret belongs in no report either.
        assert [name for needle, name in needles.items() if needle.encode() in content] == []

    with containers.mounted(image) as root:
        named = {path.name for path in root.rglob("*") if path.is_file()}
        requirements = (root / "home/bentoml/bento/env/python/requirements.txt").read_text()
        left_by_root = {path.name for path in (root / "root").iterdir()}
        mount_point = root / "etc/uv/uv.toml"  # of what was mounted while it was built
        assert not mount_point.exists() or mount_point.stat().st_size == 0
    assert left_by_root <= {".bashrc", ".profile"}
    assert not {".env", ".netrc", "pip.conf", "id_rsa", "uv", "git", "gcc", "strip", "train.py"} & named
    assert not re.search(r"https?:|index-url|find-links", requirements)


def index_addresses() -> set[str]:
    """From where this machine installs: what pip and uv are told in files and in the environment."""
    said = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    values = [
        line.split("=", 1)[1].strip("'\"") for line in said.splitlines() if re.search("index-url|find-links", line)
    ]
    values += [value for name, value in os.environ.items() if re.search("INDEX|FIND_LINKS", name)]
    words = {word for value in values for word in value.replace("\\n", " ").split()}
    return {word for word in words if "/" in word and "pypi.org" not in word}


def test_its_bill_of_materials_keeps_the_schema_and_names_what_is_in_it(
    image: str, containers: Containers, models: TrainedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in containers.variables().items():
        monkeypatch.setenv(name, value)

    bill = document("podman", image)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    named = {(one["name"].lower().replace("_", "-"), one["version"]) for one in bill["components"]}
    for lock in ("serving", "access", "postgresql", "tracing"):  # what settings turn on is there
        assert set(pins(lock).items()) <= named
    assert (BUILT_IN.replace("_", "-"), models.tag(BUILT_IN).partition(":")[2]) in named
    assert [one for one in bill["components"] if one.get("purl", "").startswith("pkg:deb/debian/libc6@")]


def test_no_security_update_of_debian_is_pending(containers: Containers, image: str) -> None:
    # Without Error-Mode a mirror that cannot be reached is a warning, and nothing is pending.
    command = "apt-get update -qq -o APT::Update::Error-Mode=any && apt-get -s -qq dist-upgrade && apt-cache policy"
    options = ("--rm", "--network", "host", "--user", "0", "--entrypoint", "sh")

    said = containers.podman("run", *options, image, "-ec", command).stdout

    assert [line for line in said.splitlines() if line.startswith("Inst")] == []
    assert "bookworm-security" in said


# --- the other one


def test_the_image_of_tools_trains_watches_and_loads_with_a_read_only_root(
    containers: Containers, models: TrainedModels
) -> None:
    image = containers.build(models.home, "--tools")
    hardened = ("--rm", "--read-only", "--tmpfs", "/tmp:rw,size=256m", "--cap-drop", "ALL", "--network", "none")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return containers.podman("run", *hardened, image, *command, check=False)

    trained = run("python", "train.py")
    assert trained.stdout.strip().startswith(f"{BUILT_IN}:"), trained.stderr
    empty = run("python", "-m", "monitoring.drift", "--window", "24h")
    assert empty.returncode in (2, 3), empty.stderr
    assert "locust" in run("locust", "--version").stdout
    assert run("id", "-u").stdout.strip() == str(USER)
