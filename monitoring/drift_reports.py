"""What a drift run leaves in a folder: the result as JSON, Evidently's reports of a sample of its rows, the index page.

DIR/<model>/<version>/drift/<until as 2026-11-22T013000Z>/result.json, and the reports beside it.
"""

import importlib
import logging
from datetime import UTC
from pathlib import Path
from typing import Any

import pandas as pd

from monitoring.models import MonitoredModel
from monitoring.results import DriftResult
from monitoring.windows import SAMPLE_ROWS, sample, schema_of, watched_columns
from tabserve.history.records import opened
from tabserve.history.window import Which, Window
from tabserve.prediction_log.places import Place

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"


def keep(place: Place, model: MonitoredModel, result: DriftResult, directory: Path) -> Path:
    """Writes a result and its reports, and returns their folder.

    Raises:
        OSError: where the folder cannot be written.
        UnreadableError: where the log cannot be read.
    """
    newest = result.windows[-1]
    until = newest.until.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    folder = directory / result.model / result.version / "drift" / until
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{RESULT_FILE}"
    unfinished.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / RESULT_FILE)
    _write_reports(place, model, result, folder)
    _write_index(directory)
    return folder


def _write_reports(place: Place, model: MonitoredModel, result: DriftResult, folder: Path) -> None:
    reports = _module("monitoring.reports")
    if reports is None:
        return
    newest = result.windows[-1]
    current = sample_of(place, model, Window(newest.since, newest.until))
    if result.against == "training":
        reference = pd.read_parquet(model.sample)
    else:
        week = pd.Timedelta(days=7).to_pytimedelta()
        reference = sample_of(place, model, Window(newest.since - week, newest.until - week))
    reports.write_drift_reports(
        result,
        current,
        reference,
        folder,
        sampled_from=newest.n_rows if newest.n_rows > SAMPLE_ROWS else None,
        reference_bins=model.reference,
        contract=model.contract,
    )


def sample_of(place: Place, model: MonitoredModel, window: Window) -> pd.DataFrame:
    """As `windows.sample`, of a window; without a row, and without a column, where there are none.

    Raises:
        UnreadableError: where the log cannot be read.
    """
    with opened(place, window, Which(model.name, model.version)) as records:
        schema = schema_of(records)
        if schema is None:
            return pd.DataFrame()
        columns, _ = watched_columns(model.contract, model.reference, schema)
        return sample(records, columns)


def _write_index(directory: Path) -> None:
    index = _module("monitoring.index")
    if index is not None:
        index.write_index(directory)


def _module(name: str) -> Any:
    """A module that comes with the reports; None where it is not there."""
    try:
        return importlib.import_module(name)  # here, because only runs that are kept need Evidently, which is large
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        logger.info("no reports are written: %s is not there", name)
        return None
