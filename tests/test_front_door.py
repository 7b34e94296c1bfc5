"""The front door where it has to be made to fail: in this process, around a stub of BentoML's app."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from conftest import BUILT_IN, TrainedModels
from test_http import TUTORIAL_ROW

from tabserve.answers import HttpError
from tabserve.audit import Refusals
from tabserve.chained_log import ChainedLog
from tabserve.http_api import FrontDoor
from tabserve.prediction_log import NoPredictionLog
from tabserve.rollout import Rollout
from tabserve.settings import Settings
from tabserve.telemetry import Telemetry


class Failing:
    """An engine that answers until it is told to fail."""

    name = "failing"

    def __init__(self, predict: Callable) -> None:
        self._predict = predict
        self.is_broken = False

    def predict(self, rows: np.ndarray) -> np.ndarray:
        if self.is_broken:
            raise RuntimeError("out of order")
        return self._predict(rows)


class Cycle:
    """What uvicorn hands an app as `receive`: a method of an object that knows whether the caller is still there."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.disconnected = False
        self.more_body = False

    async def receive(self) -> dict:
        return {"type": "http.request", "body": self._body, "more_body": False}


async def ask(door: FrontDoor, path: str, cycle: Cycle) -> list[dict]:
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")]}
    await door(scope, cycle.receive, send)
    return sent


async def broken_app(scope, receive, send) -> None:
    raise OSError("the app fell over")


def door_of(rollout: Rollout, settings: Settings, telemetry: Telemetry) -> FrontDoor:
    return FrontDoor(
        broken_app, rollout=rollout, settings=settings, telemetry=telemetry, prediction_log=NoPredictionLog()
    )


@pytest.fixture
def engine(models: TrainedModels) -> Failing:
    return Failing(models.load(BUILT_IN).engine.predict)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def door(models: TrainedModels, engine: Failing, telemetry: Telemetry) -> FrontDoor:
    rollout = Rollout()
    rollout.put_in_service(replace(models.load(BUILT_IN), engine=engine), Settings())
    return door_of(rollout, Settings(), telemetry)


ONE_ROW = json.dumps({"features": TUTORIAL_ROW}).encode()


def test_a_model_that_fails_is_a_500_that_tells_nothing_and_one_log_line_that_tells_all(
    door: FrontDoor, engine: Failing, caplog
) -> None:
    engine.is_broken = True

    start, body = asyncio.run(ask(door, "/predict", Cycle(ONE_ROW)))

    assert start["status"] == 500
    assert json.loads(body["body"]) == {"error": "The service failed to answer; its log says why.", "detail": []}
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "out of order" in str(record.exc_info)


def test_a_fault_of_bentomls_app_is_counted_and_goes_on_to_bentoml(door: FrontDoor, telemetry: Telemetry) -> None:
    with pytest.raises(OSError, match="fell over"):
        asyncio.run(ask(door, "/bento/predict", Cycle(b'{"rows": []}')))

    assert b'tabserve_requests_total{route="/bento/predict",status="500"} 1.0' in telemetry.exposition()


def test_a_caller_that_has_gone_gets_no_answer_and_is_no_fault(door: FrontDoor, telemetry: Telemetry, caplog) -> None:
    cycle = Cycle(ONE_ROW)
    cycle.disconnected = True

    assert asyncio.run(ask(door, "/predict", cycle)) == []
    assert b'tabserve_refused_rows_total{reason="client_gone"} 1.0' in telemetry.exposition()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_more_than_can_wait_is_503_with_retry_after(door: FrontDoor, engine: Failing, telemetry: Telemetry) -> None:
    small = door_of(door._rollout, Settings(max_queued_rows=2), telemetry)

    async def ask_all() -> list[list[dict]]:
        return await asyncio.gather(*(ask(small, "/predict", Cycle(ONE_ROW)) for _ in range(6)))

    answers = asyncio.run(ask_all())

    statuses = [start["status"] for start, _ in answers]
    assert statuses == [200, 200, 503, 503, 503, 503]
    start, body = answers[-1]
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert "overloaded" in json.loads(body["body"])["error"]


@pytest.mark.parametrize(("status", "reason"), [(401, "not known"), (403, "not allowed"), (429, "too many requests")])
def test_a_refused_access_is_in_the_audit_log_with_who_and_where(
    door: FrontDoor, tmp_path, status: int, reason: str
) -> None:
    async def refuse(scope, receive):
        scope["tabserve.who"] = "key of the bank"
        raise HttpError(status, "No.")

    log = ChainedLog(tmp_path / "audit.jsonl")
    door._refusals = Refusals(log, Telemetry().of_audit_log())
    door._routes["/predict"] = ("POST", refuse)

    asyncio.run(ask(door, "/predict", Cycle(ONE_ROW)))
    asyncio.run(ask(door, "/nowhere", Cycle(ONE_ROW)))
    door._refusals.start()
    door._refusals.close()

    (line,) = log.lines()
    assert {**line, "action": "refused", "who": "key of the bank", "route": "/predict", "reason": reason} == line


def test_a_body_that_does_not_come_is_408_and_the_connection_closes(door: FrontDoor, telemetry: Telemetry) -> None:
    class Slow(Cycle):
        async def receive(self) -> dict:
            await asyncio.Event().wait()
            raise AssertionError

    slow = Slow(b"")
    slow.more_body = True
    quick = door_of(door._rollout, Settings(request_timeout_ms=50), telemetry)

    start, body = asyncio.run(ask(quick, "/predict", slow))

    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert "did not come within 0.05 s" in json.loads(body["body"])["error"]


def test_a_body_in_pieces_is_read_to_its_end(door: FrontDoor) -> None:
    class InPieces(Cycle):
        async def receive(self) -> dict:
            piece, self._body = self._body[:100], self._body[100:]
            return {"type": "http.request", "body": piece, "more_body": bool(self._body)}

    pieces = InPieces(ONE_ROW)
    pieces.more_body = True

    start, _ = asyncio.run(ask(door, "/predict", pieces))

    assert start["status"] == 200


def test_a_flood_of_refusals_is_counted_and_not_a_flood_of_lines(door: FrontDoor, telemetry: Telemetry, caplog) -> None:
    small = door_of(door._rollout, Settings(max_queued_rows=1), telemetry)

    async def flood() -> None:
        await asyncio.gather(*(ask(small, "/predict", Cycle(ONE_ROW)) for _ in range(50)))
        small._request_log._next_refusal_line = 0.0
        await asyncio.gather(*(ask(small, "/predict", Cycle(ONE_ROW)) for _ in range(50)))

    with caplog.at_level(logging.WARNING):
        asyncio.run(flood())

    lines = [record.fields for record in caplog.records if record.getMessage() == "request refused"]
    assert [line["refused_without_a_line"] for line in lines] == [0, 48]
    assert b'tabserve_requests_total{route="/predict",status="503"} 98.0' in telemetry.exposition()
