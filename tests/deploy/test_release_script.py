"""deploy/release.sh: kustomize for real, and in which order it asks a cluster."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from api_server import ApiServer, api_server
from conftest import BUILT_IN, ROOT, TrainedModels, environment, home_in_use

from tabserve import model_store

pytestmark = [pytest.mark.deploy, pytest.mark.needs_program("kubectl")]

NEW, TOOLS, OLD = (
    f"ghcr.io/someone/{name}@sha256:{digit * 64}" for name, digit in (("new", "a"), ("tools", "b"), ("old", "c"))
)

OF_CANARY = [f"{kind}/tabserve-canary" for kind in ("deployment", "service", "hpa", "pdb")]


def release(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "IMAGE": NEW, "TOOLS_IMAGE": TOOLS, **variables}
    command = [str(ROOT / "deploy" / "release.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def images(manifests: str) -> set[str]:
    return set(re.findall(r"image: (\S+)", manifests))


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_manifests_have_the_exact_images_of_the_release_and_no_other(overlay: str) -> None:
    done = release("render", overlay)

    assert done.returncode == 0, done.stderr
    assert images(done.stdout) == ({NEW, TOOLS} if overlay == "production" else {NEW})


def test_beside_a_canary_production_keeps_its_image() -> None:
    done = release("render", "canary", STABLE_IMAGE=OLD)

    found = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["image"]
        for one in yaml.safe_load_all(done.stdout)
        if one["kind"] == "Deployment"
    }
    assert found == {"tabserve": OLD, "tabserve-canary": NEW}


def test_without_an_image_nothing_is_rendered() -> None:
    done = release("render", "production", IMAGE="")

    assert done.returncode != 0
    assert "IMAGE" in done.stderr


def test_who_asks_for_no_step_is_told_which_there_are() -> None:
    done = release()

    assert done.returncode == 2
    assert "rollout ENVIRONMENT" in done.stderr


@dataclass(frozen=True)
class Cluster:
    """Takes what kubectl applies; what else it is asked is written down, and answered by a stand-in."""

    server: ApiServer
    said: Path

    def asked(self) -> list[str]:
        """The commands, without the namespace and what is only about how to apply."""
        lines = self.said.read_text().splitlines()
        return [re.sub(r"--namespace \S+ | --server-side.*--filename=-", "", line) for line in lines]

    def applied(self) -> list[set[str]]:
        """Kind/name of what each `apply` sent, as it was sent."""
        return [set(text.split()) for text in (self.said.parent / "applied").read_text().split("--")[1:]]

    def images(self) -> dict[str, str]:
        return {
            one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["image"]
            for _, one in self.server.patched
            if one["kind"] == "Deployment"
        }

    def shares(self) -> dict[str, int]:
        """Of the route, as it was applied last."""
        route = [one for _, one in self.server.patched if one["kind"] == "HTTPRoute"][-1]
        return {backend["name"]: backend["weight"] for backend in route["spec"]["rules"][0]["backendRefs"]}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A server that takes what the real kubectl renders and applies; a stand-in answers the other questions."""
    asked = tmp_path / "asked"
    with api_server() as server:
        real = shlex.join(server.kubectl)
        (tmp_path / "kubectl").write_text(f"""#!/bin/sh
case " $* " in *" kustomize "*) exec {real} "$@" ;; esac
printf '%s\\n' "$*" >>{asked}
case " $* " in
*" apply "*) echo -- >>{tmp_path}/applied; {real} "$@" --validate=false --output=name >>{tmp_path}/applied ;;
*jsonpath*) echo $SERVING ;;
esac
case "$*" in *"$FAILING"*) exit "${{FAILS:-0}}" ;; esac
""")
        (tmp_path / "kubectl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("SERVING", OLD)
        yield Cluster(server, asked)


STATUS = "rollout status deployment/tabserve --timeout=180s"
ROUTE = "httproute.gateway.networking.k8s.io/tabserve"


def test_a_rollout_changes_the_pods_before_the_route_and_ends_the_canary_last(cluster: Cluster) -> None:
    done = release("rollout", "production", FAILING="nothing")

    assert done.returncode == 0, done.stderr
    assert cluster.asked() == [
        "apply --selector=app.kubernetes.io/component!=route",
        STATUS,
        "apply",
        " ".join(["delete --ignore-not-found", *OF_CANARY]),
    ]
    pods, everything = cluster.applied()
    assert everything - pods == {ROUTE}
    assert cluster.images() == {"tabserve": NEW}
    assert cluster.shares() == {"tabserve": 100}


def test_a_rollout_ends_all_that_a_canary_has(cluster: Cluster) -> None:
    rendered = yaml.safe_load_all(release("render", "canary", STABLE_IMAGE=OLD).stdout)
    short = {"HorizontalPodAutoscaler": "hpa", "PodDisruptionBudget": "pdb"}

    found = {one["kind"] for one in rendered if one["metadata"]["name"] == "tabserve-canary"}
    assert {f"{short.get(kind, kind.lower())}/tabserve-canary" for kind in found} == set(OF_CANARY)


def test_a_rollout_that_hangs_goes_no_further_than_the_pods(cluster: Cluster) -> None:
    done = release("rollout", "production", FAILING="rollout status", FAILS="1")

    assert done.returncode == 1
    (pods,) = cluster.applied()
    assert ROUTE not in pods


def test_what_is_one_revision_back_served_before(cluster: Cluster) -> None:
    """Each rollout changes the template of the pods once, whatever of it is new."""
    release("rollout", "staging", FAILING="nothing")
    templates = [one["spec"]["template"] for _, one in cluster.server.patched if one["kind"] == "Deployment"]
    done = release("back", "staging", FAILING="nothing")

    assert all(template == templates[0] for template in templates)
    assert done.returncode == 0
    assert cluster.asked()[-2:] == ["rollout undo deployment/tabserve", STATUS]


def test_a_canary_has_no_requests_before_it_is_ready_and_what_serves_is_not_touched(cluster: Cluster) -> None:
    hangs = release("canary", FAILING="rollout status deployment/tabserve-canary", FAILS="1")
    (first,) = cluster.applied()
    ready = release("canary", PROMETHEUS="not an address", FAILING="nothing")
    _, _, route = cluster.applied()

    assert hangs.returncode == 1
    assert "deployment.apps/tabserve-canary" in first
    assert not {ROUTE, "deployment.apps/tabserve", "service/tabserve", "cronjob.batch/tabserve-drift"} & first
    assert ready.returncode == 2, "it went on to deploy.canary"
    assert "expected http:// or https://" in ready.stderr
    assert route == {ROUTE}
    assert cluster.shares() == {"tabserve": 100, "tabserve-canary": 0}
    assert cluster.images() == {"tabserve-canary": NEW}


def test_where_nothing_serves_yet_there_is_no_canary(cluster: Cluster) -> None:
    done = release("canary", FAILING="nothing", SERVING="")
    unreachable = release("canary", FAILING="jsonpath", FAILS="1", SERVING="")

    assert done.returncode == 0
    assert "nothing serves in production yet" in done.stderr
    assert cluster.server.patched == []
    assert unreachable.returncode == 1


def test_a_secret_is_in_no_command_and_no_file_is_left(cluster: Cluster, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    done = release("back", "staging", FAILING="nothing", KUBECONFIG_CONTENT="a-secret", TMPDIR=str(left))

    assert done.returncode == 0
    assert "a-secret" not in cluster.said.read_text() + done.stdout + done.stderr
    assert not list(left.iterdir())


def test_the_model_that_was_trained_is_the_one_that_the_image_gets(
    models: TrainedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make` has trained it already, and builds no image here: what is between the two is real."""
    tag = models.tag(BUILT_IN)
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "release.sh", tmp_path / "deploy")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "make").write_text(f"""#!/bin/sh
case "$*" in *train) echo installing; echo {tag} ;; *image) echo "the image of $TABSERVE_MODEL" >&2; exit 1 ;; esac
""")
    (tmp_path / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))

    def step(name: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "deploy" / "release.sh"), name]
        return subprocess.run(command, env=environment(home, **variables), capture_output=True, text=True, timeout=60)

    packed = step("train", models.home)
    unpacked = step("image", tmp_path / "home", MODEL=tag)

    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "output").read_text() == f"model={tag}\n"
    assert f"the image of {tag}" in unpacked.stderr
    assert unpacked.returncode == 1, "no image, no release"
    with home_in_use(tmp_path / "home"):
        model_store.verify(model_store.find(tag))
