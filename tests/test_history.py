"""The reader of the prediction log: windows, joins with labels, torn files, memory."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_log_parts import CONTRACT, MODEL, ROW, opened, predictions, wait_for_ids
from stores import PASSWORD
from uuid_utils import uuid7

from tabserve.contract import Contract, Feature
from tabserve.history.files import Files
from tabserve.history.records import UnreadableError, readable_place
from tabserve.history.records import opened as records_of
from tabserve.history.stats import duration, size_of, stats_of, text_of
from tabserve.history.tail import newest
from tabserve.history.window import BadQuestionError, Which, Window, last, length_of, which
from tabserve.labels import Labels
from tabserve.prediction_log.columns import prediction_schema
from tabserve.prediction_log.labels import label_batch
from tabserve.prediction_log.places import OPEN
from tabserve.prediction_log.predictions import SHADOW
from tabserve.prediction_log.reading import Snapshot
from tabserve.validation import Violation

DAY = last(timedelta(hours=24))


def ask(folder: Path, sql: str, window: Window | None = None, of: Which | None = None) -> list[tuple]:
    with records_of(readable_place(folder.as_uri()), window or last(timedelta(hours=24)), of) as records:
        return records.rows(sql)


def write_labels(folder: Path, labels: Labels, moments: Sequence[float], name: str = "0") -> None:
    """A rolled file of labels that came at these moments."""
    times = (np.array(moments) * 1e6).astype(np.int64)
    target = folder / "labels" / f"date={datetime.now(UTC).date()}"
    target.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_batches([label_batch(labels, times, "import")]), target / f"{name}.parquet")


# --- what is asked for


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("24h", 86400), ("7d", 604800)])
def test_a_window_is_minutes_hours_or_days(text: str, seconds: int) -> None:
    assert length_of(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "24", "0h", "-1h", "1.5h", "1w", "99999999d", "h", "24 h", "٣h", "9" * 400 + "m"])
def test_what_is_no_window_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadQuestionError, match="such as 90m, 24h or 7d"):
        length_of(text)


def test_a_model_is_named_with_its_version_or_without() -> None:
    assert which("plans") == Which("plans")
    assert which("plans:1.0.0-a") == which("plans", "1.0.0-a") == Which("plans", "1.0.0-a")
    with pytest.raises(BadQuestionError, match="said twice"):
        which("plans:1", "2")
    with pytest.raises(BadQuestionError, match="of which model"):
        which(None, "2")


@pytest.mark.parametrize(
    ("url", "sentence"), [("null:", "nothing is kept"), ("ftp://x", "no address of a place"), ("plain", "no address")]
)
def test_a_place_that_cannot_be_read_is_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(BadQuestionError, match=sentence):
        readable_place(url)


@pytest.mark.parametrize("kind", ["s3", pytest.param("postgresql", marks=pytest.mark.needs_program("postgres"))])
def test_what_is_in_a_bucket_or_a_database_is_read_as_a_folder_is(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def said_of(url: str) -> list[tuple]:
        log = opened(url, tmp_path)
        for put, label in ((predictions([ROW]), "plus"), (predictions([ROW]), "pro"), (predictions([ROW]), None)):
            log.put(put, 0.001)
            if label is not None:
                log.label(Labels(put.ids, [label], [None]))
            log.put(replace(put, variant=SHADOW), 0.001)  # the same id once more
        log.put(predictions(model="others:1"), 0.001)
        log.reject("/predict", [Violation(0, "age", "kind", "a number", "old")], MODEL)
        log.close()
        of = Which(*MODEL.split(":"))
        with records_of(readable_place(url), last(timedelta(hours=1)), of) as records:
            joined = records.rows(
                'SELECT model, label, "feature:income", "feature:city", true_label, is_correct FROM joined '
                "ORDER BY true_label"
            )
            assert records.rows("SELECT count(*), count(true_label) FROM joined_shadows") == [(3, 2)]
            return [*joined, *records.rows("SELECT feature, rule, count FROM rejections")]

    url = request.getfixturevalue(kind).url(tmp_path / "spool")
    assert PASSWORD not in readable_place(url).name
    assert quote(PASSWORD, safe="") not in readable_place(url).name
    elsewhere = said_of(url)

    assert len(elsewhere) == 4
    assert elsewhere == said_of((tmp_path / "folder").as_uri())


# --- predictions and labels


def test_no_data_yet_is_an_answer(tmp_path: Path) -> None:
    with records_of(readable_place((tmp_path / "none").as_uri()), DAY) as records:
        assert records.rows("SELECT count(*) FROM joined") == [(0,)]
        assert newest(records, 5) == []
        (empty,) = records.batches("SELECT * FROM joined")
        assert len(empty) == 0
        assert {"prediction_id", "label", "value", "true_label", "is_correct"} <= set(empty.schema.names)
        assert "none yet" in text_of(stats_of(records, DAY, of_all_models=True), DAY, "nothing")
    assert "0 Parquet files" in size_of(readable_place((tmp_path / "none").as_uri()))


def test_an_open_segment_is_read_with_what_is_rolled_and_nothing_twice(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    rolled = opened(url, tmp_path)
    first = predictions([ROW] * 3)
    rolled.put(first, 0.001)
    rolled.close()
    log = opened(url, tmp_path)
    second = predictions([ROW] * 2)
    log.put(second, 0.001)
    log.label(Labels([first.ids[0], second.ids[0]], ["plus", "basic"], [None, None]))
    wait_for_ids(url, second.ids)

    assert list((tmp_path / "predictions" / OPEN).iterdir())
    found = ask(tmp_path, "SELECT prediction_id, is_correct FROM joined")
    log.close()
    assert sorted(one for one, _ in found) == sorted(first.ids + second.ids)
    found = dict(ask(tmp_path, "SELECT prediction_id, is_correct FROM joined"))
    assert [found[one] for one in (first.ids[0], second.ids[0], first.ids[1])] == [True, False, None]


def test_open_segments_are_joined_whatever_filter_duckdb_makes_of_the_other_side(tmp_path: Path) -> None:
    """It pushes the ids of the one side into the scan of the other, as a Bloom filter, which a scan of Arrow lacks."""
    url = tmp_path.as_uri()
    first = opened(url, tmp_path)
    rolled = predictions([ROW] * 3000)
    first.put(rolled, 0.001)
    first.label(Labels([rolled.ids[0]], ["plus"], [None]))
    first.close()
    log = opened(url, tmp_path)
    still_open = predictions([ROW] * 100)
    log.put(still_open, 0.001)
    log.label(Labels([still_open.ids[0], str(uuid7())], ["plus", "pro"], [None, None]))
    wait_for_ids(url, still_open.ids)
    wait_for(lambda: ask(tmp_path, "SELECT count(*) FROM labels") == [(3,)])

    window = last(timedelta(hours=1))
    with records_of(readable_place(url), window) as records:
        found = stats_of(records, window, of_all_models=True)
    log.close()
    assert (found.n_rows, found.n_labelled, found.n_unknown_labels) == (3100, 2, 1)


def test_labels_of_before_there_were_business_values_are_read_beside_those_that_have_them(tmp_path: Path) -> None:
    put = predictions([ROW] * 2)
    log = opened(tmp_path.as_uri(), tmp_path)
    log.put(put, 0.001)
    log.close()
    now = time.time()
    write_labels(tmp_path, Labels(put.ids, ["plus", "basic"], [None, None]), [now, now], "old")
    (old,) = tmp_path.glob("labels/*/old.parquet")
    pq.write_table(pq.read_table(old).drop_columns("business_value"), old)
    assert ask(tmp_path, "SELECT true_label, business_value FROM joined ORDER BY 1") == [
        ("basic", None),
        ("plus", None),
    ]

    write_labels(tmp_path, Labels(put.ids[:1], [None], [None], [2.5]), [now + 1], "new")

    found = ask(tmp_path, "SELECT true_label, business_value, n_labels FROM latest")
    assert sorted(found) == [("basic", None, 1), ("plus", 2.5, 1)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_of_several_labels_of_a_prediction_the_last_one_counts_in_whatever_order_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("place")
    put = predictions([ROW] * 5)
    log = opened(folder.as_uri(), folder)
    log.put(put, 0.001)
    log.close()
    ids = st.sampled_from([*put.ids, str(uuid7())])
    came = data.draw(st.lists(st.tuples(ids, st.sampled_from(CONTRACT.classes)), min_size=1, max_size=20))
    started = time.time()
    moments = [started + position / 1000 for position in range(len(came))]
    order = data.draw(st.permutations(range(len(came))))
    for part, positions in enumerate((order[::2], order[1::2])):
        if positions:
            some = Labels([came[i][0] for i in positions], [came[i][1] for i in positions], [None] * len(positions))
            write_labels(folder, some, [moments[i] for i in positions], str(part))

    last_one = dict(came)
    expected = {one: last_one.get(one) for one in put.ids}
    assert dict(ask(folder, "SELECT prediction_id, true_label FROM joined")) == expected
    with records_of(readable_place(folder.as_uri()), last(timedelta(hours=1))) as records:
        found = stats_of(records, last(timedelta(hours=1)), of_all_models=True)
    assert found.n_labelled == len(set(last_one) & set(put.ids))
    assert found.n_unknown_labels == len(set(last_one) - set(put.ids))


def test_models_of_different_contracts_are_read_together_and_apart(tmp_path: Path) -> None:
    numbers = Contract(features=(Feature(name="x", kind="number"),), task="binary", target="y", classes=(0, 1))
    quantity = Contract(
        features=(Feature(name="age", kind="category", categories=("a",)),), task="regression", target="y"
    )
    log = opened(tmp_path.as_uri(), tmp_path)
    one, two, three = (
        predictions([ROW]),
        predictions([np.ones(1)], numbers, "b:1"),
        predictions([np.zeros(1)], quantity, "c:1"),
    )
    two.scores, three.scores = np.array([[0.3, 0.7]]), np.array([4.5])
    for put in (one, two, three):
        log.put(put, 0.001)
    log.label(Labels([two.ids[0], three.ids[0]], ["1", None], [None, 4.0]))
    log.close()

    joined = "SELECT model, version, label, value, is_correct, true_value FROM joined ORDER BY model"
    assert ask(tmp_path, joined) == [
        ("b", "1", "1", None, True, None),  # `1`, a text, as in the folder's name
        ("c", "1", None, 4.5, None, 4.0),
        ("plans", "1.0.0-abcdef", "plus", None, None, None),
    ]
    assert ask(tmp_path, joined, of=Which("b")) == [("b", "1", 1, None, True, None)]
    assert ask(tmp_path, joined, of=Which("b", "2")) == []
    with records_of(readable_place(tmp_path.as_uri()), last(timedelta(hours=1))) as records:
        lines = {line.model_version: line for line in newest(records, 10)}
    assert (lines["b:1"].probability, lines["b:1"].came_true) == (0.7, "1")
    assert (lines["c:1"].probability, lines["c:1"].predicted) == (None, "4.5")


def test_the_files_of_other_models_and_days_are_not_even_opened(tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    log.put(predictions([ROW], model="a:1"), 0.001)
    log.close()
    today = datetime.now(UTC).date()
    for folder in (f"model=b/version=1/date={today}", f"model=a/version=1/date={today - timedelta(days=9)}"):
        other = tmp_path / "predictions" / folder
        other.mkdir(parents=True)
        (other / "x.parquet").write_bytes(b"no Parquet file at all")

    assert ask(tmp_path, "SELECT count(*) FROM predictions", of=Which("a", "1")) == [(1,)]


def test_a_torn_file_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        log = opened(tmp_path.as_uri(), tmp_path)
        log.put(predictions([ROW] * 3), 0.001)
        log.close()
    torn = next((tmp_path / "predictions").glob("model=*/*/*/*.parquet"))
    torn.write_bytes(torn.read_bytes()[:-7])

    assert ask(tmp_path, "SELECT count(*) FROM predictions") == [(3,)]
    assert f"{torn} is no whole Parquet file" in caplog.text


def test_a_file_that_is_damaged_inside_is_a_sentence(tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    log.put(predictions([ROW] * 1000), 0.001)
    log.close()
    (path,) = (tmp_path / "predictions").glob("model=*/*/*/*.parquet")
    content = bytearray(path.read_bytes())
    content[4:200] = os.urandom(196)
    path.write_bytes(content)

    with pytest.raises(UnreadableError, match="the prediction log cannot be read"):
        ask(tmp_path, "SELECT max(prediction_id) FROM predictions")


def test_a_file_that_goes_while_it_is_looked_for_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    log.put(predictions([ROW]), 0.001)
    log.close()
    add_view = Files.add_view

    def then_gone(self: Files, name: str, snapshot: Snapshot, meant: str) -> None:
        add_view(self, name, snapshot, meant)
        for path in snapshot.files:
            path.unlink()

    monkeypatch.setattr(Files, "add_view", then_gone)

    with pytest.raises(UnreadableError, match="the prediction log cannot be read"):
        ask(tmp_path, "SELECT count(*) FROM predictions")


def test_a_window_ends_where_it_says(tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    log.put(predictions([ROW] * 3), 0.001)
    log.close()
    now = datetime.now(UTC)
    count = "SELECT count(*) FROM predictions"

    assert ask(tmp_path, count, Window(now - timedelta(hours=1), now)) == [(3,)]
    assert ask(tmp_path, count, Window(now - timedelta(hours=1), now - timedelta(minutes=5))) == [(0,)]
    assert ask(tmp_path, count, Window(now + timedelta(seconds=1), now + timedelta(days=1))) == [(0,)]


def test_a_folder_with_a_name_that_is_a_pattern_or_a_quote_is_read(tmp_path: Path) -> None:
    for name in ("it's", "[a]*", "a b?"):
        place = tmp_path / name
        log = opened(place.as_uri(), tmp_path)
        log.put(predictions([ROW]), 0.001)
        log.close()
        assert ask(place, "SELECT count(*) FROM predictions") == [(1,)]


# --- numbers


def test_every_number_counts_with_the_weight_of_its_row(tmp_path: Path) -> None:
    """Of two workers that keep all and a fifth, as after a change of the setting."""
    for share, n_requests, latency in ((1.0, 60, 0.001), (0.2, 200, 0.1)):
        log = opened(tmp_path.as_uri(), tmp_path, log_sample=share)
        for _ in range(n_requests):
            log.put(predictions([ROW]), latency)
        log.close()
    weights = dict(ask(tmp_path, "SELECT weight, count(*) FROM predictions GROUP BY weight"))
    total = sum(weight * count for weight, count in weights.items())

    window = last(timedelta(hours=1))
    with records_of(readable_place(tmp_path.as_uri()), window) as records:
        found = stats_of(records, window, of_all_models=True)
    assert set(weights) == {1.0, 5.0}
    assert (found.n_rows, found.weighted_rows) == (sum(weights.values()), total)
    assert found.versions == [(MODEL, found.n_rows, 1.0)]
    assert found.predicted == [(MODEL, "plus", 1.0, None)]
    assert found.latency_ms[0.99] == 100.0
    assert found.latency_ms[0.5] == 100.0  # although most of the rows that are kept took 1 ms
    assert f"which stand for {total:,.0f}" in text_of(found, window, "title")


def test_rejections_are_listed_by_feature_and_rule(tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    for _ in range(3):
        log.reject("/predict", [Violation(0, "age", "kind", "expected a whole number", "x")], MODEL)
    log.close()
    window = last(timedelta(hours=1))

    with records_of(readable_place(tmp_path.as_uri()), window) as records:
        found = stats_of(records, window, of_all_models=True)
    assert found.rejections == [("/predict", "age", "kind", 3)]
    assert "3  /predict  age: kind" in text_of(found, window, "title")


@pytest.mark.parametrize(("seconds", "text"), [(0.26, "0.3 s"), (90, "1.5 min"), (7200, "2.0 h"), (259200, "3.0 d")])
def test_a_time_is_said_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- a million

ONE_MILLION, SIX_HUNDRED_THOUSAND = 1_000_000, 600_000
ASK = """
import resource, sys, time
from datetime import timedelta
from tabserve.history.records import opened, readable_place
from tabserve.history.window import last
before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
with opened(readable_place(sys.argv[1]), last(timedelta(hours=24))) as records:
    ((accuracy, n_rows, n_labelled),) = records.rows(
        "SELECT avg(CAST(is_correct AS INTEGER)), count(*), count(labelled_at) FROM joined")
seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
# Not ru_maxrss, which begins with what the process had that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(accuracy, n_rows, n_labelled, seconds, cpu, int(peak.split()[1]) / 1024)
"""


@pytest.fixture(scope="module")
def a_million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million predictions of 30 features in 20 files, and 600,000 labels, a tenth of them second ones."""
    folder, n_files = tmp_path_factory.mktemp("million"), 20
    features = tuple(Feature(name=f"x{number}", kind="number") for number in range(30))
    contract = Contract(features=features, task="binary", target="y", classes=(0, 1))
    generator = np.random.default_rng(0)
    text = generator.bytes(16 * ONE_MILLION).hex()
    ids = [
        f"{h[:8]}-{h[8:12]}-7{h[13:16]}-8{h[17:20]}-{h[20:]}"
        for h in (text[i : i + 32] for i in range(0, len(text), 32))
    ]
    n_rows = ONE_MILLION // n_files
    schema = prediction_schema(contract, personal_are_hashed=False)
    now = datetime.now(UTC)
    constants = {"model": "m", "version": "1", "contract_hash": contract.hash, "variant": "champion", "label": 1}
    columns = {
        **{name: pa.array([value] * n_rows) for name, value in constants.items()},
        **{name: pa.array(generator.normal(size=n_rows)) for name in schema.names if name not in constants},
        "weight": pa.array(np.ones(n_rows)),
        "time": pa.array([now - timedelta(hours=1)] * n_rows, schema.field("time").type),
    }
    predicted = folder / "predictions/model=m/version=1" / f"date={(now - timedelta(hours=1)).date()}"
    predicted.mkdir(parents=True)
    for number in range(n_files):
        columns["prediction_id"] = pa.array(ids[number * n_rows : (number + 1) * n_rows])
        table = pa.table([columns[name] for name in schema.names], schema=schema)
        pq.write_table(table, predicted / f"{number}.parquet", use_dictionary=False)
    first = int(SIX_HUNDRED_THOUSAND * 0.9)
    for name, some, label in (("0", ids[:first], "0"), ("1", ids[: SIX_HUNDRED_THOUSAND - first], "1")):
        moments = [now.timestamp() - 60 + 30 * int(name)] * len(some)
        write_labels(folder, Labels(some, [label] * len(some), [None] * len(some)), moments, name)
    return folder


def test_a_million_predictions_are_joined_with_600_000_labels_in_bounded_memory(a_million: Path) -> None:
    """The bounds leave room for a busy machine: it takes a second of one core, and 280 MB, 100 of them libraries."""
    done = subprocess.run([sys.executable, "-c", ASK, a_million.as_uri()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy, n_rows, n_labelled, _, cpu_seconds, megabytes = map(float, done.stdout.split())

    assert (n_rows, n_labelled) == (ONE_MILLION, SIX_HUNDRED_THOUSAND * 0.9)
    assert accuracy == pytest.approx(0.1 / 0.9)
    assert cpu_seconds < 10, done.stdout
    assert megabytes < 600, done.stdout


def test_the_queries_of_the_documentation_run_as_they_stand(tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path)
    put = predictions([ROW] * 4)
    log.put(put, 0.001)
    log.label(Labels(put.ids[:2], ["plus", "pro"], [None, None]))
    log.close()
    page = (ROOT / "docs/operations.md").read_text()
    queries = [query for query in re.findall(r"```sql\n(.+?)```", page, re.DOTALL) if "/a/folder" in query]

    assert len(queries) == 2
    for query in queries:
        asked = query.replace("/a/folder", str(tmp_path)).replace("probability:class_1", "probability:plus")
        answers = duckdb.connect().execute(asked).fetchall()
        assert len(answers) == 1
    assert answers == [("1.0.0-abcdef", 4.0, 0.5, 0.5)]
