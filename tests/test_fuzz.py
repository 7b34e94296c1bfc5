"""Schemathesis against our own OpenAPI page: what the page allows is answered, what it forbids is refused, as it says.

`make fuzz` asks three models with 1000 examples for each operation, in pieces with seeds of their own: an example that
is made late in a piece has hundreds of rows, and takes a second to make. Then it asks a service with keys and a limit,
with the key of one who may all, of one who may little, and with none. Here it is one piece, and the model with every
kind of feature.
"""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from access_parts import add_key
from conftest import BUILT_IN, CUSTOMERS, SPEND, Service, TrainedModels, running_service

PIECE = 65  # examples of an operation
PIECES = math.ceil(int(os.environ.get("FUZZ_EXAMPLES", PIECE)) / PIECE)
NAMES = [CUSTOMERS, BUILT_IN, SPEND] if PIECES > 1 else [CUSTOMERS]
NOBODY = ""

# What schemathesis expects of a valid and of an invalid request by itself, and 429.
LIMITED = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "5xx", "429"]
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "413", "415", "422", "428", "5xx", "429"]
"""


def ask(page: str, folder: Path, *more: str, seed: int) -> None:
    """Has schemathesis ask, and fails with what it says."""
    phases = "examples,coverage,fuzzing" if PIECES > 1 and seed == 1 else "fuzzing"
    asked = ["--max-examples", str(PIECE), "--seed", str(seed), "--phases", phases, "--checks", "all", "--no-color"]
    # That a busy machine makes examples slowly is no fault of the service.
    asked += ["--suppress-health-check", "too_slow"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", page, *asked, *more]

    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)

    sys.stdout.write(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout


@pytest.mark.parametrize("seed", range(1, PIECES + 1))
@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_made_from_the_page_gets_a_5xx_or_what_the_page_does_not_say(
    services: dict[str, Service], name: str, seed: int, tmp_path: Path
) -> None:
    ask(f"{services[name].url}/openapi.json", tmp_path, seed=seed)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.yaml"


@pytest.fixture(scope="module")
def shown(keys_file: Path) -> dict[str, str]:
    """What the holders of keys show."""
    scopes = {"admin": "admin", "metrics": "metrics", "reader": "predict"}
    return {name: add_key(keys_file, name, scope) for name, scope in scopes.items()}


@pytest.fixture(scope="module")
def guarded(models: TrainedModels, keys_file: Path, shown: dict[str, str]) -> Iterator[Service]:
    """Its limit lets some of the requests in."""
    settings = {
        "TABSERVE_MODEL": CUSTOMERS,
        "TABSERVE_API_KEYS_FILE": str(keys_file),
        "TABSERVE_RATE_LIMIT": "20/s:60",
    }
    with running_service(models.home, keys_file.with_name("log"), **settings) as running:
        yield running


@pytest.mark.parametrize("seed", range(1, PIECES + 1))
@pytest.mark.parametrize("holder", ["admin", "metrics", NOBODY], ids=["admin", "metrics", "nobody"])
@pytest.mark.skipif(PIECES == 1, reason="takes its minutes in `make fuzz`")
def test_the_same_with_keys_and_a_limit(
    guarded: Service, shown: dict[str, str], holder: str, seed: int, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text(LIMITED)
    page = httpx.get(f"{guarded.url}/openapi.json", headers={"X-API-Key": shown["reader"]})
    (tmp_path / "openapi.json").write_text(page.text)
    key = ["-H", f"X-API-Key: {shown[holder]}"] if holder else []
    more = ["--url", guarded.url, "--warnings", "off", *key]  # that most requests were refused is what is asked for

    ask("openapi.json", tmp_path, *more, seed=seed)
