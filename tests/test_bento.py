"""`bentoml build` for real, and the Bento served."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import BUILT_IN, ROOT, SPEND, TrainedModels, environment, running_service
from test_http import TUTORIAL_ROW

from tabserve.build import git_commit, version


@pytest.fixture(scope="module")
def bento(models: TrainedModels) -> Path:
    """Built from the project's folder, while the built-in model is the newest."""
    command = [sys.executable, "-m", "deploy.image.build", "--bento"]
    done = subprocess.run(command, cwd=ROOT, env=environment(models.home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (models.home / "bentos" / "tabserve").glob("*/")
    return folder


def test_the_bento_holds_only_what_serving_needs(bento: Path) -> None:
    source = bento / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    folders = ("", "access", "commands", "history", "lifecycle", "prediction_log", "statistics", "tracing")
    modules = [path for folder in folders for path in (ROOT / "tabserve" / folder).glob("*.py")]
    package = {str(path.relative_to(ROOT)) for path in modules}
    static = {f"tabserve/static/{path.name}" for path in (ROOT / "tabserve" / "static").iterdir()}
    static.add("tabserve/lifecycle/evaluation_page.html")

    assert files == {"service.py", "configuration.yaml", "requirements.txt", "bentofile.yaml", *package, *static}


def test_the_bento_pins_an_explicit_version_of_the_model(bento: Path, models: TrainedModels) -> None:
    description = yaml.safe_load((bento / "bento.yaml").read_text())

    assert [model["tag"] for model in description["services"][0]["models"]] == [models.tag(BUILT_IN)]


def test_the_bento_installs_from_the_serving_lock(bento: Path) -> None:
    installed = (bento / "env" / "python" / "requirements.txt").read_text()
    locked = (ROOT / "requirements.txt").read_text()

    def pins(text: str) -> set[str]:
        return {line.split()[0] for line in text.splitlines() if "==" in line and not line.startswith(" ")}

    assert pins(installed) == pins(locked)
    assert "--hash=sha256:" in installed
    assert "index-url" not in installed


def test_the_command_line_starts_in_the_bento_and_says_which_it_is(bento: Path, models: TrainedModels) -> None:
    without_packages_of_other_extras = "import sys; sys.modules.update(duckdb=None, psycopg=None, onnx=None)\n"
    code = f"{without_packages_of_other_extras}from tabserve.cli import main; main(['version'])"

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bento / "src",
        env=environment(models.home),
        capture_output=True,
        text=True,
    )

    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    contract = models.load(BUILT_IN).contract.hash
    expected = {
        "version": version(),
        "git_commit": git_commit(),
        "model": models.tag(BUILT_IN),
        "contract_hash": contract,
    }
    assert said == {"bento": f"tabserve:{bento.name}", **expected}, done.stderr


def test_the_bento_serves_the_model_that_it_pins_whatever_the_champion_is(
    bento: Path, models: TrainedModels, tmp_path: Path
) -> None:
    rollout = models.home / "rollout.yaml"
    rollout.write_text(f"champion: {models.tag(SPEND)}\n")
    try:
        target = f"tabserve:{bento.name}"
        with (
            running_service(models.home, tmp_path / "log", target, cwd=tmp_path) as service,
            service.client() as client,
        ):
            body = client.post("/predict", json={"features": TUTORIAL_ROW}).json()
            rollout_said = client.get("/metadata").json()["rollout"]
    finally:
        rollout.unlink()

    assert body["model_version"] == models.tag(BUILT_IN)
    assert (rollout_said["champion"], rollout_said["followed"]) == (models.tag(BUILT_IN), False)
