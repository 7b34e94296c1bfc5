"""Evidently's reports of a run, beside its result: `drift`, `summary` and `quality`, each as HTML and JSON.

They show; what decides is the result. A report says at its top what the run found, whose rows it shows and what had to
be left out, and a report that cannot be made says why. Nothing here raises but for a folder that cannot be written.

A page takes 4 to 6 MB whatever the number of rows, since Evidently's scripts are in it; `runs.delete_old_pages` deletes
those of old runs. Evidently takes seconds and 280 MB to import, and is imported only where a report is made.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from monitoring.reports.evidently_methods import counts_of_report, register
from monitoring.reports.files import About, NoReportError, write_report
from monitoring.reports.quality_rows import classification_rows, regression_rows
from monitoring.reports.rows import ReportRows, drift_rows
from monitoring.reports.wording import all_rows, counted, divergence, headline, metric_in_words, moment, percent, span
from monitoring.results import DriftResult, QualityResult
from monitoring.verdict import ENOUGH_ROWS, KL_ALARM, PSI_ALARM, WARNING
from tabserve.contract import Contract
from tabserve.reference import Reference

MOST_ROWS_DRAWN = 50_000  # of either side, by chance; what is counted is all that came. Evidently: 3 s, 1M rows 15 s
MOST_LISTED = 10  # columns with their numbers at the top of a report


def write_drift_reports(
    result: DriftResult,
    current: pd.DataFrame,
    reference: pd.DataFrame,
    folder: Path,
    *,
    sampled_from: int | None,
    reference_bins: Reference,
    contract: Contract,
) -> list[Path]:
    """Writes drift.html, drift.json, summary.html and summary.json, and returns their paths.

    Args:
        current: rows of the newest window as the log has them: `feature:<name>`, `probability:<key>` or `value`, and
            where they count differently `weight`.
        reference: the model's reference sample, or rows as in `current` of an earlier window.
        sampled_from: of how many rows `current` is a sample; None where it has all of them.
        reference_bins: of the model; its counts, of all training rows, are what a report against training measures
            against. Against an earlier window those of the result are.

    Raises:
        OSError: where the folder cannot be written.
    """
    about = _about("Data drift", result, n_rows=len(current), sampled_from=sampled_from)
    about.facts["rows"]["reference"] = len(reference)
    against = f"all {reference_bins.n_rows:,} training rows" if result.against == "training" else "the week before"
    about.lines.append(
        f"Compared with {against}. The number of a feature is its KL divergence in nats, of a prediction its PSI, in "
        f"bins that were fixed at training, missing values among them: the same as the gauges' of the same rows. This "
        f"page calls drift what is above {KL_ALARM} and {PSI_ALARM}; an alarm needs {ENOUGH_ROWS} rows, more than "
        f"chance gives, and two windows running. The plots have bins of their own, and {len(reference):,} reference "
        "rows."
    )
    rows: ReportRows | None = None
    failed = ""
    try:
        rows = drift_rows(result, current, reference, contract, reference_bins)
    except Exception as error:  # noqa: BLE001  # a table of whatever kind must not end a run
        failed = f"the rows cannot be read ({type(error).__name__}: {str(error)[:300]})"
    if max(len(current), len(reference)) > MOST_ROWS_DRAWN:
        about.lines.append(f"Of more than {MOST_ROWS_DRAWN:,} rows that many are in the plots, all in the numbers.")
    if rows is not None:
        about.left_out, about.notes = rows.left_out, rows.notes
        about.facts["columns"] = {column.name: column.source for column in rows.columns}
        about.table = _scores(rows) if len(current) else []
        about.facts["scores"] = {column.name: column.score for column in rows.columns if len(current)}

    def ready() -> ReportRows:
        if rows is None:
            raise NoReportError(failed)
        if not len(current):
            raise NoReportError("the window has no rows")
        if not rows.columns:
            raise NoReportError("no column is left that both sides have values of")
        return rows

    def drift() -> Any:
        found = ready()
        from evidently import Report
        from evidently.metrics import ValueDrift

        register()
        asked = [
            ValueDrift(column=column.name, method=column.method.name, threshold=column.method.threshold)
            for column in found.columns
        ]
        with counts_of_report({column.name: column.counts for column in found.columns}):
            return Report(asked).run(*_datasets(found))

    def summary() -> Any:
        found = ready()
        from evidently import Report
        from evidently.presets import DataSummaryPreset

        return Report([DataSummaryPreset()]).run(*_datasets(found))

    paths = write_report(folder, "drift", about, drift)
    about.title, about.table = "Data summary", []
    about.lines[1] = f"Beside {len(reference):,} reference rows. Missing values, ranges, and most frequent values."
    return paths + write_report(folder, "summary", about, summary)


def write_quality_reports(
    result: QualityResult,
    labelled: pd.DataFrame,
    folder: Path,
    *,
    contract: Contract,
    sampled_from: int | None = None,
) -> list[Path]:
    """Writes quality.html and quality.json, and returns their paths.

    Args:
        labelled: predictions with their labels: `label`, `true_label` and `probability:<key>`, or for a regression
            `value` and `true_value`. Rows without a label are left out.
        contract: of the model; of two classes the last is the positive one, as at training.
        sampled_from: of how many rows `labelled` is a sample; None where it has all of them.

    Raises:
        OSError: where the folder cannot be written.
    """
    kind = "Regression" if contract.task == "regression" else "Classification"
    about = _about(kind, result, n_rows=len(labelled), sampled_from=sampled_from)
    about.lines.append(
        f"{result.n_labelled:,} of {result.n_rows:,} predictions have a label ({percent(result.coverage)}). The "
        "intervals, and what decides, are in the table; the plots below are Evidently's."
    )
    everything = all_rows(result)
    about.table = [] if everything is None else [("all rows", metric_in_words(m)) for m in everything.metrics]

    def quality() -> Any:
        prepare = regression_rows if contract.task == "regression" else classification_rows
        rows = prepare(labelled, contract)
        about.notes = rows.notes
        about.facts["rows"]["used"] = len(rows.table)
        from evidently import Dataset, Report

        return Report([rows.preset()]).run(Dataset.from_pandas(rows.table, data_definition=rows.definition()), None)

    return write_report(folder, "quality", about, quality)


def _scores(rows: ReportRows) -> list[tuple[str, str]]:
    """The columns above half of their threshold, the worst first, and how many are not."""
    loud = [column for column in rows.columns if column.score > WARNING * column.method.threshold]
    table = [
        (column.name, f"{column.method.name} {divergence(column.score)}, threshold {column.method.threshold:g}")
        for column in loud[:MOST_LISTED]
    ]
    others = len(rows.columns) - len(table)
    return [*table, (counted(others, "other column", "other columns"), "below, in this order")] if others else table


def _datasets(rows: ReportRows) -> tuple[Any, Any]:
    from evidently import DataDefinition, Dataset

    of = DataDefinition(numerical_columns=rows.numbers, categorical_columns=rows.texts)
    drawn = (table.sample(min(len(table), MOST_ROWS_DRAWN), random_state=0) for table in (rows.current, rows.reference))
    current, reference = (Dataset.from_pandas(table.sort_index(), data_definition=of) for table in drawn)
    return current, reference


def _about(title: str, result: DriftResult | QualityResult, *, n_rows: int, sampled_from: int | None) -> About:
    since, until = span(result)
    notice = None
    if sampled_from is not None and sampled_from > n_rows:
        notice = f"A sample of {n_rows:,} of {sampled_from:,} rows; the gauges and the verdict count all rows."
    facts = {
        "model": result.model,
        "version": result.version,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "level": result.level,
        "rows": {"current": n_rows, "sampled_from": sampled_from},
    }
    window = f"{result.model}:{result.version}, {n_rows:,} rows of {moment(since)} to {moment(until)} UTC."
    return About(title, headline(result), facts, [window], notice)
