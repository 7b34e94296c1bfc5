"""python -m monitoring.quality on real logs: real models, their own predictions, labels as a service keeps them."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, TrainedModels, home_in_use
from monitoring_parts import spread, write_predictions
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, mean_absolute_error
from tables import customers

from monitoring import quality
from monitoring.live import labelled
from monitoring.live.labelled import reference_averages
from monitoring.live.version_quality import Quality, find_quality
from monitoring.models import load
from monitoring.reports.keeping import keep_result
from monitoring.results import QualityResult
from tabserve.contract import Contract, Feature, Rows
from tabserve.history.records import readable_place
from tabserve.history.segments import segment_column
from tabserve.history.window import BadQuestionError, Window
from tabserve.labels import Labels
from tabserve.model_store import REFERENCE_SAMPLE_FILE, LoadedModel
from tabserve.prediction_log.labels import label_batch

HOUR = timedelta(hours=1)
N_ROWS = 1500


def write_labels(
    folder: Path, ids: Sequence[str], labels: Sequence[object], at: datetime | None = None, name: str = "0"
) -> None:
    """A rolled file of labels: texts of classes, or numbers."""
    of_text = [label if isinstance(label, str) else None for label in labels]
    numbers = [None if isinstance(label, str) else float(label) for label in labels]
    moment = at or datetime.now(UTC)
    times = np.full(len(ids), int(moment.timestamp() * 1e6), np.int64)
    target = folder / "labels" / f"date={moment.date()}"
    target.mkdir(parents=True, exist_ok=True)
    batch = label_batch(Labels(list(ids), of_text, numbers), times, "import")
    pq.write_table(pa.Table.from_batches([batch]), target / f"{name}.parquet")


def coded(contract: Contract, frame: pd.DataFrame) -> Rows:
    columns = []
    for feature in contract.features:
        column = frame[feature.name]
        if feature.kind == "category":
            codes = {category: code for code, category in enumerate(feature.categories)}
            columns.append([codes.get(value, np.nan) for value in column])
        else:
            columns.append(pd.to_numeric(column).astype("Float64").to_numpy(np.float64, na_value=np.nan))
    return np.array(columns, np.float64).T


class Log:
    """A log with predictions of one of the models, and what came true of them."""

    def __init__(self, folder: Path, model: LoadedModel, frame: pd.DataFrame, ago: timedelta = 2 * HOUR) -> None:
        self.folder, self.model = folder, model
        rows = coded(model.contract, frame)
        self.scores = model.engine.predict(rows)
        since = datetime.now(UTC) - ago
        times = spread(len(rows), since, HOUR)
        self.ids = write_predictions(folder, model.contract, rows, self.scores, times, model_version=model.tag)
        self.frame = frame

    @property
    def said(self) -> list[str]:
        return [str(self.model.contract.classes[code]) for code in self.scores.argmax(axis=1)]

    def run(self, *arguments: str) -> int:
        return quality.main(["--log-url", self.folder.as_uri(), "--window", "1d", *arguments])

    def find(self, *by: str) -> Quality:
        model = self.model
        now = datetime.now(UTC)
        window = Window(now - 24 * HOUR, now)
        columns = [segment_column(model.contract, name) for name in by]
        return find_quality(readable_place(self.folder.as_uri()), load(*model.tag.split(":")), window, columns)


@pytest.fixture
def home(models: TrainedModels) -> Iterator[Path]:
    with home_in_use(models.home) as home:
        yield home


@pytest.fixture
def customers_log(models: TrainedModels, home: Path, tmp_path: Path) -> Log:
    """Customers that the model never saw."""
    return Log(tmp_path, models.load(CUSTOMERS), customers(N_ROWS, seed=99))


@pytest.fixture
def spend_log(models: TrainedModels, home: Path, tmp_path: Path) -> Log:
    return Log(tmp_path, models.load(SPEND), customers(N_ROWS, seed=99))


def wrong(plan: str) -> str:
    return "basic" if plan != "basic" else "pro"


# --- the verdict


def test_a_model_that_is_as_good_as_it_was_is_quiet(customers_log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    assert log.run() == 0
    out = capsys.readouterr().out
    accuracy = accuracy_score(log.frame["plan"], log.said)
    assert out.startswith(f"quiet: {log.model.tag}: accuracy {accuracy:.4g}, at training ")
    assert f"{N_ROWS:,} predictions, {N_ROWS:,} labels (100.00% have one" in out
    was = log.model.metadata["test_metrics"]
    for name in ("accuracy", "f1_macro", "roc_auc", "brier", "log_loss"):
        assert re.search(rf"^{name} +[0-9.]+  [0-9.]+ to [0-9.]+ +{was[name]:.4g}$", out, re.MULTILINE), name
    assert "estimated accuracy of all predictions, from their scores alone: 0." in out


def test_a_model_that_became_worse_is_an_alarm_and_its_scores_promise_too_much(
    customers_log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log = customers_log
    labels = [wrong(said) if place % 3 == 0 else said for place, said in enumerate(log.said)]
    write_labels(log.folder, log.ids, labels)
    assert log.run() == 1
    out = capsys.readouterr().out
    assert out.startswith("ALARM: customers:")
    assert "points worse, more than chance" in out.splitlines()[0]
    assert "the scores are not calibrated now: do not trust the estimate" in out


def test_with_few_labels_there_is_an_estimate_and_nothing_else_is_said(
    customers_log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log = customers_log
    assert log.run() == 3
    out = capsys.readouterr().out
    assert out.startswith(f"too few labels to say: {log.model.tag}: 0 labels, 300 are needed")
    assert f"from their scores alone: {log.scores.max(axis=1).mean():.4g}" in out
    assert "no label came that it could be checked against" in out

    write_labels(log.folder, log.ids[:299], log.said[:299])
    assert log.run() == 3
    out = capsys.readouterr().out
    assert "299 labels, 300 are needed" in out
    assert "fewer than 300 labels cannot say whether it holds" in out


def test_the_estimate_is_of_all_rows_and_is_checked_on_those_with_a_label(customers_log: Log) -> None:
    log = customers_log
    some = slice(0, 500)
    write_labels(log.folder, log.ids[some], log.said[some])
    result = log.find().result
    sure = log.scores.max(axis=1)
    assert result.estimated_accuracy == pytest.approx(sure.mean())
    assert result.estimate_of_labelled == pytest.approx(sure[some].mean())
    assert result.coverage == pytest.approx(1 / 3)
    assert result.estimate_holds is False  # all were right, which the scores did not promise


def test_integer_classes_are_met_by_labels_that_are_their_text(
    models: TrainedModels, home: Path, tmp_path: Path
) -> None:
    rows, target = load_breast_cancer(return_X_y=True, as_frame=True)
    log = Log(tmp_path, models.load(BUILT_IN), rows)
    write_labels(log.folder, log.ids, [str(label) for label in target])
    metrics = {metric.name: metric.value for metric in log.find().result.segments[0].metrics}
    assert metrics["accuracy"] == pytest.approx(accuracy_score(target, log.scores.argmax(axis=1)))
    assert log.run() == 0


def test_a_regression_is_judged_by_its_errors(spend_log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log = spend_log
    write_labels(log.folder, log.ids, log.frame["spend"].tolist())
    assert log.run("--by", "city") == 0
    out = capsys.readouterr().out
    error = mean_absolute_error(log.frame["spend"], log.scores)
    assert f"mean absolute error {error:.4g}, at training {log.model.metadata['test_metrics']['mae']:.4g}" in out
    assert "estimate" not in out
    assert re.search(r"^by city +labels +mae +95 % interval +at training$", out, re.MULTILINE)

    write_labels(log.folder, log.ids, (log.frame["spend"] + 60).tolist(), name="1")
    assert log.run() == 1
    assert "worse, more than chance" in capsys.readouterr().out


# --- segments


def test_a_group_that_got_worse_alarms_and_is_the_first_of_its_lines(
    customers_log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log = customers_log
    is_oslo = (log.frame["city"] == "Oslo").to_numpy()
    worse = is_oslo & (np.random.default_rng(0).random(N_ROWS) < 0.6)
    labels = np.where(worse, [wrong(said) for said in log.said], log.said)
    write_labels(log.folder, log.ids, labels.tolist())
    assert log.run("--by", "city", "--by", "age", "--by", "feature:city") == 1  # the same, by its other name
    lines = capsys.readouterr().out.splitlines()
    assert "city = Oslo: accuracy" in lines[0]
    assert len([line for line in lines if line.startswith("by city")]) == 1
    first = lines[next(place for place, line in enumerate(lines) if line.startswith("by city")) + 1]
    assert first.startswith("Oslo")
    assert first.endswith("ALARM")
    assert f"{int(is_oslo.sum()):,}" in first
    assert next(line for line in lines if line.startswith("(missing)")).endswith("too few labels to say")


def test_a_group_that_was_always_harder_warns_and_does_not_alarm(
    customers_log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Oslo 0.75 were right at training, elsewhere 0.86 and more."""
    log = customers_log
    is_oslo = (log.frame["city"] == "Oslo").to_numpy()
    share = np.where(is_oslo, 0.25, 0.08)
    worse = np.random.default_rng(0).random(N_ROWS) < share
    write_labels(log.folder, log.ids, np.where(worse, [wrong(said) for said in log.said], log.said).tolist())
    assert log.run("--by", "city") == 0
    out = capsys.readouterr().out
    assert out.startswith("WARNING: ")
    assert re.search("city = Oslo: accuracy .*, of the others .* points worse, more than chance", out.splitlines()[0])


def test_segments_are_whole_and_have_the_accuracy_of_their_rows(customers_log: Log) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    result = log.find("city", "member", "age", "income", "label").result
    by_column: dict[str, dict[str, tuple[int, float]]] = {}
    for segment in result.segments[1:]:
        by_column.setdefault(str(segment.column), {})[str(segment.value)] = (
            segment.n_labelled,
            segment.metrics[0].value,
        )
    assert {column: sum(n for n, _ in parts.values()) for column, parts in by_column.items()} == dict.fromkeys(
        ("city", "member", "age", "income", "label"), N_ROWS
    )
    assert set(by_column["city"]) == {"Bergen", "Oslo", "Tromsø", "(missing)"}
    assert set(by_column["member"]) == {"false", "true"}
    assert len(by_column["age"]) == 4
    assert len(by_column["income"]) == 5  # four quarters, and missing
    is_right = np.array(log.said) == log.frame["plan"].to_numpy()
    in_bergen = (log.frame["city"] == "Bergen").to_numpy()
    model = log.model
    known = reference_averages(
        load(*model.tag.split(":")).sample, model.contract, segment_column(model.contract, "member")
    )
    for segment in result.segments:
        if segment.column == "member":
            assert f"at training {known[str(segment.value)].value:.4g}" in segment.because
            assert segment.metrics[0].baseline == known[str(segment.value)].value
    assert by_column["city"]["Bergen"] == (int(in_bergen.sum()), pytest.approx(is_right[in_bergen].mean()))


def test_a_group_is_held_against_what_it_was_at_training(models: TrainedModels) -> None:
    model = models.load(CUSTOMERS)
    path = models.directory(CUSTOMERS) / REFERENCE_SAMPLE_FILE
    sample = pd.read_parquet(path)
    for name, column in (("city", "feature:city"), ("label", "prediction")):
        found = reference_averages(path, model.contract, segment_column(model.contract, name))
        for part, rows in sample.groupby(sample[column].fillna("(missing)")):
            assert found[str(part)].value == pytest.approx((rows["target"] == rows["prediction"]).mean())
            assert found[str(part)].n_rows == len(rows)
    quarters = reference_averages(path, model.contract, segment_column(model.contract, "income"))
    assert sum(part.n_rows for part in quarters.values()) == len(sample)
    assert {round(part.n_rows / len(sample), 1) for name, part in quarters.items() if name != "(missing)"} == {0.2}
    assert reference_averages(path, model.contract, segment_column(model.contract, "variant")) == {}


def test_a_model_can_be_asked_by_what_answered(customers_log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    assert log.run("--by", "variant") == 0
    assert re.search(rf"^champion +{N_ROWS:,} ", capsys.readouterr().out, re.MULTILINE)


def test_an_unknown_column_names_those_there_are_and_a_personal_one_is_refused(
    customers_log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    assert customers_log.run("--by", "colour") == 2
    assert "there is no column 'colour' to part the rows by: there are age, income, city" in caplog.text
    contract = Contract(
        features=(Feature(name="salary", kind="number", personal=True), Feature(name="x", kind="number")),
        task="regression",
        target="y",
    )
    with pytest.raises(BadQuestionError, match="salary is a personal feature"):
        segment_column(contract, "salary")
    with pytest.raises(BadQuestionError, match="there are x, variant$"):
        segment_column(contract, "label")


def test_parts_of_numbers_have_names_that_tell_them_apart() -> None:
    def parts(*quantiles: float) -> str:
        feature = Feature(name='a "b"', kind="number", quantiles=quantiles)
        return segment_column(Contract(features=(feature,), task="regression", target="y"), feature.name).sql

    assert "'below 2.5'" in parts(*range(1, 10))
    assert '"feature:a ""b"""' in parts(*range(9))
    assert "'1000000.2 to 1000000.5'" in parts(*[1_000_000 + tenth / 10 for tenth in range(1, 10)])
    assert parts(*[3.0] * 9).count("WHEN") == 2
    assert "any number" in parts()


# --- which rows


def test_rows_count_with_their_weight(models: TrainedModels, home: Path, tmp_path: Path) -> None:
    model, frame = models.load(CUSTOMERS), customers(400, seed=3)
    rows = coded(model.contract, frame)
    scores = model.engine.predict(rows)
    since = datetime.now(UTC) - 2 * HOUR
    said = [str(model.contract.classes[code]) for code in scores.argmax(axis=1)]
    for part, weight in ((slice(0, 100), 5.0), (slice(100, 400), 1.0)):
        n_rows = part.stop - part.start
        ids = write_predictions(
            tmp_path,
            model.contract,
            rows[part],
            scores[part],
            spread(n_rows, since, HOUR),
            model_version=model.tag,
            weight=weight,
        )
        labels = said[part] if weight == 1 else [wrong(plan) for plan in said[part]]
        came = datetime.now(UTC) + (0 if weight == 1 else 10) * HOUR
        write_labels(tmp_path, ids, labels, came, name=str(weight))
    log = Log.__new__(Log)
    log.folder, log.model = tmp_path, model
    found = log.find().result
    assert found.segments[0].metrics[0].value == pytest.approx(300 / 800)
    expected = np.average(scores.max(axis=1), weights=[5.0] * 100 + [1.0] * 300)
    assert found.estimated_accuracy == pytest.approx(expected)
    assert found.label_delay_seconds["p50"] > 10 * 3600  # a quarter of the rows, and more than half of the weight
    width = found.segments[0].metrics[0].high - found.segments[0].metrics[0].low
    n_effective = 800**2 / (100 * 25 + 300)
    assert width == pytest.approx(2 * 1.96 * (0.375 * 0.625 / n_effective) ** 0.5, rel=0.02)


def test_mature_leaves_out_what_was_predicted_since(customers_log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log = customers_log  # predicted two hours ago, in one hour
    write_labels(log.folder, log.ids, log.frame["plan"])
    assert log.run("--mature", "90m") == 0
    n_rows = int(re.search(r"UTC: ([\d,]+) predictions", capsys.readouterr().out)[1].replace(",", ""))
    assert n_rows == pytest.approx(N_ROWS / 2, abs=N_ROWS / 30)
    assert log.run("--mature", "3h") == 3
    assert "no predictions" in capsys.readouterr().out


def test_the_delay_of_labels_is_said(customers_log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"], datetime.now(UTC) + 10 * HOUR)
    found = log.find().result
    assert found.label_delay_seconds["p50"] == pytest.approx(11.5 * 3600, rel=0.02)
    assert log.run() == 0
    assert "which came after p50 11.5 h, p90 11.9 h)" in capsys.readouterr().out


def test_labels_and_scores_that_the_model_cannot_have_are_left_out_and_counted(
    customers_log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    log = customers_log
    labels = log.frame["plan"].tolist()
    labels[:5] = ["gold"] * 5
    labels[5:7] = [1.0, 2.0]  # of a regression, as its values are kept
    write_labels(log.folder, log.ids, labels)
    result = log.find().result
    assert (result.n_labelled, result.n_unusable_labels) == (N_ROWS - 7, 7)
    assert log.run() == 0
    assert "7 labels or scores are none that this model can have: left out" in capsys.readouterr().out


def test_scores_that_are_no_numbers_are_left_out(models: TrainedModels, home: Path, tmp_path: Path) -> None:
    model, frame = models.load(CUSTOMERS), customers(400, seed=3)
    rows = coded(model.contract, frame)
    scores = model.engine.predict(rows)
    scores[:3, 0] = np.nan
    times = spread(400, datetime.now(UTC) - HOUR, HOUR)
    ids = write_predictions(tmp_path, model.contract, rows, scores, times, model_version=model.tag)
    write_labels(tmp_path, ids, frame["plan"])
    log = Log.__new__(Log)
    log.folder, log.model = tmp_path, model
    result = log.find().result
    assert (result.n_rows, result.n_labelled, result.n_unusable_labels) == (400, 397, 3)
    assert result.estimated_accuracy == pytest.approx(scores[3:].max(axis=1).mean())


def test_a_window_of_one_class_and_one_where_all_are_right_say_what_is_undefined(customers_log: Log) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, ["plus"] * N_ROWS)
    (whole,) = log.find().result.segments
    assert [metric.name for metric in whole.metrics] == ["accuracy", "brier", "log_loss", "ece"]
    assert whole.left_out == ("f1_macro: no label is basic, pro", "roc_auc: no label is basic, pro")
    write_labels(log.folder, log.ids, log.said, name="1")
    (whole,) = log.find().result.segments
    assert whole.level == "quiet"
    assert {metric.name: metric.value for metric in whole.metrics}["f1_macro"] == 1.0


def test_of_very_many_rows_ranks_are_of_a_sample_and_counts_of_all(
    customers_log: Log, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    exact = log.find("city").result
    monkeypatch.setattr(labelled, "MOST_ROWS", 600)
    sampled = log.find("city").result
    assert 500 < sampled.n_sampled < 700
    assert exact.n_sampled == N_ROWS
    for whole, part in zip(exact.segments, sampled.segments, strict=True):
        assert (whole.value, whole.n_labelled, whole.metrics[:2]) == (part.value, part.n_labelled, part.metrics[:2])
    area, of_sample = (result.segments[0].metrics[2] for result in (exact, sampled))
    assert area.name == "roc_auc"
    assert area.value == pytest.approx(of_sample.value, abs=0.05)
    assert area.value != of_sample.value
    assert log.find("city").result.segments == sampled.segments  # the same rows at each look
    assert log.run() == 0
    assert f"the other metrics of a sample of {sampled.n_sampled:,} labelled rows" in capsys.readouterr().out


def test_each_version_is_judged_apart_and_one_alarm_is_enough(
    models: TrainedModels, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Log(tmp_path, models.load(CUSTOMERS), customers(600, seed=1)), None
    write_labels(tmp_path, good.ids, good.frame["plan"])
    rows, target = load_breast_cancer(return_X_y=True, as_frame=True)
    bad = Log(tmp_path, models.load(BUILT_IN), rows)
    write_labels(tmp_path, bad.ids, [str(1 - label) for label in target], name="bad")
    assert good.run("--by", "city") == 1
    out = capsys.readouterr().out
    assert f"ALARM: {bad.model.tag}" in out
    assert f"quiet: {good.model.tag}" in out
    assert "by city" in out
    assert good.run("--model", good.model.tag) == 0
    assert bad.model.tag not in capsys.readouterr().out


# --- what a run leaves, and what it refuses


def test_a_run_that_is_kept_has_its_reports_and_stands_on_the_index_page(customers_log: Log, tmp_path: Path) -> None:
    log, kept = customers_log, tmp_path / "kept"
    write_labels(log.folder, log.ids, log.frame["plan"])
    assert log.run("--html", str(kept), "--by", "city") == 0
    (result,) = kept.rglob("result.json")
    assert {path.name for path in result.parent.iterdir()} >= {"quality.html", "quality.json", "result.json"}
    assert log.model.tag.partition(":")[2] in (kept / "index.html").read_text()


def test_a_result_is_kept_as_json_in_the_folder_of_its_version(
    customers_log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    found = log.find("city")
    keep_result(found.result, tmp_path / "kept")
    (path,) = (tmp_path / "kept").rglob("result.json")
    name, _, version = log.model.tag.partition(":")
    moment = f"{found.result.until:%Y-%m-%dT%H%M%SZ}"
    assert path.parent == tmp_path / "kept" / name / version / "quality" / moment
    assert QualityResult.model_validate_json(path.read_text()) == found.result
    json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_numbers_are_pushed_and_a_gateway_that_is_away_is_an_error_but_never_hides_an_alarm(
    customers_log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert log.run("--push", url, "--by", "city") == 0
        server.shutdown()
        thread.join()
    assert 'metric="accuracy"' in bodies[0]
    assert 'segment="city",segment_value="Oslo"' in bodies[0]
    assert log.run("--push", url) == 2
    assert f"the Pushgateway at {url} cannot be reached" in caplog.text
    write_labels(log.folder, log.ids, [wrong(said) for said in log.said], name="1")
    assert log.run("--push", url) == 1


def test_a_version_that_the_store_does_not_have_is_left_out_and_said(
    customers_log: Log, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    log = customers_log
    write_labels(log.folder, log.ids, log.frame["plan"])
    contract = Contract(features=(Feature(name="x", kind="number"),), task="regression", target="y")
    times = [datetime.now(UTC) - HOUR]
    write_predictions(log.folder, contract, np.ones((1, 1)), np.ones(1), times, model_version="gone:1.0.0-000000")
    assert log.run("--by", "city") == 0
    assert "gone:1.0.0-000000 is left out: the model store" in caplog.text
    assert log.model.tag in capsys.readouterr().out
    assert log.run("--model", "gone") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--window", "soon"), "a window is minutes, hours or days"),
        (("--mature", "0"), "a window is minutes, hours or days"),
        (("--log-url", "null:"), "nothing is kept"),
        (("--log-url", "ftp://a/b"), "no address of a place"),
    ],
)
def test_a_question_that_cannot_be_answered_is_a_sentence_and_exit_code_2(
    home: Path, arguments: tuple[str, ...], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert quality.main(list(arguments)) == 2
    assert sentence in caplog.text


def test_a_log_without_predictions_has_too_few_labels(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--log-url", tmp_path.as_uri(), "--by", "city"]) == 3
    assert "too few labels to say: no predictions in 7d up to" in capsys.readouterr().out
