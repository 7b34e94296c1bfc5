"""A run as it is kept in a folder: its result, Evidently's reports of a sample of its rows, the index page over all.

Where that is, `runs.folder_of` says. A result is there before its reports are, and whether or not these can be made.
"""

from datetime import timedelta
from pathlib import Path

import pandas as pd

from monitoring.live.labelled import LabelledRows
from monitoring.models import MonitoredModel
from monitoring.reports.evidently_reports import write_drift_reports, write_quality_reports
from monitoring.reports.files import write_whole
from monitoring.reports.index import write_index
from monitoring.reports.runs import RESULT_FILE, delete_old_pages, folder_of
from monitoring.results import DriftResult, QualityResult
from monitoring.windows import SAMPLE_ROWS, sample, schema_of, watched_columns
from tabserve.history.records import opened
from tabserve.history.window import Which, Window
from tabserve.prediction_log.places import Place

WEEK = timedelta(days=7)


def keep(
    place: Place,
    model: MonitoredModel,
    result: DriftResult | QualityResult,
    directory: Path,
    labelled: pd.DataFrame | None = None,
) -> Path:
    """Writes a result and its reports, and returns their folder.

    Args:
        labelled: as of `write_reports`.

    Raises:
        OSError: where the folder cannot be written.
        UnreadableError: where the log cannot be read.
    """
    folder = keep_result(result, directory)
    write_reports(place, model, result, folder, labelled)
    tidy(directory)
    return folder


def keep_result(result: DriftResult | QualityResult, directory: Path) -> Path:
    """Writes a result as JSON, whole or not at all, and returns its folder, which is the run's own.

    Raises:
        OSError: where it cannot be written.
    """
    folder = folder_of(directory, result)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULT_FILE, result.model_dump_json(indent=2) + "\n")
    return folder


def tidy(directory: Path) -> None:
    """Deletes the reports of old runs, and writes the index page of what is there now.

    Raises:
        OSError: where that is not possible.
    """
    delete_old_pages(directory)
    write_index(directory)


def write_reports(
    place: Place,
    model: MonitoredModel,
    result: DriftResult | QualityResult,
    folder: Path,
    labelled: pd.DataFrame | None = None,
) -> None:
    """Evidently's reports of a result: seconds, and 480 MB that this process does not give back.

    Args:
        labelled: the rows that a quality result was made of, where they are at hand; else they are read again.

    Raises:
        OSError: where the folder cannot be written.
        UnreadableError: where the log cannot be read.
    """
    if isinstance(result, DriftResult):
        _write_drift_reports(place, model, result, folder)
        return
    write_quality_reports(
        result,
        labelled_of(place, model, result) if labelled is None else labelled,
        folder,
        contract=model.contract,
        sampled_from=result.n_labelled if result.n_sampled < result.n_labelled else None,
    )


def _write_drift_reports(place: Place, model: MonitoredModel, result: DriftResult, folder: Path) -> None:
    newest = result.windows[-1]
    current = sample_of(place, model, Window(newest.since, newest.until))
    if result.against == "training":
        reference = pd.read_parquet(model.sample)
    else:
        reference = sample_of(place, model, Window(newest.since - WEEK, newest.until - WEEK))
    write_drift_reports(
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


def labelled_of(place: Place, model: MonitoredModel, result: QualityResult) -> pd.DataFrame:
    """The labelled rows of a result's window, as the log has them now: as `LabelledRows.sample`.

    Raises:
        UnreadableError: where the log cannot be read.
    """
    with opened(place, Window(result.since, result.until), Which(model.name, model.version)) as records:
        return LabelledRows(records, model.contract, ()).sample(result.n_labelled)
