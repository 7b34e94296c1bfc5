"""Which part may know which: the arrows of the design, checked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

PACKAGE = ROOT / "tabserve"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_contract_imports_nothing_of_ours() -> None:
    assert not [name for name in imports_of(PACKAGE / "contract.py") if name.startswith("tabserve")]


def test_only_the_service_and_the_model_store_import_bentoml() -> None:
    knowing = {path.name for path in [*MODULES, ROOT / "service.py", ROOT / "train.py"] if uses_bentoml(path)}

    assert knowing == {"service.py", "model_store.py"}


def uses_bentoml(path: Path) -> bool:
    return any(name.partition(".")[0] in ("bentoml", "_bentoml_sdk", "_bentoml_impl") for name in imports_of(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_no_entry_point_and_serving_no_training(path: Path) -> None:
    imported = imports_of(path)

    assert not {"service", "train"} & imported
    assert not [name for name in imported if name.partition(".")[0] in ("monitoring", "loadtest", "deploy")]
    if path == PACKAGE / "cli.py" or path.parent.name in ("commands", "lifecycle"):
        return  # what people run beside the service
    for folder in ("training", "history", "lifecycle", "statistics", "commands"):
        if path.parent != PACKAGE / folder:
            assert not [name for name in imported if name.startswith(f"tabserve.{folder}")]


def test_the_service_loads_no_training_and_a_compiled_model_neither_scikit_learn_nor_pandas(models) -> None:
    code = f"""
import sys, service
from tabserve import model_store
from tabserve.rollout import Rollout
from tabserve.settings import Settings
Rollout().put_in_service(model_store.load(model_store.find("{models.tag("breast_cancer")}")), Settings())
print([name for name in sys.modules if name.startswith(("tabserve.training", "tabserve.history", "tabserve.lifecycle",
       "tabserve.commands", "tabserve.cli"))
       or name in ("pyarrow", "duckdb", "sklearn", "pandas", "matplotlib", "pandera", "skl2onnx", "evidently",
                   "locust")])
"""

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(models.home), capture_output=True, text=True
    )

    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


def test_importing_the_service_reads_no_model_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()

    done = subprocess.run(
        [sys.executable, "-c", "import service"], cwd=ROOT, env=environment(tmp_path / "home"), capture_output=True
    )

    assert (done.returncode, done.stdout) == (0, b"")
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_the_front_door_stands_before_bentomls_own_middlewares(models) -> None:
    """They cost as much as all that we do; BentoML offers no place before them, so this could be lost unnoticed."""
    code = """
import asyncio, service
app = service.Tabserve.to_asgi()
async def receive(): return {"type": "lifespan.startup"}
async def send(message): raise SystemExit(type(app.middleware_stack).__module__)
asyncio.run(app({"type": "lifespan", "state": {}}, receive, send))
"""

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(models.home), capture_output=True, text=True
    )

    assert done.stderr.strip().splitlines()[-1] == "tabserve.http_api"
