"""Keys and limits of a real service: where it listens, whom it lets in, what it writes."""

import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
import psutil
import pytest
from access_parts import add_key
from conftest import (
    BUILT_IN,
    ROOT,
    Service,
    TrainedModels,
    environment,
    free_port,
    lines_of,
    stop,
    wait_for,
    wait_until_ready,
)
from openapi_spec_validator import validate
from test_http import TUTORIAL_ROW
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tabserve.access.key_store import read_keys, write_keys
from tabserve.chained_log import ChainedLog

BURST = 30


@dataclass
class Guarded:
    """A service with keys, and what their holders show."""

    service: Service
    keys_file: Path
    audit: ChainedLog
    shown: dict[str, str]

    def client(self, name: str | None = None, **headers: str) -> httpx.Client:
        key = {"X-API-Key": self.shown[name]} if name else {}
        return httpx.Client(base_url=self.service.url, timeout=30, headers={**key, **headers})


def serve(home: Path, log: Path, *options: str, **settings: str) -> Service:
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(home, **settings), stdout=out, stderr=out, start_new_session=True
        )
    return Service(f"http://127.0.0.1:{port}", process, log)


@pytest.fixture(scope="module")
def guarded(models: TrainedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Two workers, started without --host, behind a proxy on this machine."""
    folder = tmp_path_factory.mktemp("guarded")
    config = folder / "two.yaml"
    config.write_text((ROOT / "configuration.yaml").read_text().replace("workers: 1 ", "workers: 2 "))
    keys = folder / "keys.yaml"
    shown = {scope: add_key(keys, scope, scope) for scope in ("predict", "metrics", "admin")}
    shown["flood"] = add_key(keys, "flood", "predict")
    service = serve(
        models.home,
        folder / "log",
        BENTOML_CONFIG=str(config),
        TABSERVE_MODEL=BUILT_IN,
        TABSERVE_API_KEYS_FILE=str(keys),
        TABSERVE_RATE_LIMIT=f"1/m:{BURST}",
        TABSERVE_TRUSTED_PROXIES="127.0.0.0/8",
        TABSERVE_AUDIT_LOG=str(folder / "audit.jsonl"),
        TABSERVE_LOG_SUCCESS_SHARE="1",
    )
    try:
        wait_until_ready(service)
        yield Guarded(service, keys, ChainedLog(folder / "audit.jsonl"), shown)
    finally:
        stop(service)


def test_by_itself_it_listens_on_loopback_only(guarded: Guarded) -> None:
    port = httpx.URL(guarded.service.url).port
    # Another address of this machine: who listens on all of them listens there too.
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass
    assert "it answers who shows a key or a token, on 127.0.0.1" in guarded.service.log


ROUTES = {  # what each answers who may ask, and the scope that opens it
    ("POST", "/predict"): (200, "predict"),
    ("POST", "/predict/batch"): (422, "predict"),
    ("POST", "/feedback"): (422, "feedback"),
    ("POST", "/bento/predict"): (400, "predict"),
    ("GET", "/metrics"): (200, "metrics"),
    ("GET", "/metadata"): (200, "predict"),
    ("GET", "/openapi.json"): (200, "predict"),
    ("GET", "/docs"): (200, "predict"),
    ("GET", "/docs/start.js"): (200, "predict"),
    ("GET", "/redoc"): (200, "predict"),
    ("GET", "/redoc/redoc.standalone.js"): (200, "predict"),
    ("GET", "/docs.json"): (200, "predict"),
    ("GET", "/schema.json"): (200, "predict"),
    ("GET", "/static_content/swagger-ui.css"): (200, "predict"),
    ("GET", "/"): (307, "predict"),
    ("GET", "/nothing"): (404, "predict"),
    ("DELETE", "/predict"): (405, "predict"),
    ("GET", "/health"): (200, ""),
    ("GET", "/ready"): (200, ""),
    ("GET", "/livez"): (200, ""),
    ("GET", "/healthz"): (200, ""),
    ("GET", "/readyz"): (200, ""),
}


def test_a_stranger_is_refused_on_every_route_and_a_key_opens_its_own(guarded: Guarded) -> None:
    body = {"features": TUTORIAL_ROW}
    found: dict[str | None, dict[tuple[str, str], int]] = {}
    for holder in (None, "predict", "metrics", "admin"):
        with guarded.client(holder) as client:
            found[holder] = {
                (method, path): client.request(method, path, json=body if method == "POST" else None).status_code
                for method, path in ROUTES
            }

    for route, (status, needed) in ROUTES.items():
        assert found[None][route] == (401 if needed else status), route
        assert found["admin"][route] == status, route
        for holder in ("predict", "metrics"):
            assert found[holder][route] == (status if needed in ("", holder) else 403), (holder, route)
    with guarded.client("predict") as caller, guarded.client("metrics") as prometheus:
        assert caller.post("/bento/predict", json={"rows": [TUTORIAL_ROW]}).status_code == 200
        metrics = prometheus.get("/metrics").text
    n_of = Counter(needed for _, needed in ROUTES.values())
    assert f'tabserve_refused_access_total{{reason="no_key"}} {len(ROUTES) - n_of[""]}.0' in metrics
    assert f'reason="missing_scope"}} {2 * n_of["feedback"] + n_of["predict"] + n_of["metrics"]}.0' in metrics
    assert 'tabserve_refused_access_total{reason="expired"} 0.0' in metrics  # an alert sees the first one come
    assert 'tabserve_requests_total{route="/predict",status="401"} 2.0' in metrics

    wait_for(lambda: any(line.get("who") == "predict" and line["status"] == 200 for line in lines_of(guarded.service)))
    for shown in guarded.shown.values():
        secret = shown.split("_", 2)[2]
        assert secret not in guarded.service.log
        assert secret not in metrics


def test_behind_a_trusted_proxy_the_address_is_the_last_that_no_proxy_of_ours_added(guarded: Guarded) -> None:
    with guarded.client(**{"X-Forwarded-For": "198.51.100.6, 203.0.113.9, 127.0.0.5"}) as stranger:
        answers = [stranger.get("/metadata") for _ in range(BURST + 1)]
    with guarded.client(**{"X-Forwarded-For": "203.0.113.10"}) as another:
        assert another.get("/metadata").status_code == 401

    assert [answer.status_code for answer in answers] == [401] * BURST + [429]
    wait_for(lambda: {line["who"] for line in guarded.audit.lines()} >= {"203.0.113.9", "203.0.113.10"})
    assert "198.51.100.6" not in {line["who"] for line in guarded.audit.lines()}


def test_without_trusted_proxies_nobody_says_who_he_is(services: dict[str, Service]) -> None:
    """uvicorn believes every process of its machine unless it is told whom to believe."""
    (worker, *_) = [
        child
        for child in psutil.Process(services[BUILT_IN].process.pid).children(recursive=True)
        if "TABSERVE_METRICS_DIR" in child.environ()
    ]
    believed = worker.environ()["FORWARDED_ALLOW_IPS"]
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(scope["client"])

    scope = {"type": "http", "client": ("127.0.0.1", 5), "headers": [(b"x-forwarded-for", b"203.0.113.9")]}
    coroutine = ProxyHeadersMiddleware(app, believed)(scope, None, None)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert seen == [("127.0.0.1", 5)]


def test_the_page_says_what_each_route_needs_and_how_it_refuses(guarded: Guarded, built_in: httpx.Client) -> None:
    with guarded.client("predict") as caller:
        page = caller.get("/openapi.json").json()
    validate(page)
    without = built_in.get("/openapi.json").json()

    assert set(page["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    assert page["paths"]["/feedback"]["post"]["security"] == [{"apiKey": ["feedback"]}, {"bearer": ["feedback"]}]
    assert page["paths"]["/ready"]["get"]["security"] == []
    for path in ("/predict", "/predict/batch", "/feedback", "/metadata", "/metrics"):
        (operation,) = page["paths"][path].values()
        assert {"401", "403", "429"} < set(operation["responses"]), path
    assert "securitySchemes" not in without["components"]
    assert "401" not in json.dumps(without)


def test_too_many_requests_of_one_key_are_429_whichever_worker_is_asked_and_the_others_go_on(guarded: Guarded) -> None:
    connections = [guarded.client("flood") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool, guarded.client("admin") as other:
        answers = list(pool.map(lambda n: connections[n % 8].get("/nothing"), range(BURST + 20)))
        assert other.get("/metadata").status_code == 200
    for connection in connections:
        connection.close()

    assert Counter(answer.status_code for answer in answers) == {404: BURST, 429: 20}
    wait_for(lambda: len({line["process"] for line in lines_of(guarded.service) if line.get("who") == "flood"}) == 2)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit-policy"] == f'"default";q={BURST};w={60 * BURST}'
    assert refused.json()["detail"] == []
    wait_for(lambda: any(line["who"] == "flood" for line in guarded.audit.lines()))


def test_a_revoked_key_is_refused_within_seconds_without_a_restart(guarded: Guarded) -> None:
    """By all workers: it is asked on four connections, all of which a worker of its own may have."""
    shown = add_key(guarded.keys_file, "leaver", "predict")
    numbers = count()
    connections = [guarded.client(Authorization=f"Bearer {shown}") for _ in range(4)]

    def statuses() -> set[int]:  # from ever another address: while the key is unknown these are counted
        header = {"X-Forwarded-For": "198.18.{}.{}".format(*divmod(next(numbers), 256))}
        return {connection.get("/nothing", headers=header).status_code for connection in connections}

    wait_for(lambda: 401 not in statuses())  # 404; or 429, where one worker knew it long before the other
    write_keys(guarded.keys_file, read_keys(guarded.keys_file).revoked("leaver")[0])
    wait_for(lambda: statuses() == {401})
    for connection in connections:
        connection.close()


def test_it_does_not_start_where_strangers_could_ask(models: TrainedModels, tmp_path: Path) -> None:
    service = serve(models.home, tmp_path / "log", "--host", "0.0.0.0", TABSERVE_MODEL=BUILT_IN)

    assert service.process.wait(60) == 1
    assert "tabserve does not start: it would listen on 0.0.0.0" in service.log
    assert "TABSERVE_API_KEYS_FILE" in service.log
    assert "TABSERVE_ANONYMOUS=true" in service.log
    assert "Traceback" not in service.log
