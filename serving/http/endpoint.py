"""What all hot endpoints share: check the key and its limit, read the body up to a maximum size, send one answer."""

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from serving.http.auth import KeyRing
from serving.http.body_budget import BodyBudget, BodyReservation
from serving.http.errors import ApiError, payload_too_large, request_timeout, unexpected

log = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]
# A slower body would occupy its part of the budget for too long.
BODY_SECONDS = 30.0
JSON = (b"content-type", b"application/json")
encode = msgspec.json.Encoder().encode


class ClientLeftError(Exception):
    """The client closed the connection before its body was complete."""


class Endpoint(ABC):
    """An ASGI application for one POST route with a JSON body."""

    scope: ClassVar[str]
    limit: ClassVar[int]

    def __init__(self, keys: KeyRing, body_budget: BodyBudget) -> None:
        """`keys` authorizes callers and limits their rate. `body_budget` bounds the bytes of all bodies together."""
        self._keys, self._body_budget = keys, body_budget

    @abstractmethod
    async def answer(self, body: bytes, request: Scope) -> tuple[int, bytes, Headers]:
        """Status, JSON body and headers of the response. Raises ApiError."""

    def credentials(self, headers: dict[bytes, bytes]) -> bytes:
        """The header value that contains the key."""
        return headers.get(b"authorization", b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request from the router. Its id is `scope["request_id"]`, which FrontDoor has set."""
        await self.respond(scope, receive, send, dict(scope["headers"]), None)

    async def respond(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: bytes | None
    ) -> None:
        """Answer one request. Sends `request_id` as a header unless it is None, which means that the caller sends it."""
        reservation = BodyReservation(self._body_budget)
        try:
            credentials = self.credentials(headers)
            if not self._keys.authorize_from_memory(credentials, self.scope):
                await self._keys.authorize(credentials, self.scope)
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                body = message["body"]
                if len(body) > self.limit:
                    raise payload_too_large(self.limit)
                reservation.add(len(body))
            else:
                body = await self._rest_of_body(message, headers, receive, reservation)
            status, content, extra_headers = await self.answer(body, scope)
        except ApiError as error:
            if request_id is not None:
                error.headers["X-Request-ID"] = scope["request_id"]
            await error.response()(scope, receive, send)
            return
        except ClientLeftError:
            return
        except Exception:  # FrontDoor runs outside Starlette's handling of unexpected errors
            log.exception("Defect: %s %s failed.", scope["method"], scope["path"])
            defect = unexpected(scope["request_id"])
            if request_id is None:
                defect.headers.clear()
            await defect.response()(scope, receive, send)
            return
        finally:
            reservation.release()
        response_headers = [JSON, (b"content-length", b"%d" % len(content)), *extra_headers]
        if request_id is not None:
            response_headers.append((b"x-request-id", request_id))
        await send({"type": "http.response.start", "status": status, "headers": response_headers})
        await send({"type": "http.response.body", "body": content})

    async def _rest_of_body(
        self, message: Message, headers: dict[bytes, bytes], receive: Receive, reservation: BodyReservation
    ) -> bytes:
        """The whole body; `message` is its first part.

        Raises ApiError: 413 as soon as it is known to be too large, 408 if it takes too long, 503 if the budget is used up. Raises
        ClientLeftError if the client disconnects.
        """
        content_length = headers.get(b"content-length", b"")
        if content_length.isdigit() and int(content_length) > self.limit:
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
                    reservation.add(len(chunk))
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
                    message = await receive()
        except TimeoutError:
            raise request_timeout(BODY_SECONDS) from None
