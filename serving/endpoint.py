"""What the hot endpoints have in common: key first, then the body within its limit, then one answer.

Belongs here: plain ASGI reading and writing. Does not belong here: what is answered (assignments.py, events.py).
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgspec
from starlette.types import Receive, Scope, Send

from serving.auth import KeyRing
from serving.errors import ApiError, payload_too_large

_JSON = (b"content-type", b"application/json")


class ClientLeftError(Exception):
    """The client closed the connection before its body was complete."""


class Endpoint(ABC):
    """An ASGI application for one POST route with a JSON body."""

    scope: ClassVar[str]
    limit: ClassVar[int]

    def __init__(self, keys: KeyRing) -> None:
        """`keys` tells who may call."""
        self._keys = keys

    @abstractmethod
    async def answer(self, body: bytes) -> tuple[int, Any, tuple[tuple[bytes, bytes], ...]]:
        """Status, body and headers for a request. Raises ApiError."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._keys.check(scope, self.scope)
            body = await read_body(scope, receive, self.limit)
            status, content, headers = await self.answer(body)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except ClientLeftError:
            return
        encoded = msgspec.json.encode(content)
        length = (b"content-length", str(len(encoded)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
        await send({"type": "http.response.body", "body": encoded})


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises ApiError (413) as soon as it is known to exceed `limit` bytes, ClientLeftError."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise payload_too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise payload_too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
