"""Schemathesis against our own OpenAPI page: what the page allows is answered, what it forbids is refused, as it says.

`make fuzz` asks three models with 1000 examples for each operation, in pieces with seeds of their own: an example that
is made late in a piece has hundreds of rows, and takes a second to make. Here it is one piece, and the model with every
kind of feature.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, Service

PIECE = 65  # examples of an operation
PIECES = math.ceil(int(os.environ.get("FUZZ_EXAMPLES", PIECE)) / PIECE)
NAMES = [CUSTOMERS, BUILT_IN, SPEND] if PIECES > 1 else [CUSTOMERS]


@pytest.mark.parametrize("seed", range(1, PIECES + 1))
@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_made_from_the_page_gets_a_5xx_or_what_the_page_does_not_say(
    services: dict[str, Service], name: str, seed: int, tmp_path: Path
) -> None:
    phases = "examples,coverage,fuzzing" if PIECES > 1 and seed == 1 else "fuzzing"
    asked = ["--max-examples", str(PIECE), "--seed", str(seed), "--phases", phases, "--checks", "all", "--no-color"]
    page = f"{services[name].url}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", page, *asked]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    sys.stdout.write(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
