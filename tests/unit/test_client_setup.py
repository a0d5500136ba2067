"""The assignment client's settings, mistakes that it finds before it sends anything, and closing. The rest: test_client.py."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from client_support import DRIVERS, KEY, URL, AsyncDriver, Clock, Driver, Service

from lifecycle_client import (
    AssignmentClient,
    AsyncAssignmentClient,
    ClientClosedError,
    ClientSetupError,
    RequestRefusedError,
)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest, service: Service) -> Iterator[Driver]:
    """A client of either kind."""
    new = DRIVERS[request.param](service, clock=Clock())
    yield new
    new.close()


@pytest.mark.parametrize("kind", [AssignmentClient, AsyncAssignmentClient])
def test_settings_come_from_the_environment_and_are_checked(
    kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIFECYCLE_API_KEY", raising=False)
    monkeypatch.delenv("ASSIGNMENT_SERVICE_URL", raising=False)
    with pytest.raises(ClientSetupError, match="No API key"):
        kind()
    assert kind(KEY)._core.options.url == "http://127.0.0.1:8000/api/v1/assignments"
    monkeypatch.setenv("LIFECYCLE_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("ASSIGNMENT_SERVICE_URL", "https://assign.test/base/")
    options = kind()._core.options
    assert (options.url, options.headers["Authorization"]) == (
        "https://assign.test/base/api/v1/assignments",
        f"Bearer {KEY}",
    )
    assert KEY not in repr(options)
    wrong: list[dict[str, Any]] = [
        {"base_url": "assign.test"}, {"base_url": "ftp://assign.test"}, {"base_url": "http://"}, {"base_url": "http://a:port"},
        {"api_key": "käse"}, {"api_key": "a b"}, {"timeout": 0}, {"ttl": -1}, {"ttl": float("nan")}, {"max_entries": -1}, {"stale_for": -1},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ClientSetupError):
            kind(**options)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (("u1", "lone \ud800"), {}),
        (("lone \ud800", "a"), {}),
        ((7, "a"), {}),
        (("u1", 7), {}),
        (("u1", "a"), {"context": {"x": object()}}),
        (("u1", "a"), {"context": "text"}),
    ],
)
def test_invalid_question_is_refused_before_it_is_sent(
    driver: Driver, service: Service, question: tuple[Any, Any], options: dict[str, Any]
) -> None:
    with pytest.raises(RequestRefusedError):
        driver.assign(*question, **options)
    if not options:
        assert driver.variant(*question, "control") == "control"
    assert service.requests == []


def test_assign_refuses_a_string_instead_of_a_list_of_names() -> None:
    with AssignmentClient(KEY, URL) as client, pytest.raises(RequestRefusedError, match="list of names"):
        client.assign("user", "u1", "planner")


def test_closed_client_raises_in_assign_and_returns_the_default_otherwise(driver: Driver, service: Service) -> None:
    driver.assign("u1", "a")
    if isinstance(driver, AsyncDriver):
        driver.runner.run(driver.client.aclose())
    else:
        driver.client.close()
    with pytest.raises(ClientClosedError):
        driver.assign("u1", "a")
    assert driver.variant("u1", "a", "control") == "control"


def test_context_managers_close_the_client() -> None:
    async def use() -> AsyncAssignmentClient:
        async with AsyncAssignmentClient(KEY, URL, make_transport=lambda: httpx.MockTransport(Service())) as client:
            assert await client.variant("user", "u1", "a", "control") == "v1"
        return client

    with AssignmentClient(KEY, URL, make_transport=lambda: httpx.MockTransport(Service())) as client:
        assert client.variant("user", "u1", "a", "control") == "v1"
    for closed in (client, asyncio.run(use())):
        assert closed._http is None and closed._closed
