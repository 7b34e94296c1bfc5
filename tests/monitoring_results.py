"""Results of runs for the tests of what shows them: made by the real statistics from rows, not invented."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.reports.runs import RESULT_FILE, folder_of
from monitoring.reports.wording import WORST_FIRST
from monitoring.results import (
    DriftColumn,
    DriftResult,
    DriftWindow,
    QualityMetric,
    QualityResult,
    QualitySegment,
)
from monitoring.verdict import Binned, Level, compare, confirmed
from tabserve.contract import Contract, Feature
from tabserve.reference import Reference, build_reference

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)

CONTRACT = Contract(
    features=(
        Feature(name="age", kind="integer", may_be_missing=True, quantiles=(22, 27, 32, 37, 42, 47, 52, 57, 62)),
        Feature(name="income", kind="number", may_be_missing=True, quantiles=tuple(np.linspace(1e4, 9e4, 9))),
        Feature(name="city", kind="category", may_be_missing=True, categories=("Bergen", "Oslo", "Tromsø")),
        Feature(name="zone", kind="category", categories=(1, 2)),
        Feature(name="member", kind="boolean", may_be_missing=True),
    ),
    task="binary",
    target="plan",
    classes=("basic", "pro"),
)


def of_task(task: str, *classes: str | int) -> Contract:
    """The contract of the same rows for another task; a copy would keep what the first has worked out."""
    return Contract(features=CONTRACT.features, task=task, target="plan", classes=classes)


REGRESSION = of_task("regression")


@dataclass(frozen=True)
class Batch:
    """Rows as the contract codes them, and the scores of them."""

    rows: np.ndarray
    scores: np.ndarray


def batch(n_rows: int, seed: int, *, older_by: float = 0.0) -> Batch:
    random = np.random.default_rng(seed)
    rows = np.column_stack(
        [
            np.round(random.uniform(18, 68, n_rows) + older_by),
            random.uniform(0, 1e5, n_rows),
            random.integers(0, 3, n_rows),
            random.integers(0, 2, n_rows),
            random.random(n_rows) < 0.4,
        ]
    ).astype(float)
    for position, share in ((0, 0.01), (1, 0.1), (2, 0.05), (4, 0.02)):
        rows[random.random(n_rows) < share, position] = np.nan
    second = np.clip(random.beta(2, 3, n_rows), 1e-6, 1 - 1e-6)
    return Batch(rows, np.column_stack([1 - second, second]))


def reference_of(trained: Batch, contract: Contract = CONTRACT) -> Reference:
    return build_reference(contract, trained.rows, scores_of(trained, contract))


def scores_of(some: Batch, contract: Contract) -> np.ndarray:
    return some.scores[:, 1] * 1000 if contract.task == "regression" else some.scores


def logged(some: Batch, contract: Contract = CONTRACT) -> pd.DataFrame:
    """The rows as the prediction log gives them: typed as its schema, null for missing."""
    columns: dict[str, object] = {}
    for position, feature in enumerate(contract.features):
        values = pd.Series(some.rows[:, position])
        name = f"feature:{feature.name}"
        if feature.kind == "category":
            columns[name] = values.map(lambda code, f=feature: None if np.isnan(code) else str(f.categories[int(code)]))
        elif feature.kind == "boolean":
            columns[name] = values.map(lambda flag: None if np.isnan(flag) else bool(flag)).astype("boolean")
        else:
            columns[name] = values.astype("Int64") if feature.kind == "integer" else values
    scores = scores_of(some, contract)
    if contract.task == "regression":
        return pd.DataFrame({**columns, "value": scores})
    found = {f"probability:{key}": scores[:, code] for code, key in enumerate(contract.probability_keys)}
    labels = np.array(contract.classes, dtype=object)[scores.argmax(axis=1)]
    return pd.DataFrame({**columns, "label": labels, **found})


def sample_of(trained: Batch, contract: Contract = CONTRACT, n_rows: int = 1000) -> pd.DataFrame:
    """As reference.parquet has it."""
    table = logged(Batch(trained.rows[:n_rows], trained.scores[:n_rows]), contract)
    table = table.rename(columns=lambda name: name.replace("probability:", "score:"))
    return table.rename(columns={"value": "score:value", "label": "prediction"})


def drift_of(
    windows: Sequence[Batch],
    reference: Reference,
    contract: Contract = CONTRACT,
    *,
    until: datetime = NOON,
    model: str = "plans",
    version: str = "1.0.0-abcdef",
) -> DriftResult:
    """The result of a run that saw these windows, a day each."""
    columns = []
    n_columns = len(reference.features) + len(reference.predictions)
    for what, name, bins, of in (
        *(
            ("feature", f.name, reference.features[f.name], [w.rows[:, p] for w in windows])
            for p, f in enumerate(contract.features)
        ),
        *(
            (
                "prediction",
                key,
                bins,
                [scores_of(w, contract).reshape(len(w.rows), len(reference.predictions))[:, p] for w in windows],
            )
            for p, (key, bins) in enumerate(reference.predictions.items())
        ),
    ):
        before = Binned(counts=bins.counts, n_rows=sum(bins.counts))
        binned = [Binned(counts=bins.count(values), n_rows=len(values)) for values in of]
        found = [compare(before, one, is_prediction=what == "prediction", n_columns=n_columns) for one in binned]
        columns.append(
            DriftColumn(
                name=name,
                what=what,
                level=confirmed([one.level for one in found]),
                reference=before,
                windows=tuple(binned),
                divergences=tuple(found),
                missing_share=binned[-1].counts[-1] / max(1, binned[-1].n_rows),
                reference_missing_share=bins.counts[-1] / before.n_rows,
                out_of_range_share=0.0,
                unknown_share=0.0,
            )
        )
    worst = min((column.level for column in columns), key=WORST_FIRST.index)
    return DriftResult(
        model=model,
        version=version,
        against="training",
        made_at=until,
        level=worst,
        windows=tuple(
            DriftWindow(
                since=until - DAY * (len(windows) - place),
                until=until - DAY * (len(windows) - place - 1),
                n_rows=len(one.rows),
                rows_a_second=len(one.rows) / 86400,
                rejected_share=0.002,
                confidence=None
                if contract.task == "regression"
                else float(one.scores.max(axis=1).mean())
                if len(one.rows)
                else None,
            )
            for place, one in enumerate(windows)
        ),
        columns=tuple(columns),
    )


def quality_of(
    accuracy: float, n_labelled: int, *, level: Level = "quiet", until: datetime = NOON, name: str = "accuracy"
) -> QualityResult:
    half = 1.96 * float(np.sqrt(max(accuracy * (1 - accuracy), 1e-4) / max(1, n_labelled)))
    metric = QualityMetric(name=name, value=accuracy, low=accuracy - half, high=accuracy + half, baseline=0.95)
    whole = QualitySegment(column=None, value=None, n_labelled=n_labelled, metrics=(metric,), level=level)
    return QualityResult(
        model="plans",
        version="1.0.0-abcdef",
        made_at=until,
        since=until - 7 * DAY,
        until=until,
        level=level,
        n_rows=2 * n_labelled,
        n_labelled=n_labelled,
        coverage=0.5,
        estimated_accuracy=accuracy + 0.01,
        estimate_of_labelled=accuracy + 0.02,
        segments=(whole,),
    )


def keep(directory: Path, result: DriftResult | QualityResult, *pages: str) -> Path:
    """Keeps a run as the commands do, with pages of these names."""
    folder = folder_of(directory, result)
    folder.mkdir(parents=True)
    (folder / RESULT_FILE).write_text(result.model_dump_json())
    for name in pages:
        (folder / f"{name}.html").write_text("<p>a report")
        (folder / f"{name}.json").write_text("{}")
    return folder
