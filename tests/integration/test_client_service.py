"""The assignment client against the real API: the same answers as HTTP, outages, changes within max-age, keys, forks.

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
from client_support import AsyncDriver, AsyncPlaceTransport, Clock, Driver, Place, PlaceTransport, SyncDriver

from foundation.api_keys import make_api_key
from lifecycle_client import AssignmentClient, KeyRefusedError, RequestRefusedError

pytest_plugins = ["api_service"]

UNITS = [f"u{number}" for number in range(12)]


Make = Callable[..., Driver]


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, database_url: str) -> Iterator[Make]:
    """Makes clients of either kind for a place, each with its own key for assignments."""
    drivers: list[Driver] = []

    def new(place: Place, **options: Any) -> Driver:
        with psycopg.connect(database_url, autocommit=True) as connection:
            _, key = make_api_key(connection, f"key {uuid4()}", ["assign"])
        options = {"timeout": 20, "jitter": lambda: 0.0, "api_key": key, **options}
        kind, transport = (
            (SyncDriver, PlaceTransport) if request.param == "sync" else (AsyncDriver, AsyncPlaceTransport)
        )
        drivers.append(kind(None, make_transport=lambda: transport(place), **options))
        return drivers[-1]

    yield new
    for driver in drivers:
        driver.close()


def plain(driver: Driver, unit_id: str, *names: str, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The client's answer with the field names of the HTTP API: assignments, and reasons of skipped experiments."""
    answer = driver.assign(unit_id, *names, **options)
    fields = ("experiment_id", "run", "variant_id", "variant_name", "enrolled", "reason", "config")
    assigned = {
        name: {"experiment_name": entry.experiment, **{field: getattr(entry, field) for field in fields}}
        for name, entry in answer.assigned.items()
    }
    return assigned, {name: entry.reason for name, entry in answer.skipped.items()}


def in_http(api: Api, unit_id: str, *names: str) -> tuple[dict[str, Any], dict[str, str]]:
    body = api.assign(unit_id, *names, unit_type="user")
    return (
        {entry["experiment_name"]: entry for entry in body["assignments"]},
        {entry["experiment_name"]: entry["reason"] for entry in body["skipped_experiments"]},
    )


def source(driver: Driver, unit_id: str, name: str) -> str:
    answer = driver.assign(unit_id, name)
    return str((answer.assigned.get(name) or answer.skipped[name]).source)


def test_client_gives_the_same_answers_as_http(api: Api, make: Make) -> None:
    for name, columns in (
        ("active", {}),
        ("households", {"unit_type": "household"}),
        ("draft", {"status": "draft"}),
        ("ended", {"end_at": datetime(2026, 1, 1, tzinfo=UTC)}),
    ):
        make_run(api.connection, name, **{"unit_type": "user", **columns})  # type: ignore[arg-type]
    names = ["active", "households", "draft", "ended", "nobody"]
    driver = make(Place(str(api.client.base_url)))
    answers = {unit: plain(driver, unit, *names) for unit in UNITS}
    assert answers == {unit: in_http(api, unit, *names) for unit in UNITS}
    assert {assigned["active"]["variant_name"] for assigned, _ in answers.values()} == {"control", "treatment"}
    assert len(answers["u0"][1]) == 4
    assert len(api.rows("SELECT 1 FROM exp.assignments")) == len(UNITS)


def test_assign_stores_nothing_without_enrolment(api: Api, make: Make) -> None:
    make_run(api.connection, "active", unit_type="user")
    driver = make(Place(str(api.client.base_url)))
    looked_up = {unit: driver.assign(unit, "active", enroll=False).assigned["active"] for unit in UNITS}
    assert not any(entry.enrolled for entry in looked_up.values()) and api.rows("SELECT 1 FROM exp.assignments") == []
    stored = {unit: driver.assign(unit, "active").assigned["active"] for unit in UNITS}
    assert all(entry.enrolled for entry in stored.values())
    assert {unit: entry.variant_id for unit, entry in looked_up.items()} == {
        unit: entry.variant_id for unit, entry in stored.items()
    }


def test_client_serves_stale_answers_in_an_outage_and_fresh_ones_after_it(database_url: str, make: Make) -> None:
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
def test_completed_experiment_reaches_the_client_within_max_age(database_url: str, make: Make, max_age: int) -> None:
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
            shown = driver.assign("u1", "active").assigned["active"]
            assert (shown.reason, shown.variant_name, shown.source) == ("shipped", "treatment", "service")


def test_refusals_carry_the_services_message(api: Api, make: Make, make_client: Callable[..., httpx.Client]) -> None:
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


def test_event_accepts_the_ids_of_an_assignment(api: Api, make: Make) -> None:
    make_run(api.connection, "active", unit_type="user")
    shown = make(Place(str(api.client.base_url))).assign("u1", "active").assigned["active"]
    event: Mapping[str, Any] = {
        "event_type": "plan_generated", "unit_type": "user", "unit_id": "u1", "timestamp": datetime.now(UTC).isoformat(),
        "experiments": [{"experiment_id": shown.experiment_id, "variant_id": shown.variant_id}],
        "context": {"policy_version_id": None}, "metrics": {}, "payload": {"plan_id": "p", "meals": []},
    }  # fmt: skip
    assert api.client.post("/api/v1/events", json=event).json()["status"] == "accepted"


def test_forked_children_and_their_parent_do_not_mix_their_answers(api: Api) -> None:
    make_run(api.connection, "active", unit_type="user")
    key = str(api.client.headers["authorization"]).partition(" ")[2]
    client = AssignmentClient(key, str(api.client.base_url), timeout=20, max_entries=0)
    expected = {f"u{number}": api.assign(f"u{number}", "active", unit_type="user") for number in range(40)}

    def answers_match() -> bool:
        variants = {unit: client.assign("user", unit, ["active"]).assigned["active"].variant_name for unit in expected}
        return variants == {unit: body["assignments"][0]["variant_name"] for unit, body in expected.items()}

    assert answers_match()
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            try:
                os._exit(0 if answers_match() else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert answers_match()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert answers_match()
    client.close()
