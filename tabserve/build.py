"""Which build of tabserve runs: what its Bento says of itself, else what its working copy does."""

import subprocess
import tomllib
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BENTO_FILE = ROOT.parent / "bento.yaml"  # of the Bento that this file is part of
BASE_IMAGE = "docker.io/library/python:3.11-slim-bookworm"  # of both images, and of what BentoML builds
LABELS = ("version", "git_commit", "model", "contract_hash")


@cache
def this_build() -> dict[str, str | None]:
    """Version and commit of the code, and in a Bento also its tag, the model that it pins and the contract of that."""
    if BENTO_FILE.exists():
        # Libyaml takes 4 ms for it, Python's own parser 150.
        described = yaml.load(BENTO_FILE.read_bytes(), Loader=yaml.CSafeLoader)
        labels = described["labels"]
        bento = f"{described['name']}:{described['version']}"
        return {"bento": bento, **{label: labels.get(label) for label in LABELS}}
    return {"bento": None, "version": version(), "git_commit": git_commit(), "model": None, "contract_hash": None}


def version() -> str:
    """The semantic version of the code in the working copy."""
    number: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return number


def git_commit() -> str | None:
    """The commit of the code, with a mark when it was changed; None outside of a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-changed" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
