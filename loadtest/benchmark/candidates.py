"""What is compared: how each candidate is started, asked, and how its answer is read."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.benchmark.load import request_bytes
from loadtest.benchmark.models import ROOT

ReadScores = Callable[[Any], list[list[float]]]


@dataclass(frozen=True)
class Endpoint:
    """A path, the JSON that it takes for some rows, and the probabilities of its answer, a list a row."""

    path: str
    body: Callable[[list[list[float]]], object]
    scores: ReadScores

    def request(self, rows: list[list[float]]) -> bytes:
        return request_bytes(self.path, msgspec.json.encode(self.body(rows)))


@dataclass(frozen=True)
class Candidate:
    """A way to serve the model. `command` gets the port at its end."""

    name: str
    command: Sequence[str]
    one_row: Endpoint
    many_rows: Endpoint | None = None
    folder: str = "."
    settings: Mapping[str, str] = field(default_factory=dict)


def _features(rows: list[list[float]]) -> object:
    return {"features": rows[0]}


def _instances(rows: list[list[float]]) -> object:
    return {"instances": rows}


def _by_class(prediction: Any) -> list[float]:
    return list(prediction["probabilities"].values())


OUR_ROW = Endpoint("/predict", _features, lambda answer: [_by_class(answer)])
OUR_ROWS = Endpoint("/predict/batch", _instances, lambda answer: [_by_class(p) for p in answer["predictions"]])
OUR_BENTO_ROW = Endpoint("/bento/predict", lambda rows: {"rows": rows}, lambda answer: [_by_class(p) for p in answer])
FASTAPI_ROW = Endpoint("/predict", _features, lambda answer: [answer["probabilities"]])
FASTAPI_ROWS = Endpoint("/predict/batch", _instances, lambda answer: answer["probabilities"])
QUICKSTART_ROW = Endpoint("/predict", lambda rows: {"rows": rows}, lambda answer: answer)
BARE_ROW = Endpoint("/", _features, lambda _: [])

_SERVE = (sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1")
_UVICORN = (
    *(sys.executable, "-m", "uvicorn", "--host", "127.0.0.1"),
    *("--loop", "uvloop", "--http", "httptools", "--no-access-log"),
)
_BENTOML_CONFIG = {"BENTOML_CONFIG": str(ROOT / "configuration.yaml")}

TABSERVE = Candidate("tabserve", (*_SERVE, ".", "--port"), OUR_ROW, OUR_ROWS, settings=_BENTOML_CONFIG)
NO_BATCHING = Candidate(
    "tabserve, batching off",
    (*_SERVE, ".", "--port"),
    OUR_ROW,
    OUR_ROWS,
    settings={**_BENTOML_CONFIG, "TABSERVE_BATCHING": "false"},
)
NO_LOG = Candidate(
    "tabserve, prediction log off",
    (*_SERVE, ".", "--port"),
    OUR_ROW,
    settings={**_BENTOML_CONFIG, "TABSERVE_LOG_URL": "null:"},
)
BENTO_PREDICT = Candidate("tabserve, /bento/predict", (*_SERVE, ".", "--port"), OUR_BENTO_ROW, settings=_BENTOML_CONFIG)
PLAIN = Candidate(
    "FastAPI as in tutorials",
    (*_UVICORN, "loadtest.benchmark.competitors.plain_fastapi:app", "--port"),
    FASTAPI_ROW,
    FASTAPI_ROWS,
)
CAREFUL = Candidate(
    "FastAPI + ONNX Runtime, careful",
    (*_UVICORN, "loadtest.benchmark.competitors.careful_fastapi:app", "--port"),
    FASTAPI_ROW,
)
QUICKSTART = Candidate(
    "BentoML quickstart",
    (*_SERVE, "bentoml_quickstart:Quickstart", "--port"),
    QUICKSTART_ROW,
    folder="loadtest/benchmark/competitors",
)
BARE = Candidate(
    "bare uvicorn, constant answer",
    (*_UVICORN, "loadtest.benchmark.competitors.bare_uvicorn:app", "--port"),
    BARE_ROW,
)
ALL = (TABSERVE, NO_LOG, NO_BATCHING, BENTO_PREDICT, PLAIN, CAREFUL, QUICKSTART, BARE)
WITH_BATCHES = (TABSERVE, NO_BATCHING, PLAIN)
WITH_FOREST = (TABSERVE, PLAIN)
