"""Drift, from logs as a service leaves them to the verdict: counts, windows, weights, gauges, exit codes."""

import contextlib
import math
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import CUSTOMERS, SPEND, TrainedModels, home_in_use
from hypothesis import given, settings
from hypothesis import strategies as st
from monitoring_parts import spread, write_predictions, write_rejections
from monitoring_results import quality_of
from prometheus_client import REGISTRY, generate_latest

from monitoring import drift
from monitoring.commands import exit_code
from monitoring.drift import find_drift
from monitoring.drift_text import text_of
from monitoring.metrics import MOST_COLUMNS, NotPushedError, push, registry_of
from monitoring.models import MonitoredModel, load
from monitoring.reports.keeping import sample_of
from monitoring.results import DriftColumn, DriftResult
from monitoring.windows import SAMPLE_ROWS, count, schema_of, watched_columns
from tabserve.contract import Contract, Feature, Rows
from tabserve.engine import Scores
from tabserve.history.records import opened, readable_place
from tabserve.history.window import BadQuestionError, Window
from tabserve.reference import Bins, Reference, build_reference
from tabserve.validation import Violation

UNTIL = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = timedelta(hours=24)
NEWEST, BEFORE = Window(UNTIL - DAY, UNTIL), Window(UNTIL - 2 * DAY, UNTIL - DAY)
WEEK = timedelta(days=7)


def plan_rows(n_rows: int, seed: int) -> Rows:
    """Age, income (5 % missing), city, member and a personal salary."""
    random = np.random.default_rng(seed)
    income = random.lognormal(10, 1, n_rows)
    income[random.random(n_rows) < 0.05] = np.nan
    columns = [random.integers(18, 90, n_rows), income, random.choice(3, n_rows, p=(0.2, 0.5, 0.3))]
    return np.column_stack([*columns, random.random(n_rows) < 0.4, random.normal(50_000, 9_000, n_rows)]).astype(float)


def plan_scores(n_rows: int, seed: int) -> Scores:
    return np.random.default_rng(seed + 1000).dirichlet((2, 2, 2), n_rows)


def plan_model() -> MonitoredModel:
    rows = plan_rows(4000, 0)
    deciles = [tuple(np.nanquantile(column, np.arange(1, 10) / 10).tolist()) for column in rows.T]
    contract = Contract(
        features=(
            Feature(name="age", kind="integer", minimum=18, maximum=89, quantiles=deciles[0]),
            Feature(
                name="income",
                kind="number",
                may_be_missing=True,
                minimum=float(np.nanmin(rows[:, 1])),
                maximum=float(np.nanmax(rows[:, 1])),
                quantiles=deciles[1],
            ),
            Feature(name="city", kind="category", categories=("Bergen", "O'slo", "Tromsø")),
            Feature(name='a "member"', kind="boolean"),
            Feature(name="salary", kind="number", personal=True, quantiles=deciles[4]),
        ),
        task="multiclass",
        target="plan",
        classes=("basic", "plus", "pro"),
    )
    reference = build_reference(contract, rows, plan_scores(4000, 0))
    return MonitoredModel("plans", "1.0.0-abcdef", contract, reference, Path("unused"))


MODEL = plan_model()


def write(
    folder: Path, window: Window, rows: Rows, scores: Scores | None = None, *, seed: int = 1, **more: object
) -> None:
    given = plan_scores(len(rows), seed) if scores is None else scores
    write_predictions(folder, MODEL.contract, rows, given, spread(len(rows), window.since, DAY), **more)


def find(folder: Path, against: str = "training", model: MonitoredModel = MODEL) -> DriftResult:
    return find_drift(readable_place(folder.as_uri()), model, NEWEST, against)


def column_of(result: DriftResult, name: str) -> DriftColumn:
    return next(column for column in result.columns if column.name == name)


def alarms(result: DriftResult) -> list[str]:
    return [column.name for column in result.columns if column.level == "alarm"]


def older(rows: Rows) -> Rows:
    """The same customers, fifteen years older, as far as anybody gets."""
    rows = rows.copy()
    rows[:, 0] = np.minimum(rows[:, 0] + 15, 89)
    return rows


# --- counts


def counted_by_sql(contract: Contract, reference: Reference, rows: Rows, scores: Scores) -> dict[str, tuple]:
    with tempfile.TemporaryDirectory() as folder:
        write_predictions(Path(folder), contract, rows, scores, spread(len(rows), NEWEST.since, DAY))
        with opened(readable_place(Path(folder).as_uri()), NEWEST) as records:
            columns, left_out = watched_columns(contract, reference, schema_of(records))
            assert not left_out
            _, newest = count(records, columns, NEWEST.since)
    return {name: of.counts for name, of in newest.columns.items()}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_bins_of_the_sql_are_those_of_the_reference(data: st.DataObject) -> None:
    """Values at the edges, beside them, missing, infinite; numbers whose decimals no float has; either zero."""
    edges = sorted(data.draw(st.sets(st.floats(allow_nan=False, allow_infinity=False), max_size=9)))
    near = [math.nextafter(edge, to) for edge in edges for to in (-math.inf, math.inf)]
    special = [*edges, *near, 0.0, -0.0, 0.1, math.nan, math.inf, -math.inf]
    values = st.sampled_from(special) | st.floats()
    whole = st.sampled_from([3.0, 4.0, math.nan]) | st.integers(-(2**53) + 1, 2**53 - 1).map(float)
    n_rows = data.draw(st.integers(1, 30))

    def column(of: st.SearchStrategy[float]) -> list[float]:
        return data.draw(st.lists(of, min_size=n_rows, max_size=n_rows))

    contract = Contract(
        features=(
            Feature(name="x", kind="number", may_be_missing=True),
            Feature(name="n", kind="integer", may_be_missing=True),
            Feature(name="it's", kind="category", may_be_missing=True, categories=("'", "a", "Å", "")),
            Feature(name='"zone"', kind="category", may_be_missing=True, categories=(1, 2, 10)),
            Feature(name="b", kind="boolean", may_be_missing=True),
        ),
        task="regression",
        target="y",
    )
    codes = st.sampled_from([0.0, 1.0, 2.0, math.nan])
    rows = np.array([column(values), column(whole), column(codes), column(codes), column(codes.map(lambda c: c % 2))]).T
    scores = np.array(column(values))
    bins = {
        "x": Bins(edges=tuple(edges), counts=(0,) * (len(edges) + 2)),
        "n": Bins(edges=(-1.0, 3.0, 3.5), counts=(0,) * 5),
        "it's": Bins(codes=(0, 2), counts=(0,) * 4),
        '"zone"': Bins(codes=(0, 1), counts=(0,) * 4),
        "b": Bins(codes=data.draw(st.sampled_from([(0, 1), (1,)])), counts=()),
    }
    bins["b"] = bins["b"].model_copy(update={"counts": (0,) * (len(bins["b"].codes) + 2)})
    reference = Reference(n_rows=1, features=bins, predictions={"value": bins["x"]})

    found = counted_by_sql(contract, reference, rows, scores)

    for position, name in enumerate(contract.names):
        assert found[f"feature:{name}"] == bins[name].count(rows[:, position]), name
    assert found["value"] == bins["x"].count(scores)


# --- verdicts


def test_rows_like_those_of_the_training_are_quiet(tmp_path: Path) -> None:
    for number, window in enumerate((BEFORE, NEWEST)):
        write(tmp_path, window, plan_rows(2000, 1 + number), seed=1 + number)

    result = find(tmp_path)

    assert result.level == "quiet"
    assert [window.n_rows for window in result.windows] == [2000, 2000]
    assert result.windows[1].rows_a_second == pytest.approx(2000 / 86400)
    assert result.windows[1].confidence == pytest.approx(plan_scores(2000, 2).max(axis=1).mean())
    income = column_of(result, "income")
    assert income.missing_share == pytest.approx(np.isnan(plan_rows(2000, 2)[:, 1]).mean())
    assert income.reference_missing_share == pytest.approx(0.05, abs=0.02)
    assert "QUIET: 7 columns, none drifted" in text_of(result)


def test_a_shift_in_both_windows_is_an_alarm_that_stands_first(tmp_path: Path) -> None:
    for number, window in enumerate((BEFORE, NEWEST)):
        write(tmp_path, window, older(plan_rows(2000, 1 + number)))

    result = find(tmp_path)

    assert alarms(result) == ["age"]
    assert result.columns[0].name == "age"
    assert result.level == "alarm"
    lines = text_of(result).splitlines()
    assert lines[4].startswith("ALARM  age")
    assert lines[-1] == "ALARM: 1 column of 7 drifted, two windows running: age"


@pytest.mark.parametrize("n_rows_before", [2000, 300, 0])
def test_a_shift_that_the_window_before_does_not_confirm_is_a_warning(tmp_path: Path, n_rows_before: int) -> None:
    """It was quiet then, or had too few rows to say."""
    if n_rows_before:
        rows = plan_rows(n_rows_before, 1)
        write(tmp_path, BEFORE, rows if n_rows_before == 2000 else older(rows))
    write(tmp_path, NEWEST, older(plan_rows(2000, 2)))

    result = find(tmp_path)

    assert (column_of(result, "age").level, result.level) == ("warning", "warning")
    assert DriftResult.model_validate_json(result.model_dump_json()) == result


def test_a_shift_that_is_over_is_quiet(tmp_path: Path) -> None:
    write(tmp_path, BEFORE, older(plan_rows(2000, 1)))
    write(tmp_path, NEWEST, plan_rows(2000, 2))

    assert find(tmp_path).level == "quiet"


def test_missing_values_categories_and_predictions_drift_too(tmp_path: Path) -> None:
    for number, window in enumerate((BEFORE, NEWEST)):
        rows = plan_rows(2000, 1 + number)
        rows[np.random.default_rng(number).random(2000) < 0.3, 1] = np.nan
        rows[:, 2] = np.where(rows[:, 2] == 1, 0, rows[:, 2])
        rows[:, 3] = 1
        write(tmp_path, window, rows, np.random.default_rng(number).dirichlet((6, 1, 1), 2000))

    result = find(tmp_path)

    assert set(alarms(result)) == {"income", "city", 'a "member"', "basic", "plus", "pro"}
    assert column_of(result, "income").missing_share == pytest.approx(0.335, abs=0.05)
    assert column_of(result, "basic").method == "psi"


def test_a_sample_of_the_requests_gives_the_verdict_of_all(tmp_path: Path) -> None:
    for number, window in enumerate((BEFORE, NEWEST)):
        rows, scores = older(plan_rows(10_000, 1 + number)), plan_scores(10_000, number)
        write(tmp_path / "all", window, rows, scores)
        write(tmp_path / "sampled", window, rows[::5], scores[::5], weight=5.0)

    everything, sampled = find(tmp_path / "all"), find(tmp_path / "sampled")

    assert [column.level for column in sampled.columns] == [column.level for column in everything.columns]
    assert sampled.columns[0].drift == pytest.approx(everything.columns[0].drift, rel=0.1)
    assert sampled.windows[1].rows_a_second == pytest.approx(everything.windows[1].rows_a_second)
    assert (sampled.windows[1].n_rows, sum(sampled.columns[0].windows[1].counts)) == (2000, 10_000)
    assert sampled.columns[0].windows[1].n_rows == pytest.approx(2000)


def test_weights_do_not_make_few_rows_many(tmp_path: Path) -> None:
    write(tmp_path, NEWEST, older(plan_rows(400, 1)), weight=100.0)

    assert find(tmp_path).level == "too few rows"


def test_too_few_rows_and_none_at_all_say_so(tmp_path: Path) -> None:
    none = find(tmp_path / "none")
    write(tmp_path, NEWEST, plan_rows(400, 1))
    few = find(tmp_path)

    assert (none.level, few.level) == ("too few rows", "too few rows")
    assert text_of(none).endswith("TOO FEW ROWS TO SAY: 0, expected 500 at least\n")
    assert text_of(few).endswith("TOO FEW ROWS TO SAY: 400, expected 500 at least\n")
    assert DriftResult.model_validate_json(none.model_dump_json()) == none


def test_last_week_is_held_against_the_same_hours_a_week_earlier(tmp_path: Path) -> None:
    """The training saw others, but these customers were as old last week."""
    for number, window in enumerate((BEFORE, NEWEST)):
        write(tmp_path, window, older(plan_rows(2000, 1 + number)), seed=number)
    assert find(tmp_path, "last-week").level == "too few rows"
    assert "a week earlier" in text_of(find(tmp_path, "last-week")).splitlines()[-1]

    for number, window in enumerate((BEFORE, NEWEST)):
        week_ago = Window(window.since - WEEK, window.until - WEEK)
        write(tmp_path, week_ago, older(plan_rows(2000, 3 + number)), seed=3 + number)

    result = find(tmp_path, "last-week")
    assert (result.level, result.against) == ("quiet", "last-week")
    assert column_of(result, "age").reference.n_rows == 2000
    assert find(tmp_path).level == "alarm"
    with pytest.raises(BadQuestionError, match="7d at the most"):
        find_drift(readable_place(tmp_path.as_uri()), MODEL, Window(UNTIL - 8 * DAY, UNTIL), "last-week")


def test_each_window_is_held_against_its_own_week_earlier(tmp_path: Path) -> None:
    """Of the window before there was too little a week ago, so that it confirms nothing."""
    for number, window in enumerate((BEFORE, NEWEST)):
        write(tmp_path, window, older(plan_rows(2000, 1 + number)))
    write(tmp_path, Window(NEWEST.since - WEEK, NEWEST.until - WEEK), plan_rows(2000, 3))

    assert column_of(find(tmp_path, "last-week"), "age").level == "warning"


# --- what is in the log and what is not


def test_a_personal_feature_is_not_watched_and_not_in_the_sample(tmp_path: Path) -> None:
    write(tmp_path, NEWEST, plan_rows(600, 1), key=b"k" * 32)

    result = find(tmp_path)

    assert list(result.not_watched) == ["salary"]
    assert "salary (personal" in text_of(result)
    assert "feature:salary" not in sample_of(readable_place(tmp_path.as_uri()), MODEL, NEWEST).columns


def test_columns_that_the_log_does_not_have_are_left_out_and_said(tmp_path: Path) -> None:
    other = Contract(
        features=(Feature(name="age", kind="category", categories=("1",)), *MODEL.contract.features[2:]),
        task="multiclass",
        target="plan",
        classes=MODEL.contract.classes,
    )
    rows = np.delete(plan_rows(600, 1), 1, axis=1)
    rows[:, 0] = 0
    write_predictions(tmp_path, other, rows, plan_scores(600, 1), spread(600, NEWEST.since, DAY))

    result = find(tmp_path)

    assert "written with another contract" in result.not_watched["income"]
    assert "string where the contract has a integer" in result.not_watched["age"]
    assert {column.name for column in result.columns} >= {"city", "plus"}


def test_names_that_differ_only_in_case_are_not_read_for_each_other(tmp_path: Path) -> None:
    contract = Contract(
        features=tuple(Feature(name=name, kind="number", quantiles=(0.0,)) for name in ("Age", "age", "x")),
        task="regression",
        target="y",
    )
    rows, scores = np.random.default_rng(0).normal(size=(600, 3)), np.random.default_rng(1).normal(size=600)
    model = replace(MODEL, contract=contract, reference=build_reference(contract, rows, scores))
    write_predictions(tmp_path, contract, rows, scores, spread(600, NEWEST.since, DAY))

    result = find(tmp_path, model=model)

    assert set(result.not_watched) == {"Age", "age"}
    assert {column.name: column.level for column in result.columns} == {"x": "quiet", "value": "quiet"}
    assert result.windows[1].confidence is None


def test_what_is_outside_of_the_training_what_is_unknown_and_what_is_refused_are_shares(tmp_path: Path) -> None:
    rows = plan_rows(1000, 1)
    rows[:100, 0] = 95
    rows[100:150, 0] = 89  # the greatest of the training: not outside
    write(tmp_path, NEWEST, rows)
    unknown = [Violation(0, "city", "category", "", "")] * 250
    write_rejections(tmp_path, "plans:1.0.0-abcdef", [*unknown, Violation(0, "age", "kind", "", "")], UNTIL - DAY / 2)
    write_rejections(tmp_path, "plans:1.0.0-abcdef", unknown, UNTIL - 3 * DAY / 2)
    write_rejections(tmp_path, "plans:1.0.0-abcdef", unknown, UNTIL - DAY / 2, route="/feedback")

    result = find(tmp_path)

    assert column_of(result, "age").out_of_range_share == pytest.approx(0.1)
    assert column_of(result, "city").out_of_range_share == 0
    assert column_of(result, "city").unknown_share == pytest.approx(250 / 1250)
    assert result.windows[1].rejected_share == pytest.approx(251 / 1251)
    assert result.windows[0].rejected_share == 1
    assert "city 20.0%" in text_of(result)


def test_scores_that_are_no_numbers_are_missing_and_do_not_spoil_the_confidence(tmp_path: Path) -> None:
    scores = plan_scores(1000, 1)
    scores[:200] = np.nan
    write(tmp_path, NEWEST, plan_rows(1000, 1), scores)

    result = find(tmp_path)

    assert column_of(result, "pro").missing_share == pytest.approx(0.2)
    assert result.windows[1].confidence == pytest.approx(scores[200:].max(axis=1).mean())


def test_a_sample_has_that_many_rows_of_the_newest_window_alone(tmp_path: Path) -> None:
    write(tmp_path, BEFORE, older(older(plan_rows(2000, 1))))
    rows = plan_rows(SAMPLE_ROWS + 2000, 2)
    rows[:, 0] = 20
    write(tmp_path, NEWEST, rows)

    frame = sample_of(readable_place(tmp_path.as_uri()), MODEL, NEWEST)

    assert len(frame) == SAMPLE_ROWS
    assert set(frame["feature:age"]) == {20}
    assert {"label", "weight", "probability:plus", "feature:city"} < set(frame.columns)


# --- gauges


def samples_of(*results: DriftResult) -> dict[tuple[str, ...], float]:
    found = {}
    for family in registry_of(results).collect():
        for sample in family.samples:
            rest = {k: v for k, v in sample.labels.items() if k not in ("model", "model_version")}
            assert (sample.labels["model"], sample.labels["model_version"]) == ("plans", "1.0.0-abcdef")
            found[sample.name, *rest.values()] = sample.value
    return found


def test_a_result_is_gauges_in_a_registry_of_its_own(tmp_path: Path) -> None:
    before = generate_latest(REGISTRY)
    for number, window in enumerate((BEFORE, NEWEST)):
        write(tmp_path, window, older(plan_rows(2000, 1 + number)))
    result = find(tmp_path)

    found = samples_of(result)

    assert found["tabserve_drift_alarm", "feature:age"] == 1
    assert found["tabserve_drift_alarm", "prediction:pro"] == 0
    assert found["tabserve_feature_drift", "age", "kl"] == found["tabserve_feature_drift_max", "kl"]
    assert found["tabserve_feature_drift", "age", "kl"] == column_of(result, "age").drift
    assert found["tabserve_prediction_drift", "pro", "psi"] == column_of(result, "pro").drift
    assert found["tabserve_drift_window_rows",] == 2000
    assert found["tabserve_monitor_last_success_timestamp_seconds", "drift"] == result.made_at.timestamp()
    assert b"tabserve_feature_drift" not in before
    assert not samples_of()


def test_of_very_many_features_the_most_drifted_are_exported_and_the_largest_drift(tmp_path: Path) -> None:
    write(tmp_path, NEWEST, plan_rows(600, 1))
    result = find(tmp_path)
    age = column_of(result, "age")
    many = []
    for number in range(MOST_COLUMNS + 50):
        divergence = age.divergences[-1].model_copy(update={"kl": float(number)})
        many.append(age.model_copy(update={"name": f"f{number}", "divergences": (divergence, divergence)}))

    found = samples_of(result.model_copy(update={"columns": tuple(many)}))

    assert len([key for key in found if key[0] == "tabserve_feature_drift"]) == 2 * MOST_COLUMNS
    assert found["tabserve_feature_drift_max", "kl"] == MOST_COLUMNS + 49
    assert ("tabserve_feature_drift", "f49", "kl") not in found


def test_too_few_rows_have_no_drift_to_show(tmp_path: Path) -> None:
    write(tmp_path, NEWEST, plan_rows(10, 1))

    found = samples_of(find(tmp_path))

    assert found["tabserve_drift_window_rows",] == 10
    assert not [
        key for key in found if "drift" in key[0] and key[0] != "tabserve_drift_window_rows" and key[-1] != "drift"
    ]


@contextlib.contextmanager
def gateway(status: int) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A server that answers everything with a status; its address, and what it was asked: method, path, body."""
    asked: list[tuple[str, str, str]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((self.command, self.path, body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def test_results_replace_those_of_their_model_and_kind_in_a_pushgateway(tmp_path: Path) -> None:
    write(tmp_path, NEWEST, plan_rows(600, 1))
    result = find(tmp_path)
    other = result.model_copy(update={"version": "2.0.0-abcdef"})

    quality = quality_of(0.9, 400)

    with gateway(200) as (url, asked):
        push([result, quality, other], url)
    (_, _, drift_body), (_, _, quality_body) = asked
    assert [(method, path) for method, path, _ in asked] == [
        ("PUT", "/metrics/job/tabserve_drift/model/plans"),
        ("PUT", "/metrics/job/tabserve_quality/model/plans"),
    ]
    assert 'tabserve_drift_window_rows{model="plans",model_version="2.0.0-abcdef"} 600.0' in drift_body
    assert ("tabserve_quality{" in drift_body, "tabserve_quality{" in quality_body) == (False, True)

    with gateway(400) as (url, _), pytest.raises(NotPushedError, match="refused the metrics: 400"):
        push([result], url)
    for bad in ("http://127.0.0.1:9", "ftp:/nonsense", "://"):
        with pytest.raises(NotPushedError, match="cannot be reached"):
            push([result], bad)


# --- the command


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        (["quiet"], 0),
        (["warning", "too few rows"], 0),
        (["too few rows", "alarm"], 1),
        (["too few rows"], 3),
        ([], 2),
    ],
)
def test_of_several_versions_the_worst_is_the_exit_code(levels: list, code: int) -> None:
    assert exit_code(levels) == code


def training_rows(trained: TrainedModels, name: str) -> tuple[Contract, Rows, Scores]:
    """Rows between the deciles of the training, and the scores of the trained model for them."""
    loaded = trained.load(name)
    random = np.random.default_rng(0)
    columns = []
    for feature in loaded.contract.features:
        if feature.quantiles:
            columns.append(feature.clip(random.choice(feature.quantiles, 1200)))
        else:
            columns.append(random.integers(0, len(feature.categories) or 2, 1200).astype(float))
    rows = np.column_stack(columns)
    return loaded.contract, rows, loaded.engine.predict(rows)


def run(home: Path, *arguments: str) -> int:
    with home_in_use(home):
        return drift.main(arguments)


def write_now(folder: Path, tag: str, contract: Contract, rows: Rows, scores: Scores) -> None:
    now = datetime.now(UTC)
    for since in (now - timedelta(minutes=110), now - timedelta(minutes=50)):
        times = spread(len(rows), since, timedelta(minutes=45))
        write_predictions(folder, contract, rows, scores, times, model_version=tag)


@pytest.mark.parametrize("name", [CUSTOMERS, SPEND])
def test_the_command_judges_a_trained_model_and_keeps_what_it_found(
    models: TrainedModels, tmp_path: Path, capsys, caplog, name: str
) -> None:
    contract, rows, scores = training_rows(models, name)
    rows[:, contract.names.index("age")] = 80
    write_now(tmp_path / "log", models.tag(name), contract, rows, scores)
    arguments = ["--window", "1h", "--log-url", (tmp_path / "log").as_uri()]

    assert run(models.home, *arguments) == 1
    assert "ALARM" in capsys.readouterr().out
    assert run(models.home, *arguments, "--html", str(tmp_path / "kept"), "--push", "http://127.0.0.1:9") == 1
    assert "the Pushgateway at http://127.0.0.1:9 cannot be reached" in caplog.text
    (kept,) = (tmp_path / "kept").glob(f"{name}/*/drift/*Z/result.json")
    assert DriftResult.model_validate_json(kept.read_text()).level == "alarm"


def test_what_cannot_be_judged_is_a_sentence_and_an_exit_code(
    models: TrainedModels, tmp_path: Path, capsys, caplog
) -> None:
    log = (tmp_path / "log").as_uri()
    assert run(models.home, "--log-url", log) == 3
    assert "too few rows to say: no prediction in the last 24h" in capsys.readouterr().out
    assert run(models.home, "--log-url", log, "--model", CUSTOMERS) == 3
    for arguments, sentence in (
        (["--model", "nobody"], "has no model nobody"),
        (["--window", "1w"], "such as 90m"),
        (["--against", "last-week", "--window", "8d"], "7d at the most"),
        (["--log-url", "null:"], "nothing is kept"),
        (["--log-url", "ftp://a/b"], "no address of a place"),
    ):
        caplog.clear()
        assert run(models.home, "--log-url", log, *arguments) == 2
        assert sentence in caplog.text


def test_a_version_that_the_store_does_not_have_is_said_and_hides_no_other(
    models: TrainedModels, tmp_path: Path, caplog
) -> None:
    write_now(tmp_path, "plans:9.9.9-abcdef", MODEL.contract, plan_rows(600, 1), plan_scores(600, 1))
    assert run(models.home, "--window", "1h", "--log-url", tmp_path.as_uri()) == 2
    assert "plans:9.9.9-abcdef is left out" in caplog.text

    contract, rows, scores = training_rows(models, CUSTOMERS)
    rows[:, contract.names.index("age")] = 80
    write_now(tmp_path, models.tag(CUSTOMERS), contract, rows, scores)
    assert run(models.home, "--window", "1h", "--log-url", tmp_path.as_uri()) == 1


def test_a_damaged_reference_is_refused(models: TrainedModels, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(models.home, home)
    path = home / "models" / models.tag(SPEND).replace(":", "/") / "reference.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    with home_in_use(home), pytest.raises(Exception, match=r"reference\.json is not the file that was saved"):
        load(SPEND)
