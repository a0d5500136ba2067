"""Each assignment rule, and that the first one that applies decides."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from experimentation.assignments.bucketing import bucket_of
from experimentation.assignments.rules import (
    Decision,
    ServedExperiments,
    ServedLayer,
    ServedRun,
    ServedVariant,
    StaleExperimentsError,
    complete_config,
    judge_new,
    judge_run,
    judge_stored,
    peeked,
)
from experimentation.assignments.targeting import Targeting, TargetingInput

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
CONTROL = ServedVariant(uuid4(), "control", "control", Decimal("0.1"), {"params": {"a": 1}})
REST = ServedVariant(uuid4(), "rest", "remainder", Decimal("0.8"), {"params": {"a": 1}})
TREATMENT = ServedVariant(uuid4(), "treatment", "treatment", Decimal("0.1"), {"params": {"a": 2}})
RUN = ServedRun(uuid4(), "planner", 1, "active", "household", (CONTROL, REST, TREATMENT), epoch=3)


def decide(
    run: ServedRun | None,
    unit_id: str = "h1",
    stored: UUID | None = None,
    unit_type: str = "household",
    context: dict[str, Any] | None = None,
) -> Decision:
    early = judge_run(run, unit_type, unit_id, NOW)
    if early is not None:
        return early
    assert run is not None
    return judge_new(run, unit_id, TargetingInput(unit_type, context)) if stored is None else judge_stored(run, stored)


def unit_in(run: ServedRun, low: int, high: int) -> str:
    """A unit whose bucket is in [low, high)."""
    return next(unit for unit in (f"u{n}" for n in range(100_000)) if low <= bucket_of(run.id, unit) < high)


def test_unknown_name_is_not_found() -> None:
    assert decide(None) == Decision("not_found")


def test_unit_type_mismatch_comes_before_all_other_rules() -> None:
    for status in ("draft", "active", "paused", "completed"):
        run = replace(RUN, status=status, shipped_variant_id=TREATMENT.id)
        assert decide(run, unit_type="user", stored=CONTROL.id) == Decision("unit_type_mismatch")


def test_draft_is_not_active() -> None:
    assert decide(replace(RUN, status="draft")) == Decision("not_active")


def test_shipped_variant_is_served_to_new_and_stored_units() -> None:
    over = replace(RUN, status="completed", shipped_variant_id=TREATMENT.id, end_at=NOW - timedelta(days=1))
    for stored in (None, CONTROL.id, TREATMENT.id):
        assert decide(over, stored=stored) == Decision("shipped", TREATMENT)


def test_completed_run_without_shipped_variant_is_not_active() -> None:
    assert decide(replace(RUN, status="completed"), stored=CONTROL.id) == Decision("not_active")


def test_window_applies_to_stored_units_too() -> None:
    second = timedelta(seconds=1)
    for stored in (None, CONTROL.id):
        assert decide(replace(RUN, start_at=NOW + second), stored=stored) == Decision("not_started")
        assert decide(replace(RUN, end_at=NOW - second), stored=stored) == Decision("ended")
    assert decide(replace(RUN, start_at=NOW, end_at=NOW), stored=CONTROL.id).enrolled


def test_withdrawn_variant_serves_control_without_enrolment() -> None:
    withdrawn = replace(TREATMENT, withdrawn=True)
    run = replace(RUN, variants=(CONTROL, REST, withdrawn))
    assert decide(run, stored=TREATMENT.id) == Decision("withdrawn", CONTROL)
    assert decide(replace(run, status="paused"), stored=TREATMENT.id) == Decision("withdrawn", CONTROL)
    # A new unit whose bucket falls on it gets the same, and no row.
    assert decide(run, unit_in(run, 9000, 10_000)) == Decision("withdrawn", CONTROL)


def test_stored_unit_keeps_its_variant_when_allocations_change() -> None:
    moved = replace(
        RUN, variants=(replace(CONTROL, allocation=Decimal(1)), REST, replace(TREATMENT, allocation=Decimal(0)))
    )
    unit = unit_in(moved, 0, 5000)
    for run in (moved, replace(moved, status="paused")):
        decision = decide(run, unit, stored=TREATMENT.id)
        assert (decision.variant, decision.enrolled, decision.new) == (moved.variants[2], True, False)


def test_paused_run_enrols_no_new_unit() -> None:
    for low, high in ((0, 1000), (1000, 9000), (9000, 10_000)):
        paused = replace(RUN, status="paused")
        assert decide(paused, unit_in(RUN, low, high)) == Decision("paused")


def test_remainder_is_served_and_not_stored() -> None:
    assert decide(RUN, unit_in(RUN, 1000, 9000)) == Decision("remainder", REST, enrolled=False, new=False)


@pytest.mark.parametrize(("low", "high", "variant"), [(0, 1000, CONTROL), (9000, 10_000, TREATMENT)])
def test_new_unit_gets_the_same_answer_as_after_it_is_stored(low: int, high: int, variant: ServedVariant) -> None:
    unit = unit_in(RUN, low, high)
    first, again = decide(RUN, unit), decide(RUN, unit, stored=variant.id)
    assert (first.variant, first.enrolled, first.new) == (variant, True, True)
    assert (again.variant, again.enrolled, again.reason) == (first.variant, first.enrolled, first.reason)


def test_unknown_stored_variant_raises_stale_experiments_error() -> None:
    with pytest.raises(StaleExperimentsError):
        decide(RUN, stored=uuid4())


def test_archived_policy_version_is_never_served() -> None:
    archived = replace(RUN, variants=(CONTROL, REST, replace(TREATMENT, servable=False)))
    assert decide(archived, stored=TREATMENT.id) == Decision("withdrawn", CONTROL)
    assert decide(replace(archived, status="completed", shipped_variant_id=TREATMENT.id)) == Decision("not_active")
    nothing_servable = replace(archived, variants=(replace(CONTROL, servable=False), REST, archived.variants[2]))
    assert decide(nothing_servable, stored=TREATMENT.id) == Decision("not_active")


def test_run_without_allocations_or_epoch_enrols_no_unit() -> None:
    empty = replace(RUN, variants=tuple(replace(variant, allocation=Decimal(0)) for variant in RUN.variants))
    assert decide(empty) == Decision("not_active")
    assert decide(replace(RUN, epoch=0), unit_in(RUN, 0, 1000)) == Decision("not_active")


def test_latest_started_run_answers_and_a_draft_only_if_no_run_started() -> None:
    first = replace(RUN, status="completed", shipped_variant_id=CONTROL.id)
    second = replace(RUN, id=uuid4(), run=2)
    draft = replace(RUN, id=uuid4(), run=3, status="draft")
    other = replace(RUN, id=uuid4(), name="other", status="draft")
    experiments = ServedExperiments.of([draft, second, other, first])
    assert experiments.runs == {"planner": second, "other": other}
    assert set(experiments.by_id) == {first.id, second.id, draft.id, other.id}


def test_complete_config_overrides_the_defaults_and_names_the_model() -> None:
    config = {"policy_version_id": "p", "params": {"a": 1}, "note": "x"}
    assert complete_config(config, {"a": 0, "b": 2}, "planner_model", "4") == {
        "policy_version_id": "p",
        "params": {"a": 1, "b": 2},
        "note": "x",
        "mlflow_model_name": "planner_model",
        "mlflow_model_version": "4",
        "mlflow_model_uri": "models:/planner_model/4",
    }


IOS = Targeting('context.platform == "ios"')
LAYER = ServedLayer.of(uuid4(), Decimal("0.1"), 1000, 6000)


def test_override_comes_before_window_row_and_pause_and_after_completion() -> None:
    overridden = replace(RUN, overrides={"qa": "treatment"}, start_at=NOW + timedelta(days=1))
    override = Decision("override", TREATMENT)
    assert decide(overridden, "qa") == override
    assert decide(overridden, "h1") == Decision("not_started")
    for status in ("active", "paused"):
        assert decide(replace(RUN, status=status, overrides={"qa": "treatment"}), "qa", stored=CONTROL.id) == override
    assert decide(replace(overridden, status="draft"), "qa") == Decision("not_active")
    over = replace(overridden, status="completed", shipped_variant_id=CONTROL.id)
    assert decide(over, "qa") == Decision("shipped", CONTROL)
    assert decide(overridden, "qa", unit_type="user") == Decision("unit_type_mismatch")


def test_override_to_an_unservable_variant_is_ignored() -> None:
    archived = replace(TREATMENT, servable=False)
    run = replace(RUN, variants=(CONTROL, REST, archived), overrides={"qa": "treatment", "qb": "no_such"})
    for unit in ("qa", "qb"):
        assert decide(run, unit, stored=CONTROL.id).variant == CONTROL


def test_layer_and_targeting_apply_to_new_units_only() -> None:
    run = replace(RUN, layer=LAYER, targeting=IOS)
    for unit in (f"u{n}" for n in range(400)):
        bucket = bucket_of(LAYER.id, unit)
        reason = decide(run, unit, context={"platform": "ios"}).reason
        if bucket < 1000:
            assert reason == "holdout"
        elif not 1000 <= bucket < 6000:
            assert reason == "layer_excluded"
        else:
            assert reason in ("assigned", "remainder")
            assert decide(run, unit, context={"platform": "web"}) == Decision("not_targeted")
            assert decide(run, unit) == Decision("not_targeted")
            assert decide(run, unit, context={"platform": "ios"}) == decide(RUN, unit)
        assert decide(run, unit, stored=CONTROL.id) == Decision("assigned", CONTROL, enrolled=True)
        assert decide(replace(run, status="paused"), unit) == Decision("paused")


def test_rule_that_cannot_be_evaluated_is_a_targeting_error() -> None:
    run = replace(RUN, targeting=Targeting("context.age > 18"))
    assert decide(run, context={"age": "old"}) == Decision("targeting_error")


def test_peeked_decision_shows_the_variant_that_the_unit_would_get() -> None:
    unit = unit_in(RUN, 0, 1000)
    assert peeked(RUN, decide(RUN, unit)) == Decision("not_enrolled", CONTROL)
    for decision in (decide(RUN, unit, stored=CONTROL.id), decide(RUN, unit_in(RUN, 1000, 9000)), Decision("paused")):
        assert peeked(RUN, decision) is decision
