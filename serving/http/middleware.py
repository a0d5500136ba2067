"""Request ids and the direct path to the hot routes, as plain ASGI middleware.

Starlette's BaseHTTPMiddleware would cost ten times as much as answering an assignment.
"""

import itertools
import re
import secrets
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.endpoint import Endpoint
from serving.http.logs import request_id as current_request_id

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class FrontDoor:
    """Sets each request's id (the client's `X-Request-ID` if it is printable) and answers hot routes without FastAPI's routing."""

    def __init__(self, app: ASGIApp, hot_routes: Mapping[str, Endpoint]) -> None:
        """`hot_routes`: path → endpoint of POST requests, which sends the id itself. Everything else goes to `app`."""
        self._app, self._hot_routes = app, hot_routes
        # 64 random bits per process plus a counter: unique, at a tenth of the cost of a UUID.
        self._prefix, self._count = secrets.token_hex(8).encode(), itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not request_id or not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%b%016x" % (self._prefix, next(self._count))
        scope["request_id"] = text = request_id.decode()
        current_request_id.set(text)
        hot = self._hot_routes.get(scope["path"])
        if hot is not None and scope["method"] == "POST":
            await hot.respond(scope, receive, send, headers, request_id)
            return
        header = (b"x-request-id", request_id)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, with_id)
