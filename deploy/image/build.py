"""`make image`: a Bento, the image that BentoML makes of it, and ours on top of that. Prints the name of the image.

    python -m deploy.image.build             tabserve:<version>-<commit>-<version of the model>
    python -m deploy.image.build --tools     tabserve-tools:<version>-<commit>
    python -m deploy.image.build --bento     the Bento only; prints its tag

Nothing is called `latest`: a name says what is in it. Exit codes: 0 done, 1 not built.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tabserve.build import BASE_IMAGE, git_commit, version
from tabserve.model_store import ModelRefusedError, StoredModel
from tabserve.rollout import choose_model
from tabserve.settings import Settings

ROOT = Path(__file__).parents[2]
COMMIT_DIGITS = 12


class NotBuiltError(Exception):
    """No image; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bento", action="store_true", help="build the Bento only")
    which.add_argument("--tools", action="store_true", help="build the image for scheduled jobs")
    parser.add_argument(
        "--backend", choices=("docker", "podman", "buildah"), help="what builds (default: the first that can)"
    )
    parser.add_argument(
        "--base", default=BASE_IMAGE, metavar="IMAGE", help=f"what the image is based on (default: {BASE_IMAGE})"
    )
    options = parser.parse_args()
    try:
        if options.bento:
            name = build_bento(bento_labels())
        elif options.tools:
            name = build_tools(options.backend or find_backend(), options.base)
        else:
            name = build_image(options.backend or find_backend(), options.base)
    except (NotBuiltError, ModelRefusedError) as error:
        sys.stderr.write(f"no image: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"no image: {error.cmd[0]} ended with exit code {error.returncode}, see above\n")
        return 1
    sys.stdout.write(f"{name}\n")
    return 0


def build_image(backend: str, base: str) -> str:
    labels = bento_labels()
    bento = build_bento(labels)
    model_version = labels["model"].partition(":")[2]
    name = f"tabserve:{labels['version']}-{short(labels['git_commit'])}-{model_version}"
    from_bento = f"tabserve-bento:{bento.partition(':')[2]}"
    command = [sys.executable, "-m", "bentoml", "containerize", bento, "--backend", backend, "--image-tag", from_bento]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
    build_on_top(
        backend,
        "Containerfile",
        name,
        {"BENTO": local(backend, from_bento), "BASE": base},
        {**image_labels(labels), "io.tabserve.model": labels["model"], "io.tabserve.contract": labels["contract_hash"]},
    )
    return name


def build_tools(backend: str, base: str) -> str:
    labels = code_labels()
    name = f"tabserve-tools:{labels['version']}-{short(labels['git_commit'])}"
    build_on_top(backend, "Containerfile.tools", name, {"BUILDER": BASE_IMAGE, "BASE": base}, image_labels(labels))
    return name


def build_bento(labels: dict[str, str]) -> str:
    """Builds a Bento that says of itself what `labels` do, and returns its tag."""
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    options = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    done = subprocess.run([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().removeprefix("__tag__:")


def code_labels() -> dict[str, str]:
    commit = git_commit()
    if commit is None:
        raise NotBuiltError(f"{ROOT} is no git checkout, so the image could not say what is in it")
    return {"version": version(), "git_commit": commit}


def bento_labels() -> dict[str, str]:
    """What a Bento is told of itself; tabserve.build reads it there."""
    model: StoredModel = choose_model(Settings.from_environment())
    return {**code_labels(), "model": model.tag, "contract_hash": model.contract_hash}


def image_labels(labels: dict[str, str]) -> dict[str, str]:
    prefix = "org.opencontainers.image"
    return {
        f"{prefix}.title": "tabserve",
        f"{prefix}.version": labels["version"],
        f"{prefix}.revision": labels["git_commit"],
        f"{prefix}.licenses": "Apache-2.0",
    }


def build_on_top(
    backend: str, containerfile: str, name: str, arguments: dict[str, str], labels: dict[str, str]
) -> None:
    # A health check is known to Docker's format only; OCI's drops it without a word.
    options = [] if backend == "docker" else ["--format", "docker"]
    options += [word for one, value in arguments.items() for word in ("--build-arg", f"{one}={value}")]
    options += [word for one, value in labels.items() for word in ("--label", f"{one}={value}")]
    with context() as folder:
        command = [backend, "build", "--file", str(folder / "deploy" / "image" / containerfile), "--tag", name]
        subprocess.run([*command, *options, str(folder)], stdout=sys.stderr, check=True)


@contextlib.contextmanager
def context() -> Iterator[Path]:
    """The tracked files as they are here, and nothing else: no environment, no key that lies around gets in."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="tabserve-image-") as name:
        folder = Path(name)
        for path in filter(None, listed.split("\0")):
            if (ROOT / path).is_file():  # one that was deleted is still listed until that is committed
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, folder / path)
        yield folder


def find_backend() -> str:
    """The first that can build: a `docker` on the PATH may have no engine behind it."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return "docker"
    for name in ("podman", "buildah"):
        if shutil.which(name):
            return name
    raise NotBuiltError("a Docker engine, podman or buildah is needed, and none is here")


def local(backend: str, name: str) -> str:
    """The name by which a backend finds an image of its own, rather than asking a registry for it."""
    return name if backend == "docker" else f"localhost/{name}"


def short(commit: str) -> str:
    digits, _, changed = commit.partition("-")
    return digits[:COMMIT_DIGITS] + (f"-{changed}" if changed else "")


if __name__ == "__main__":
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    sys.exit(main())
