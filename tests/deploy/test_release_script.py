"""deploy/release.sh: kustomize for real, and in which order it asks a cluster."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import BUILT_IN, ROOT, TrainedModels, environment, home_in_use

from loadtest.processes import find_program
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


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which a stand-in for kubectl writes what it was asked; only kustomize is the real one."""
    asked = tmp_path / "asked"
    (tmp_path / "kubectl").write_text(f"""#!/bin/sh
case " $* " in
*" kustomize "*) exec {find_program("kubectl")} "$@" ;;
*" apply "*) cat >"$0.applied" ;;
*"jsonpath"*) echo {OLD} ;;
esac
printf '%s\\n' "$*" >>{asked}
case "$*" in *"$FAILING"*) exit "${{FAILS:-0}}" ;; esac
""")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return asked


def test_a_rollout_changes_the_pods_before_the_route_and_ends_the_canary_last(cluster: Path) -> None:
    done = release("rollout", "production", FAILING="nothing")

    assert done.returncode == 0, done.stderr
    asked = [line.removeprefix("--namespace tabserve ") for line in cluster.read_text().splitlines()]
    status = "rollout status deployment/tabserve --timeout=180s"
    assert asked == [
        "get deployment/tabserve",
        f"set image deployment/tabserve tabserve={NEW}",
        status,
        "apply --server-side --force-conflicts --field-manager=tabserve-release --filename=-",
        status,
        " ".join(["delete --ignore-not-found", *OF_CANARY]),
    ]
    canary = {
        f"{one['kind']}/{one['metadata']['name']}"
        for one in yaml.safe_load_all(release("render", "canary", STABLE_IMAGE=OLD).stdout)
        if one["metadata"]["name"] == "tabserve-canary"
    }
    names = {
        "Deployment": "deployment",
        "Service": "service",
        "HorizontalPodAutoscaler": "hpa",
        "PodDisruptionBudget": "pdb",
    }
    assert {f"{names[kind]}/{name}" for kind, name in (one.split("/") for one in canary)} == set(OF_CANARY)


def test_a_rollout_that_hangs_goes_no_further(cluster: Path) -> None:
    done = release("rollout", "production", FAILING="rollout status", FAILS="1")

    assert done.returncode == 1
    assert "apply" not in cluster.read_text()


def test_a_canary_is_applied_beside_what_production_has(cluster: Path) -> None:
    done = release("canary", FAILING="deployment/tabserve-canary", FAILS="1")

    assert done.returncode == 1, "its pods do not become ready, so nobody is sent to them"
    assert {OLD, NEW} < images((cluster.parent / "kubectl.applied").read_text())


def test_back_is_the_version_before(cluster: Path) -> None:
    done = release("back", "production", FAILING="nothing")

    assert done.returncode == 0
    assert "rollout undo deployment/tabserve" in cluster.read_text()


def test_a_secret_is_in_no_command_and_no_file_is_left(cluster: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    done = release("back", "staging", FAILING="nothing", KUBECONFIG_CONTENT="a-secret", TMPDIR=str(left))

    assert done.returncode == 0
    assert "a-secret" not in cluster.read_text() + done.stdout + done.stderr
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
