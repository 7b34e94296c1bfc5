"""A constant answer from uvicorn alone: what HTTP costs in this process model, the limit of all others."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

BODY = b'{"prediction":1,"probabilities":[0.0,1.0]}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]

Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})
