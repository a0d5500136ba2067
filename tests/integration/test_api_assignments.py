"""Assignments over HTTP: the rules end to end, concurrent requests, stored rows, and invalid requests."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from api_support import Api, Variants, make_run, running_api

from experimentation.assignments.bucketing import VariantWalk, bucket_of

pytest_plugins = ["api_service"]

ROWS = "SELECT unit_id, unit_type, variant_id, epoch, propensity FROM exp.assignments ORDER BY unit_id"
RAMPED: Variants = {
    "control": ("control", "0.1", {"arm": "control"}),
    "rest": ("remainder", "0.8", {"arm": "baseline"}),
    "treatment": ("treatment", "0.1", {"arm": "treatment"}),
}


def unit_in(run_id: UUID, low: int, high: int) -> str:
    return next(unit for unit in (f"u{n}" for n in range(100_000)) if low <= bucket_of(run_id, unit) < high)


def test_new_unit_is_stored_and_keeps_its_answer(api: Api) -> None:
    run_id, variants = make_run(api.connection, "planner")
    expected = ["control", "treatment"][VariantWalk([Decimal("0.5")] * 2).choose(bucket_of(run_id, "h1"))]
    first = api.assigned("h1", "planner")
    assert first == {
        "experiment_id": str(run_id),
        "experiment_name": "planner",
        "run": 1,
        "variant_id": str(variants[expected]),
        "variant_name": expected,
        "enrolled": True,
        "reason": "assigned",
        "config": {"blue": expected == "control"},
    }
    assert [api.assigned("h1", "planner") for _ in range(5)] == [first] * 5
    assert api.rows(ROWS) == [("h1", "household", variants[expected], 1, Decimal("0.5000"))]


def test_answer_has_cache_control_and_request_id(api: Api) -> None:
    body = {"unit_type": "user", "unit_id": "u", "requested_experiments": []}
    response = api.client.post("/api/v1/assignments", json=body, headers={"X-Request-ID": "mine-1"})
    assert response.json() == {"assignments": [], "skipped_experiments": []}
    assert (response.headers["cache-control"], response.headers["x-request-id"]) == ("max-age=300", "mine-1")
    generated_id = api.client.post("/api/v1/assignments", json=body, headers={"X-Request-ID": "x" * 129}).headers[
        "x-request-id"
    ]
    assert len(generated_id) == 32


def test_each_requested_name_has_its_own_answer(api: Api) -> None:
    make_run(api.connection, "active")
    make_run(api.connection, "draft", status="draft")
    make_run(api.connection, "paused", status="paused")
    make_run(api.connection, "over", status="completed")
    make_run(api.connection, "users", unit_type="user")
    make_run(api.connection, "later", start_at=datetime.now(UTC) + timedelta(hours=1))
    make_run(api.connection, "earlier", end_at=datetime.now(UTC) - timedelta(hours=1))
    names = ["paused", "draft", "active", "nobody", "over", "users", "later", "earlier", "active"]
    answer = api.assign("h1", *names)
    assert [assignment["experiment_name"] for assignment in answer["assignments"]] == ["active"]
    assert {skipped["experiment_name"]: skipped["reason"] for skipped in answer["skipped_experiments"]} == {
        "paused": "paused",
        "draft": "not_active",
        "nobody": "not_found",
        "over": "not_active",
        "users": "unit_type_mismatch",
        "later": "not_started",
        "earlier": "ended",
    }
    assert len(api.rows(ROWS)) == 1


def test_order_of_names_and_units_does_not_matter(database_url: str, make_client: Callable[..., httpx.Client]) -> None:
    names = ["one", "two", "three"]
    with (
        running_api(database_url, assignment_cache_entries=0) as url,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        api = Api(make_client(url, "assign"), connection, database_url)
        for name in names:
            make_run(connection, name)

        def variants_of(unit: str, requested: list[str]) -> dict[str, str]:
            assignments = api.assign(unit, *requested)["assignments"]
            return {assignment["experiment_name"]: assignment["variant_id"] for assignment in assignments}

        seen = {unit: variants_of(unit, names) for unit in ("a", "b", "c", "d")}
        connection.execute("DELETE FROM exp.assignments")
        assert {unit: variants_of(unit, names[::-1]) for unit in ("d", "c", "b", "a")} == seen
        connection.execute("DELETE FROM exp.assignments")
        assert {
            unit: {name: variants_of(unit, [name])[name] for name in names} for unit in ("c", "a", "d", "b")
        } == seen


def test_window_ends_for_stored_units_too(api: Api) -> None:
    run_id, _ = make_run(api.connection, "planner")
    api.assigned("h1", "planner")
    api.connection.execute("UPDATE exp.experiments SET end_at = now() - interval '1 minute' WHERE id = %s", (run_id,))
    assert api.skipped("h1", "planner") == "ended"


def test_paused_run_serves_stored_units_and_enrols_no_new_ones(api: Api) -> None:
    run_id, _ = make_run(api.connection, "planner")
    first = api.assigned("h1", "planner")
    api.connection.execute("UPDATE exp.experiments SET status = 'paused' WHERE id = %s", (run_id,))
    assert api.assigned("h1", "planner") == first
    assert api.skipped("h2", "planner") == "paused"
    assert len(api.rows(ROWS)) == 1


def test_shipped_variant_is_served_to_all_units_and_stores_nothing(api: Api) -> None:
    run_id, variants = make_run(api.connection, "planner")
    api.assigned("h1", "planner")
    api.connection.execute(
        "UPDATE exp.experiments SET status = 'completed', shipped_variant_id = %s WHERE id = %s",
        (variants["treatment"], run_id),
    )
    for unit in ("h1", "h2", "h3"):
        answer = api.assigned(unit, "planner")
        assert (answer["variant_name"], answer["enrolled"], answer["reason"]) == ("treatment", False, "shipped")
    assert len(api.rows(ROWS)) == 1
    # The next run randomises every unit again. While it is a draft, the shipped variant is still served.
    next_run, _ = make_run(api.connection, "planner", status="draft", run=2)
    assert api.assigned("h1", "planner")["reason"] == "shipped"
    api.connection.execute("UPDATE exp.experiments SET status = 'active' WHERE id = %s", (next_run,))
    assert (api.assigned("h1", "planner")["run"], api.assigned("h1", "planner")["reason"]) == (2, "assigned")


def test_units_of_withdrawn_variant_get_control_and_keep_their_row(api: Api) -> None:
    _, variants = make_run(api.connection, "planner", variants={**RAMPED})
    run_id = api.rows("SELECT id FROM exp.experiments")[0][0]
    unit, other = unit_in(run_id, 9000, 9500), unit_in(run_id, 9500, 10_000)
    assert api.assigned(unit, "planner")["variant_name"] == "treatment"
    api.connection.execute("UPDATE exp.variants SET withdrawn_at = now() WHERE id = %s", (variants["treatment"],))
    for unit_id in (unit, other):
        answer = api.assigned(unit_id, "planner")
        assert (answer["variant_name"], answer["enrolled"], answer["reason"]) == ("control", False, "withdrawn")
        assert answer["config"] == {"arm": "control"}
    assert [row[2] for row in api.rows(ROWS)] == [variants["treatment"]]


def test_ramping_enrols_remainder_units_and_moves_no_enrolled_unit(api: Api) -> None:
    run_id, variants = make_run(api.connection, "planner", variants=RAMPED)
    inside, waiting = unit_in(run_id, 0, 1000), unit_in(run_id, 1000, 2500)
    first = api.assigned(inside, "planner")
    baseline = api.assigned(waiting, "planner")
    assert (first["variant_name"], first["enrolled"]) == ("control", True)
    assert (baseline["variant_name"], baseline["enrolled"], baseline["reason"]) == ("rest", False, "remainder")
    assert baseline["config"] == {"arm": "baseline"}
    assert [row[0] for row in api.rows(ROWS)] == [inside]
    with api.connection.transaction():
        for name, share in (("control", "0.25"), ("rest", "0.5"), ("treatment", "0.25")):
            api.connection.execute("UPDATE exp.variants SET allocation = %s WHERE id = %s", (share, variants[name]))
        api.connection.execute(
            "INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations) VALUES (%s, 2, '{}')", (run_id,)
        )
    assert api.assigned(inside, "planner") == first
    assert api.assigned(waiting, "planner")["reason"] == "assigned"
    assert sorted(row[3:] for row in api.rows(ROWS)) == [(1, Decimal("0.1000")), (2, Decimal("0.2500"))]


def test_config_contains_policy_defaults_and_model(api: Api) -> None:
    policy, version = uuid4(), uuid4()
    api.connection.execute("INSERT INTO exp.policies (id, name) VALUES (%s, 'planner_policy')", (policy,))
    add = (
        "INSERT INTO exp.policy_versions (id, policy_id, version, mlflow_model_name, mlflow_model_version, config_defaults) "
        "VALUES (%s, %s, %s, %s, %s, %s)"
    )
    api.connection.execute(add, (version, policy, 1, "planner_model", "4", '{"temperature": 0, "horizon": 7}'))
    make_run(
        api.connection,
        "planner",
        variants={"only": ("control", "1", {"policy_version_id": str(version), "params": {"temperature": 0.5}})},
    )
    make_run(api.connection, "flag", variants={"on": ("control", "1", {"feature_enabled": True})})
    make_run(api.connection, "dangling", variants={"on": ("control", "1", {"policy_version_id": str(uuid4())})})
    assert api.assigned("h1", "planner")["config"] == {
        "policy_version_id": str(version),
        "params": {"temperature": 0.5, "horizon": 7},
        "mlflow_model_name": "planner_model",
        "mlflow_model_version": "4",
        "mlflow_model_uri": "models:/planner_model/4",
    }
    assert api.assigned("h1", "flag")["config"] == {"feature_enabled": True}
    assert api.skipped("h1", "dangling") == "not_active"
    api.connection.execute("UPDATE exp.policy_versions SET status = 'archived' WHERE id = %s", (version,))
    assert api.skipped("h1", "planner") == "not_active"


def test_concurrent_requests_at_two_instances_create_one_row_and_get_one_answer(
    api: Api, make_client: Callable[..., httpx.Client]
) -> None:
    make_run(api.connection, "one")
    make_run(api.connection, "two")

    async def send_concurrently(urls: list[str], unit: str) -> list[str]:
        body = {"unit_type": "household", "unit_id": unit, "requested_experiments": ["one", "two"]}
        async with httpx.AsyncClient(headers=dict(api.client.headers), timeout=30) as client:
            requests = (client.post(f"{urls[n % 2]}/api/v1/assignments", json=body) for n in range(100))
            return [response.text for response in await asyncio.gather(*requests)]

    with running_api(api.database_url) as other:
        for unit in ("race-1", "race-2", "race-3"):
            assert len(set(asyncio.run(send_concurrently([str(api.client.base_url), other], unit)))) == 1
            assert api.rows("SELECT count(*) FROM exp.assignments WHERE unit_id = %s", unit) == [(2,)]
        new_units = api.metric('new_assignments_total{experiment="one"}')
        client = make_client(other, "assign")
        text = client.get("/metrics").text.splitlines()
        new_units += next(
            (float(line.split()[-1]) for line in text if line.startswith('new_assignments_total{experiment="one"}')), 0
        )
    assert new_units == 3


def test_enrolment_notices_a_change_that_the_cached_experiments_lack(
    database_url: str, make_client: Callable[..., httpx.Client]
) -> None:
    with (
        running_api(database_url, experiments_refresh_seconds=3600) as url,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        run_id, _ = make_run(connection, "planner", variants=RAMPED)
        api = Api(make_client(url, "assign"), connection, database_url)
        assert api.assigned(unit_in(run_id, 0, 500), "planner")["enrolled"]
        connection.execute("UPDATE exp.experiments SET status = 'paused'")
        assert api.skipped(unit_in(run_id, 500, 1000), "planner") == "paused"


def test_stored_units_are_served_from_memory(api: Api) -> None:
    make_run(api.connection, "planner")
    first = api.assigned("h1", "planner")
    misses = api.metric("cache_misses_total")
    assert [api.assigned("h1", "planner") for _ in range(3)] == [first] * 3
    assert misses == 1
    assert (api.metric("cache_hits_total"), api.metric("cache_misses_total")) == (3, misses)
    assert api.metric('assignment_requests_total{experiment="planner",status="assigned"}') == 4
    api.assign("h1", "made-up-1", "made-up-2")
    assert api.metric('assignment_requests_total{experiment="other",status="not_found"}') == 2
    assert api.metric('assignment_latency_seconds_count{experiment="planner"}') == 4


INVALID_REQUESTS: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    (
        {},
        [
            {"field": "unit_type", "error": "missing_unit_type"},
            {"field": "unit_id", "error": "missing_unit_id"},
            {"field": "requested_experiments", "error": "missing_requested_experiments"},
        ],
    ),
    (
        {"unit_type": "planet", "unit_id": "u", "requested_experiments": []},
        [{"field": "unit_type", "error": "invalid_unit_type"}],
    ),
    (
        {"unit_type": "user", "unit_id": "", "requested_experiments": []},
        [{"field": "unit_id", "error": "invalid_unit_id"}],
    ),
    (
        {"unit_type": "user", "unit_id": "x" * 256, "requested_experiments": []},
        [{"field": "unit_id", "error": "invalid_unit_id"}],
    ),
    (
        {"unit_type": "user", "unit_id": "a\0b", "requested_experiments": []},
        [{"field": "unit_id", "error": "invalid_unit_id"}],
    ),
    (
        {"unit_type": "user", "unit_id": "u", "requested_experiments": ["x"] * 10_000},
        [{"field": "requested_experiments", "error": "invalid_requested_experiments"}],
    ),
    (
        {"unit_type": "user", "unit_id": "u", "requested_experiments": [1]},
        [{"field": "requested_experiments", "error": "invalid_requested_experiments"}],
    ),
    (
        {"unit_type": "user", "unit_id": "u", "requested_experiments": [], "context": []},
        [{"field": "context", "error": "invalid_context"}],
    ),
]


@pytest.mark.parametrize(("body", "details"), INVALID_REQUESTS)
def test_invalid_request_is_400_that_names_each_field(
    api: Api, body: dict[str, Any], details: list[dict[str, str]]
) -> None:
    response = api.client.post("/api/v1/assignments", json=body)
    assert response.status_code == 400
    assert response.json()["error"] == "validation_error"
    assert response.json()["message"]
    assert response.json()["details"] == details


def test_concurrent_units_are_distributed_and_stored(api: Api) -> None:
    make_run(api.connection, "planner")
    counts: Counter[str] = Counter()
    threads, lock = [], threading.Lock()

    def ask(part: int) -> None:
        for n in range(50):
            name = api.assigned(f"unit-{part}-{n}", "planner")["variant_name"]
            with lock:
                counts[name] += 1

    for part in range(4):
        threads.append(threading.Thread(target=ask, args=(part,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    stored = Counter(
        name for (name,) in api.rows("SELECT v.name FROM exp.assignments a JOIN exp.variants v ON v.id = a.variant_id")
    )
    assert stored == counts
    assert min(counts.values()) > 60
