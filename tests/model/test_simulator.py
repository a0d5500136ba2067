"""The simulated history: repeatable, well-formed, and without knowledge of the future."""

import json
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from planner import groceries, reactions, simulator, world
from planner.catalogue import sample_catalogue
from planner.constraints import violations
from planner.meal_planner import MealPlanner
from planner.reactions import react
from planner.simulator import LEGACY_POLICY_VERSION_ID, Sample, simulate
from planner.tables import DOMAIN_SCHEMAS

END = date(2025, 1, 5)
EVENT_FIELDS = {
    "event_id",
    "event_type",
    "unit_type",
    "unit_id",
    "experiments",
    "context",
    "metrics",
    "payload",
    "timestamp",
}


@pytest.fixture(scope="module")
def sample() -> Sample:
    return simulate(sample_catalogue(), seed=21, households=60, weeks=4, end=END)


def by_plan(sample: Sample) -> dict[str, list[dict[str, Any]]]:
    plans = defaultdict(list)
    for event in sample.events:
        plans[event["payload"]["plan_id"]].append(event)
    return plans


def test_sample_is_the_same_for_the_same_arguments(sample: Sample) -> None:
    again = simulate(sample_catalogue(), seed=21, households=60, weeks=4, end=END)
    assert again.events == sample.events
    assert all(again.tables[name].equals(frame) for name, frame in sample.tables.items())
    other = simulate(sample_catalogue(), seed=22, households=60, weeks=4, end=END)
    assert not {event["event_id"] for event in other.events} & {event["event_id"] for event in sample.events}


def test_changing_the_end_only_shifts_times(sample: Sample) -> None:
    shift = timedelta(days=143)
    later = simulate(sample_catalogue(), seed=21, households=60, weeks=4, end=END + shift)
    assert [{**event, "timestamp": event["timestamp"] - shift} for event in later.events] == sample.events
    assert later.start - sample.start == shift
    assert later.tables["pantry_snapshots"]["items"].equals(sample.tables["pantry_snapshots"]["items"])


def test_times_lie_in_the_weeks_up_to_the_end(sample: Sample) -> None:
    assert sample.start == datetime(2024, 12, 9, tzinfo=UTC) and sample.end == datetime(2025, 1, 6, tzinfo=UTC)
    assert all(sample.start <= event["timestamp"] < sample.end for event in sample.events)
    assert sample.events == sorted(sample.events, key=lambda event: (event["timestamp"], event["event_id"]))


def test_events_have_the_agreed_shape(sample: Sample) -> None:
    kinds = Counter(event["event_type"] for event in sample.events)
    assert set(kinds) == {
        "plan_generated",
        "plan_accepted",
        "plan_rejected",
        "meal_swapped",
        "edit_applied",
        "validator_intervention",
    }
    assert len({event["event_id"] for event in sample.events}) == len(sample.events)
    for event in sample.events:
        assert set(event) == EVENT_FIELDS
        assert UUID(event["event_id"]).version == 5
        assert event["unit_type"] == "household" and event["experiments"] == []
        assert event["context"]["policy_version_id"] == LEGACY_POLICY_VERSION_ID
        assert event["context"]["workflow_type"] in world.WORKFLOWS and event["context"]["mode"] in world.MODES
        assert event["timestamp"].tzinfo is UTC
        json.dumps({key: value for key, value in event.items() if key != "timestamp"})


def test_accepted_plan_is_the_generated_plan_with_its_edits(sample: Sample) -> None:
    checked = 0
    for events in by_plan(sample).values():
        kinds = [event["event_type"] for event in events]
        assert kinds[0] == "plan_generated" and kinds.count("plan_generated") == 1
        ends = [kind for kind in kinds if kind in ("plan_accepted", "plan_rejected")]
        assert len(ends) <= 1 and (not ends or kinds[-1] == ends[0])
        meals = {meal["day"]: dict(meal) for meal in events[0]["payload"]["meals"]}
        edits = 0
        for event in events[1:]:
            payload = event["payload"]
            if event["event_type"] == "validator_intervention":
                assert meals[payload["day"]]["recipe_id"] == payload["recipe_id"]
                meals[payload["day"]]["recipe_id"] = payload["replacement_id"]
            elif event["event_type"] == "meal_swapped":
                assert meals[payload["day"]]["recipe_id"] == payload["from_meal_id"]
                meals[payload["day"]]["recipe_id"] = payload["to_meal_id"]
                edits += 1
            elif event["event_type"] == "edit_applied":
                meals[payload["day"]]["servings"] = payload["servings"]
                edits += 1
            elif event["event_type"] == "plan_accepted":
                assert payload["meals"] == list(meals.values())
                assert event["metrics"]["edit_count"] == edits and payload["reconstructed"] is False
                checked += 1
    assert checked > 150


def test_accepted_plans_keep_the_rules_of_their_day(sample: Sample) -> None:
    accepted = [event for event in sample.events if event["event_type"] == "plan_accepted"]
    plans = by_plan(sample)
    for event in accepted:
        generated_at = plans[event["payload"]["plan_id"]][0]["timestamp"]
        assert (
            violations(sample.world.catalogue, sample.world.row_input(event["unit_id"], generated_at), event["payload"])
            == []
        )


def test_validator_repairs_plans_when_rules_change() -> None:
    busy = simulate(sample_catalogue(), seed=7, households=90, weeks=5, end=END)
    changes = busy.tables["household_constraints"].group_by("household_id").len()["len"].to_list()
    assert max(changes) >= 2 and min(changes) == 1
    rules = Counter(
        event["payload"]["rule"] for event in busy.events if event["event_type"] == "validator_intervention"
    )
    assert rules["budget"] > 10 and rules["max_prep_time"] + rules["excluded_ingredient"] > 1
    reasons = {event["payload"]["rejection_reason"] for event in busy.events if event["event_type"] == "plan_rejected"}
    assert reasons <= {"too_expensive", "too_much_cooking", "not_our_taste"} and reasons


def test_propensities_are_logged_for_every_slot(sample: Sample) -> None:
    explored = []
    for event in sample.events:
        if event["event_type"] == "plan_generated":
            payload = event["payload"]
            assert len(payload["meals"]) == len(payload["slot_propensities"]) == len(payload["slot_explored"]) == 5
            assert all(0 < chance <= 1 for chance in payload["slot_propensities"])
            explored += payload["slot_explored"]
    assert 0.1 < np.mean(explored) < 0.2


def test_tables_have_their_shape_and_refer_to_each_other(sample: Sample) -> None:
    assert set(sample.tables) == set(DOMAIN_SCHEMAS)
    for name, frame in sample.tables.items():
        assert dict(frame.schema) == DOMAIN_SCHEMAS[name]
    households = set(sample.tables["households"]["id"])
    assert len(households) == 60
    assert set(sample.tables["household_constraints"]["household_id"]) == households
    assert set(sample.tables["pantry_snapshots"]["household_id"]) == households
    assert {event["unit_id"] for event in sample.events} <= households
    assert min(sample.tables["household_constraints"]["valid_from"].to_list()) < sample.start


def test_row_input_contains_only_earlier_plans(sample: Sample) -> None:
    household_id = "h0005"
    accepted = [e for e in sample.events if e["event_type"] == "plan_accepted" and e["unit_id"] == household_id]
    at = accepted[-1]["timestamp"]
    row_input = sample.world.row_input(household_id, at)
    assert len(row_input["recent_plans"]) == len(accepted) - 1
    assert row_input["previous_plan"]["meals"] == accepted[-2]["payload"]["meals"]
    assert [plan["days_ago"] for plan in row_input["recent_plans"]] == [
        (at - event["timestamp"]).days for event in accepted[:-1]
    ]
    assert sample.world.row_input(household_id, sample.start)["recent_plans"] == []
    given = [{"days_ago": 3, "meals": [{"recipe_id": "harira", "swapped_in": True}]}]
    assert sample.world.row_input(household_id, at, recent=given)["recent_plans"] == given


def test_reaction_carries_the_given_context_and_leaves_the_world_unchanged(sample: Sample) -> None:
    product, at = MealPlanner(sample.world.catalogue), sample.end + timedelta(hours=9)
    row_input = sample.world.row_input("h0001", at)
    plan = product.plan(row_input, product.legal_items(row_input, [])[:5])
    stamp: dict[str, Any] = {
        "context": {"policy_version_id": "x"},
        "experiments": [{"experiment_id": "e", "variant_id": "v"}],
    }
    first = react(sample.world, "h0001", plan, at, np.random.default_rng(1), plan_id="p", **stamp)
    again = react(sample.world, "h0001", plan, at, np.random.default_rng(1), plan_id="p", **stamp)
    assert first == again and sample.world.row_input("h0001", at) == row_input
    assert all(
        event["experiments"] == stamp["experiments"] and event["context"]["policy_version_id"] == "x" for event in first
    )
    assert all(event["timestamp"] >= at for event in first)


def test_reaction_does_not_depend_on_variant_or_version(sample: Sample) -> None:
    product, at = MealPlanner(sample.world.catalogue), sample.end + timedelta(hours=9)
    row_input = sample.world.row_input("h0002", at)
    plan = product.plan(row_input, product.legal_items(row_input, [])[:5])
    outcomes = [
        react(
            sample.world,
            "h0002",
            plan,
            at,
            np.random.default_rng(4),
            plan_id="p",
            context={"policy_version_id": version},
            experiments=[{"experiment_id": "e", "variant_id": variant}],
        )
        for version, variant in (("1", "control"), ("2", "candidate_v2"))
    ]
    plain = [
        [{key: event[key] for key in EVENT_FIELDS - {"context", "experiments"}} for event in events]
        for events in outcomes
    ]
    assert plain[0] == plain[1]


def test_simulator_never_reads_a_variant_or_version() -> None:
    for module in (reactions, world, groceries):
        source = Path(str(module.__file__)).read_text()
        code = "\n".join(line for line in source.splitlines() if '"""' not in line)
        assert "variant_id" not in code and "policy_version_id" not in code
    # The sample's own stamp is the one place that names a version, and it only writes it.
    assert Path(str(simulator.__file__)).read_text().count("policy_version_id") == 2


def test_an_empty_plan_is_rejected_and_an_impossible_sample_refused(sample: Sample) -> None:
    outcomes = [
        react(sample.world, "h0003", {"meals": []}, sample.end, np.random.default_rng(seed)) for seed in range(20)
    ]
    assert {event["payload"]["rejection_reason"] for events in outcomes for event in events} == {"empty_plan"}
    with pytest.raises(ValueError, match="at least one household"):
        simulate(sample_catalogue(), seed=1, households=0, end=END)
