"""What uvicorn leaves without a bound: connections, the size of a head, the time for it to come or an answer to go.

uvicorn has no setting for the time or the size of a head, and its limit of concurrency refuses probes too. BentoML
passes on none of its settings anyway, so a worker puts these bounds into uvicorn's configuration when it starts.

A connection has one request at a time, so their number bounds the requests as well.
"""

import asyncio
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tabserve.answers import HttpError
from tabserve.asgi import App, Receive, Scope, Send, send_answer
from tabserve.settings import Settings
from tabserve.tls import use_ciphers_of_today

HEAD_BYTES = 65_536  # of a request line and its headers, as nginx (32 KiB) and h11 (64) have it
HEADERS = 100  # of a request; Apache's limit
WAITING = 16  # requests of a connection that may come before the one ahead of them is answered; each takes 3 KB
WRITE_SECONDS = 30.0  # for an answer to be taken: the largest page has 0.4 MB
LOOK_SECONDS = 0.5  # between two looks at all connections; 1000 of them take 0.2 ms
CHUNKS_FACTOR = 8  # a body in chunks of one byte each has 6 bytes for each
OTHER_FILES = 512  # that a worker may have open: models, logs, metrics
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/health", "/ready"})

# In every answer, uvicorn's own too: a browser must not take an answer for something else than it says.
HEADERS_OF_ALL = [(b"x-content-type-options", b"nosniff")]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Of the connections of one worker."""

    connections: int
    head_seconds: float
    """From the first byte of a connection, or the last one of an answer, to a whole head."""
    message_bytes: int
    """Of a request with all that chunks and trailers add to it, beyond which nobody even answers."""


def limits_of(settings: Settings) -> Limits:
    """The limits that follow from the settings: a head may take as long as a prediction."""
    most_body = settings.max_body_bytes
    return Limits(settings.max_connections, settings.request_timeout_ms / 1000, HEAD_BYTES + CHUNKS_FACTOR * most_body)


class TooManyWaitingError(Exception):
    """More requests came on a connection than may wait there for the answers to those before."""


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's, within limits."""

    def __init__(self, watch: "Watch", **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._watch = watch
        self._chunk_bytes = 0
        self._bytes = 0  # since the chunk in which this request began
        self._n_headers = 0  # of its head; trailers come to them

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._watch.connections = self.connections
        n_connections, most = len(self.connections), self._watch.limits.connections
        if n_connections > 2 * most:
            self.give_up("too_many")
        elif n_connections > most:
            # Only a request can be answered, and a probe deserves it: a flood is no reason to restart the service.
            self.app = partial(_too_many, self.app, self._watch.refused)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # What waits there leads back to this connection: only the collector, which is seldom asked, would end them.
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        self._chunk_bytes = len(data)
        self._bytes += len(data)
        super().data_received(data)
        if self._bytes > HEAD_BYTES or (self.headers and len(self.headers) > self._n_headers + HEADERS):
            self._check_message()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes = self._n_headers = 0

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= WAITING:
            self.give_up("pipeline")  # an answer would stand where that of another request has to
            raise TooManyWaitingError  # ends the reading of what has come
        self._n_headers = len(self.headers)
        is_large = self._bytes + self._chunk_bytes > HEAD_BYTES and self._head_bytes() > HEAD_BYTES
        if not is_large and self._n_headers <= HEADERS:
            super().on_headers_complete()
            return
        app = self.app
        self.app = partial(_head_too_large, self._watch.refused)
        super().on_headers_complete()
        self.app = app

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says of bytes that are no request, as our errors are."""
        self.refuse(400, msg)

    def refuse(self, status: int, message: str) -> None:
        """Answers at once, outside of any request, and closes; says nothing where nobody hears it any more."""
        if self.transport.is_closing():
            return
        answer = HttpError(status, message).answer()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", answer.content_type.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"%s%s\r\n%s" % (STATUS_LINE[status], head, answer.body))
        self.transport.close()

    def give_up(self, reason: str) -> None:
        """Ends the connection without a word."""
        self._watch.refused(reason)
        self.transport.abort()

    @property
    def waits_for_a_head(self) -> bool:
        """Whether a request could come, or has begun to, and uvicorn waits for it without an end."""
        return self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete)

    @property
    def waits_for_its_reader(self) -> bool:
        return self.transport.is_closing() or self.flow.write_paused

    def head_is_late(self) -> None:
        self._watch.refused("slow_head")
        self.refuse(408, "The head of the request did not come in time; send it faster.")

    def _check_message(self) -> None:
        if self.transport.is_closing():
            return
        if "path" not in self.scope:  # its head is not whole yet
            self._watch.refused("large_head")
            self.refuse(431, TOO_LARGE)
        elif self._bytes > self._watch.limits.message_bytes or len(self.headers) > self._n_headers + HEADERS:
            self.give_up("large_message")  # trailers and chunks without an end; what is only long was answered with 413

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


TOO_LARGE = f"The head of the request is larger than {HEAD_BYTES} bytes, or has more than {HEADERS} headers; send less."


class Watch:
    """Looks at all connections again and again, and ends those that have waited too long: none costs more for it."""

    def __init__(self, limits: Limits, refused: Callable[[str], None]) -> None:
        self.limits = limits
        self.refused = refused
        self.connections: set[Any] = set()
        self._since: dict[Connection, tuple[object, float]] = {}  # what it waits for, and since when

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.look(time.monotonic())
            except Exception:  # a fault of ours must not end the watch
                logger.exception("the connections could not be looked at")

    def look(self, now: float) -> None:
        before, self._since = self._since, {}
        for connection in list(self.connections):
            what: object = None
            if connection.waits_for_its_reader:
                what, seconds = "reader", WRITE_SECONDS
            elif connection.waits_for_a_head:
                what, seconds = connection.cycle or "first", self.limits.head_seconds
            if what is None:
                continue
            waits_for, since = before.get(connection, (None, now))
            if waits_for is not what:
                since = now
            self._since[connection] = what, since
            if now - since < seconds:
                continue
            if what == "reader":
                connection.give_up("slow_reader")
            else:
                connection.head_is_late()


class FewLines(logging.Filter):
    """Lets each line of uvicorn's through once a second: it writes one for each request that is none."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        last = self._last.get(record.msg)
        if last is not None and record.created - last < 1:
            return False
        self._last[record.msg] = record.created
        return True


def bound(receive: Receive, limits: Limits, refused: Callable[[str], None]) -> asyncio.Task[None] | None:
    """Has uvicorn keep the limits from its first connection on, and TLS of today.

    Called when it says that it starts, before it listens.

    Args:
        receive: of that message, a method of an object of uvicorn's that has its configuration.
        refused: is told of each connection that was refused or ended, and why.

    Returns:
        What has to be kept as long as the service lives; None under another server, which has limits of its own.
    """
    config = getattr(getattr(receive, "__self__", None), "config", None)
    if not isinstance(config, Config):
        logger.warning("connections are not bounded, this is not uvicorn as BentoML starts it")
        return None
    watch = Watch(limits, refused)
    config.http_protocol_class = partial(Connection, watch)  # type: ignore[assignment]
    config.ws_protocol_class = None  # nothing here speaks it
    config.encoded_headers = [*config.encoded_headers, *HEADERS_OF_ALL]
    if config.ssl is not None:
        use_ciphers_of_today(config.ssl, config.ssl_ciphers)
    logging.getLogger("uvicorn.error").addFilter(FewLines())
    _allow_files(2 * limits.connections)
    return asyncio.get_running_loop().create_task(watch.run())


def _allow_files(n_connections: int) -> None:
    """Each connection is an open file, of which many systems allow 1024 at first, and more to who asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(n_connections + OTHER_FILES, hard) if hard != resource.RLIM_INFINITY else n_connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _too_many(app: App, refused: Callable[[str], None], scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] in PROBES:
        await app(scope, receive, send)
        return
    refused("too_many")
    headers = {"retry-after": "1", "connection": "close"}
    error = HttpError(503, "The service has too many connections; try again, or keep fewer open.", headers=headers)
    await send_answer(send, error.answer(), with_body=scope["method"] != "HEAD")


async def _head_too_large(refused: Callable[[str], None], scope: Scope, _: Receive, send: Send) -> None:
    refused("large_head")
    error = HttpError(431, TOO_LARGE, headers={"connection": "close"})
    await send_answer(send, error.answer(), with_body=scope["method"] != "HEAD")
