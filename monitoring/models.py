"""Which model versions the log has predictions of, and what the model store says of them: contract and reference.

Nothing of a model is unpickled, and scikit-learn is not needed.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from tabserve import model_store
from tabserve.contract import Contract
from tabserve.history.records import opened, readable_place
from tabserve.history.window import Which, Window
from tabserve.model_store import ModelRefusedError
from tabserve.prediction_log.places import REMOTE, Place, default_url, with_usable_spool
from tabserve.reference import Reference
from tabserve.settings import Settings

logger = logging.getLogger(__name__)


def log_place(url: str | None) -> Place:
    """Where the prediction log is: as the address says, else as the settings do.

    Raises:
        BadQuestionError: where it cannot be read.
        BadSettingError: where a setting is wrong.
    """
    url = url or Settings.from_environment().log_url or default_url(model_store.home())
    if urlsplit(url).scheme in REMOTE:
        url = with_usable_spool(url, model_store.home())
    return readable_place(url)


@dataclass(frozen=True)
class MonitoredModel:
    """A model version, and what its predictions are held against."""

    name: str
    version: str
    contract: Contract
    reference: Reference
    sample: Path
    """A Parquet file: a sample of the training rows, their targets and out-of-fold scores."""

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.version}"


def versions_in(place: Place, window: Window, of: Which) -> Sequence[Which]:
    """The model versions that answered or refused a row in the window, by name.

    Raises:
        BadQuestionError: where DuckDB is missing.
        UnreadableError: where the log cannot be read.
    """
    with opened(place, window, of) as records:
        found = records.rows(
            "SELECT DISTINCT model, version FROM predictions UNION "
            "SELECT DISTINCT model, version FROM rejections ORDER BY model, version"
        )
    return [Which(str(model), str(version)) for model, version in found]


def load(name: str, version: str | None = None) -> MonitoredModel:
    """A version of a model in the store, the newest where none is named; its files are checked first.

    Raises:
        ModelRefusedError: where the store has no such model, or it is damaged.
    """
    stored = model_store.find(name if version is None else f"{name}:{version}")
    model_store.verify_files(stored)
    try:
        return MonitoredModel(
            name=stored.name,
            version=stored.tag.partition(":")[2],
            contract=Contract.load(stored.directory / model_store.CONTRACT_FILE),
            reference=Reference.load(stored.directory / model_store.REFERENCE_FILE),
            sample=stored.directory / model_store.REFERENCE_SAMPLE_FILE,
        )
    except (OSError, ValidationError) as error:
        raise ModelRefusedError(
            f"the contract or the reference of {stored.tag} is not as this version of tabserve reads it: train again"
        ) from error


def known(versions: Iterable[Which]) -> Iterator[MonitoredModel]:
    """Those that the model store has; of another one nobody knows what it was trained on, which is said."""
    for version in versions:
        try:
            yield load(str(version.model), version.version)
        except ModelRefusedError as error:
            logger.error("%s:%s is left out: %s", version.model, version.version, error)
