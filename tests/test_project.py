"""What can drift apart: documents, settings, locks, pages, and the code."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from conftest import BUILT_IN, CUSTOMERS, ROOT, SPEND, Service
from packaging.requirements import Requirement
from test_http import TUTORIAL_ROW

import train
from monitoring import drift, quality, watch
from tabserve import cli
from tabserve.settings import SETTINGS, BadSettingError, Settings

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {
    "serving": ROOT / "requirements.txt",
    **{path.stem: path for path in sorted((ROOT / "requirements").glob("*.txt"))},
}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


# --- README


def test_the_readmes_curl_is_answered_as_the_readme_says(services: dict[str, Service]) -> None:
    command = re.search(r"    curl (.+?)\}'\n", README, re.DOTALL)
    answer = re.search(r"```json\n(\{.+?\n\})\n```", README, re.DOTALL)
    assert command
    assert answer
    words = shlex.split(command[1] + "}'")
    body = words[words.index("-d") + 1]

    found = httpx.post(
        f"{services[BUILT_IN].url}/predict", content=body, headers={"content-type": "application/json"}
    ).json()

    promised = json.loads(answer[1])
    assert json.loads(body)["features"] == TUTORIAL_ROW
    assert list(found) == list(promised)
    assert found["label"] == promised["label"]
    assert found["probabilities"] == pytest.approx(promised["probabilities"], abs=1e-6)


def test_the_readmes_table_of_settings_is_that_of_the_code() -> None:
    table = dict(re.findall(r"^\| `(TABSERVE_\w+)` \| (.*) \|$", README, re.MULTILINE))

    assert table == {s.variable: f"{f'`{s.default}`' if s.default else ''} | {s.help}" for s in SETTINGS.values()}


def test_the_trees_of_readme_and_code_page_have_every_file_of_the_package() -> None:
    short = README.split("## What is where")[1].split("```")[1]
    whole = (ROOT / "docs" / "code.md").read_text().split("```")[1]
    listed = {*re.findall(r"^ *(\S+) ", whole, re.MULTILINE), *re.findall(r"^(\S+) ", short, re.MULTILINE)}
    expected = {
        path.rpartition("/")[2]
        for path in tracked_files()
        if path.endswith(".py")
        and (path.startswith("tabserve/") or path.rpartition("/")[0] in ("loadtest", "monitoring"))
    }

    top = {
        "service.py",
        "train.py",
        "bentofile.yaml",
        "configuration.yaml",
        "pyproject.toml",
        "requirements.txt",
        "Makefile",
    }
    pages = ("benchmarks", "code", "comparison", "decisions", "monitoring", "operations", "security")
    docs = {f"docs/{name}.md" for name in pages}
    parts = ("access", "commands", "history", "lifecycle", "prediction_log", "statistics", "tracing", "training")
    of_the_package = {"tabserve/", *(f"{part}/" for part in parts)}
    of_monitoring = {"monitoring/", "live/", "reports/", "watching/", "alerts/", "dashboards/", "soundness/", "demo/"}
    folders = {*of_the_package, *of_monitoring, "deploy/", "tests/", "loadtest/", "benchmark/"}
    assert listed - folders == {*(expected - {"__init__.py"}), *top, *docs}


def test_the_readme_names_only_targets_and_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # Locust's --help does not read the locustfile, so ours are asked for where they are added.
    ours = "from locust.argument_parser import get_parser; from loadtest.options import add_to; p = get_parser(); "
    log = (["log", "tail"], ["log", "stats"], ["log", "export"], ["labels", "import"])
    models = (["promote"], ["replay"], ["evaluate"], ["ab-result"])
    for command in (*log, *models, ["audit", "verify"], ["keys", "create"]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
    for module in (drift, quality, watch, train):
        with pytest.raises(SystemExit):
            module.main(["--help"])
    help_text = capsys.readouterr().out
    for command in (["-m", "locust", "--help"], ["-c", ours + "add_to(p); print(p.format_help())"]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        help_text += done.stdout

    assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", README)) <= targets
    assert set(re.findall(r"(--[a-z]+[a-z-]*)", README)) <= set(re.findall(r"(--[a-z-]+)", help_text))


def test_each_threat_in_the_security_page_has_a_proof_that_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text().split("## TLS")[0]
    threats = re.findall(r"^\| (?!threat|---)(.+?) \|.*\| (.+) \|$", page, re.MULTILINE)
    tests = "".join((ROOT / name).read_text() for name in tracked_files() if name.startswith("tests/test_"))

    assert len(threats) >= 15
    for threat, proof in threats:
        named = re.findall(r"`(test_\w+)`", proof)
        assert named or proof.startswith("the same (group "), threat
        for name in named:
            assert f"def {name}(" in tests, (threat, name)
        groups = re.findall(r"`(\w+)`", proof.partition("(group")[2])
        assert {f"def {group}() -> list[Case]" for group in groups} <= set(
            re.findall(r"def \w+\(\) -> list\[Case\]", (ROOT / "tests" / "hostile_requests.py").read_text())
        ), threat


# --- settings


def test_settings_have_the_defaults_that_they_say() -> None:
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TABSERVE_STRICT_RANGES", "yes please"),
        ("TABSERVE_MAX_BODY_BYTES", "0"),
        ("TABSERVE_MAX_BODY_BYTES", "9" * 5000),
        ("TABSERVE_MAX_BODY_BYTES", "1e6"),
        ("TABSERVE_LOG_SUCCESS_SHARE", "nan"),
        ("TABSERVE_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_was_expected(variable: str, value: str) -> None:
    with pytest.raises(BadSettingError, match=f"^{variable} is '.*', expected "):
        Settings.from_environment({variable: value})


# --- locks


def pins(name: str) -> dict[str, str]:
    lines = LOCKS[name].read_text().splitlines()
    return {
        Requirement(line.removesuffix(" \\")).name: line.removesuffix(" \\").partition("==")[2]
        for line in lines
        if line and not line.startswith((" ", "#"))
    }


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_hashes_and_no_address_of_an_index(name: str) -> None:
    text = LOCKS[name].read_text()

    assert text.count("--hash=sha256:") >= len(pins(name)) > 50
    assert not re.search(r"https?:|index-url|find-links", text)


def test_all_locks_agree_and_have_what_pyproject_asks_for() -> None:
    everything = pins("dev")

    for name in LOCKS.keys() - {"deploy"}:  # which is of an environment of its own
        assert pins(name).items() <= everything.items(), name
        extras = [] if name == "serving" else PROJECT["optional-dependencies"][name]
        for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
            assert pins(name)[requirement.name] in requirement.specifier, (name, requirement)


def test_the_serving_lock_has_nothing_that_only_others_need() -> None:
    others = {
        "evidently",
        "locust",
        "skl2onnx",
        "matplotlib",
        "pandera",
        "pytest",
        "duckdb",
        "onnx",
        "psycopg",
        "opentelemetry-exporter-otlp-proto-http",
        "boto3",
    }

    assert not others & set(pins("serving"))


def test_no_tracked_file_has_an_index_address_or_a_path_of_a_machine() -> None:
    for name in tracked_files():
        path = ROOT / name
        if path.suffix in (".gz", ".png"):
            continue
        text = path.read_text()
        assert (
            not re.search(r"https?://[^ \"]*/simple\b|files\.pythonhosted", text) or name == "tests/test_project.py"
        ), name
        assert str(ROOT) not in text, name


# --- programs that tests need


@pytest.mark.parametrize(("ci", "outcome"), [(None, "1 skipped"), ("true", "1 error")])
def test_a_test_whose_program_is_missing_is_skipped_and_fails_in_ci(
    tmp_path: Path, ci: str | None, outcome: str
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.needs_program('no-such-program')\ndef test_it(): pass\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": ci} if ci else {})
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT / "tests", env=variables, capture_output=True, text=True)

    assert outcome in done.stdout
    assert "no-such-program is not installed" in done.stdout


# --- pages


class Assets(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        for attribute in ("src", "spec-url"):
            if named.get(attribute):
                self.found.append(str(named[attribute]))
        if tag == "link" and named.get("href"):
            self.found.append(str(named["href"]))


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_loads_everything_from_the_service_itself(built_in: httpx.Client, page: str) -> None:
    response = built_in.get(page).raise_for_status()
    assets = Assets()
    assets.feed(response.text)

    assert len(assets.found) >= 2
    for asset in assets.found:
        assert not asset.startswith(("http", "//"))
        assert built_in.get(urljoin(page, asset)).status_code == 200, asset
    assert "default-src 'self'" in response.headers["content-security-policy"]


def test_the_start_page_is_the_documentation(built_in: httpx.Client) -> None:
    assert built_in.get("/").headers["location"] == "/docs"
    assert "./docs.json" in built_in.get("/docs/start.js").text


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_the_examples_of_the_openapi_page_work_as_they_stand(services: dict[str, Service], name: str) -> None:
    with services[name].client() as client:
        document = client.get("/openapi.json").json()
        examples = [
            (path, example["value"])
            for path in ("/predict", "/predict/batch", "/feedback")
            for example in document["paths"][path]["post"]["requestBody"]["content"]["application/json"][
                "examples"
            ].values()
        ]
        answers = [client.post(path, json=body) for path, body in examples]

    openapi_spec_validator.validate(document)
    assert len(examples) == 5
    assert [answer.status_code for answer in answers] == [200] * 5


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_answers_and_errors_have_the_shape_that_the_openapi_page_promises(
    services: dict[str, Service], name: str
) -> None:
    with services[name].client() as client:
        document = client.get("/openapi.json").json()
        example = document["paths"]["/predict/batch"]["post"]["requestBody"]["content"]["application/json"]["examples"]
        batch = example["rows"]["value"]
        labels = document["paths"]["/feedback"]["post"]["requestBody"]["content"]["application/json"]["examples"]
        a_label = labels["one"]["value"]
        found = {
            "Prediction": client.post("/predict", json={"features": batch["instances"][0]}).json(),
            "Predictions": client.post("/predict/batch", json=batch).json(),
            "Error": client.post("/predict", json={"features": []}).json(),
            "Row": batch["instances"][0],
            "Accepted": client.post("/feedback", json=a_label).json(),
            "Label": a_label,
        }

    for schema, value in found.items():
        whole = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
        jsonschema.Draft202012Validator(whole).validate(value)
    whole = {"$ref": "#/components/schemas/Row", "components": document["components"]}
    assert not jsonschema.Draft202012Validator(whole).is_valid(batch["instances"][0][1:])
