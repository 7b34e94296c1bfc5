"""Evidently's reports: the same numbers as the gauges, a sample that says so, and no input that ends in a crash."""

import functools
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import BUILT_IN, CUSTOMERS, ROOT, SPEND, TrainedModels
from monitoring_results import (
    CONTRACT,
    REGRESSION,
    Batch,
    batch,
    drift_of,
    logged,
    of_task,
    quality_of,
    reference_of,
    sample_of,
    scores_of,
)
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score

from monitoring.reports import files as report_files
from monitoring.reports.evidently_reports import write_drift_reports, write_quality_reports
from tabserve.contract import Contract, Feature
from tabserve.reference import Reference
from tabserve.statistics.divergence import kl, psi

TRAINED = batch(4000, 0)
REFERENCE = reference_of(TRAINED)
SAMPLE = sample_of(TRAINED)
NOW = batch(900, 1, older_by=9)
RESULT = drift_of([batch(900, 2), NOW], REFERENCE)
UNEQUAL = "rows stand for different numbers of predictions"


def write(folder: Path, current: pd.DataFrame, reference: pd.DataFrame = SAMPLE, **more: Any) -> dict[str, Any]:
    """Writes drift reports and returns what drift.json says."""
    asked = {"result": RESULT, "sampled_from": None, "reference_bins": REFERENCE, "contract": CONTRACT, **more}
    paths = write_drift_reports(asked.pop("result"), current, reference, folder, **asked)
    assert [path.name for path in paths] == ["drift.html", "drift.json", "summary.html", "summary.json"]
    strictly(folder / "summary.json")
    return strictly(folder / "drift.json")


def strictly(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def scores(report: dict[str, Any]) -> dict[str, float]:
    """What Evidently says of each column, by its name in the log."""
    assert "error" not in report, report["error"]
    return {report["columns"][m["config"]["column"]]: m["value"] for m in report["metrics"]}


def top_of(page: Path) -> str:
    """The words at the top of a page, before anything of Evidently's."""
    found = re.search(r'<body>\s*<style>.*?</style><div class="tabserve">(.*?)</div>', page.read_text(), re.DOTALL)
    assert found
    return unescape(re.sub(r"<[^>]+>", " ", found[1]))


def expected(of: Batch, reference: Reference, contract: Contract) -> dict[str, float]:
    """What a gauge of these rows is."""
    found = {}
    for position, feature in enumerate(contract.features):
        bins = reference.features[feature.name]
        found[f"feature:{feature.name}"] = kl(bins.counts, bins.count(of.rows[:, position]))
    values = scores_of(of, contract).reshape(len(of.rows), len(reference.predictions))
    for position, (key, bins) in enumerate(reference.predictions.items()):
        name = "value" if contract.task == "regression" else f"probability:{key}"
        found[name] = psi(bins.counts, bins.count(values[:, position]))
    return found


# --- numbers


def test_a_report_says_the_numbers_of_the_gauges_of_the_same_rows(tmp_path: Path) -> None:
    """Numbers, categories, booleans and missing values: none of which Evidently counts as we do."""
    report = write(tmp_path, logged(NOW))
    found = scores(report)

    assert found == pytest.approx(expected(NOW, REFERENCE, CONTRACT), abs=1e-9)
    assert len(found) == 7
    assert found["feature:age"] == pytest.approx(RESULT.columns[0].divergences[-1].kl, abs=1e-9)
    methods = {report["columns"][m["config"]["column"]]: m["config"] for m in report["metrics"]}
    assert (methods["feature:city"]["method"], methods["feature:city"]["threshold"]) == ("kl in training bins", 0.1)
    assert methods["probability:pro"]["method"] == "psi in training bins"
    assert methods["probability:pro"]["threshold"] == 0.2


def test_a_rise_of_missing_values_alone_is_in_the_number(tmp_path: Path) -> None:
    current = logged(NOW)
    current.loc[:300, ["feature:income", "feature:city", "feature:member"]] = None
    now = Batch(NOW.rows.copy(), NOW.scores)
    now.rows[:301, [1, 2, 4]] = np.nan
    found = scores(write(tmp_path, current))

    assert found == pytest.approx(expected(now, REFERENCE, CONTRACT), abs=1e-9)
    assert min(found["feature:income"], found["feature:city"], found["feature:member"]) > 0.1


def test_the_reference_is_all_training_rows_and_not_the_sample(tmp_path: Path) -> None:
    few = SAMPLE[SAMPLE["feature:age"] > 60].reset_index(drop=True)

    assert scores(write(tmp_path, logged(NOW), few)) == pytest.approx(expected(NOW, REFERENCE, CONTRACT), abs=1e-9)
    assert f"{len(few)} reference rows" in top_of(tmp_path / "drift.html")


def test_rows_of_different_weight_count_by_it(tmp_path: Path) -> None:
    current = logged(NOW).assign(weight=np.where(np.arange(900) < 300, 10.0, 1.0))
    repeated = [*range(900), *(list(range(300)) * 9)]
    same = Batch(NOW.rows[repeated], NOW.scores[repeated])

    assert scores(write(tmp_path, current)) == pytest.approx(expected(same, REFERENCE, CONTRACT), abs=1e-9)
    assert UNEQUAL in top_of(tmp_path / "drift.html")


def test_against_last_week_the_reference_is_the_counts_of_the_result(tmp_path: Path) -> None:
    week_before = batch(2000, 5, older_by=9)
    earlier = drift_of([week_before], REFERENCE)  # its window is in training's bins
    columns = tuple(
        column.model_copy(update={"reference": before.windows[0]})
        for column, before in zip(RESULT.columns, earlier.columns, strict=True)
    )
    result = RESULT.model_copy(update={"against": "last-week", "columns": columns})
    report = write(tmp_path, logged(NOW), logged(week_before), result=result)

    bins = REFERENCE.features["age"]
    wanted = kl(bins.count(week_before.rows[:, 0]), bins.count(NOW.rows[:, 0]))
    assert scores(report)["feature:age"] == pytest.approx(wanted, abs=1e-9)
    assert wanted < 0.05 < expected(NOW, REFERENCE, CONTRACT)["feature:age"]
    assert "Compared with the week before" in top_of(tmp_path / "drift.html")


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_models_as_they_are_saved_have_reports(models: TrainedModels, name: str, tmp_path: Path) -> None:
    model, directory = models.load(name), models.directory(name)
    reference = Reference.load(directory / "reference.json")
    sample = pd.read_parquet(directory / "reference.parquet")
    rows = np.vstack([_coded(model.contract, row) for row in model.examples["instances"]] * 200)
    now = Batch(rows, _two_dimensional(model.engine.predict(rows), model.contract))
    if model.contract.task == "regression":
        now = Batch(rows, np.column_stack([now.scores, now.scores / 1000]))
    result = drift_of([now, now], reference, model.contract, model=name, version="1")
    report = write(tmp_path, logged(now, model.contract), sample, result=result, reference_bins=reference,
                   contract=model.contract)  # fmt: skip

    assert scores(report) == pytest.approx(expected(now, reference, model.contract), abs=1e-9)
    assert report["left_out"] == {}


def _coded(contract: Contract, values: list[Any]) -> list[float]:
    coded = []
    for feature, value in zip(contract.features, values, strict=True):
        if value is None:
            coded.append(np.nan)
        else:
            coded.append(float(feature.categories.index(value) if feature.kind == "category" else value))
    return coded


def _two_dimensional(found: np.ndarray, contract: Contract) -> np.ndarray:
    return found.reshape(len(found), max(1, len(contract.classes)))


# --- what is said at the top


def test_a_sample_says_so_at_the_top_and_in_the_json(tmp_path: Path) -> None:
    report = write(tmp_path, logged(NOW), sampled_from=10_412_339)

    sentence = "A sample of 900 of 10,412,339 rows; the gauges and the verdict count all rows."
    assert report["sample"] == sentence
    assert report["rows"] == {"current": 900, "sampled_from": 10_412_339, "reference": 1000}
    for name in ("drift", "summary"):
        assert sentence in top_of(tmp_path / f"{name}.html")
    assert strictly(tmp_path / "summary.json")["sample"] == sentence


def test_all_rows_say_nothing_of_a_sample_but_what_was_found(tmp_path: Path) -> None:
    report = write(tmp_path, logged(NOW), sampled_from=900)
    top = top_of(tmp_path / "drift.html")

    assert report["sample"] is None
    assert "sample" not in top
    assert "1 of 5 features may be drifting: age" in top
    assert "plans:1.0.0-abcdef, 900 rows of 2026-11-21 12:00 to 2026-11-22 12:00 UTC" in top
    assert (report["model"], report["version"], report["level"]) == ("plans", "1.0.0-abcdef", "warning")
    assert report["evidently"] == "0.7.23"
    assert "<title>Data drift: 1 of 5 features" in (tmp_path / "drift.html").read_text()


def test_more_rows_than_can_be_drawn_are_counted_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.reports.evidently_reports.MOST_ROWS_DRAWN", 500)
    report = write(tmp_path, logged(NOW))

    assert scores(report) == pytest.approx(expected(NOW, REFERENCE, CONTRACT), abs=1e-9)
    assert "Of more than 500 rows that many are in the plots, all in the numbers" in top_of(tmp_path / "drift.html")


def test_a_page_without_a_body_has_its_words_at_the_start() -> None:
    assert report_files.with_banner("<p>x", "<b>said</b>") == "<b>said</b><p>x"
    assert report_files.with_banner("a<body>b<body>c", "X").split() == ["a<body>", "X", "b<body>c"]


def test_what_json_cannot_say_is_null() -> None:
    odd = {np.float64("nan"): [float("inf"), np.float32(0.5), np.array([np.nan, 1.0]), {True}, Path("x")], 1: None}

    assert report_files.strict(odd) == {"nan": [None, 0.5, [None, 1.0], [True], "x"], "1": None}


# --- input that is broken


def _set(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**{column: value})


def _some(column: str, values: list[Any]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        objects = table[column].astype(object)
        objects.iloc[: len(values)] = values
        return table.assign(**{column: objects})

    return change


def _all(*changes: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: functools.reduce(lambda changed, change: change(changed), changes, table)


BROKEN: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], list[str]]] = {
    "empty columns": (
        _all(
            _set("feature:income", np.nan),
            _set("feature:city", None),
            lambda table: table.assign(**{"feature:age": pd.array([None] * len(table), dtype="Int64")}),
        ),
        [
            "income: no current row has a value; kl in training bins ",
            "city: no current row has a value",
            "age: no current row has a value",
        ],
    ),
    "columns that are not there": (
        lambda table: table.drop(columns=["feature:age", "probability:pro"]),
        ["age: no column of it in the log's rows", "probability of pro: no column of it in the log's rows"],
    ),
    "infinities, categories and booleans of any type": (
        _all(
            _some("feature:income", [np.inf, -np.inf]),
            _set("feature:age", np.inf),
            _some("feature:city", [["Oslo"], {}, 7, "Paris"]),
            _some("feature:member", ["true", "False", "perhaps", {}]),
        ),
        ["income: 2 infinite values are counted in the outermost bins", "age: no current row has a value"],
    ),
    "numbers of any type": (
        _all(
            _some("feature:income", ["12.5", "much", pd.NA]),
            _some("feature:age", [True, b"x", 3 + 0j, {}]),
            lambda table: table.astype({"feature:member": "Float64", "feature:city": "category"}),
        ),
        ["income: 1 values are no numbers", "age: 3 values are no numbers"],
    ),
    "constants": (_all(_set("feature:income", 5.0), _set("feature:city", "Oslo"), _set("probability:pro", 0.5)), []),
    "one row": (lambda table: table[:1], []),
    "an index and a column twice": (
        lambda table: pd.concat([table, table[["feature:age"]]], axis=1).set_index(pd.Index(["x"] * len(table))),
        [],
    ),
    "weights that are none": (_set("weight", -1.0), ["every row counts once"]),
    "no column at all": (lambda table: table[[]], ["no column is left that both sides have values of"]),
    "no rows": (lambda table: table[:0], ["the window has no rows"]),
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_is_broken_in_the_rows_ends_in_a_report_that_says_so(what: str, tmp_path: Path) -> None:
    change, said = BROKEN[what]
    report = write(tmp_path, change(logged(NOW)))

    assert ("error" in report) == (what in {"no rows", "no column at all"}), report.get("error")
    for page in ("drift.html", "summary.html"):
        top = top_of(tmp_path / page)
        assert [sentence for sentence in said if sentence not in top] == []
    if "error" not in report:
        assert len(report["metrics"]) + len(report["left_out"]) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("feature:income", np.nan), "income: no reference row has a value"),
        (lambda table: table.drop(columns="feature:age"), "age: no column of it in the reference"),
        (lambda table: table[:0], "no reference row has a value"),
        (lambda table: table[:1], None),
    ],
)
def test_whatever_is_broken_in_the_reference_too(change: Callable, said: str | None, tmp_path: Path) -> None:
    write(tmp_path, logged(NOW), change(SAMPLE))

    assert said is None or said in top_of(tmp_path / "drift.html")


def test_columns_that_are_left_out_leave_the_others_as_they_were(tmp_path: Path) -> None:
    current = logged(NOW).drop(columns="feature:zone").assign(**{"feature:income": np.nan})
    found = scores(write(tmp_path, current))

    wanted = expected(NOW, REFERENCE, CONTRACT)
    assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-9)
    assert set(wanted) - set(found) == {"feature:zone", "feature:income"}


def test_names_that_hold_html_are_harmless_and_names_that_are_the_same_are_told_apart(tmp_path: Path) -> None:
    evil = "</script><script>document.title='hit'</script>"
    names = (evil, "probability of yes", "", "ø 'q\" {{ 7*7 }} %s \\ \u2028")
    features = [Feature(name=name, kind="number", quantiles=(2e4, 5e4)) for name in names]
    features.append(Feature(name="<b>", kind="category", categories=("<img src=x onerror=1>", "plain")))
    contract = Contract(features=tuple(features), task="binary", target="y", classes=("no", "yes"))
    some = [Batch(batch(600, seed).rows[:, [1, 1, 1, 1, 3]], batch(600, seed).scores) for seed in (1, 2)]
    reference = reference_of(some[0], contract)
    result = drift_of(some, reference, contract)
    report = write(tmp_path, logged(some[1], contract), sample_of(some[0], contract), result=result,
                   reference_bins=reference, contract=contract)  # fmt: skip

    assert scores(report) == pytest.approx(expected(some[1], reference, contract), abs=1e-9)
    assert {"probability of yes", "probability of yes (2)", "(no name)"} <= set(report["columns"])
    for page in ("drift.html", "summary.html"):
        html = (tmp_path / page).read_text()
        assert "document.title='hit'" in html
        assert "<script>document.title" not in html
        assert "<img src=x" not in html


def test_what_evidently_raises_becomes_a_page_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evidently import Report

    def fail(*_: object, **__: object) -> None:
        raise KeyError("<script>deep inside</script>")

    monkeypatch.setattr(Report, "run", fail)
    report = write(tmp_path, logged(NOW).assign(**{"feature:income": np.nan}), sampled_from=1000)

    assert report["error"].startswith("Evidently failed with KeyError: ")
    assert report["scores"]["age"] == pytest.approx(expected(NOW, REFERENCE, CONTRACT)["feature:age"], abs=1e-9)
    for name in ("drift", "summary"):
        top = top_of(tmp_path / f"{name}.html")
        assert "This report could not be made: Evidently failed with KeyError: '<script>deep inside" in top
        assert "income: no current row has a value" in top
        assert "A sample of 900 of 1,000 rows" in top
        assert "<script>deep" not in (tmp_path / f"{name}.html").read_text()


def test_without_evidently_a_page_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evidently", None)
    report = write(tmp_path, logged(NOW))

    assert "make .venv/monitoring.installed" in report["error"]
    assert "make .venv/monitoring.installed" in top_of(tmp_path / "drift.html")


def test_nothing_is_printed_and_nobody_is_warned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(tmp_path, logged(NOW).assign(**{"feature:income": 5.0}))

    assert [str(one.message) for one in caught] == []
    assert capfd.readouterr() == ("", "")


def test_evidently_is_imported_only_where_a_report_is_made() -> None:
    ours = "monitoring.reports.evidently_reports, monitoring.reports.index"
    code = f"import sys, {ours}; sys.exit('evidently' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- quality


def labelled(n_rows: int = 600, contract: Contract = CONTRACT) -> pd.DataFrame:
    some = batch(n_rows, 3)
    table = logged(some, contract)
    random = np.random.default_rng(4)
    if contract.task == "regression":
        return table.assign(true_value=table["value"] + random.normal(0, 30, n_rows))
    codes = (random.random(n_rows)[:, None] > some.scores.cumsum(axis=1)).sum(axis=1)
    return table.assign(true_label=np.array(contract.classes, dtype=object)[codes])


def quality(folder: Path, table: pd.DataFrame, contract: Contract = CONTRACT, **more: Any) -> dict[str, Any]:
    paths = write_quality_reports(quality_of(0.7, len(table)), table, folder, contract=contract, **more)
    assert [path.name for path in paths] == ["quality.html", "quality.json"]
    return strictly(folder / "quality.json")


def metric(report: dict[str, Any], name: str) -> Any:
    assert "error" not in report, report["error"]
    return next(m["value"] for m in report["metrics"] if m["metric_name"].startswith(f"{name}("))


@pytest.mark.parametrize("classes", [("basic", "pro"), (0, 1)])
def test_of_two_classes_the_last_is_the_positive_one(classes: tuple, tmp_path: Path) -> None:
    contract = of_task("binary", *classes)
    table = labelled(contract=contract)
    table.loc[:20, ["probability:class_0", "probability:class_1"] if classes == (0, 1) else
              ["probability:basic", "probability:pro"]] = 0.5  # fmt: skip
    table.loc[:20, "label"] = classes[0]
    true, found = table["true_label"].astype(str), table["label"].astype(str)
    report = quality(tmp_path, table.astype({"true_label": object}), contract)

    last = str(classes[1])
    assert metric(report, "Accuracy") == pytest.approx(accuracy_score(true, found))
    assert metric(report, "Precision") == pytest.approx(precision_score(true, found, pos_label=last))
    assert metric(report, "Recall") == pytest.approx(recall_score(true, found, pos_label=last))
    wanted = roc_auc_score(true == last, table[f"probability:{contract.probability_keys[1]}"])
    assert metric(report, "RocAuc") == pytest.approx(wanted, abs=0.01)


def test_several_classes_and_a_quantity_have_reports_too(tmp_path: Path) -> None:
    three = of_task("multiclass", "basic", "plus", "pro")
    random = np.random.default_rng(1)
    found = random.dirichlet([1, 1, 1], 500)
    names = np.array(three.classes, dtype=object)
    table = pd.DataFrame({f"probability:{name}": found[:, code] for code, name in enumerate(three.classes)})
    table = table.assign(label=names[found.argmax(axis=1)], true_label=random.choice(names, 500))
    report = quality(tmp_path, table, three)
    assert metric(report, "Accuracy") == pytest.approx(accuracy_score(table["true_label"], table["label"]))
    assert metric(report, "RocAuc") is not None

    report = quality(tmp_path, table[table["true_label"] != "plus"], three)
    assert metric(report, "Accuracy") > 0
    assert "no row is labelled plus" in top_of(tmp_path / "quality.html")

    table = labelled(contract=REGRESSION)
    report = quality(tmp_path, table, REGRESSION)
    assert metric(report, "MAE")["mean"] == pytest.approx((table["value"] - table["true_value"]).abs().mean())


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    table = labelled()
    table.loc[:99, "true_label"] = None
    table.loc[100:109, "true_label"] = "gold"
    report = quality(tmp_path, table.assign(weight=np.where(table.index < 300, 5.0, 1.0)), sampled_from=5000)
    top = top_of(tmp_path / "quality.html")

    assert report["rows"] == {"current": 600, "sampled_from": 5000, "used": 490}
    assert "110 of 600 rows are left out, without a label and a prediction of the contract's classes" in top
    assert "A sample of 600 of 5,000 rows" in top
    assert "accuracy 0.7 (95 % interval" in top
    assert UNEQUAL in top


def test_integer_labels_that_became_floats_are_the_classes_they_were(tmp_path: Path) -> None:
    contract = of_task("binary", 0, 1)
    table = labelled(contract=contract)
    wanted = accuracy_score(table["true_label"].astype(int), table["label"].astype(int))
    table["true_label"] = table["true_label"].astype(float)
    table["label"] = table["label"].astype("Int64")
    assert metric(quality(tmp_path, table, contract), "Accuracy") == pytest.approx(wanted)

    table["true_label"] = table["true_label"].astype(str)
    assert metric(quality(tmp_path, table, contract), "Accuracy") == pytest.approx(wanted)


BROKEN_LABELS: dict[str, tuple[Contract, Callable[[pd.DataFrame], pd.DataFrame], str | None]] = {
    "one class": (CONTRACT, _set("true_label", "pro"), "all 600 labelled rows are of the class pro"),
    "one predicted class": (CONTRACT, _set("label", "pro"), None),
    "no label": (CONTRACT, _set("true_label", None), "a report needs two labelled rows, here are 0"),
    "no rows": (CONTRACT, lambda table: table[:0], "a report needs two labelled rows, here are 0"),
    "one row": (CONTRACT, lambda table: table[:1], "a report needs two labelled rows, here are 1"),
    "no column": (CONTRACT, lambda table: table.drop(columns="true_label"), "have no column true_label"),
    "no probabilities": (CONTRACT, lambda table: table[["label", "true_label"]], "the rows have no probabilities"),
    "constant probabilities": (CONTRACT, _set("probability:pro", 0.5), None),
    "infinite probabilities": (CONTRACT, _some("probability:pro", [np.inf, np.nan]), "2 of 600 rows are left out"),
    "strange labels": (CONTRACT, _some("true_label", [["pro"], {}, pd.NA, 1.5]), "4 of 600 rows are left out"),
    "no value": (REGRESSION, _set("true_value", np.nan), "a report needs two labelled rows, here are 0"),
    "infinite values": (REGRESSION, _some("true_value", [np.inf, "x", None]), "3 of 600 rows are left out"),
    "constant values": (REGRESSION, lambda table: table.assign(value=3.0, true_value=3.0), None),
    "zeros": (REGRESSION, _set("true_value", 0.0), "every true plan is 0, and Evidently divides"),
    "two rows": (REGRESSION, lambda table: table[:2], None),
}


NO_REPORT = {"one class", "no label", "no rows", "one row", "no column", "no value", "zeros"}


@pytest.mark.parametrize("what", BROKEN_LABELS)
def test_whatever_is_broken_in_the_labels_ends_in_a_report_that_says_so(what: str, tmp_path: Path) -> None:
    contract, change, said = BROKEN_LABELS[what]
    report = quality(tmp_path, change(labelled(contract=contract)), contract)

    assert ("error" in report) == (what in NO_REPORT), report.get("error")
    if said:
        assert said in top_of(tmp_path / "quality.html")


def test_a_file_that_cannot_be_written_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "quality.html").mkdir()

    with pytest.raises(OSError, match="directory"):
        quality(tmp_path, labelled())
    assert [path.name for path in tmp_path.iterdir()] == ["quality.html"]
