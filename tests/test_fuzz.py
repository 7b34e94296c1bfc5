"""Schemathesis against our own OpenAPI page: what the page allows is answered, what it forbids is refused, as it says.

`make fuzz` asks three models with 1000 examples for each operation; here it is the one with every kind of feature, with
few examples and a seed that stays the same.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, Service

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FEW = 50


@pytest.mark.timeout(1200)  # the long form, on a slow machine
@pytest.mark.parametrize("name", [CUSTOMERS, BUILT_IN, SPEND] if EXAMPLES else [CUSTOMERS])
def test_nothing_that_is_made_from_the_page_gets_a_5xx_or_what_the_page_does_not_say(
    services: dict[str, Service], name: str, tmp_path: Path
) -> None:
    phases = "examples,coverage,fuzzing" if EXAMPLES else "examples,fuzzing"
    asked = ["--max-examples", str(EXAMPLES or FEW), "--phases", phases, "--checks", "all", "--no-color"]
    seed = [] if EXAMPLES else ["--seed", "1"]
    page = f"{services[name].url}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", page, *asked, *seed]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    sys.stdout.write(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
