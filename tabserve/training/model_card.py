"""The page that comes with a model, for the people who decide whether to use it, and its plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.inspection import permutation_importance
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay
from sklearn.pipeline import Pipeline

from tabserve.contract import Contract, Feature, Rows
from tabserve.engine import Scores

MOST_ROWS_FOR_IMPORTANCE = 1000  # permuting each column five times on more rows takes minutes
MOST_FEATURES_SHOWN = 30
MOST_FEATURES_REPEATED = 100
MOST_CLASSES_SHOWN = 12  # curves of more classes cannot be told apart

mpl.rcParams.update(
    {"figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.3, "savefig.bbox": "tight", "text.parse_math": False}
)


def write_plots(
    directory: Path, *, contract: Contract, pipeline: Pipeline, rows: Rows, target: np.ndarray[Any, Any], scores: Scores
) -> list[str]:
    """Plots of the test rows as PNG files in `directory`; returns their names."""
    directory.mkdir()
    plots = {"feature_importance": _importance(contract, pipeline, rows, target)}
    if contract.task == "regression":
        plots |= {"predicted_against_actual": _actual(target, scores), "residuals": _residuals(target, scores)}
    else:
        plots |= {
            "roc": _curves(RocCurveDisplay, "ROC", contract, target, scores),
            "precision_recall": _curves(PrecisionRecallDisplay, "Precision and recall", contract, target, scores),
            "calibration": _calibration(contract, target, scores),
            "confusion_matrix": _confusion(contract, target, scores),
        }
    for name, figure in plots.items():
        figure.savefig(directory / f"{name}.png", metadata={"Software": None})
    return [f"{name}.png" for name in plots]


def _axes(title: str, height: float = 4.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, height))
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _shown_classes(contract: Contract) -> list[tuple[int, str]]:
    names = [str(label) for label in contract.classes]
    return [(1, names[1])] if contract.task == "binary" else list(enumerate(names))[:MOST_CLASSES_SHOWN]


def _curves(display: Any, title: str, contract: Contract, target: np.ndarray[Any, Any], scores: Scores) -> Figure:
    figure, axes = _axes(title)
    for code, name in _shown_classes(contract):
        if (target == code).any() and (target != code).any():
            display.from_predictions(target == code, scores[:, code], name=f"class {name}", ax=axes)
    return figure


def _calibration(contract: Contract, target: np.ndarray[Any, Any], scores: Scores) -> Figure:
    figure, axes = _axes("Calibration")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for code, name in _shown_classes(contract):
        actual, predicted = calibration_curve(
            target == code, scores[:, code].clip(0, 1), n_bins=10, strategy="quantile"
        )
        axes.plot(predicted, actual, marker="o", label=f"class {name}")
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of the rows that are of the class")
    axes.legend()
    return figure


def _confusion(contract: Contract, target: np.ndarray[Any, Any], scores: Scores) -> Figure:
    figure, axes = _axes("Confusion matrix")
    axes.grid(visible=False)
    labels = list(range(len(contract.classes)))
    ConfusionMatrixDisplay.from_predictions(
        target,
        scores.argmax(axis=1),
        labels=labels,
        display_labels=[str(label) for label in contract.classes],
        include_values=len(labels) <= MOST_CLASSES_SHOWN,
        cmap="Blues",
        ax=axes,
        colorbar=False,
        xticks_rotation="vertical" if len(labels) > 4 else "horizontal",
    )
    return figure


def _importance(contract: Contract, pipeline: Pipeline, rows: Rows, target: np.ndarray[Any, Any]) -> Figure:
    some = slice(0, MOST_ROWS_FOR_IMPORTANCE)
    scoring = "neg_mean_absolute_error" if contract.task == "regression" else "neg_log_loss"
    if contract.task != "regression" and len(set(target[some])) < len(contract.classes):
        scoring = "accuracy"  # log loss needs each class among the rows
    repeats = 5 if len(contract.features) <= MOST_FEATURES_REPEATED else 1
    found = permutation_importance(
        pipeline, contract.to_frame(rows[some]), target[some], scoring=scoring, n_repeats=repeats, random_state=0
    )
    order = np.argsort(found.importances_mean)[-MOST_FEATURES_SHOWN:]
    figure, axes = _axes("Feature importance (permutation)", height=1.5 + 0.2 * len(order))
    axes.barh(
        [contract.names[position] for position in order],
        found.importances_mean[order],
        xerr=found.importances_std[order],
    )
    axes.set_xlabel(f"loss of {scoring.removeprefix('neg_')} when the feature is shuffled")
    return figure


def _actual(target: np.ndarray[Any, Any], scores: Scores) -> Figure:
    figure, axes = _axes("Predicted against actual")
    axes.scatter(target, scores, s=8, alpha=0.5)
    ends = [min(target.min(), scores.min()), max(target.max(), scores.max())]
    axes.plot(ends, ends, color="grey", linestyle=":")
    axes.set_xlabel("actual")
    axes.set_ylabel("predicted")
    return figure


def _residuals(target: np.ndarray[Any, Any], scores: Scores) -> Figure:
    figure, axes = _axes("Residuals")
    axes.hist(target - scores, bins=30)
    axes.set_xlabel("actual minus predicted")
    axes.set_ylabel("rows")
    return figure


def write_card(path: Path, contract: Contract, metadata: Mapping[str, Any], plots: list[str]) -> None:
    """The card as Markdown, from the model's metadata (`recipe.py` says what is in it)."""
    metrics = "\n".join(
        f"| {name} | {_shown(metadata['baseline_metrics'].get(name))} | {_shown(metadata['train_metrics'].get(name))} "
        f"| {_shown(value)} |"
        for name, value in metadata["test_metrics"].items()
    )
    folds = "\n".join(
        f"- {name}: {_shown(found['mean'])} ± {_shown(found['std'])}" for name, found in metadata["cv"].items()
    )
    latency = "\n".join(f"- {name}: {value:.3f}" for name, value in metadata["latency"].items())
    limitations = "\n".join(f"- {limitation}" for limitation in metadata["known_limitations"])
    features = "\n".join(
        f"| {f.name} | {f.kind} | {_allowed(f)} | {'yes' if f.may_be_missing else 'no'} |" for f in contract.features
    )
    images = "\n".join(f"![{plot.removesuffix('.png').replace('_', ' ')}](plots/{plot})" for plot in plots)
    lineage = f"\n{_lineage(metadata['lineage'])}\n" if metadata.get("lineage") else ""
    report = f"```\n{metadata['classification_report']}\n```\n\n" if metadata.get("classification_report") else ""
    path.write_text(
        f"""# {metadata["name"]} {metadata["semantic_version"]}

{metadata["model_class"]} for a {contract.task} task: predicts `{contract.target}` from {len(contract.features)}
features. Trained on {metadata["trained_at"]} from {metadata["dataset"]["description"]},
{metadata["n_train"]} training and {metadata["n_test"]} test rows, split: {metadata["split"]}, seed {metadata["seed"]}.
Data SHA-256 {metadata["dataset"]["sha256"]}, git {metadata["git_commit"]}.
Served by {metadata["engine"]["engine"]}: {metadata["engine"]["reason"]}.
{lineage}
## How good it is

| metric | baseline | training rows | test rows |
|---|---|---|---|
{metrics}

The baseline knows only the training target: the share of each class, or the mean. Cross-validation on the training
rows, {len(metadata["cv_folds"])} folds:

{folds}

{report}## How fast it is

Milliseconds a call, on the machine that trained it:

{latency}

## Known limitations

{limitations}

## What a row is

Contract `{contract.hash}`.

| feature | kind | seen in training | may be missing |
|---|---|---|---|
{features}

## Plots

Of the test rows.

{images}
""",
        encoding="utf-8",
    )


def _lineage(lineage: Mapping[str, Any]) -> str:
    window, rows, labels = lineage["window"], lineage["rows"], lineage["labels"]
    return (
        f"Retrained from {lineage['retrained_from']}: {rows['used']} rows of the prediction log ({lineage['log']})\n"
        f"beside {rows['original']} of the table, predictions from {window['since']} to {window['until']}.\n"
        f"Of {labels['predictions_in_window']} there {labels['labelled']} had a label\n"
        f"that could be used ({labels['coverage']:.1%} by weight)."
    )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _allowed(feature: Feature) -> str:
    if feature.personal:
        return "personal, not shown"
    if feature.kind == "category":
        return ", ".join(map(str, feature.categories[:10])) + (", …" if len(feature.categories) > 10 else "")
    if feature.minimum is None or feature.maximum is None:
        return "true, false" if feature.kind == "boolean" else "missing"
    return f"{feature.minimum:g} to {feature.maximum:g}"
