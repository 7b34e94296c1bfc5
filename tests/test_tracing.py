"""Traces: what a receiver gets of real requests, and that nobody notices where there is none."""

import asyncio
import contextlib
import gzip
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from conftest import BUILT_IN, ROOT, Service, environment, free_port, lines_of, running_service, wait_for
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from test_http import TUTORIAL_ROW

from tabserve.batcher import Batcher
from tabserve.settings import BadSettingError, wants_tracing
from tabserve.tracing import Tracing
from tabserve.tracing.receiver import check, sampler_of
from tabserve.tracing.traceparent import LONGEST, Caller, caller_of

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = "00f067aa0ba902b7"
MODEL = "tabserve.model_version"


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver over HTTP, as a collector is one. It may be told to be slow, or to answer something else."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.requests: list[ExportTraceServiceRequest] = []
        self.status = 200
        self.is_open = threading.Event()
        self.is_open.set()
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for one in self.requests
            for of in one.resource_spans
            for scope in of.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self.is_open.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        assert self.headers["content-type"] == "application/x-protobuf"
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.asked += 1
        self.server.is_open.wait()
        if self.server.status == 200:
            self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with contextlib.closing(Receiver()) as one:
        yield one


@pytest.fixture(scope="module")
def traced(models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A service that records everything and sends it every 100 ms, and who receives it."""
    log = tmp_path_factory.mktemp("traced") / "log"
    with contextlib.closing(Receiver()) as receiver:
        settings = variables(
            receiver, OTEL_TRACES_SAMPLER="always_on", OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test"
        )
        with running_service(models.home, log, TABSERVE_MODEL=BUILT_IN, **settings) as service:
            yield SimpleNamespace(service=service, receiver=receiver, tag=models.tag(BUILT_IN))


def variables(receiver: Receiver, **more: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "TABSERVE_LOG_SUCCESS_SHARE": "1",
        "TABSERVE_LOG_URL": "null:",
        "BENTOML_CONFIG": str(ROOT / "configuration.yaml"),
        **more,
    }


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def traceparent(trace_id: str = CALLER, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CALLER_SPAN}-{flags}"}


def trace_of(receiver: Receiver, trace_id: str) -> dict[str, Span]:
    """The spans of a trace by name, when its server span is there, which ends last."""
    wait_for(lambda: any(s.kind == Span.SPAN_KIND_SERVER for s in receiver.spans if s.trace_id.hex() == trace_id))
    return {span.name: span for span in receiver.spans if span.trace_id.hex() == trace_id}


def assert_inside(child: Span, parent: Span) -> None:
    assert child.parent_span_id == parent.span_id
    assert child.trace_id == parent.trace_id
    assert parent.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
    assert child.end_time_unix_nano <= parent.end_time_unix_nano


# --- a service and a receiver


def test_a_request_is_a_tree_in_the_trace_of_its_caller_and_linked_to_its_batch(traced) -> None:
    before = time.time_ns()
    with traced.service.client() as client:
        answer = client.post("/predict", json={"features": TUTORIAL_ROW}, headers=traceparent())
    assert answer.status_code == 200

    spans = trace_of(traced.receiver, CALLER)
    server, parse, queue = spans["POST /predict"], spans["parse"], spans["queue"]
    assert len(spans) == 3
    assert server.parent_span_id.hex() == CALLER_SPAN
    assert before <= server.start_time_unix_nano <= server.end_time_unix_nano <= time.time_ns()
    assert_inside(parse, server)
    assert_inside(queue, server)
    assert parse.start_time_unix_nano == server.start_time_unix_nano
    assert parse.end_time_unix_nano == queue.start_time_unix_nano
    found = attributes(server)
    assert found.pop("network.protocol.version") == "1.1"
    assert found == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "url.path": "/predict",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "tabserve.rows": 1,
        MODEL: traced.tag,
    }
    assert server.status.code == Status.STATUS_CODE_UNSET

    (batch,) = [span for span in traced.receiver.spans if span.span_id == server.links[0].span_id]
    (engine,) = [span for span in traced.receiver.spans if span.parent_span_id == batch.span_id]
    assert [link.span_id for link in batch.links] == [server.span_id]
    assert (batch.name, batch.parent_span_id, engine.name) == ("batch", b"", "engine")
    assert attributes(batch) == {MODEL: traced.tag, "tabserve.rows": 1, "tabserve.requests": 1}
    assert_inside(engine, batch)
    assert queue.end_time_unix_nano <= batch.end_time_unix_nano


def test_the_spans_say_which_service_they_are_of(traced) -> None:
    with traced.service.client() as client:
        client.post("/predict", json={"features": TUTORIAL_ROW})
    wait_for(lambda: traced.receiver.requests)

    of = traced.receiver.requests[0].resource_spans[0].resource
    found = {one.key: one.value.string_value or one.value.int_value for one in of.attributes}

    assert found["service.name"] == "tabserve"
    assert found["deployment.environment.name"] == "test"
    assert int(found["process.pid"]) != traced.service.process.pid  # the worker's, of which there may be several


def test_concurrent_requests_share_batches_and_each_is_linked_to_its_own(traced) -> None:
    trace_ids = [f"{n:032x}" for n in range(0xA000, 0xA000 + 48)]
    body = {"instances": [TUTORIAL_ROW] * 40}
    with traced.service.client() as client, ThreadPoolExecutor(16) as threads:
        done = list(
            threads.map(lambda one: client.post("/predict/batch", json=body, headers=traceparent(one)), trace_ids)
        )
    assert [answer.status_code for answer in done] == [200] * 48

    servers = [trace_of(traced.receiver, one)["POST /predict/batch"] for one in trace_ids]
    linked = {link.span_id for server in servers for link in server.links}
    wait_for(lambda: linked <= {span.span_id for span in traced.receiver.spans})
    batches = {span.span_id: span for span in traced.receiver.spans if span.span_id in linked}
    assert all(server.links for server in servers)
    for server in servers:  # and back
        for link in server.links:
            assert link.trace_id == batches[link.span_id].trace_id
            assert server.span_id in {back.span_id for back in batches[link.span_id].links}
    for batch in batches.values():
        assert attributes(batch)["tabserve.requests"] == len(batch.links)  # everything is recorded here
    rows = sum(int(str(attributes(batch)["tabserve.rows"])) for batch in batches.values())
    assert rows == 48 * 40
    assert len({batch.trace_id for batch in batches.values()}) == len(batches)


def test_a_refusal_has_the_trace_in_its_body_and_its_line_and_only_where_there_is_one(traced, built_in) -> None:
    with traced.service.client() as client:
        refused = client.post("/predict", json={"features": TUTORIAL_ROW[1:]}, headers=traceparent("ab" * 16))
        of_its_own = client.post("/predict", content=b"{")
        nowhere = client.get("/nothing", headers=traceparent("ac" * 16))
    untraced = built_in.post("/predict", json={"features": TUTORIAL_ROW[1:]}, headers=traceparent("ab" * 16))

    assert refused.json()["trace_id"] == "ab" * 16
    assert set(untraced.json()) == set(nowhere.json()) == {"error", "detail"}
    spans = trace_of(traced.receiver, "ab" * 16)
    assert set(spans) == {"POST /predict", "parse"}
    assert attributes(spans["POST /predict"])["error.type"] == attributes(spans["parse"])["error.type"] == "422"
    assert attributes(spans["POST /predict"])[MODEL] == traced.tag
    assert spans["POST /predict"].status.code == Status.STATUS_CODE_UNSET  # it was the caller's fault
    assert not trace_of(traced.receiver, of_its_own.json()["trace_id"])["POST /predict"].parent_span_id
    wait_for(lambda: any(line.get("route") == "other" for line in lines_of(traced.service)))
    lines = [line for line in lines_of(traced.service) if line.get("status", 200) >= 400]
    ids = [line.get("trace_id") for line in lines if line["route"] != "/ready"]
    assert ids == ["ab" * 16, of_its_own.json()["trace_id"], None]


def test_lines_of_answers_have_the_trace_and_bentomls_own_api_is_recorded(traced) -> None:
    with traced.service.client() as client:
        answer = client.post("/bento/predict", json={"rows": [TUTORIAL_ROW]}, headers=traceparent("be" * 16))
    assert answer.status_code == 200

    assert list(trace_of(traced.receiver, "be" * 16)) == ["POST /bento/predict"]
    wait_for(lambda: any(line.get("trace_id") == "be" * 16 for line in lines_of(traced.service)))


def test_nothing_that_strangers_write_is_in_a_span(traced) -> None:
    strange = {
        "baggage": "user=mallory",
        "tracestate": "vendor=mallory",
        "user-agent": "mallory",
        **traceparent("bb" * 16),
    }
    with traced.service.client() as client:
        client.post("/predict?name=mallory", json={"features": TUTORIAL_ROW}, headers=strange)
        client.post("/predict", json={"features": ["mallory"]}, headers=strange)
        client.post("/predict", json={"features": TUTORIAL_ROW}, headers={"traceparent": "00-" + "f" * 60_000})
    wait_for(lambda: sum(span.trace_id.hex() == "bb" * 16 for span in traced.receiver.spans) >= 5)

    assert not [one for one in traced.receiver.requests if b"mallory" in one.SerializeToString()]


def test_probes_and_pages_are_not_recorded(traced) -> None:
    with traced.service.client() as client:
        for path in ("/health", "/ready", "/metrics", "/docs", "/metadata"):
            assert client.get(path).status_code == 200
        client.post("/predict", json={"features": TUTORIAL_ROW}, headers=traceparent("cc" * 16))
    trace_of(traced.receiver, "cc" * 16)

    assert {span.name for span in traced.receiver.spans} <= {
        *("POST /predict", "POST /predict/batch", "POST /bento/predict", "POST /feedback"),
        *("parse", "queue", "batch", "engine"),
    }
    assert "tabserve_spans_total" in httpx.get(f"{traced.service.url}/metrics").text


def test_the_default_records_whom_the_caller_records_and_sigterm_sends_what_waits(models, receiver, tmp_path) -> None:
    settings = variables(receiver, OTEL_BSP_SCHEDULE_DELAY="600000")  # nothing is sent until the end
    with running_service(models.home, tmp_path / "log", TABSERVE_MODEL=BUILT_IN, **settings) as service:
        with service.client() as client:
            recorded = [f"{n:032x}" for n in range(1, 21)]
            for trace_id in recorded:
                client.post("/predict", json={"features": TUTORIAL_ROW}, headers=traceparent(trace_id))
            for n in range(101, 121):
                bad = client.post("/predict", json={}, headers=traceparent(f"{n:032x}", flags="00"))
                assert bad.json()["trace_id"] == f"{n:032x}"  # the caller's, although nobody records it
        assert not receiver.requests
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0

    assert {span.trace_id.hex() for span in receiver.spans if span.name == "POST /predict"} == set(recorded)


def test_a_receiver_that_is_away_or_silent_costs_no_request(models, tmp_path) -> None:
    port = free_port()
    away = SimpleNamespace(endpoint=f"http://127.0.0.1:{port}")
    settings = variables(
        away, OTEL_TRACES_SAMPLER="always_on", OTEL_BSP_MAX_QUEUE_SIZE="512", OTEL_EXPORTER_OTLP_TIMEOUT="1"
    )
    with running_service(models.home, tmp_path / "log", TABSERVE_MODEL=BUILT_IN, **settings) as service:
        assert_300_answers(service)
        wait_for(lambda: "spans cannot be sent" in service.log)
        wait_for(lambda: dropped(service, "not_received") > 0)
        with contextlib.closing(Receiver(port)) as receiver:
            wait_for(lambda: _asked_and_received(service, receiver))
            receiver.is_open.clear()  # from now on it takes requests and says nothing
            assert_300_answers(service)
            wait_for(lambda: dropped(service, "queue_full") > 0 or _answers(service, 50))
            started = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0
            assert time.monotonic() - started < 25  # BentoML would end it by force after 30
    messages = [line["message"] for line in lines_of(service)]
    assert sum("spans cannot be sent" in message for message in messages) <= 2
    assert not [line for line in lines_of(service) if line["logger"].startswith("opentelemetry")]


def assert_300_answers(service: Service) -> None:
    with service.client() as client, ThreadPoolExecutor(8) as threads:
        body = {"features": TUTORIAL_ROW}
        done = list(threads.map(lambda _: client.post("/predict", json=body).status_code, range(300)))
    assert done == [200] * 300


def _answers(service: Service, n: int) -> bool:
    with service.client() as client:
        for _ in range(n):
            assert client.post("/predict", json={"features": TUTORIAL_ROW}).status_code == 200
    return False


def _asked_and_received(service: Service, receiver: Receiver) -> bool:
    _answers(service, 1)
    return bool(receiver.requests)


def dropped(service: Service, reason: str) -> float:
    for line in httpx.get(f"{service.url}/metrics").text.splitlines():
        if line.startswith(f'tabserve_dropped_spans_total{{reason="{reason}"}}'):
            return float(line.split()[-1])
    return 0


# --- starting


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT is no address, expected http"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@:x/"}, "OTEL_EXPORTER_OTLP_ENDPOINT is no address"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://a:4317"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is no address"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc', expected http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin', expected otlp"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER is 'sometimes', expected one of always_on, "),
        ({"OTEL_TRACES_SAMPLER_ARG": "1 %"}, "OTEL_TRACES_SAMPLER_ARG is '1 %', expected a number from 0 to 1"),
        ({"OTEL_TRACES_SAMPLER_ARG": "nan"}, "OTEL_TRACES_SAMPLER_ARG is 'nan', expected a number from 0 to 1"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE is 'many', expected a whole number"),
        (
            {"OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": "mine"},
            "cannot be used: ",
        ),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION is .zstd., expected none"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_with_what_was_expected(monkeypatch, settings, sentence: str) -> None:
    whole = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", **settings}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(BadSettingError, match=sentence) as error:
        check(whole)
    assert "secret" not in str(error.value)


def test_the_service_does_not_start_without_the_package_or_with_a_bad_address(models) -> None:
    hide = "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None; "
    start = "import service; service.Tabserve.inject_config(); service.Tabserve.inner.choose()"
    found = []
    for code, endpoint in ((hide, "http://localhost:4318"), ("", "localhost")):
        done = subprocess.run(
            [sys.executable, "-c", code + start],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment(models.home, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint),
        )
        assert done.returncode == 1
        found.append(done.stderr.strip().splitlines())

    ((missing,), (bad,)) = found
    assert missing.startswith("tabserve does not start: ")
    assert "pip install -r requirements/tracing.txt" in missing
    assert bad.startswith("tabserve does not start: OTEL_EXPORTER_OTLP_ENDPOINT is no address")


def test_it_is_off_unless_there_is_a_receiver_and_then_nothing_of_it_is_imported(models) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
    assert not wants_tracing({})
    assert wants_tracing(endpoint)
    assert wants_tracing({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318"})
    assert not wants_tracing({**endpoint, "OTEL_SDK_DISABLED": "true"})
    assert not wants_tracing({**endpoint, "OTEL_TRACES_EXPORTER": "none"})
    code = """
import asyncio, sys, service
service.Tabserve.inject_config(), service.Tabserve.inner.choose()
app = service.Tabserve.to_asgi()
async def receive(): return {"type": "lifespan.startup"}
async def send(message): raise SystemExit()
try: asyncio.run(app({"type": "lifespan", "state": {}}, receive, send))
except SystemExit: pass
sys.exit(str([name for name in sys.modules if name.startswith(("tabserve.tracing", "opentelemetry.exporter"))]))
"""

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(models.home, TABSERVE_ANONYMOUS="true"),
        capture_output=True,
        text=True,
    )

    assert done.stderr.strip().splitlines()[-1] == "[]"


SAMPLERS = {
    "": ParentBased(TraceIdRatioBased(0.01)),
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased(1.0),  # the specification's default
    "parentbased_always_on": ParentBased(ALWAYS_ON),
    "parentbased_always_off": ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": ParentBased(TraceIdRatioBased(1.0)),
    " 0.3": ParentBased(TraceIdRatioBased(0.3)),
    "traceidratio 0.3": TraceIdRatioBased(0.3),
    "always_on 0.3": ALWAYS_ON,
}


@pytest.mark.parametrize("words", SAMPLERS)
@pytest.mark.parametrize("flag", [None, True, False])
def test_what_is_recorded_is_what_the_sdks_sampler_of_that_name_records(words: str, flag: bool | None) -> None:
    name, _, share = words.partition(" ")
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": share})
    random = np.random.default_rng(7)

    for _ in range(500):
        trace_id = int.from_bytes(random.bytes(16), "big")
        context = Context()
        if flag is not None:
            parent = SpanContext(trace_id, 1, True, TraceFlags(int(flag)))
            context = set_span_in_context(NonRecordingSpan(parent), context)
        theirs = SAMPLERS[words].should_sample(context, trace_id, "POST /predict").decision.is_sampled()
        assert sampler.records(trace_id, None if flag is None else Caller(f"{trace_id:032x}", 1, flag)) == theirs


# --- traceparent

_HEX = st.text("0123456789abcdefABCDEFg", max_size=34)
_PIECES = st.lists(st.one_of(_HEX, st.sampled_from(["00", "01", "ff", CALLER, CALLER_SPAN, "0" * 32, "0" * 16, ""])))


@given(_PIECES.map("-".join))
@example(f"00-{CALLER}-{CALLER_SPAN}-01")
@example(f"00-{CALLER}-{CALLER_SPAN}-01-more")
@example(f"cc-{CALLER}-{CALLER_SPAN}-02-more")
@example(f"cc-{CALLER}-{CALLER_SPAN}-02.more")
@example(f"ff-{CALLER}-{CALLER_SPAN}-01")
@example(f"00-{'0' * 32}-{CALLER_SPAN}-01")
@example(f"00-{CALLER}-{'0' * 16}-01")
@example(f"00-{CALLER.upper()}-{CALLER_SPAN}-01")
def test_a_traceparent_is_read_as_opentelemetrys_own_propagator_reads_it(text: str) -> None:
    theirs = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()

    found = caller_of([(b"traceparent", text.encode())])

    expected = Caller(f"{theirs.trace_id:032x}", theirs.span_id, theirs.trace_flags.sampled)
    assert found == (expected if theirs.is_valid and len(text) <= LONGEST else None)


def test_two_traceparents_or_a_long_one_are_none() -> None:
    one = (b"traceparent", f"00-{CALLER}-{CALLER_SPAN}-01".encode())

    assert caller_of([(b"x", b"y"), one]) == Caller(CALLER, int(CALLER_SPAN, 16), True)
    assert caller_of([one, (b"x", b"y"), one]) is None
    assert caller_of([(b"traceparent", f"cc-{CALLER}-{CALLER_SPAN}-01-".encode() + b"0" * 300)]) is None


# --- what goes wrong, in this process


class Counts:
    def __init__(self) -> None:
        self.sent = 0
        self.dropped: list[str] = []

    def spans_sent(self, n_spans: int) -> None:
        self.sent += n_spans

    def spans_dropped(self, reason: str, n_spans: int) -> None:
        self.dropped += [reason] * n_spans


class Nobody:
    def queue_left(self, n_rows: int) -> None: ...
    def request_split(self) -> None: ...
    def batch_started(self, cap_rows: int, longest_wait_seconds: float, slices: Sequence) -> None: ...
    def batch_done(self, n_rows: int, service_seconds: float) -> None: ...
    def batch_failed(self, reason: str) -> None: ...
    def refused(self, reason: str, n_rows: int) -> None: ...


def test_a_batch_that_fails_says_so_and_shows_each_attempt_of_the_engine(receiver, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    tracing = Tracing({"OTEL_TRACES_SAMPLER": "always_on"}, Counts(), lambda: None)
    predict, observer = tracing.of_batches(_refuses_negatives, Nobody(), "m:1")
    batcher = _batcher(predict, observer)

    async def app(scope, receive, send) -> None:
        rows = np.array([[scope["value"]]])
        scope["tabserve.trace"].parsed(1)
        try:
            await batcher.submit(rows, trace=scope["tabserve.trace"])
            status = 200
        except ValueError:
            status = 500
        await send({"type": "http.response.start", "status": status})

    async def everybody() -> None:
        around = tracing.around(app)
        scopes = [
            {"type": "http", "method": "POST", "path": "/predict", "headers": [], "value": value} for value in (1, -1)
        ]
        await asyncio.gather(*(around(scope, _nothing, _nowhere) for scope in scopes))

    asyncio.run(everybody())
    tracing.close()

    (batch,) = [span for span in receiver.spans if span.name == "batch"]
    engines = [span for span in receiver.spans if span.name == "engine"]
    servers = {attributes(span)["http.response.status_code"]: span for span in receiver.spans if span.kind == 2}
    assert attributes(batch)["error.type"] == "raised"
    assert batch.status.code == Status.STATUS_CODE_ERROR
    assert [attributes(span).get("error.type") for span in engines] == ["ValueError", None, "ValueError"]
    for engine in engines:
        assert_inside(engine, batch)
    assert servers[500].status.code == Status.STATUS_CODE_ERROR
    assert servers[200].status.code == Status.STATUS_CODE_UNSET
    assert {link.span_id for link in batch.links} == {span.span_id for span in servers.values()}


def test_a_full_queue_stops_the_recording_and_is_told_once(receiver, monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    counts = Counts()
    tracing = Tracing({"OTEL_TRACES_SAMPLER": "always_on", "OTEL_BSP_MAX_QUEUE_SIZE": "512"}, counts, lambda: None)
    receiver.is_open.clear()

    async def app(scope, receive, send) -> None:
        scope["recorded"].append("tabserve.trace" in scope)
        await send({"type": "http.response.start", "status": 200})

    recorded: list[bool] = []

    async def many() -> None:
        around = tracing.around(app)
        for _ in range(2000):
            scope = {"type": "http", "method": "POST", "path": "/feedback", "headers": [], "recorded": recorded}
            await around(scope, _nothing, _nowhere)

    with caplog.at_level(logging.INFO):
        asyncio.run(many())

    assert sum(recorded) == 512
    assert recorded[:512] == [True] * 512
    assert counts.dropped == ["queue_full"] * 1488
    assert [record.message for record in caplog.records] == ["spans are dropped, their queue is full (512 spans wait)"]
    receiver.is_open.set()
    tracing.close()
    assert counts.sent == len(receiver.spans) == 512


def test_the_end_does_not_wait_long_for_a_silent_receiver(receiver, monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setattr("tabserve.tracing.spans.CLOSE_SECONDS", 0.3)
    tracing = Tracing({"OTEL_TRACES_SAMPLER": "always_on"}, Counts(), lambda: None)
    receiver.is_open.clear()

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200})

    scope = {"type": "http", "method": "POST", "path": "/feedback", "headers": []}
    asyncio.run(tracing.around(app)(scope, _nothing, _nowhere))
    started = time.monotonic()
    tracing.close()

    assert time.monotonic() - started < 5  # the exporter would try for 10
    assert "1 spans were not sent" in caplog.text


def test_a_request_whose_caller_went_away_ends_and_says_so(receiver, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    tracing = Tracing({"OTEL_TRACES_SAMPLER": "always_on"}, Counts(), lambda: "m:1")

    async def app(scope, receive, send) -> None:
        scope["tabserve.trace"].parsed(3)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(tracing.around(app)(scope, _nothing, _nowhere))
    tracing.close()

    spans = {span.name: span for span in receiver.spans}
    assert set(spans) == {"POST /predict", "parse", "queue"}
    assert attributes(spans["POST /predict"])["error.type"] == "client_gone"
    assert attributes(spans["POST /predict"])["tabserve.rows"] == 3
    assert_inside(spans["queue"], spans["POST /predict"])


def _refuses_negatives(rows):
    if (rows < 0).any():
        raise ValueError("below 0")
    return rows


def _batcher(predict, observer) -> Batcher:
    batcher = Batcher(predict, ThreadPoolExecutor(1), observer)
    batcher.service_time.observe(1, 0.0001)
    return batcher


async def _nothing() -> dict:
    return {"type": "http.disconnect"}


async def _nowhere(_message) -> None:
    pass
