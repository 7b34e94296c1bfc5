"""deploy/release.sh: kustomize for real, and in which order it asks a cluster."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, environment, home_in_use

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


@dataclass(frozen=True)
class Runner:
    """A working copy of what trains and packs a model; `make` builds no image, and for `gh` this folder is GitHub."""

    root: Path

    def step(self, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.root / "deploy" / "release.sh"), name]
        path = f"{self.root}:{os.environ['PATH']}"
        said = {name: str(self.root / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        said |= {"PATH": path, "IMAGE": NEW, "GITHUB_SHA": "", "COLUMNS_OF": "a,b", **variables}
        return subprocess.run(
            command, env=environment(self.root / "own", **said), capture_output=True, text=True, timeout=300
        )

    def model(self) -> str:
        """What the last training said of its model."""
        return (self.root / "GITHUB_OUTPUT").read_text().splitlines()[-1].removeprefix("model=")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "release.sh", tmp_path / "deploy")
    for name in (".venv", "tabserve", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for columns in ("a,b", "a,c"):
        rows = "".join(f"{n},{n * 7 % 11},{'late' if n > 100 else 'soon'}\n" for n in range(200))
        (tmp_path / f"{columns}.csv").write_text(f"{columns},when\n{rows}")
    (tmp_path / "make").write_text("""#!/bin/sh
case "$*" in
*train) echo installing; exec .venv/bin/python train.py --data $COLUMNS_OF.csv --target when --name arrivals ;;
*image) echo "the image of $TABSERVE_MODEL" >&2; exit 1 ;;
esac
""")
    (tmp_path / "gh").write_text("""#!/bin/sh
case "$*" in
"release create "*) cp "$4" "released-$3"; printf '%s\\n' "$*" >>asked ;;
"release list "*) ls -t | sed -n 's/^released-//p' | head -n 1 ;;
"release download "*) cp "released-$3" "$7" ;;
esac
""")
    for program in ("make", "gh"):
        (tmp_path / program).chmod(0o755)
    return Runner(tmp_path)


def test_the_model_that_was_trained_is_the_one_that_the_image_gets(runner: Runner) -> None:
    packed = runner.step("train")
    tag = runner.model()
    unpacked = runner.step("image", MODEL=tag)

    assert packed.returncode == 0, packed.stderr
    assert f"the image of {tag}" in unpacked.stderr
    assert unpacked.returncode == 1, "no image, no release"
    with home_in_use(runner.root / "build" / "home"):
        model_store.verify(model_store.find(tag))
    assert not (runner.root / "own" / "models").exists(), "somebody's own store is his"


def test_a_release_goes_on_from_the_model_that_was_released_last(runner: Runner, tmp_path: Path) -> None:
    first = [runner.step("production-model"), runner.step("train")]
    one = runner.model()
    kept = runner.step("keep", MODEL=one, GITHUB_SHA="0123abc")
    again = [runner.step("production-model"), runner.step("train")]
    two = runner.model()
    breaks = runner.step("train", COLUMNS_OF="a,c")
    told = runner.step("train", COLUMNS_OF="a,c", BREAKS_CALLERS="yes")

    assert [done.returncode for done in (*first, kept, *again)] == [0] * 5, first[1].stderr + again[1].stderr
    assert "no model was released yet" in first[0].stderr
    assert one.startswith("arrivals:1.0.0-")
    name = one.replace(":", "-")
    assert (tmp_path / "asked").read_text() == (
        f"release create {name} build/model.bentomodel --title model {one} --notes Image: {NEW} --target 0123abc\n"
    )
    assert two.startswith("arrivals:1.0.1-")
    summary = (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert f"{two} after {one}" in summary
    assert "roc_auc" in summary, "how good both are on their test rows"
    assert breaks.returncode == 2
    assert f"breaks callers of {one}" in breaks.stderr
    assert told.returncode == 0, told.stderr
    assert runner.model().startswith("arrivals:2.0.0-")
