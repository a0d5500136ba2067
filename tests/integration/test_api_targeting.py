"""Which units get an experiment: targeting rules, layers with a holdout, overrides for testers, and peeking."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from api_support import Api, make_run

from experimentation.assignments.bucketing import bucket_of

pytest_plugins = ["api_service"]

IOS = {"platform": "ios"}
ROWS = "SELECT unit_id FROM exp.assignments ORDER BY unit_id"


def make_layer(api: Api, holdout: str = "0") -> UUID:
    layer_id = uuid4()
    api.connection.execute("INSERT INTO exp.layers (id, name, holdout) VALUES (%s, 'page', %s)", (layer_id, holdout))
    return layer_id


def test_rule_enrols_only_matching_units(api: Api) -> None:
    make_run(api.connection, "cards", targeting='context.platform == "ios" && unit_type == "household"')
    assert api.assigned("h1", "cards", context=IOS)["enrolled"] is True
    assert api.skipped("h2", "cards", context={"platform": "android"}) == "not_targeted"
    assert api.skipped("h3", "cards") == "not_targeted"
    assert api.rows(ROWS) == [("h1",)]
    # A stored unit stays enrolled, whatever its later context.
    assert api.assigned("h1", "cards")["enrolled"] is True


def test_rule_that_cannot_be_evaluated_is_a_targeting_error(api: Api) -> None:
    make_run(api.connection, "cards", targeting="context.age > 18")
    make_run(api.connection, "past_sync", targeting="this is ( no rule")
    assert api.skipped("h1", "cards", context={"age": "nineteen"}) == "targeting_error"
    assert api.skipped("h1", "past_sync", context=IOS) == "targeting_error"
    assert api.assigned("h1", "cards", context={"age": 19})["enrolled"] is True
    assert api.rows(ROWS) == [("h1",)]


def test_unit_is_in_at_most_one_experiment_of_a_layer(api: Api) -> None:
    layer = make_layer(api, holdout="0.1")
    make_run(api.connection, "first", layer_id=layer, layer_from=1000, layer_to=5000)
    make_run(api.connection, "second", layer_id=layer, layer_from=5000, layer_to=9000)
    seen = {"first": 0, "second": 0, "holdout": 0, "nothing": 0}
    for number in range(300):
        unit = f"h{number}"
        answer = api.assign(unit, "first", "second")
        bucket = bucket_of(layer, unit)
        expected = (
            "holdout" if bucket < 1000 else "first" if bucket < 5000 else "second" if bucket < 9000 else "nothing"
        )
        seen[expected] += 1
        assert [assignment["experiment_name"] for assignment in answer["assignments"]] == [expected] * (
            expected in ("first", "second")
        )
        reasons = {skipped["experiment_name"]: skipped["reason"] for skipped in answer["skipped_experiments"]}
        reason = "holdout" if expected == "holdout" else "layer_excluded"
        assert reasons == {name: reason for name in ("first", "second") if name != expected}
    assert all(seen.values())
    assert api.rows("SELECT max(n) FROM (SELECT count(*) AS n FROM exp.assignments GROUP BY unit_id) AS counts") == [
        (1,)
    ]


def test_override_is_served_and_never_stored(api: Api) -> None:
    _, variants = make_run(
        api.connection,
        "cards",
        targeting='context.platform == "ios"',
        start_at=datetime.now(UTC) + timedelta(days=1),
        overrides={"qa": "treatment", "typo": "no_such_variant"},
    )
    answer = api.assigned("qa", "cards")
    assert (answer["variant_id"], answer["enrolled"], answer["reason"]) == (
        str(variants["treatment"]),
        False,
        "override",
    )
    assert api.skipped("typo", "cards") == "not_started"
    assert api.skipped("h1", "cards") == "not_started"
    assert api.rows(ROWS) == []


def test_override_takes_precedence_over_the_row_and_keeps_it(api: Api) -> None:
    run_id, _ = make_run(api.connection, "cards")
    first = api.assigned("h1", "cards")
    other = "treatment" if first["variant_name"] == "control" else "control"
    api.connection.execute(
        "UPDATE exp.experiments SET overrides = jsonb_build_object('h1', %s::text) WHERE id = %s", (other, run_id)
    )
    assert (api.assigned("h1", "cards")["variant_name"], api.assigned("h1", "cards")["reason"]) == (other, "override")
    api.connection.execute("UPDATE exp.experiments SET overrides = '{}' WHERE id = %s", (run_id,))
    assert api.assigned("h1", "cards") == first


def test_request_without_enrolment_shows_the_variant_and_stores_nothing(api: Api) -> None:
    make_run(api.connection, "cards")
    peeked = api.assigned("h1", "cards", enroll=False)
    assert (peeked["enrolled"], peeked["reason"]) == (False, "not_enrolled")
    assert api.rows(ROWS) == []
    assigned = api.assigned("h1", "cards")
    assert (assigned["variant_name"], assigned["enrolled"]) == (peeked["variant_name"], True)
    assert api.assigned("h1", "cards", enroll=False) == assigned
    refused = api.client.post(
        "/api/v1/assignments",
        json={"unit_type": "user", "unit_id": "u", "requested_experiments": [], "enroll": "no"},
    )
    assert (refused.status_code, refused.json()["details"]) == (400, [{"field": "enroll", "error": "invalid_enroll"}])


@pytest.mark.parametrize(
    "columns", [{"layer_from": 5, "layer_to": 5}, {"layer_from": 0, "layer_to": 10_001}, {"layer_from": 1}]
)
def test_schema_rejects_invalid_layer_ranges(api: Api, columns: dict[str, Any]) -> None:
    layer = make_layer(api)
    with pytest.raises(Exception, match="experiments_layer_range_check"):
        make_run(api.connection, "cards", layer_id=layer, **columns)


def test_context_with_too_many_values_is_a_targeting_error(api: Api) -> None:
    names = [f"e{n}" for n in range(20)]
    for name in names:
        make_run(api.connection, name, targeting="has(context.x) || true")
    wide: dict[str, Any] = {f"k{n}": {} for n in range(50_000)}
    skipped = api.assign("h1", *names, context=wide)["skipped_experiments"]
    assert [experiment["reason"] for experiment in skipped] == ["targeting_error"] * 20
    assert len(api.assign("h1", *names, context={"x": 1})["assignments"]) == 20
