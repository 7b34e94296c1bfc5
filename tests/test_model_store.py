"""A model is checked before it is trusted: each of these starts from a real saved model and breaks one thing."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, TrainedModels, home_in_use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tabserve import model_store, rollout
from tabserve.model_store import ModelRefusedError
from tabserve.rollout import Rollout, choose_model
from tabserve.rollout_state import BadRolloutError, read_rollout
from tabserve.served_model import warm_up
from tabserve.settings import Settings


@pytest.fixture
def home(models: TrainedModels, tmp_path: Path) -> Iterator[Path]:
    """A copy of the home with the built-in model only, to be damaged."""
    tag = models.tag(BUILT_IN)
    shutil.copytree(models.directory(BUILT_IN), tmp_path / "home" / "models" / tag.replace(":", "/"))
    with home_in_use(tmp_path / "home") as home:
        yield home


def directory_of(home: Path) -> Path:
    (directory,) = (home / "models").glob("*/*/")
    return directory


def refusal(home: Path) -> str:
    with pytest.raises(ModelRefusedError) as refused:
        model_store.verify(model_store.find(None))
    return str(refused.value)


def rewrite(home: Path, file: str, change) -> None:
    """Changes a file and then the manifest, the version and BentoML's own file, as a careful hand would."""
    directory = directory_of(home)
    content = json.loads((directory / file).read_text())
    change(content)
    (directory / file).write_text(json.dumps(content))
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest[file] = hashlib.sha256((directory / file).read_bytes()).hexdigest()
    files = {path: digest for path, digest in manifest.items() if path != "model.yaml"}
    version = directory.name[:-6] + model_store._artifact_digest(files)[:6]
    yaml = (directory / "model.yaml").read_text().replace(directory.name, version)
    (directory / "model.yaml").write_text(yaml)
    manifest["model.yaml"] = hashlib.sha256(yaml.encode()).hexdigest()
    (directory / "manifest.json").write_text(model_store._manifest_text(manifest))
    directory.rename(directory.parent / version)


def test_an_untouched_model_is_verified_and_says_what_it_said_at_training(home: Path) -> None:
    model = model_store.find(None)

    model_store.verify(model)
    warm_up(model_store.load(model))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_changed_byte_in_any_file_is_noticed_before_anything_is_unpickled(home: Path, data: st.DataObject) -> None:
    files = sorted(path for path in directory_of(home).rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files), label="file")
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1), label="byte")
    changed = data.draw(st.integers(1, 255), label="change")
    loaded = []
    patched = pytest.MonkeyPatch()
    patched.setattr(model_store, "load_engine", lambda *_: loaded.append(1))
    path.write_bytes(content[:place] + bytes([content[place] ^ changed]) + content[place + 1 :])
    try:
        with pytest.raises(ModelRefusedError):
            model_store.load(model_store.find(None))
    finally:
        path.write_bytes(content)
        patched.undo()
    assert not loaded


@pytest.mark.parametrize("file", ["pipeline.pkl", "estimator.onnx", "contract.json", "plots/roc.png", "manifest.json"])
def test_a_missing_file_is_named(home: Path, file: str) -> None:
    (directory_of(home) / file).unlink()

    assert file in refusal(home)


def test_a_file_that_was_not_saved_is_named(home: Path) -> None:
    (directory_of(home) / "extra.py").write_text("import os")

    assert "extra.py is not the file that was saved" in refusal(home)


@pytest.mark.parametrize(
    ("package", "other", "advice"),
    [
        (
            "scikit-learn",
            "1.0.2",
            "was made with scikit-learn 1.0.2, this is scikit-learn .*: install scikit-learn 1.0.2",
        ),
        ("python", "3.8", "was made with Python 3.8, this is Python 3.11: install Python 3.8, or train again"),
    ],
)
def test_a_model_of_another_version_is_refused_with_what_to_do(
    home: Path, package: str, other: str, advice: str
) -> None:
    rewrite(home, "metadata.json", lambda metadata: metadata["environment"].update({package: other}))

    with pytest.raises(ModelRefusedError, match=advice):
        model_store.verify(model_store.find(None))


def test_a_contract_that_is_not_the_one_trained_for_is_refused(home: Path) -> None:
    rewrite(home, "contract.json", lambda contract: contract["features"].reverse())

    assert "was trained for the contract" in refusal(home)


def test_a_model_of_another_format_is_refused_and_so_is_one_with_unknown_fields(home: Path) -> None:
    rewrite(home, "compiled.json", lambda compiled: compiled.update({"new": 1}))
    assert "is not as this version of tabserve reads it" in refusal(home)

    rewrite(home, "metadata.json", lambda metadata: metadata.pop("format"))
    assert "is of format None, this tabserve reads format 1: train again" in refusal(home)


def test_a_model_that_answers_differently_here_is_not_put_in_service(home: Path) -> None:
    rewrite(home, "examples.json", lambda examples: examples["scores"][0].reverse())
    model = model_store.load(model_store.find(None))
    serving = Rollout()

    with pytest.raises(ModelRefusedError, match="answers its own examples differently"):
        serving.put_in_service(model, Settings())
    assert not serving.is_ready


def test_scikit_learn_is_refused_where_a_package_of_its_pipeline_is_not_installed(home: Path) -> None:
    def serve_by_sklearn(metadata: dict) -> None:
        metadata["engine"]["engine"] = "scikit-learn"
        metadata["pickled_packages"] = ["sklearn", "a_package_that_nobody_has"]

    rewrite(home, "metadata.json", serve_by_sklearn)

    assert "needs packages that are not installed here: a_package_that_nobody_has" in refusal(home)


def test_an_empty_store_says_how_to_fill_it(empty_home: Path) -> None:
    with pytest.raises(ModelRefusedError, match="holds no model: run `make train` first"):
        model_store.find(None)


def test_models_of_others_in_the_same_store_are_left_alone(models: TrainedModels, empty_home: Path) -> None:
    import bentoml

    with bentoml.models.create("somebody_elses"):
        pass

    assert model_store.stored_models() == []


def test_the_model_is_chosen_by_setting_then_bento_then_champion_then_age(models: TrainedModels) -> None:
    spend, customers, built_in = (models.tag(name) for name in (SPEND, CUSTOMERS, BUILT_IN))
    champion = models.home / rollout.ROLLOUT_FILE
    with home_in_use(models.home):
        assert choose_model(Settings()).tag == built_in
        try:
            champion.write_text(f"champion: {customers}\n")
            assert choose_model(Settings()).tag == customers
            assert choose_model(Settings(), pinned=built_in).tag == built_in
            assert choose_model(Settings(model=SPEND), pinned=built_in).tag == spend
            assert choose_model(Settings(model=spend)).tag == spend
        finally:
            champion.unlink()
        with pytest.raises(ModelRefusedError, match="has no model nobody:1: it holds .*breast_cancer"):
            choose_model(Settings(model="nobody:1"))


@pytest.mark.parametrize("content", ["", "champion:", "champion: name", "- a", "champion: {", "other: a:b"])
def test_a_rollout_file_without_a_champion_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rollout.yaml").write_text(content)

    with pytest.raises(BadRolloutError, match="expected `champion: name:version`"):
        read_rollout(tmp_path / "rollout.yaml")


def test_a_damaged_model_is_refused_and_not_passed_over_for_an_older_one(home: Path) -> None:
    """Even where the damage is in what says how old it is."""
    good = directory_of(home)
    damaged = good.parent / "1.0.1-abcdef"
    shutil.copytree(good, damaged)

    assert model_store.find(None).directory == damaged
    with pytest.raises(ModelRefusedError, match="its manifest belongs to another version"):
        model_store.verify(model_store.find(None))
    assert model_store.find(f"{BUILT_IN}:{good.name}").directory == good
