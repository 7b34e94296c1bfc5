"""What is in an image, as a CycloneDX document: its Debian packages, its Python packages, the model.

    python -m deploy.image.sbom IMAGE > sbom.json

It asks the image itself, without network and as its own user.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from subprocess import run
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from deploy.image.build import find_backend

DEBIAN = ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\n"]
PYTHON = [
    "python",
    "-c",
    "import importlib.metadata as m\nfor d in m.distributions(): print(d.name, d.version, sep='\t')",
]
LABELS = "{{json .Config.Labels}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--engine", choices=("docker", "podman"), help="what runs it (default: the first that can)")
    options = parser.parse_args()
    json.dump(document(options.engine or find_backend(), options.image), sys.stdout, indent=1)
    return 0


def document(engine: str, image: str) -> dict[str, Any]:
    labels = json.loads(output(engine, "image", "inspect", "--format", LABELS, image))
    debian = [
        component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}")
        for name, version, architecture in table(engine, image, DEBIAN)
    ]
    python = [
        component(name, version, f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}")
        for name, version in table(engine, image, PYTHON)
    ]
    model, _, model_version = labels.get("io.tabserve.model", "").partition(":")
    models = [{"type": "machine-learning-model", "name": model, "version": model_version}] if model else []
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "container", "name": image, "version": labels["org.opencontainers.image.version"]},
        },
        "components": [*debian, *python, *models],
    }


def component(name: str, version: str, purl: str) -> dict[str, str]:
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def table(engine: str, image: str, command: list[str]) -> list[list[str]]:
    program, *arguments = command
    said = output(engine, "run", "--rm", "--network", "none", "--entrypoint", program, image, *arguments)
    return sorted(line.split("\t") for line in set(said.splitlines()))


def output(*command: str) -> str:
    return run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
