"""What the hot endpoints have in common: key and limit first, then the body within its size, then one answer."""

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from serving.http.auth import KeyRing
from serving.http.errors import ApiError, payload_too_large, request_timeout, unexpected
from serving.http.room import Room, Share

log = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]
# A body that is slower holds its room for nothing.
BODY_SECONDS = 30.0
JSON = (b"content-type", b"application/json")
encode = msgspec.json.Encoder().encode


class ClientLeftError(Exception):
    """The client closed the connection before its body was complete."""


class Endpoint(ABC):
    """An ASGI application for one POST route with a JSON body."""

    scope: ClassVar[str]
    limit: ClassVar[int]

    def __init__(self, keys: KeyRing, room: Room) -> None:
        """`keys` tells who may call, and how often; all bodies together take no more than `room`."""
        self._keys, self._room = keys, room

    @abstractmethod
    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Status, JSON and headers for a request. Raises ApiError."""

    def credentials(self, headers: dict[bytes, bytes]) -> bytes:
        """The header that holds the key."""
        return headers.get(b"authorization", b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that came through the router; its id is `scope["request_id"]`, which the front door has set."""
        await self.respond(scope, receive, send, dict(scope["headers"]), None)

    async def respond(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: bytes | None
    ) -> None:
        """Answer one request; `request_id` is sent with it, where nobody outside does so."""
        share = Share(self._room)
        try:
            credentials = self.credentials(headers)
            if not self._keys.let_in_at_once(credentials, self.scope):
                await self._keys.let_in(credentials, self.scope)
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                body = message["body"]
                if len(body) > self.limit:
                    raise payload_too_large(self.limit)
                share.take(len(body))
            else:
                body = await self._rest_of_body(message, headers, receive, share)
            status, content, more = await self.answer(body, scope)
        except ApiError as error:
            if request_id is not None:
                error.headers["X-Request-ID"] = scope["request_id"]
            await error.response()(scope, receive, send)
            return
        except ClientLeftError:
            return
        except Exception:  # the front door stands before Starlette's own handling of what nobody expected
            log.exception("A defect: %s %s failed.", scope["method"], scope["path"])
            defect = unexpected(scope["request_id"])
            if request_id is None:
                defect.headers.clear()
            await defect.response()(scope, receive, send)
            return
        finally:
            share.give_back()
        sent = [JSON, (b"content-length", b"%d" % len(content)), *more]
        if request_id is not None:
            sent.append((b"x-request-id", request_id))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": content})

    async def _rest_of_body(
        self, message: Message, headers: dict[bytes, bytes], receive: Receive, share: Share
    ) -> bytes:
        """The whole body, of which `message` is the first part.

        Raises ApiError: 413 as soon as it is known to be too large, 408 when it does not come, 503 without room for it; ClientLeftError.
        """
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self.limit:
            raise payload_too_large(self.limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > self.limit:
                        raise payload_too_large(self.limit)
                    share.take(len(chunk))
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
                    message = await receive()
        except TimeoutError:
            raise request_timeout(BODY_SECONDS) from None
