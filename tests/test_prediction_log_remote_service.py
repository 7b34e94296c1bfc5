"""A real `bentoml serve` with two workers under load, while its database is stopped and its bucket stands still."""

import time
from pathlib import Path
from statistics import median

import pytest
from conftest import TrainedModels, stop, wait_for
from prediction_log_parts import ids_in, opened, predictions
from stores import PASSWORD, PostgresqlServer, S3Server, schema_of
from test_prediction_log_remote import segment_of
from test_prediction_log_service import LOST_SECONDS, kill, load_on, metric, nobody_owns, two_workers

from tabserve.prediction_log.places import place_of

needs_postgresql = pytest.mark.needs_program("postgres")
AWAY = "the prediction log cannot be delivered to"
BACK = "the prediction log is delivered to"


def n_delivered(postgresql: PostgresqlServer, url: str) -> int:
    with postgresql.connect(schema_of(url)) as connection:
        if connection.execute("select to_regclass('predictions')").fetchone() == (None,):
            return 0
        row = connection.execute("select count(*) from predictions").fetchone()
    assert row is not None
    return row[0]


@needs_postgresql
def test_a_database_that_is_stopped_and_started_costs_no_request_and_no_record(
    models: TrainedModels, tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    url = postgresql.url(tmp_path / "spool")
    with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service:
        with load_on(service) as load:
            wait_for(lambda: n_delivered(postgresql, url) > 500)
            with postgresql.stopped():
                wait_for(lambda: AWAY in service.log)
                n_answered = len(load.answered)
                wait_for(lambda: len(load.answered) > n_answered + 1000)
            before = n_delivered(postgresql, url)
            wait_for(lambda: n_delivered(postgresql, url) > before + 1000, 60)
            wait_for(lambda: service.log.count(BACK) == service.log.count(AWAY) <= 2, 60)  # once a worker
        assert load.statuses == {200}
        assert metric(service, "tabserve_prediction_log_dropped_rows_total") == 0
        assert metric(service, "tabserve_prediction_log_spool_bytes") >= 0
        assert PASSWORD not in service.log

    found = ids_in(url)
    assert sorted(found) == sorted(load.ids)
    assert n_delivered(postgresql, url) == len(found)  # at its end it has delivered what it had


@needs_postgresql
def test_after_a_kill_amid_deliveries_nothing_is_there_twice_and_only_the_last_half_second_is_missing(
    models: TrainedModels, tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    url = postgresql.url(tmp_path / "spool")
    with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service:
        with load_on(service) as load:
            wait_for(lambda: n_delivered(postgresql, url) > 1000)
            killed = kill(service)
        wait_for(lambda: nobody_owns(url))

    log = opened(url, tmp_path)
    place = place_of(url)
    assert place is not None
    wait_for(lambda: not list(place.folder.glob("*/_open/*.arrows")))
    log.close()
    found = ids_in(url)
    assert n_delivered(postgresql, url) == len(found) == len(set(found))
    limit = killed - LOST_SECONDS - max(load.took)
    missing = [moment for moment, one in load.answered if one not in set(found)]
    assert all(moment > limit for moment in missing), f"lost {killed - min(missing):.3f} s"


def test_a_bucket_that_stands_still_costs_no_request_and_no_record_and_keeps_no_process_from_its_end(
    models: TrainedModels, tmp_path: Path, s3: S3Server
) -> None:
    url = s3.url(tmp_path / "spool")
    with s3.frozen(), two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service:
        with load_on(service) as load:
            wait_for(lambda: AWAY in service.log)  # what it asks first is which days are too old
            wait_for(lambda: len(load.answered) > 1000)
            wait_for(lambda: set(load.ids[:500]) <= {*_spooled_ids(tmp_path / "spool")})
        asked_to_end = time.monotonic()
        stop(service)
        took = time.monotonic() - asked_to_end
        assert load.statuses == {200}
        assert service.process.returncode == 0
        assert took < 25  # BentoML would end it by force after 30

    log = opened(url, tmp_path)
    wait_for(lambda: not list((tmp_path / "spool").glob("*/_open/*.arrows")))
    log.close()
    assert sorted(ids_in(url)) == sorted(load.ids)


def test_a_bucket_that_is_slow_slows_no_request_and_gets_all_that_waits_for_it(
    models: TrainedModels, tmp_path: Path, s3: S3Server
) -> None:
    url = s3.url(tmp_path / "spool")
    left_behind = [predictions() for _ in range(20)]  # a file each, that the service finds when it starts
    place = place_of(url)
    assert place is not None
    segments = [segment_of(one, place.open_segments("predictions")) for one in left_behind]
    for segment in segments:
        segment.release()

    def n_waiting() -> int:
        return sum(segment.path.exists() for segment in segments)

    with two_workers(models, tmp_path, TABSERVE_LOG_URL=url) as service, load_on(service) as load:
        with s3.slow():
            wait_for(lambda: n_waiting() <= 18, 60)
            assert n_waiting() > 0  # they are being delivered
            n_asked = len(load.took)
            wait_for(lambda: len(load.took) > n_asked + 1000)
            while_slow = load.took[n_asked:]
        wait_for(lambda: n_waiting() == 0, 60)
        n_asked = len(load.took)
        wait_for(lambda: len(load.took) > n_asked + 1000)
        after = load.took[n_asked:]
    assert load.statuses == {200}
    assert AWAY not in service.log
    assert median(while_slow) < 2 * median(after)
    assert max(while_slow) < 0.5  # nobody stood still with it

    assert sorted(ids_in(url)) == sorted(load.ids + [an_id for one in left_behind for an_id in one.ids])


def _spooled_ids(folder: Path) -> list[str]:
    """What a reader finds who has no bucket to ask."""
    return ids_in(folder.as_uri())
