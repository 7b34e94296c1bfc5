"""The workflows and scripts of a release: accepted by who checks them, and what they run is there."""

import re
import subprocess
from pathlib import Path

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
    ran(str(TOOLS / "shellcheck"), ".ci/run", *map(str, (ROOT / "deploy").rglob("*.sh")))


def test_what_a_workflow_runs_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        asked = {
            target
            for job in jobs
            for step in job["steps"]
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
        }
        assert asked <= targets, path.name
