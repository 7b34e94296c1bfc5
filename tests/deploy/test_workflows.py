"""The workflows and scripts of a release: accepted by who checks them, and what they run is there."""

import re
import subprocess
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

pytestmark = pytest.mark.deploy

TOOLS = ROOT / ".venv-deploy" / "bin"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def ran(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_keeps_its_schema(path: Path) -> None:
    ran(str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(path))


def test_zizmor_finds_no_way_to_misuse_a_workflow() -> None:
    """Actions are pinned by their hashes, permissions are empty but where they are argued for, and so on."""
    ran(str(TOOLS / "zizmor"), "--offline", "--persona", "auditor", ".github/workflows")


def test_shellcheck_finds_nothing() -> None:
    ran(
        str(TOOLS / "shellcheck"),
        ".ci/run",
        "deploy/clouds/sagemaker/serve",
        *map(str, (ROOT / "deploy").rglob("*.sh")),
    )


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job.get("steps", [])]


def commands_of_the_readme() -> list[str]:
    lines = (ROOT / "deploy" / "README.md").read_text().splitlines()
    return [line.partition("# ")[0] for line in lines if line.startswith("    ")]


def asked_in(pattern: str) -> set[str]:
    """What the workflows, the scripts that they run, and the commands of deploy/README.md name."""
    texts = [step.get("run", "") for path in WORKFLOWS for step in steps_of(path)]
    texts += [path.read_text() for path in (ROOT / "deploy" / "release.sh", ROOT / ".ci" / "run")]
    texts.append("\n".join(commands_of_the_readme()))
    lines = [line for text in texts for line in text.splitlines() if not line.lstrip().startswith("#")]
    return {found for line in lines for found in re.findall(pattern, line)}


def test_every_target_that_is_made_is_in_the_makefile() -> None:
    asked = asked_in(r"\bmake (?:--silent )?([a-z./-]+)")
    nightly = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yaml").read_text())["jobs"]["long"]
    asked |= set(nightly["strategy"]["matrix"]["what"])
    assert {"check", "test", "train", "image", "image-tools", "soak", ".venv/loadtest.installed"} <= asked
    for target in asked:
        ran("make", "--dry-run", target)


def test_every_script_and_module_that_is_run_is_there() -> None:
    scripts = asked_in(r"(?:^|[ ;{])((?:deploy|\.ci)/[\w/.]+(?:\.py|\.sh|/run))")
    assert {"deploy/release.sh", "deploy/smoke.py"} <= scripts
    assert not [script for script in scripts if not (ROOT / script).exists()]
    modules = asked_in(r"python -m ([\w.]+)")
    assert {"deploy.canary", "deploy.image.sbom", "monitoring.drift"} <= modules
    assert not [module for module in modules if find_spec(module) is None]
    known = set(re.findall(r"^([a-z-]+)\)$", (ROOT / "deploy" / "release.sh").read_text(), re.MULTILINE))
    assert asked_in(r"deploy/release\.sh ([a-z-]+)") - known == set()


def test_every_file_that_the_readme_has_somebody_use_is_there() -> None:
    named = {path for line in commands_of_the_readme() for path in re.findall(r"\bdeploy/[\w./-]*[\w]", line)}
    made = {path for path in named if path.startswith("deploy/compose/secrets/")}
    assert len(named) > 10
    assert not [path for path in named - made if not (ROOT / path).exists()]
    script = (ROOT / "deploy" / "compose" / "secrets.sh").read_text()
    assert all(Path(path).name in script for path in made)


def test_a_release_goes_from_tests_to_production_and_nothing_is_left_out() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())["jobs"]
    names = ["test", "train", "image", "staging", "production", "keep"]
    assert list(jobs) == names
    for before, name in pairwise(names):
        assert before in jobs[name]["needs"], "it must not begin without it"

    def of(name: str) -> list[str]:
        """What the steps of a job do, in order."""
        texts = [step.get("run") or step["uses"] for step in jobs[name]["steps"]]
        acts = "release.sh [a-z-]+ ?[a-z]*|trivy-action|cosign sign|cosign attest|cosign verify"
        return [found for text in texts for found in re.findall(acts, text)]

    assert of("train") == ["release.sh production-model", "release.sh train"]
    assert of("image") == ["release.sh image", "trivy-action", "cosign sign", "cosign attest"]
    assert of("staging") == ["cosign verify", "release.sh rollout staging", "release.sh smoke", "release.sh load"]
    assert of("production") == [
        "release.sh canary",
        "release.sh rollout production",
        "release.sh smoke ",
        "release.sh back production",
    ]
    assert of("keep") == ["release.sh keep"]
    assert jobs["production"]["environment"] == "production", "whose reviewers have to say yes"
    for name in ("staging", "production"):
        assert jobs[name]["env"]["IMAGE"] == "${{ needs.image.outputs.image }}", "the one that was built"
