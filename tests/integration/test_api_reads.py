"""Read-only routes: experiments, a unit's assignment without enrolment, a policy's version in production."""

from collections.abc import Callable
from decimal import Decimal
from urllib.parse import quote
from uuid import uuid4

import httpx
from api_support import Api, make_run

pytest_plugins = ["api_service"]


def test_experiments_are_listed_with_their_runs(api: Api) -> None:
    make_run(api.connection, "cards", status="completed")
    run_id, variants = make_run(api.connection, "cards", run=2, targeting="context.platform == 'ios'")
    make_run(api.connection, "theme", status="draft", unit_type="user")
    listed = api.client.get("/api/v1/experiments").json()["experiments"]
    assert [(run["name"], run["run"], run["status"]) for run in listed] == [
        ("cards", 2, "active"),
        ("theme", 1, "draft"),
    ]
    cards = api.client.get("/api/v1/experiments/cards").json()
    assert [run["run"] for run in cards["runs"]] == [1, 2]
    answering = cards["answering"]
    assert (answering["experiment_id"], answering["targeting"], answering["epoch"]) == (
        str(run_id),
        "context.platform == 'ios'",
        1,
    )
    assert answering["variants"][0] == {
        "variant_id": str(variants["control"]),
        "name": "control",
        "role": "control",
        "allocation": "0.5000",
        "withdrawn": False,
        "config": {"blue": True},
    }
    missing = api.client.get("/api/v1/experiments/nobody")
    assert (missing.status_code, missing.json()["error"]) == (404, "not_found")


def test_unit_is_looked_up_without_enrolment(api: Api) -> None:
    make_run(api.connection, "cards")
    path = "/api/v1/experiments/cards/assignments/h1"
    before = api.client.get(path).json()
    assert (before["reason"], before["enrolled"], before["stored"]) == ("not_enrolled", False, None)
    assert api.rows("SELECT count(*) FROM exp.assignments") == [(0,)]
    assignment = api.assigned("h1", "cards")
    after = api.client.get(path).json()
    assert (after["variant_name"], after["reason"], after["enrolled"]) == (assignment["variant_name"], "assigned", True)
    assert before["variant_name"] == assignment["variant_name"]
    stored = after["stored"]
    assert (stored["variant_id"], stored["epoch"], Decimal(stored["propensity"])) == (
        assignment["variant_id"],
        1,
        Decimal("0.5"),
    )
    other = api.client.get(path, params={"unit_type": "user"}).json()
    assert (other["reason"], other["variant_name"]) == ("unit_type_mismatch", None)
    for bad in ("/api/v1/experiments/cards/assignments/" + "x" * 256, path + "%00", path + "?unit_type=planet"):
        answer = api.client.get(bad)
        assert (answer.status_code, answer.json()["error"]) == (400, "validation_error"), bad


def test_unusual_names_and_ids_are_found(api: Api) -> None:
    make_run(api.connection, "Ünï cödé & co?")
    make_run(api.connection, "cards")
    for unit in ("50% of/h#1", "a/b", "/", "../x", "a?b", " ", "\ufffd"):
        assignment = api.assigned(unit, "cards")
        response = api.client.get(f"/api/v1/experiments/cards/assignments/{quote(unit, safe='')}")
        assert (response.status_code, response.json()["unit_id"]) == (200, unit), response.text
        assert response.json()["stored"]["variant_id"] == assignment["variant_id"]
    broken = api.client.get("/api/v1/experiments/cards/assignments/%ff%fe")
    assert (broken.status_code, broken.json()["details"][0]["error"]) == (400, "invalid_unit_id")
    experiment = api.client.get("/api/v1/experiments/%C3%9Cn%C3%AF%20c%C3%B6d%C3%A9%20%26%20co%3F").json()
    assert experiment["name"] == "Ünï cödé & co?"


def test_lookup_uses_the_context_of_the_query(api: Api) -> None:
    make_run(api.connection, "cards", targeting="context.platform == 'ios'")
    path = "/api/v1/experiments/cards/assignments/h1"
    assert api.client.get(path).json()["reason"] == "not_targeted"
    assert api.client.get(path, params={"context": '{"platform": "ios"}'}).json()["reason"] == "not_enrolled"
    for bad in ("ios", "[]", "{"):
        answer = api.client.get(path, params={"context": bad})
        assert (answer.status_code, answer.json()["details"]) == (
            400,
            [{"field": "context", "error": "invalid_context"}],
        )


def test_policy_shows_its_version_in_production(api: Api, make_client: Callable[..., httpx.Client]) -> None:
    policy, version = uuid4(), uuid4()
    insert_policy = "INSERT INTO exp.policies (id, name) VALUES (%s, 'planner_policy')"
    api.connection.execute(insert_policy, (policy,))
    assert api.client.get("/api/v1/policies/planner_policy").status_code == 404
    api.connection.execute(
        "INSERT INTO exp.policy_versions (id, policy_id, version, mlflow_model_name, mlflow_model_version, config_defaults) "
        "VALUES (%s, %s, 3, 'planner_model', '4', '{\"temperature\": 0.5}')",
        (version, policy),
    )
    api.connection.execute("UPDATE exp.policies SET production_version_id = %s", (version,))
    client = make_client(str(api.client.base_url), "assign")
    assert client.get("/api/v1/policies/planner_policy").json() == {
        "policy": "planner_policy",
        "version": 3,
        "policy_version_id": str(version),
        "status": "active",
        "config": {
            "policy_version_id": str(version),
            "params": {"temperature": 0.5},
            "mlflow_model_name": "planner_model",
            "mlflow_model_version": "4",
            "mlflow_model_uri": "models:/planner_model/4",
        },
    }


def test_reading_requires_a_scope(api: Api, make_client: Callable[..., httpx.Client]) -> None:
    make_run(api.connection, "cards")
    url = str(api.client.base_url)
    paths = ("/api/v1/experiments", "/api/v1/experiments/cards", "/api/v1/experiments/cards/assignments/h1")
    for path in paths:
        assert httpx.get(url + path).status_code == 401
        assert make_client(url, "assign", "ingest").get(path).status_code == 403
        assert make_client(url, "read").get(path).status_code == 200
        assert make_client(url, "admin").get(path).status_code == 200
    assert make_client(url, "ingest").get("/api/v1/policies/x").status_code == 403
