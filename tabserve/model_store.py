"""Models in the BentoML model store: saved whole or not at all, and checked before anything of them is trusted.

A model is a folder of files (the names are below) with a manifest of their SHA-256 sums. Its version is a semantic
version and the start of the artifact's own sum, `breast_cancer:1.2.0-7f3a9c`: major when the contract changed, minor
when the pipeline did, patch when only the data did.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models.model import ModelStore
from pydantic import ValidationError

from tabserve.contract import Contract
from tabserve.engine import COMPILED_FILE, Compiled, Engine, load_engine

CONTRACT_FILE = "contract.json"
EXAMPLES_FILE = "examples.json"
MANIFEST_FILE = "manifest.json"
METADATA_FILE = "metadata.json"
REFERENCE_FILE = "reference.json"
REFERENCE_SAMPLE_FILE = "reference.parquet"
CARD_FILE = "MODEL_CARD.md"

FORMAT = 1  # of the files of a model; raised when an older tabserve could not read them, or this one not the older
ARTIFACT_DIGITS = 6  # of the artifact's SHA-256 that stand in the version
_VERSION = re.compile(rf"(\d+)\.(\d+)\.(\d+)-[0-9a-f]{{{ARTIFACT_DIGITS}}}")


class ModelRefusedError(Exception):
    """A model that is missing or must not be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class StoredModel:
    """A model of ours in the store. Nothing in it has been checked yet."""

    tag: str
    directory: Path
    created_at: datetime
    contract_hash: str
    pipeline_hash: str

    @property
    def name(self) -> str:
        return self.tag.partition(":")[0]

    @property
    def semantic_version(self) -> tuple[int, int, int]:
        match = _VERSION.fullmatch(self.tag.partition(":")[2])
        return (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)


@dataclass(frozen=True)
class LoadedModel:
    """A model that was checked and can answer."""

    tag: str
    contract: Contract
    engine: Engine
    metadata: dict[str, Any]
    examples: dict[str, Any]
    """`instances`: rows as a caller sends them; `scores`: what the model must say to them."""


def home() -> Path:
    """BentoML's home, where the model store and the rollout file are."""
    return Path(BentoMLContainer.bentoml_home.get())


def _store() -> Path:
    # A Bento in a container brings a store of its own, which BentoML puts in the place of the one in its home.
    return Path(BentoMLContainer.model_store.get()._path)  # noqa: SLF001


def directory_of(tag: str) -> Path:
    """Where the model `name:version` is, or would be."""
    name, _, its_version = tag.partition(":")
    return _store() / name / its_version


def stored_models() -> list[StoredModel]:
    """Our models, oldest first.

    A damaged one cannot say how old it is and comes last, so that it is chosen and refused rather than passed over for
    an older one without a word.
    """
    ours = (
        path for path in _store().glob("*/*/") if (path / MANIFEST_FILE).exists() or (path / METADATA_FILE).exists()
    )
    return sorted(map(_read_stored, ours), key=lambda model: (model.created_at, model.semantic_version))


def find(wanted: str | None) -> StoredModel:
    """The model `name:version`, the newest version of `name`, or with None the newest of all.

    Raises:
        ModelRefusedError: where the store has none.
    """
    known = stored_models()
    matching = [model for model in known if wanted is None or wanted in (model.tag, model.name)]
    if matching:
        return matching[-1]
    if not known:
        raise ModelRefusedError(
            f"the model store in {home()} holds no model: run `make train` first, "
            "or .venv/bin/python train.py with a table of your own"
        )
    tags = ", ".join(model.tag for model in known)
    raise ModelRefusedError(f"the model store in {home()} has no model {wanted}: it holds {tags}")


def save(
    name: str, contract: Contract, pipeline_hash: str, write: Callable[[Path, str], None], summary: dict[str, str]
) -> str:
    """Saves a model in one step that succeeds whole or leaves nothing, and returns its tag.

    Args:
        name: of the model, as the store takes it: lower case letters, digits and underscores.
        pipeline_hash: changes when the pipeline does, and not when only the data do.
        write: called with an empty folder and the semantic version; writes all files but the contract.
        summary: labels that `bentoml models list` shows.
    """
    temporary = home() / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    with _store_lock():
        for left_behind in temporary.glob("tabserve-*/"):  # by a training that was killed: we hold the lock
            shutil.rmtree(left_behind, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix="tabserve-", dir=temporary))
        try:
            semantic = _next_version(name, contract.hash, pipeline_hash)
            files = staging / "files"
            files.mkdir()
            contract.save(files / CONTRACT_FILE)
            write(files, semantic)
            digests = {path: _sha256(files / path) for path in _files(files)}
            tag = f"{name}:{semantic}-{_artifact_digest(digests)[:ARTIFACT_DIGITS]}"
            labels = {**summary, "tabserve": semantic}
            with bentoml.models.create(tag, labels=labels, _model_store=ModelStore(staging / "models")) as model:
                directory = Path(model.path)
                shutil.copytree(files, directory, dirs_exist_ok=True)
                model.flush()  # type: ignore[no-untyped-call]  # writes model.yaml, the same as `create` does in the end
                digests["model.yaml"] = _sha256(directory / "model.yaml")
                (directory / MANIFEST_FILE).write_text(_manifest_text(digests), encoding="utf-8")
            staged = staging / "models" / tag.replace(":", "/")
            verify(_read_stored(staged))  # a model that nobody could load is not saved
            _move_into_store(staging / "models", tag)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return tag


def verify(model: StoredModel) -> None:
    """Checks a model without trusting it: nothing is unpickled, and scikit-learn is not imported.

    Raises:
        ModelRefusedError: for a damaged file, or a model made for another contract, Python or scikit-learn.
    """
    verify_files(model)
    again = _again(model)
    metadata = read_metadata(model)
    if metadata.get("format") != FORMAT:
        raise ModelRefusedError(
            f"the model {model.tag} is of format {metadata.get('format')}, this tabserve reads format {FORMAT}: "
            "train again, or serve it with the version that saved it"
        )
    for what, made_with, here in (
        ("Python", metadata["environment"]["python"], _python_minor()),
        ("scikit-learn", metadata["environment"]["scikit-learn"], version("scikit-learn")),
    ):
        if made_with != here:
            raise ModelRefusedError(
                f"the model {model.tag} was made with {what} {made_with}, this is {what} {here}: "
                f"install {what} {made_with}, or train again with this one"
            )
    absent = [package for package in metadata["pickled_packages"] if importlib.util.find_spec(package) is None]
    if absent and metadata["engine"]["engine"] == "scikit-learn":
        raise ModelRefusedError(
            f"the model {model.tag} needs packages that are not installed here: {', '.join(absent)}"
        )
    try:
        contract = Contract.load(model.directory / CONTRACT_FILE)
        Compiled.load(model.directory / COMPILED_FILE)
    except ValidationError as error:
        raise ModelRefusedError(
            f"the model {model.tag} is not as this version of tabserve reads it: {again}"
        ) from error
    if contract.hash != metadata["contract_hash"]:
        raise ModelRefusedError(
            f"the model {model.tag} was trained for the contract {metadata['contract_hash'][:12]}, "
            f"its {CONTRACT_FILE} has {contract.hash[:12]}: {again}"
        )


def verify_files(model: StoredModel) -> None:
    """Checks that the files of a model are those that were saved, whatever they were made with.

    Raises:
        ModelRefusedError: where they are not.
    """
    again = _again(model)
    try:
        text = (model.directory / MANIFEST_FILE).read_text(encoding="utf-8")
        expected = dict(json.loads(text).items())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefusedError(f"the model {model.tag} has no readable {MANIFEST_FILE}: {again}") from error
    present = _files(model.directory)
    for path in sorted({*expected, *present} - {MANIFEST_FILE}):
        if path not in present:
            raise ModelRefusedError(f"the model {model.tag} is damaged, {path} is missing: {again}")
        if expected.get(path) != _sha256(model.directory / path):
            raise ModelRefusedError(f"the model {model.tag} is damaged, {path} is not the file that was saved: {again}")
    if text != _manifest_text(expected) or not _belongs(expected, model.tag):
        raise ModelRefusedError(f"the model {model.tag} is damaged, its manifest belongs to another version: {again}")


def _again(model: StoredModel) -> str:
    return f"restore or delete {model.directory}, choose another one with TABSERVE_MODEL, or train again"


def load(model: StoredModel) -> LoadedModel:
    """Verifies a model, then loads it.

    Raises:
        ModelRefusedError: as `verify`.
    """
    verify(model)
    contract = Contract.load(model.directory / CONTRACT_FILE)
    return LoadedModel(
        tag=model.tag,
        contract=contract,
        engine=load_engine(model.directory, contract),
        metadata=read_metadata(model),
        examples=json.loads((model.directory / EXAMPLES_FILE).read_bytes()),
    )


def read_metadata(model: StoredModel) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((model.directory / METADATA_FILE).read_bytes())
    return metadata


def read_contract(model: StoredModel) -> Contract:
    """The contract of a model that is not loaded.

    Raises:
        ModelRefusedError: where it cannot be read.
    """
    try:
        return Contract.load(model.directory / CONTRACT_FILE)
    except (OSError, ValueError) as error:
        raise ModelRefusedError(f"the model {model.tag} is damaged, its contract cannot be read: restore it") from error


def environment() -> dict[str, str]:
    """The versions that a model depends on, as its metadata records them."""
    packages = ("scikit-learn", "numpy", "onnxruntime", "pandas", "bentoml")
    return {"python": _python_minor(), **{package: version(package) for package in packages}}


def _python_minor() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _read_stored(directory: Path) -> StoredModel:
    tag = f"{directory.parent.name}:{directory.name}"
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_bytes())
        if manifest[METADATA_FILE] == _sha256(directory / METADATA_FILE) and _belongs(manifest, tag):
            metadata = json.loads((directory / METADATA_FILE).read_bytes())
            created_at = datetime.fromisoformat(metadata["trained_at"])
            return StoredModel(tag, directory, created_at, metadata["contract_hash"], metadata["pipeline_hash"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # as damaged as a wrong sum
    return StoredModel(tag, directory, datetime.max.replace(tzinfo=UTC), contract_hash="", pipeline_hash="")


def _manifest_text(digests: dict[str, str]) -> str:
    return json.dumps(digests, indent=2, sort_keys=True) + "\n"


def _belongs(manifest: dict[str, str], tag: str) -> bool:
    """Whether a manifest is the one that the version was named after."""
    files = {path: digest for path, digest in manifest.items() if path != "model.yaml"}
    return tag.rpartition("-")[2] == _artifact_digest(files)[:ARTIFACT_DIGITS]


def _next_version(name: str, contract_hash: str, pipeline_hash: str) -> str:
    earlier = [model for model in stored_models() if model.name == name]
    if not earlier:
        return "1.0.0"
    last = max(earlier, key=lambda model: model.semantic_version)
    major, minor, patch = last.semantic_version
    if last.contract_hash != contract_hash:
        return f"{major + 1}.0.0"
    if last.pipeline_hash != pipeline_hash:
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"


def _move_into_store(staged: Path, tag: str) -> None:
    """A rename is atomic, and comes last: a reader sees the whole model or none."""
    name, _, tag_version = tag.partition(":")
    target = _store() / name
    target.mkdir(parents=True, exist_ok=True)
    (staged / name / tag_version).rename(target / tag_version)
    latest = staged / "latest"
    latest.write_text(tag_version)
    latest.replace(target / "latest")


@contextlib.contextmanager
def _store_lock() -> Iterator[None]:
    """One training at a time chooses a version and saves; the kernel frees the lock of a process that dies."""
    with (home() / "tmp" / "tabserve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _artifact_digest(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
