"""The parts of the prediction log: queue, segments, recovery, reading, and what they do when the disk does not."""

import asyncio
import functools
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, wait_for
from contracts import contracts, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_log_parts import (
    CONTRACT,
    GAPS,
    MODEL,
    ROW,
    SCORES,
    Counts,
    ids_in,
    opened,
    predictions,
    records,
    wait_for_ids,
)

from tabserve.prediction_log import CannotKeepError, NoPredictionLog, Predictions, journal, roller
from tabserve.prediction_log.columns import PredictionColumns, prediction_schema
from tabserve.prediction_log.opening import open_prediction_log, usable_url
from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.places import place_of
from tabserve.prediction_log.reading import read
from tabserve.prediction_log.segment import Segment, WholeBatches
from tabserve.prediction_log.sources import PredictionSource
from tabserve.prediction_log.waiting import Put, WaitingPredictions
from tabserve.settings import Settings
from tabserve.validation import RowReader

OPEN = "predictions/_open/*.arrows"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "place").as_uri()


def folder_of(url: str) -> Path:
    place = place_of(url)
    assert place is not None
    return place.folder


def waiting_as(put: Predictions) -> Put:
    waiting = WaitingPredictions(10**6, 1.0, Personal(None))
    waiting.put(put, 0.001)
    (found,) = waiting.take()
    return found


# --- records


@given(data=st.data())
def test_a_record_holds_what_the_contract_decodes(data: st.DataObject) -> None:
    contract = data.draw(contracts())
    values = RowReader(contract).read(data.draw(st.lists(rows(contract), min_size=1, max_size=5))).values
    n_rows = len(values)
    put = Predictions(["x" * 36] * n_rows, values, np.array([[0.3, 0.7]] * n_rows), "m:1", contract)

    columns = PredictionColumns(contract, "m:1", "champion", 1.0, personal_are_hashed=False)
    raw = columns.raw([waiting_as(put)])
    codec = PredictionColumns.of_metadata(raw.schema.metadata)
    assert codec is not None
    batch = codec.decode(raw)

    batch.validate(full=True)
    assert batch.schema == prediction_schema(contract, personal_are_hashed=False)
    for row, record in zip(values, batch.to_pylist(), strict=True):
        decoded = dict(zip(contract.names, contract.to_values(row), strict=True))
        for feature in contract.features:
            value = decoded[feature.name]
            expected = str(value) if feature.kind == "category" and value is not None else value
            assert record[f"feature:{feature.name}"] == expected
        assert record["label"] == "yes"


def test_integer_classes_stay_integers(url: str, tmp_path: Path) -> None:
    log = opened(url, tmp_path)
    contract = CONTRACT.model_copy(update={"classes": (3, 5, 9)})
    log.put(predictions([ROW], contract), 0.001)
    log.close()

    (found,) = records(url)
    assert (found["label"], found["probability:class_5"]) == (5, 0.7)


def test_a_row_of_each_day_lies_in_the_folder_of_its_day(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = predictions(), predictions()
    log = opened(url, tmp_path)
    midnight = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    with monkeypatch.context() as patched:
        for some, moment in ((before, midnight - 1e-3), (after, midnight)):
            patched.setattr(time, "time", lambda moment=moment: moment)
            log.put(some, 0.001)
    log.close()

    place = place_of(url)
    assert place is not None
    (of_before,) = read(place, "predictions", until=date(2026, 11, 20)).tables()
    (of_after,) = read(place, "predictions", since=date(2026, 11, 21)).tables()
    assert of_before["prediction_id"].to_pylist() == before.ids
    assert of_after["prediction_id"].to_pylist() == after.ids


def test_plain_duckdb_reads_the_parquet_files(url: str, tmp_path: Path) -> None:
    import duckdb

    log = opened(url, tmp_path)
    log.put(predictions([ROW] * 3), 0.001)
    log.close()

    glob = folder_of(url) / "predictions/**/*.parquet"
    query = f"""
        select model, version, date, "feature:city", avg("probability:plus"), count(*), min(epoch_us(time))
        from read_parquet('{glob}', hive_partitioning=true, union_by_name=true,
                          hive_types={{'version': varchar, 'date': date}})
        where time > '2020-01-01' group by all
    """
    ((model, version, day, city, plus, n_rows, first),) = duckdb.connect().execute(query).fetchall()

    assert (model, version, city, plus, n_rows) == ("plans", "1.0.0-abcdef", "Tromsø", pytest.approx(0.7), 3)
    assert day == datetime.fromtimestamp(first / 1e6, UTC).date()


def test_parquet_is_zstd_with_times_in_microseconds_utc(url: str, tmp_path: Path) -> None:
    log = opened(url, tmp_path)
    log.put(predictions(), 0.001)
    log.close()

    (path,) = folder_of(url).glob("predictions/model=plans/version=1.0.0-abcdef/date=*/*.parquet")
    file = pq.ParquetFile(path)
    assert file.schema_arrow.field("time").type == pa.timestamp("us", "UTC")
    assert {file.metadata.row_group(0).column(0).compression} == {"ZSTD"}


def test_the_log_imports_no_pandas(tmp_path: Path) -> None:
    """A compiled model is served without it: 40 MB and a third of a second less."""
    code = f"""
import sys
import numpy as np
from pathlib import Path
from tabserve.contract import Contract, Feature
from tabserve.prediction_log import Predictions
from tabserve.prediction_log.opening import open_prediction_log
from tabserve.settings import Settings
from tabserve.telemetry import Telemetry
features = (Feature(name="n", kind="number"), Feature(name="c", kind="category", categories=("a", "b")))
contract = Contract(features=features, task="binary", target="y", classes=("no", "yes"))
folder = Path({str(tmp_path)!r})
log = open_prediction_log(Settings(log_url=folder.as_uri()), folder, Telemetry().of_prediction_log())
log.put(Predictions(["i" * 36], np.ones((1, 2)), np.array([[0.3, 0.7]]), "m:1", contract), 0.001)
log.close()
assert list(folder.rglob("*.parquet"))
assert "pandas" not in sys.modules
"""

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- the queue


def test_a_full_queue_drops_what_comes_and_counts_it() -> None:
    waiting = WaitingPredictions(10, 1.0, Personal(None))
    for _ in range(4):
        waiting.put(predictions([ROW] * 4), 0.001)

    assert (waiting.n_rows, waiting.take_dropped_rows(), waiting.take_dropped_rows()) == (8, 8, 0)
    assert len(waiting.take()) == 2
    waiting.put(predictions([ROW] * 4), 0.001)  # what was taken still counts until it is written
    assert waiting.take_dropped_rows() == 4
    waiting.done(8)
    waiting.put(predictions([ROW] * 4), 0.001)
    assert waiting.n_rows == 4


def test_requests_of_one_turn_of_the_event_loop_wait_together_each_with_its_own_latency() -> None:
    waiting = WaitingPredictions(100, 1.0, Personal(None))
    put = [predictions([ROW]), predictions([GAPS, ROW]), predictions(model="other:1"), predictions()]
    by_column = predictions([ROW, GAPS])
    by_column.scores = np.asfortranarray([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])

    async def two_turns() -> None:
        for number, one in enumerate([*put, by_column]):
            waiting.put(one, 0.001 * (number + 1))
        assert waiting.n_rows == 0
        await asyncio.sleep(0)
        assert waiting.n_rows == 7
        waiting.put(put[0], 0.009)  # at the end nobody waits for the loop
        waiting.end_turn()

    asyncio.run(two_turns())

    source = PredictionSource(waiting, 1.0, personal_are_hashed=False)
    batches = [PredictionColumns.of_metadata(batch.schema.metadata).decode(batch) for _, batch in source.batches()]
    assert [len(batch) for batch in batches] == [3, 1, 4]
    found = {row["prediction_id"]: row for batch in batches for row in batch.to_pylist()}
    assert {found[an_id]["latency_ms"] for an_id in put[1].ids} == {2.0}
    assert [found[an_id]["feature:income"] for an_id in put[1].ids] == [None, 30500.5]
    assert [found[an_id]["probability:pro"] for an_id in by_column.ids] == [0.7, 0.4]
    assert found[put[2].ids[0]]["model"] == "other"


def test_predictions_that_cannot_be_decoded_do_not_stop_the_others(caplog) -> None:
    waiting = WaitingPredictions(100, 1.0, Personal(None))
    source = PredictionSource(waiting, 1.0, personal_are_hashed=False)
    bad = predictions(model="broken:1")
    bad.scores = SCORES[:2].reshape(1, 2)
    waiting.put(bad, 0.001)
    waiting.put(predictions(), 0.001)

    counts = Counts()
    ((partition, batch),) = source.batches()
    source.report(counts)

    assert partition.startswith("model=plans/version=1.0.0-abcdef/date=")
    assert (len(batch), counts.dropped, counts.queue) == (1, {"failed": 1}, 0)
    assert "could not be decoded" in caplog.text


# --- segments


def batch_of(n_rows: int) -> pa.RecordBatch:
    put = predictions([ROW] * n_rows)
    columns = PredictionColumns(CONTRACT, MODEL, "champion", 1.0, personal_are_hashed=False)
    return columns.raw([waiting_as(put)])


@functools.cache
def written_segment() -> tuple[bytes, list[int], list[pa.RecordBatch]]:
    """The bytes of a segment, where each batch ends in it, and the batches."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        batches = [batch_of(n_rows) for n_rows in (1, 7, 300, 2)]
        segment = Segment(Path(folder), "date=2026-11-21", batches[0].schema)
        ends = []
        for batch in batches:
            segment.append(batch)
            ends.append(segment.n_bytes)
        return segment.path.read_bytes(), ends, batches


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_of_a_torn_segment_every_whole_batch_is_read_and_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    content, ends, batches = written_segment()
    near = st.sampled_from(ends).flatmap(lambda end: st.integers(max(0, end - 9), min(len(content), end + 9)))
    cut = data.draw(near | st.integers(0, len(content)))
    # After a whole batch anything may follow; after a part of one nothing does, whoever dies.
    foreign = st.binary(max_size=64) | st.integers(1, 5000).map(bytes)
    tail = data.draw(foreign) if cut in ends else b""
    path = tmp_path / "torn.arrows"
    path.write_bytes(content[:cut] + tail)

    found = WholeBatches(path)
    whole = list(found)
    found.close()

    expected = [batch for batch, end in zip(batches, ends, strict=True) if end <= cut]
    assert whole == expected


def test_a_segment_of_a_dead_owner_is_rolled_and_its_torn_tail_cut(url: str, tmp_path: Path) -> None:
    content, ends, batches = written_segment()
    place = place_of(url)
    assert place is not None
    folder = place.open_segments("predictions")
    folder.mkdir(parents=True)
    (folder / "left-behind.arrows").write_bytes(content[: ends[-1] - 10])
    (folder / "nothing-in-it.arrows").touch()
    expected = [one for batch in batches[:-1] for one in batch.column("prediction_id").to_pylist()]
    assert sorted(ids_in(url)) == sorted(expected)  # a reader needs no recovery

    log = opened(url, tmp_path)
    wait_for(lambda: not list(folder.iterdir()))
    log.close()

    (rolled,) = folder_of(url).glob("predictions/date=2026-11-21/*.parquet")
    assert pq.ParquetFile(rolled).read()["prediction_id"].to_pylist() == expected


def test_a_segment_that_another_version_wrote_is_put_aside(url: str, tmp_path: Path, caplog) -> None:
    place = place_of(url)
    assert place is not None
    folder = place.open_segments("predictions")
    schema = pa.schema([("a", pa.int64())], metadata={"tabserve.predictions": '["of", "tomorrow"]'})
    segment = Segment(folder, "date=2026-11-21", schema)
    segment.path.rename(folder / "foreign.arrows")
    os.close(segment._file)  # as a process does that dies
    assert records(url) == []

    log = opened(url, tmp_path)
    wait_for((folder / "foreign.broken").exists)
    put = predictions()
    log.put(put, 0.001)
    log.close()
    assert ids_in(url) == put.ids
    assert "is put aside as .broken" in caplog.text


def test_a_segment_that_was_rolled_but_not_removed_counts_once(url: str, tmp_path: Path) -> None:
    """As a process leaves it that is killed between the two."""
    log = opened(url, tmp_path)
    put = predictions([ROW] * 5)
    log.put(put, 0.001)
    wait_for_ids(url, put.ids)
    (segment,) = folder_of(url).glob(OPEN)
    content = segment.read_bytes()
    log.close()
    segment.write_bytes(content)

    assert sorted(ids_in(url)) == sorted(put.ids)
    again = opened(url, tmp_path)
    wait_for(lambda: not segment.exists())
    again.close()
    assert sorted(ids_in(url)) == sorted(put.ids)


WRITER = """
import sys, time
sys.path[:0] = ["tests"]
from pathlib import Path
from prediction_log_parts import opened, predictions
log = opened(sys.argv[1], Path(sys.argv[1]))
put = predictions()
log.put(put, 0.001)
print(put.ids[0], flush=True)
for line in sys.stdin:
    some = predictions()
    log.put(some, 0.001)
    print(some.ids[0], flush=True)
log.close()
"""


def test_what_a_killed_process_left_is_recovered_while_others_keep_theirs(url: str, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, url], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    ids = [process.stdout.readline().strip() for process in processes]
    wait_for_ids(url, ids)
    assert len(list(folder_of(url).glob(OPEN))) == 3

    processes[0].kill()
    processes[0].wait()
    log = opened(url, tmp_path)  # recovers when it starts
    wait_for(lambda: len(list(folder_of(url).glob(OPEN))) == 2)
    assert sorted(ids_in(url)) == sorted(ids)

    for process in processes[1:]:
        process.stdin.write("one more\n")
        process.stdin.flush()
        ids.append(process.stdout.readline().strip())
    for process in processes[1:]:
        process.communicate()
        assert process.returncode == 0
    log.close()
    assert not list(folder_of(url).glob(OPEN))
    assert sorted(ids_in(url)) == sorted(ids)


def test_who_reads_while_segments_are_rolled_misses_nothing_and_sees_nothing_twice(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MOST_ROWS", 5)
    monkeypatch.setattr("tabserve.prediction_log.writer.FLUSH_SECONDS", 0.005)
    log = opened(url, tmp_path)
    put: list[str] = []
    is_over = threading.Event()

    def keep_putting() -> None:
        while not is_over.wait(0.001):
            some = predictions()
            log.put(some, 0.001)
            put.extend(some.ids)

    thread = threading.Thread(target=keep_putting)
    thread.start()
    try:
        seen: set[str] = set()
        while len(list(folder_of(url).rglob("*.parquet"))) < 20:
            found = ids_in(url)
            assert len(found) == len(set(found))
            assert seen <= set(found)
            seen = set(found)
    finally:
        is_over.set()
        thread.join()
    log.close()

    assert sorted(ids_in(url)) == sorted(put)


# --- faults


def test_a_folder_that_is_removed_is_made_again_and_what_is_lost_is_counted(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counts = Counts()
    log = opened(url, tmp_path, counts)
    first = predictions()
    log.put(first, 0.001)
    wait_for_ids(url, first.ids)

    shutil.rmtree(folder_of(url))
    dropped = predictions()
    log.put(dropped, 0.001)
    wait_for(lambda: counts.dropped == {"write_error": 1, "removed": 1})
    last: list[str] = []

    def is_written_again() -> bool:
        some = predictions()
        log.put(some, 0.001)
        last.extend(some.ids)
        return "is written again" in caplog.text

    wait_for(is_written_again)
    log.close()

    assert sorted(ids_in(url)) == sorted(last)
    assert counts.errors == 1
    assert [caplog.text.count(words) for words in ("rows are dropped until it can", "is written again in")] == [1, 1]


def test_a_segment_that_cannot_be_rolled_is_rolled_later(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roller, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(journal, "MOST_ROWS", 1)
    counts = Counts()
    folder = folder_of(url)
    (folder / "predictions").mkdir(parents=True)
    in_the_way = folder / "predictions" / "model=plans"
    in_the_way.touch()
    log = opened(url, tmp_path, counts)
    put = predictions()
    log.put(put, 0.001)
    wait_for_ids(url, put.ids)

    in_the_way.unlink()
    wait_for(lambda: list(folder.rglob("*.parquet")))
    log.close()
    assert ids_in(url) == put.ids
    assert not counts.dropped


# --- places


@pytest.mark.parametrize("url", ["/var/log", "file://relative/path", "ftp://host/folder", "file:folder"])
def test_an_address_that_is_none_is_named_with_what_was_expected(url: str, tmp_path: Path) -> None:
    with pytest.raises(CannotKeepError, match=r"TABSERVE_LOG_URL is no address of a place, expected file:///a/folder"):
        usable_url(Settings(log_url=url), tmp_path)


def test_a_folder_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    url = (tmp_path / "a file" / "below").as_uri()

    with pytest.raises(CannotKeepError, match=r"cannot be kept in .*below \(Not a directory\): make the folder"):
        usable_url(Settings(log_url=url), tmp_path)


def test_predictions_are_kept_in_the_home_where_nothing_is_said(tmp_path: Path) -> None:
    assert usable_url(Settings(), tmp_path) == (tmp_path / "prediction_log").as_uri()
    assert isinstance(open_prediction_log(Settings(log_url="null:"), tmp_path, Counts()), NoPredictionLog)


def test_where_the_home_cannot_be_written_they_are_kept_with_the_temporary_files_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in the way stands for a read-only root."""
    (tmp_path / "prediction_log").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    found = usable_url(Settings(), tmp_path)

    assert found == (tmp_path / "temporary" / f"tabserve-{os.getuid()}" / "prediction_log").as_uri()
    assert "set TABSERVE_LOG_URL" in caplog.text
    (tmp_path / "temporary" / f"tabserve-{os.getuid()}").chmod(0o777)
    with pytest.raises(CannotKeepError, match="not a folder of this user alone"):
        usable_url(Settings(), tmp_path)


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), ("short", "holds 5 bytes")])
def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)

    with pytest.raises(CannotKeepError, match=f"the key file .*key of TABSERVE_LOG_KEY_FILE {reason}"):
        usable_url(Settings(log_url="null:", log_key_file=str(key)), tmp_path)
