"""deploy/smoke.py against real services, and against one that is not what was deployed."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILT_IN, CUSTOMERS, ROOT, SPEND, Service, TrainedModels, free_port

from tabserve.build import git_commit

pytestmark = pytest.mark.deploy


def smoke(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Isolated: it must need nothing but Python's own library.
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "smoke.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_a_service_as_it_should_be_passes(
    services: dict[str, Service], models: TrainedModels, name: str, tmp_path: Path
) -> None:
    done = smoke(services[name].url, "--version", models.tag(name), "--commit", str(git_commit()), cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 4


def test_another_version_than_the_one_that_was_deployed_fails(services: dict[str, Service]) -> None:
    done = smoke(services[BUILT_IN].url, "--version", "breast_cancer:9.9.9-abcdef")

    assert done.returncode == 1
    assert "FAILED  the version is the one that was deployed: expected breast_cancer:9.9.9-abcdef, got" in done.stdout


def test_another_commit_than_the_one_that_was_deployed_fails(services: dict[str, Service]) -> None:
    done = smoke(services[BUILT_IN].url, "--commit", "0123abc")

    assert done.returncode == 1
    assert "FAILED  the version is the one that was deployed: expected 0123abc, got" in done.stdout


def test_a_service_that_wants_no_key_fails_where_one_was_expected_to_be_needed(
    services: dict[str, Service], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("a-key\n")
    done = smoke(services[BUILT_IN].url, "--key-file", str(tmp_path / "key"))

    assert done.returncode == 1
    assert "FAILED  without a key nothing is answered: /metadata: expected 401, got 200" in done.stdout
    assert "a-key" not in done.stdout + done.stderr


def test_nobody_who_answers_is_said_once_and_soon() -> None:
    done = smoke(f"http://127.0.0.1:{free_port()}", "--wait", "0")

    assert done.returncode == 1
    assert done.stdout.count("FAILED") == 1
    assert "Connection refused" in done.stdout


def test_what_is_no_address_is_refused() -> None:
    assert smoke("localhost:3000").returncode == 2
