"""Callers that behave badly on a bare socket: they hang up in the middle, or send so slowly that they never end."""

import socket
import ssl
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from loadtest.answers import FailedAnswerError

SECONDS_BETWEEN_BYTES = 0.2
PATIENCE_SECONDS = 30.0  # by then a service has given up on a slow sender, whatever its time limit

BROKEN_JSON = (
    b"",
    b"{",
    b"no JSON",
    b'{"features": [1, 2',
    b'{"features": [1, 2]}}',
    b'{"features": "\xff\xfe"}',
    b"[" * 100_000,
)
WRONG_TYPES = (
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "application/json", "Content-Encoding": "br"},
)


def hang_up(url: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Sends half of a request and goes.

    Raises:
        OSError: where not even that much was taken.
    """
    with _connected(url) as connection:
        connection.sendall(_head(url, path, len(body), headers) + body[: len(body) // 2])


def send_slowly(url: str, path: str, headers: Mapping[str, str]) -> None:
    """Sends a byte now and then until the service says 408 or closes the connection.

    Raises:
        FailedAnswerError: where it does neither, or says something else.
        OSError: where it takes no connection.
    """
    with _connected(url) as connection:
        connection.sendall(_head(url, path, 1_000_000, headers))
        connection.settimeout(SECONDS_BETWEEN_BYTES)
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            try:
                connection.sendall(b" ")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:  # closed while we were sending
                return
            if answer and not answer.startswith(b"HTTP/1.1 408 "):
                status_line = answer.split(b"\r\n", 1)[0].decode("latin-1")
                raise FailedAnswerError(f"expected 408 or a close, got {status_line}")
            return
    raise FailedAnswerError(f"expected 408 or a close, was still read after {PATIENCE_SECONDS:g} s")


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    is_https = parts.scheme == "https"
    connection = socket.create_connection((parts.hostname, parts.port or (443 if is_https else 80)), timeout=10)
    if not is_https:
        return connection
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # as Locust's own users
    return context.wrap_socket(connection, server_hostname=parts.hostname)


def _head(url: str, path: str, length: int, headers: Mapping[str, str]) -> bytes:
    lines = (
        f"POST {urlsplit(url).path}{path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *(f"{name}: {value}" for name, value in headers.items()),
    )
    return "\r\n".join((*lines, "", "")).encode()
