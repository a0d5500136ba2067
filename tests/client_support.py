"""A scripted assignment service without a network, a clock that tests set, and both clients behind one interface."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from lifecycle_client import AssignmentClient, Assignments, AsyncAssignmentClient

KEY = "lc_test_key"
URL = "http://assignments.test"


class Clock:
    """A clock whose seconds pass only in `wait`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds


class Service:
    """Answers each name with a variant named after the number of the request, unless `then` is set.

    `then` is a response, an exception to raise, or a function of the request.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.seen: list[httpx.Request] = []
        self.headers: dict[str, str] = {"cache-control": "max-age=300"}
        self.skips: dict[str, str] = {}
        self.then: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        self.requests.append(json.loads(request.content))
        if isinstance(self.then, Exception):
            raise self.then
        if isinstance(self.then, httpx.Response):
            return httpx.Response(self.then.status_code, headers=self.then.headers, content=self.then.content)
        return self.then(request) if self.then is not None else self.answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """The answer of a healthy service, with fields that the client does not know."""
        body, number = json.loads(request.content), len(self.requests)
        assignments = [
            {
                "experiment_id": "7a3c1c52-0f6c-4b0e-9a52-5d0c7f3f0a01",
                "experiment_name": name,
                "run": 2,
                "variant_id": "7a3c1c52-0f6c-4b0e-9a52-5d0c7f3f0a02",
                "variant_name": f"v{number}",
                "enrolled": body.get("enroll", True),
                "reason": "invented_tomorrow",
                "config": {"number": number, "list": [1]},
                "colour": "blue",
            }
            for name in body["requested_experiments"]
            if name not in self.skips
        ]
        skipped = [
            {"experiment_name": name, "reason": self.skips[name], "since": "today"}
            for name in body["requested_experiments"]
            if name in self.skips
        ]
        content = {"assignments": assignments, "skipped_experiments": skipped, "epoch": 7}
        return httpx.Response(200, json=content, headers=self.headers)

    def names(self) -> list[list[str]]:
        """The experiment names in each request."""
        return [request["requested_experiments"] for request in self.requests]


@dataclass
class Place:
    """The current address of the service. A restarted one gets another port, while clients keep the address they were given."""

    url: str

    def redirect(self, request: httpx.Request) -> None:
        """Change the request's address to the current one."""
        address = httpx.URL(self.url)
        request.url = request.url.copy_with(host=address.host, port=address.port)


class PlaceTransport(httpx.HTTPTransport):
    """Connects to the current address of the service."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._place.redirect(request)
        return super().handle_request(request)


class AsyncPlaceTransport(httpx.AsyncHTTPTransport):
    """Connects to the current address of the service, with asyncio."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._place.redirect(request)
        return await super().handle_async_request(request)


def refusal(status: int, error: str, message: str, **more: Any) -> httpx.Response:
    """A refusal in the format of the service."""
    headers = {"x-request-id": "r-1", "cache-control": "no-store"}
    return httpx.Response(status, json={"error": error, "message": message, **more}, headers=headers)


class Driver(Protocol):
    """Either client behind the same methods, for units of type `user`."""

    client: Any

    def assign(self, unit_id: str, *names: str, **options: Any) -> Assignments:
        """Calls the client's method of this name."""

    def variant(self, unit_id: str, name: str, default: str) -> str:
        """Calls the client's method of this name."""

    def config(self, unit_id: str, name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
        """Calls the client's method of this name."""

    def close(self) -> None:
        """Close the client."""


def _defaults(service: Callable[[httpx.Request], Any] | None) -> dict[str, Any]:
    options: dict[str, Any] = {"api_key": KEY, "base_url": URL}
    return options if service is None else {**options, "make_transport": lambda: httpx.MockTransport(service)}


class SyncDriver:
    """AssignmentClient with a scripted service, or with real connections if `service` is None."""

    def __init__(self, service: Callable[[httpx.Request], Any] | None, **options: Any) -> None:
        self.client = AssignmentClient(**{**_defaults(service), **options})

    def assign(self, unit_id: str, *names: str, **options: Any) -> Assignments:
        return self.client.assign("user", unit_id, names, **options)

    def variant(self, unit_id: str, name: str, default: str) -> str:
        return self.client.variant("user", unit_id, name, default)

    def config(self, unit_id: str, name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.client.config("user", unit_id, name, default)

    def close(self) -> None:
        self.client.close()


class AsyncDriver:
    """AsyncAssignmentClient in its own event loop."""

    def __init__(self, service: Callable[[httpx.Request], Any] | None, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncAssignmentClient(**{**_defaults(service), **options})

    def assign(self, unit_id: str, *names: str, **options: Any) -> Assignments:
        return self.runner.run(self.client.assign("user", unit_id, names, **options))

    def variant(self, unit_id: str, name: str, default: str) -> str:
        return self.runner.run(self.client.variant("user", unit_id, name, default))

    def config(self, unit_id: str, name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.runner.run(self.client.config("user", unit_id, name, default))

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


DRIVERS: dict[str, Callable[..., Driver]] = {"sync": SyncDriver, "async": AsyncDriver}
