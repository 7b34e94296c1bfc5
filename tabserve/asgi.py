"""Requests and answers on the wire: bodies read within limits, answers sent, other apps asked."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tabserve.answers import Answer, HttpError, quoted

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Scope, Receive], Awaitable[Answer]]
"""Answers the requests of a route, or raises HttpError."""

JSON_TYPE = b"application/json"


class ClientGoneError(Exception):
    """Nobody is left to answer."""


async def read_json_body(scope: Scope, receive: Receive, *, max_bytes: int, max_seconds: float) -> bytes:
    """The body of a request that says it is JSON, inflated where it came as gzip.

    Raises:
        HttpError: 415 for another type or encoding, 413 for a longer one, inflated or not, 408 for one that comes too
            late, 400 for what is no gzip.
        ClientGoneError: where the caller hung up.
    """
    is_gzip = _check_media_type(scope)
    if _is_all_here(receive):
        body: bytes = (await receive()).get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    else:
        try:
            async with asyncio.timeout(max_seconds):
                body = await _body_in_pieces(receive, max_bytes)
        except TimeoutError:
            message = f"The body did not come within {max_seconds:g} s; send it faster, or send less."
            raise HttpError(408, message, headers={"connection": "close"}) from None
    # A megabyte takes 2 ms to inflate, too long for the event loop.
    return await asyncio.to_thread(_inflated, body, max_bytes) if is_gzip else body


def _check_media_type(scope: Scope) -> bool:
    """Whether the body is gzip; a caller who says nothing of the type means JSON."""
    encodings = []
    for name, value in scope["headers"]:
        if name == b"content-type" and value != JSON_TYPE:
            media_type = value.split(b";")[0].strip().lower()
            if media_type != JSON_TYPE:
                got = quoted(media_type.decode("latin-1"))
                raise HttpError(415, f"Expected Content-Type: application/json, got {got}.")
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            encodings.append(value.strip().lower())
    if encodings and encodings != [b"gzip"]:
        got = quoted(b", ".join(encodings).decode("latin-1"))
        headers = {"accept-encoding": "gzip"}
        raise HttpError(415, f"Expected a body without Content-Encoding or with gzip, got {got}.", headers=headers)
    return bool(encodings)


def _inflated(body: bytes, limit: int) -> bytes:
    """What was compressed, of which no more than the limit is ever inflated."""
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # gzip, and nothing else
    try:
        inflated = member.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(400, "The body is not gzip, as its Content-Encoding says.") from error
    if len(inflated) > limit:
        raise _too_large(limit)
    if not member.eof or member.unused_data:
        raise HttpError(400, "The body is not one whole gzip.")
    return inflated


async def _body_in_pieces(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"The body is larger than {limit} bytes; send fewer rows in a request.")


def replaying(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already once more, and then what comes after it."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return unread.pop() if unread else await receive()

    return receive_again


# What ASGI has no word for: `receive` is a method of uvicorn's own object for a request, which knows it. Under another
# server nothing is known, and the slower way is taken.


def _is_all_here(receive: Receive) -> bool:
    """Whether the whole body has come: reading it waits for nothing, and needs no time limit."""
    cycle = getattr(receive, "__self__", None)
    return getattr(cycle, "more_body", True) is False and getattr(cycle, "disconnected", True) is False


def still_connected(receive: Receive) -> Callable[[], bool] | None:
    """Whether the caller still waits. ASGI tells only those who read on."""
    cycle: Any = getattr(receive, "__self__", None)
    return (lambda: not cycle.disconnected) if hasattr(cycle, "disconnected") else None


async def passed_on(app: App, scope: Scope, receive: Receive, send: Send) -> tuple[Answer, Exception | None]:
    """What BentoML's app answered, without its body, or what it raised: for the metrics and the log."""
    status = 500  # what a caller gets where the app raises before it answers

    async def send_and_see(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    try:
        await app(scope, receive, send_and_see)
    except Exception as error:  # noqa: BLE001  # raised again when it is recorded
        return Answer(status, b""), error
    return Answer(status, b""), None


async def send_answer(send: Send, answer: Answer, *, with_body: bool) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", b"%d" % len(answer.body)),
        (b"cache-control", b"no-store"),  # a prediction is one of its time, and nobody else's
    ]
    if answer.headers:
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})
