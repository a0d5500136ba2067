"""The assignment client without a network: caching, outages and refusals.

Concurrency, forks and imports: test_client_processes.py. The real API: tests/integration/test_client_service.py.
"""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from client_support import DRIVERS, KEY, Clock, Driver, Service, refusal

from lifecycle_client import (
    AssignmentClientError,
    Assignments,
    KeyRefusedError,
    RequestRefusedError,
)

Make = Callable[..., Driver]
AWAY = [
    httpx.ConnectError("no route"),
    httpx.ReadTimeout("slow"),
    httpx.Response(500, text="oops"),
    httpx.Response(503, json={"error": "service_unavailable", "message": "no database", "retry_after": 5}),
    httpx.Response(429, json={"error": "rate_limited", "message": "slower", "retry_after": 5}),
    httpx.Response(200, text="<html>Log in to the network</html>"),
    httpx.Response(200, json={"assignments": [{"experiment_name": "a"}], "skipped_experiments": []}),
    httpx.Response(404, text="<html>nginx</html>"),
    httpx.Response(302, headers={"location": "http://elsewhere.test/"}),
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(params=sorted(DRIVERS))
def make(request: pytest.FixtureRequest, service: Service, clock: Clock) -> Iterator[Make]:
    """Makes clients of either kind, with the clock of the test and no jitter."""
    drivers: list[Driver] = []

    def new(**options: Any) -> Driver:
        drivers.append(DRIVERS[request.param](service, **{"clock": clock, "jitter": lambda: 0.0, **options}))
        return drivers[-1]

    yield new
    for driver in drivers:
        driver.close()


def sources(answer: Assignments) -> dict[str, str]:
    return {name: entry.source for name, entry in (answer.assigned | answer.skipped).items()}  # type: ignore[operator]


def served(driver: Driver, unit_id: str = "u1", name: str = "a", **options: Any) -> tuple[str, str]:
    """Variant and source of an assignment, or reason and source of a skipped experiment."""
    answer = driver.assign(unit_id, name, **options)
    if name in answer.assigned:
        return answer.assigned[name].variant_name, answer.assigned[name].source
    return answer.skipped[name].reason, answer.skipped[name].source


def test_answer_is_typed_and_ignores_unknown_fields(make: Make, service: Service) -> None:
    service.skips = {"b": "some_new_reason"}
    answer = make().assign("u1", "a", "b", "a")
    shown, skipped = answer.assigned["a"], answer.skipped["b"]
    assert (shown.experiment, shown.variant_name, shown.run, shown.enrolled, shown.reason, shown.source) == (
        "a", "v1", 2, True, "invented_tomorrow", "service",
    )  # fmt: skip
    assert (shown.experiment_id[-2:], shown.variant_id[-2:], shown.config) == ("01", "02", {"number": 1, "list": [1]})
    assert (skipped.reason, skipped.source) == ("some_new_reason", "service")
    assert service.requests == [{"unit_type": "user", "unit_id": "u1", "requested_experiments": ["a", "b"]}]
    (request,) = service.seen
    assert (request.url.path, request.headers["authorization"]) == ("/api/v1/assignments", f"Bearer {KEY}")


def test_question_without_names_sends_no_request(make: Make, service: Service) -> None:
    assert make().assign("u1") == Assignments({}, {}) and service.requests == []


def test_one_request_asks_only_for_names_that_are_not_fresh(make: Make, service: Service) -> None:
    driver = make()
    driver.assign("u1", "a")
    answer = driver.assign("u1", "b", "a", "c")
    assert sources(answer) == {"a": "cache", "b": "service", "c": "service"}
    driver.assign("u2", "a")
    assert service.names() == [["a"], ["b", "c"], ["a"]]


@pytest.mark.parametrize(
    ("header", "ttl", "fresh_for"),
    [
        ("max-age=300", 300, 300),
        ("max-age=60", 300, 60),
        ("private, Max-Age=60", 300, 60),
        ("max-age=300", 20, 20),
        (None, 40, 40),
        ("public", 40, 40),
    ],
)
def test_answer_is_fresh_for_the_shorter_of_ttl_and_max_age(
    make: Make, service: Service, clock: Clock, header: str | None, ttl: float, fresh_for: float
) -> None:
    service.headers = {} if header is None else {"cache-control": header}
    driver = make(ttl=ttl)
    assert served(driver) == ("v1", "service")
    clock.wait(fresh_for - 0.001)
    assert served(driver) == ("v1", "cache")
    clock.wait(0.001)
    assert served(driver) == ("v2", "service")


@pytest.mark.parametrize(
    ("header", "kept"),
    [("max-age=0", True), ("no-cache, max-age=300", True), ("max-age=soon", True), ("no-store", False)],
)
def test_client_sends_a_request_each_time_when_the_answer_may_not_be_cached(
    make: Make, service: Service, clock: Clock, header: str, kept: bool
) -> None:
    driver = make()
    service.headers = {"cache-control": header}
    assert [served(driver) for _ in range(3)] == [("v1", "service"), ("v2", "service"), ("v3", "service")]
    service.then = httpx.ConnectError("away")
    assert served(driver) == (("v3", "stale") if kept else ("unavailable", "default"))


def test_freshness_counts_from_the_start_of_the_request_and_includes_a_proxys_age(
    make: Make, service: Service, clock: Clock
) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        clock.wait(0.4)
        return service.answer(request)

    driver = make()
    service.then, service.headers = slow, {"cache-control": "max-age=60", "age": "20"}
    served(driver)
    clock.wait(39.5)
    assert served(driver) == ("v1", "cache")
    clock.wait(0.2)
    assert served(driver) == ("v2", "service")


def test_context_and_enrolment_are_part_of_the_question(make: Make, service: Service) -> None:
    driver = make()
    questions: list[dict[str, Any]] = [
        {},
        {"context": {"b": 1, "a": [2]}},
        {"context": {"a": [2], "b": 1}},
        {"context": {"a": [3]}},
        {"enroll": False},
        {"context": {}},
    ]
    answers = [served(driver, **options) for options in questions]
    assert [source for _, source in answers] == ["service", "service", "cache", "service", "service", "cache"]
    body = {"unit_type": "user", "unit_id": "u1", "requested_experiments": ["a"]}
    assert service.requests == [
        body,
        {**body, "context": {"a": [2], "b": 1}},
        {**body, "context": {"a": [3]}},
        {**body, "enroll": False},
    ]
    assert not driver.assign("u1", "a", enroll=False).assigned["a"].enrolled


def test_cache_drops_the_least_recently_used_answer_when_it_is_full(make: Make, service: Service) -> None:
    driver = make(max_entries=3)
    for unit in ("u1", "u2", "u3", "u1", "u4"):
        driver.assign(unit, "a")
    assert len(driver.client._core._known) == 3
    assert [served(driver, unit)[1] for unit in ("u1", "u3", "u4", "u2")] == ["cache", "cache", "cache", "service"]
    for number in range(500):
        driver.assign(f"other{number}", "a", "b")
    assert len(driver.client._core._known) == 3 and driver.client._core._flights == {}


def test_cache_keeps_nothing_when_max_entries_is_zero(make: Make, service: Service) -> None:
    driver = make(max_entries=0)
    assert [served(driver), served(driver)] == [("v1", "service"), ("v2", "service")]


def test_caller_cannot_change_the_config_of_the_next_caller(make: Make) -> None:
    driver = make()
    first = driver.config("u1", "a", {})
    first["list"].append(2)
    first["number"] = 0  # type: ignore[index]
    assert driver.config("u1", "a", {}) == {"number": 1, "list": [1]}


@pytest.mark.parametrize("failure", AWAY, ids=lambda failure: str(getattr(failure, "status_code", failure)))
def test_outage_serves_the_last_answer_and_later_the_default(
    make: Make, service: Service, clock: Clock, failure: httpx.Response | Exception
) -> None:
    driver = make(stale_for=1000)
    driver.assign("u1", "a")
    clock.wait(300)
    service.then = failure
    assert served(driver) == ("v1", "stale")
    assert driver.variant("u1", "a", "control") == "v1"
    assert driver.config("u1", "a", {"x": 1}) == {"number": 1, "list": [1]}
    assert sources(driver.assign("u1", "a", "b")) == {"a": "stale", "b": "default"}
    assert driver.variant("u9", "a", "control") == "control"
    assert driver.config("u9", "a", {"x": 1}) == {"x": 1}
    clock.wait(999.9)
    assert served(driver) == ("v1", "stale")
    clock.wait(0.1)
    assert served(driver) == ("unavailable", "default")
    service.then = None
    clock.wait(30)
    assert served(driver)[1] == "service"


def test_skipped_experiment_is_cached_like_any_answer(make: Make, service: Service, clock: Clock) -> None:
    driver = make()
    service.skips = {"a": "holdout"}
    assert [served(driver), served(driver)] == [("holdout", "service"), ("holdout", "cache")]
    assert driver.variant("u1", "a", "control") == "control"
    clock.wait(300)
    service.then = httpx.ConnectError("away")
    assert served(driver) == ("holdout", "stale")


def test_name_gets_the_default_when_the_service_leaves_it_out(make: Make, service: Service) -> None:
    service.then = httpx.Response(200, json={"assignments": [], "skipped_experiments": []})
    driver = make()
    assert served(driver) == ("unavailable", "default")
    assert (driver.variant("u1", "a", "control"), len(service.requests)) == ("control", 2)


def test_dead_service_is_asked_at_growing_intervals(make: Make, service: Service, clock: Clock) -> None:
    driver = make()
    service.then = httpx.ConnectTimeout("dead")
    request_counts = []
    for wait in (1, 2, 4, 8, 16, 30, 30):
        for unit in range(5):
            driver.variant(f"u{unit}", "a", "control")
        request_counts.append(len(service.requests))
        clock.wait(wait - 0.01)
        driver.variant("u1", "a", "control")
        clock.wait(0.01)
    assert request_counts == [1, 2, 3, 4, 5, 6, 7] and len(service.requests) == 7
    service.then = None
    assert [served(driver, unit)[1] for unit in ("u1", "u2")] == ["service", "service"]
    service.then = httpx.ConnectTimeout("dead again")
    driver.variant("u3", "a", "control")
    clock.wait(1)
    driver.variant("u3", "a", "control")
    assert len(service.requests) == 11


@pytest.mark.parametrize(
    ("headers", "body", "wait"),
    [
        ({"retry-after": "7"}, {"error": "service_unavailable", "message": "m", "retry_after": 5}, 7),
        ({}, {"error": "service_unavailable", "message": "m", "retry_after": 5}, 5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, {"retry_after": True}, 1),
        ({"retry-after": "-3"}, ["no object"], 1),
        ({"retry-after": "86400"}, {}, 300),
        ({}, {"retry_after": 10**400}, 300),
    ],
)
def test_retry_after_sets_the_wait(
    make: Make, service: Service, clock: Clock, headers: dict[str, str], body: Any, wait: float
) -> None:
    driver = make(jitter=lambda: 0.4)
    service.then = httpx.Response(503, content=json.dumps(body), headers=headers)
    driver.assign("u1", "a")
    clock.wait(wait * 1.1 - 0.01)
    driver.assign("u2", "a")
    assert len(service.requests) == 1
    clock.wait(0.02)
    driver.assign("u2", "a")
    assert len(service.requests) == 2


def test_rate_limit_holds_back_one_unit_and_all_units_when_many_are_limited(
    make: Make, service: Service, clock: Clock
) -> None:
    driver = make()
    limited = refusal(429, "rate_limited", "slower", retry_after=20)
    service.then = limited
    assert [served(driver), served(driver)] == [("unavailable", "default")] * 2 and len(service.requests) == 1
    service.then = None
    assert served(driver, "u2") == ("v2", "service")
    service.then = limited
    for unit in range(3, 12):
        driver.assign(f"u{unit}", "a")
    service.then = None
    assert served(driver, "u99") == ("unavailable", "default") and len(service.requests) == 11
    clock.wait(20)
    assert served(driver, "u1")[1] == served(driver, "u99")[1] == "service"


def test_broken_connection_is_tried_once_more(make: Make, service: Service) -> None:
    def break_once(request: httpx.Request) -> httpx.Response:
        service.then = None
        raise httpx.RemoteProtocolError("Server disconnected without sending a response.")

    service.then = break_once
    driver = make()
    assert served(driver) == ("v2", "service")
    service.then = httpx.ReadError("reset")
    assert served(driver, "u2")[1] == "default" and len(service.requests) == 4


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(401, "unauthorized", "Send a valid API key."), KeyRefusedError),
        (refusal(403, "forbidden", "This API key lacks the scope `assign`."), KeyRefusedError),
        (
            refusal(400, "validation_error", "unit_id: bad", details=[{"field": "unit_id", "error": "bad"}]),
            RequestRefusedError,
        ),
        (refusal(413, "payload_too_large", "The body is too large."), RequestRefusedError),
    ],
    ids=["401", "403", "400", "413"],
)
def test_refusal_is_raised_by_assign_and_logged_once_a_minute_by_the_others(
    make: Make,
    service: Service,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    answer: httpx.Response,
    error: type[AssignmentClientError],
) -> None:
    service.then = answer
    driver = make()
    with pytest.raises(error) as raised:
        driver.assign("u1", "a")
    refused = raised.value
    assert (refused.message, refused.status, refused.code) == (
        answer.json()["message"],
        answer.status_code,
        answer.json()["error"],
    )
    assert (str(refused), refused.request_id) == (refused.message, "r-1")
    if answer.status_code == 400:
        assert refused.details == (("unit_id", "bad"),)  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "lifecycle_client"):
        for _ in range(3):
            assert driver.variant("u1", "a", "control") == "control"
            assert driver.config("u1", "a", {"x": 1}) == {"x": 1}
            clock.wait(19)
        assert len(caplog.records) == 1
        clock.wait(3)
        driver.variant("u1", "a", "control")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert refused.message in caplog.text and "r-1" in caplog.text and KEY not in caplog.text
    service.then = None
    assert served(driver)[1] == "service"


def test_outage_is_logged_once_a_minute(
    make: Make, service: Service, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service.then = httpx.ConnectError("no route")
    driver = make()
    for _ in range(59):
        driver.variant("u1", "a", "control")
        clock.wait(1)
    assert len(caplog.records) == 1 and "ConnectError" in caplog.text
