"""The assignment client against the real API: the same answers as HTTP, an outage and its end, changes within max-age, keys, forks.

The client without a network: tests/unit/test_client.py.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from api_support import Api, make_run, running_api
from client_support import AsyncDriver, AsyncLed, Clock, Driver, Led, Place, SyncDriver

from foundation.api_keys import make_api_key
from lifecycle_client import AssignmentClient, KeyRefusedError, RequestRefusedError

pytest_plugins = ["api_service"]

UNITS = [f"u{number}" for number in range(12)]


Make = Callable[..., Driver]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, database_url: str) -> Iterator[Make]:
    """Makes a client of either kind for a place, with a key for assignments."""
    made: list[Driver] = []

    def new(place: Place, **options: Any) -> Driver:
        with psycopg.connect(database_url, autocommit=True) as connection:
            _, key = make_api_key(connection, f"key {uuid4()}", ["assign"])
        options = {"timeout": 20, "jitter": lambda: 0.0, "api_key": key, **options}
        kind, transport = (SyncDriver, Led) if request.param == "sync" else (AsyncDriver, AsyncLed)
        made.append(kind(None, make_transport=lambda: transport(place), **options))
        return made[-1]

    yield new
    for driver in made:
        driver.close()


def plain(driver: Driver, unit_id: str, *names: str, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What the client says, in the words of HTTP."""
    answer = driver.assign(unit_id, *names, **options)
    words = ("experiment_id", "run", "variant_id", "variant_name", "enrolled", "reason", "config")
    assigned = {
        name: {"experiment_name": one.experiment, **{word: getattr(one, word) for word in words}}
        for name, one in answer.assigned.items()
    }
    return assigned, {name: one.reason for name, one in answer.skipped.items()}


def in_http(api: Api, unit_id: str, *names: str) -> tuple[dict[str, Any], dict[str, str]]:
    body = api.assign(unit_id, *names, unit_type="user")
    return (
        {one["experiment_name"]: one for one in body["assignments"]},
        {one["experiment_name"]: one["reason"] for one in body["skipped_experiments"]},
    )


def source(driver: Driver, unit_id: str, name: str) -> str:
    answer = driver.assign(unit_id, name)
    return str((answer.assigned.get(name) or answer.skipped[name]).source)


def test_it_says_what_http_says(api: Api, make: Make) -> None:
    for name, columns in (
        ("active", {}),
        ("households", {"unit_type": "household"}),
        ("draft", {"status": "draft"}),
        ("ended", {"end_at": datetime(2026, 1, 1, tzinfo=UTC)}),
    ):
        make_run(api.connection, name, **{"unit_type": "user", **columns})  # type: ignore[arg-type]
    names = ["active", "households", "draft", "ended", "nobody"]
    driver = make(Place(str(api.client.base_url)))
    seen = {unit: plain(driver, unit, *names) for unit in UNITS}
    assert seen == {unit: in_http(api, unit, *names) for unit in UNITS}
    assert {assigned["active"]["variant_name"] for assigned, _ in seen.values()} == {"control", "treatment"}
    assert len(seen["u0"][1]) == 4
    assert len(api.rows("SELECT 1 FROM exp.assignments")) == len(UNITS)


def test_without_enrolment_nothing_is_stored(api: Api, make: Make) -> None:
    make_run(api.connection, "active", unit_type="user")
    driver = make(Place(str(api.client.base_url)))
    looked = {unit: driver.assign(unit, "active", enroll=False).assigned["active"] for unit in UNITS}
    assert not any(one.enrolled for one in looked.values()) and api.rows("SELECT 1 FROM exp.assignments") == []
    stored = {unit: driver.assign(unit, "active").assigned["active"] for unit in UNITS}
    assert all(one.enrolled for one in stored.values())
    assert {unit: one.variant_id for unit, one in looked.items()} == {
        unit: one.variant_id for unit, one in stored.items()
    }


def test_an_outage_and_its_end(database_url: str, make: Make) -> None:
    clock = Clock()
    with psycopg.connect(database_url, autocommit=True) as connection:
        make_run(connection, "active", unit_type="user")
    with running_api(database_url) as url:
        place = Place(url)
        driver = make(place, clock=clock)
        before = {unit: driver.variant(unit, "active", "none") for unit in UNITS}
        assert set(before.values()) == {"control", "treatment"}
    clock.wait(300)
    assert {source(driver, unit, "active") for unit in UNITS} == {"stale"}
    assert {unit: driver.variant(unit, "active", "none") for unit in UNITS} == before
    assert (source(driver, "new", "active"), driver.variant("new", "active", "none")) == ("default", "none")
    with running_api(database_url) as url:
        place.url = url
        assert source(driver, "u0", "active") == "stale"
        clock.wait(1)
        assert {source(driver, unit, "active") for unit in UNITS} == {"service"}
        assert {unit: driver.variant(unit, "active", "none") for unit in UNITS} == before
        assert source(driver, "new", "active") == "service"


@pytest.mark.parametrize("max_age", [300, 30, 0])
def test_a_completed_experiment_reaches_the_client_within_max_age(database_url: str, make: Make, max_age: int) -> None:
    clock = Clock()
    with psycopg.connect(database_url, autocommit=True) as connection:
        run_id, variants = make_run(connection, "active", unit_type="user")
        with running_api(database_url, assignment_max_age_seconds=max_age) as url:
            driver = make(Place(url), clock=clock)
            driver.assign("u1", "active")
            connection.execute(
                "UPDATE exp.experiments SET status = 'completed', shipped_variant_id = %s WHERE id = %s",
                (variants["treatment"], run_id),
            )
            if max_age:
                clock.wait(max_age - 0.01)
                assert driver.assign("u1", "active").assigned["active"].reason == "assigned"
                clock.wait(0.01)
            one = driver.assign("u1", "active").assigned["active"]
            assert (one.reason, one.variant_name, one.source) == ("shipped", "treatment", "service")


def test_the_service_refuses_in_its_own_words(api: Api, make: Make, make_client: Callable[..., httpx.Client]) -> None:
    place = Place(str(api.client.base_url))
    with pytest.raises(KeyRefusedError, match="valid API key") as wrong:
        make(place, api_key="lc_wrong_key").assign("u1", "active")
    assert wrong.value.status == 401 and len(wrong.value.request_id or "") == 32
    reading = make_client(place.url, "read").headers["authorization"].partition(" ")[2]
    with pytest.raises(KeyRefusedError, match="scope `assign`") as forbidden:
        make(place, api_key=reading).assign("u1", "active")
    assert forbidden.value.status == 403
    driver = make(place)
    with pytest.raises(RequestRefusedError) as refused:
        driver.assign("x" * 300, "active")
    assert refused.value.details == (("unit_id", "invalid_unit_id"),)
    assert driver.variant("x" * 300, "active", "none") == "none"


def test_an_event_takes_the_ids_as_they_are(api: Api, make: Make) -> None:
    make_run(api.connection, "active", unit_type="user")
    one = make(Place(str(api.client.base_url))).assign("u1", "active").assigned["active"]
    event: Mapping[str, Any] = {
        "event_type": "plan_generated", "unit_type": "user", "unit_id": "u1", "timestamp": datetime.now(UTC).isoformat(),
        "experiments": [{"experiment_id": one.experiment_id, "variant_id": one.variant_id}],
        "context": {"policy_version_id": None}, "metrics": {}, "payload": {"plan_id": "p", "meals": []},
    }  # fmt: skip
    assert api.client.post("/api/v1/events", json=event).json()["status"] == "accepted"


def test_forked_children_and_their_parent_do_not_mix_their_answers(api: Api) -> None:
    make_run(api.connection, "active", unit_type="user")
    key = str(api.client.headers["authorization"]).partition(" ")[2]
    client = AssignmentClient(key, str(api.client.base_url), timeout=20, max_entries=0)
    expected = {f"u{number}": api.assign(f"u{number}", "active", unit_type="user") for number in range(40)}

    def all_right() -> bool:
        found = {unit: client.assign("user", unit, ["active"]).assigned["active"].variant_name for unit in expected}
        return found == {unit: body["assignments"][0]["variant_name"] for unit, body in expected.items()}

    assert all_right()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                os._exit(0 if all_right() else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert all_right()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert all_right()
    client.close()
