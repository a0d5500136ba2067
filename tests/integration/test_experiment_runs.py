"""The lifecycle of runs on a real database, and opening a candidate's run, which is all or nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from ground_support import BY, first_planner_version, next_planner_version, sync_project_config
from psycopg.rows import dict_row

from experimentation.policies import set_production, set_version_status
from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.lifecycle import (
    add_variant,
    complete_run,
    create_run,
    load_run,
    pause_run,
    resume_run,
    runs_of,
    start_run,
)
from experimentation.runs.run import CandidateRun, ExperimentationError, NewVariant, Run


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database with the project's own configuration. Its rows are dicts, as those of some callers."""
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as opened:
        sync_project_config(opened)
        yield opened


def open_for(connection: psycopg.Connection[Any], version_id: UUID, **options: Any) -> CandidateRun:
    fields = {"experiment_name": "weekly_planner", "treatment_name": "candidate_v2", "change": BY, **options}
    return open_candidate_run(connection, policy_version_id=version_id, **fields)


def epochs(connection: psycopg.Connection[Any], run: Run) -> list[tuple[int, dict[str, str]]]:
    names = {str(variant.id): variant.name for variant in run.variants}
    rows = connection.execute(
        "SELECT epoch, allocations FROM exp.allocation_epochs WHERE experiment_id = %s ORDER BY epoch", (run.id,)
    )
    return [(row["epoch"], {names[key]: share for key, share in row["allocations"].items()}) for row in rows]


def audited(connection: psycopg.Connection[Any], after: int = 0) -> list[tuple[str, str]]:
    rows = connection.execute("SELECT subject, action FROM exp.audit_log WHERE id > %s ORDER BY id", (after,))
    return [(row["subject"], row["action"]) for row in rows]


def last_audit(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT max(id) AS last FROM exp.audit_log").fetchone()
    return int(row["last"]) if row else 0


def everything(connection: psycopg.Connection[Any]) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM exp.{table} ORDER BY 1, 2").fetchall()
        for table in ("experiments", "variants", "allocation_epochs", "audit_log", "policy_versions", "policies")
    ]


def plain_split(connection: psycopg.Connection[Any], *shares: str, status: str = "active") -> Run:
    variants = [
        NewVariant(f"arm_{index}", "treatment" if index else "control", Decimal(share))
        for index, share in enumerate(shares)
    ]
    run = create_run(connection, name="split", unit_type="user", variants=variants, change=BY)
    return start_run(connection, run.id, change=BY) if status == "active" else run


def test_candidate_completes_the_last_run_and_opens_the_next(connection: psycopg.Connection[Any]) -> None:
    baseline, candidate = first_planner_version(connection), next_planner_version(connection)
    last = last_audit(connection)
    opened = open_for(connection, candidate.id)

    first, second = runs_of(connection, "weekly_planner")
    assert (opened.state, opened.run) == ("opened", second)
    assert opened.message == "weekly_planner run 2 gives planner_policy@2 10 % of the units."
    assert (first.status, first.shipped_variant_id) == ("completed", first.control.id)
    assert (second.run, second.status, second.made_by, second.unit_type) == (2, "active", "promotion", "household")
    assert second.policy_id == candidate.policy_id
    assert [(variant.name, variant.role, variant.allocation) for variant in second.variants] == [
        ("control", "control", Decimal("0.1000")),
        ("remainder", "remainder", Decimal("0.8000")),
        ("candidate_v2", "treatment", Decimal("0.1000")),
    ]
    served = [variant.config["policy_version_id"] for variant in second.variants]
    assert served == [str(baseline.id), str(baseline.id), str(candidate.id)]
    assert epochs(connection, second) == [(1, {"control": "0.1000", "remainder": "0.8000", "candidate_v2": "0.1000"})]
    assert audited(connection, last) == [
        ("weekly_planner run 1", "experiment.completed"),
        ("weekly_planner run 2", "experiment.created"),
        ("weekly_planner run 2", "experiment.started"),
    ]


def test_audit_row_has_actor_reason_before_and_after(connection: psycopg.Connection[Any]) -> None:
    open_for(connection, next_planner_version(connection).id)
    row = connection.execute("SELECT * FROM exp.audit_log WHERE action = 'experiment.completed'").fetchone()
    assert row is not None
    assert (row["actor"], row["reason"]) == ("test", "Because of the test.")
    assert (row["before"]["status"], row["after"]["status"], row["after"]["shipped"]) == (
        "active",
        "completed",
        "control",
    )
    assert row["after"]["allocations"] == {"control": "1.0000"}


def test_same_run_is_returned_when_a_candidate_is_opened_again(connection: psycopg.Connection[Any]) -> None:
    candidate = next_planner_version(connection)
    opened = open_for(connection, candidate.id)
    state = everything(connection)
    again = open_for(connection, candidate.id, treatment_name="another_name")
    assert (again.state, again.run) == ("existing", opened.run)
    assert everything(connection) == state

    complete_run(connection, opened.run.id, shipped="control", change=BY)
    after_rollback = open_for(connection, candidate.id)
    assert (after_rollback.state, after_rollback.run.id, after_rollback.run.status) == (
        "existing",
        opened.run.id,
        "completed",
    )
    assert len(runs_of(connection, "weekly_planner")) == 2


def test_second_candidate_waits_until_the_first_ends(connection: psycopg.Connection[Any]) -> None:
    first, second = next_planner_version(connection, 2), next_planner_version(connection, 3)
    running = open_for(connection, first.id).run
    for status in ("active", "paused"):
        state = everything(connection)
        waiting = open_for(connection, second.id, treatment_name="candidate_v3")
        assert (waiting.state, waiting.run.id, waiting.run.status) == ("waits", running.id, status)
        assert waiting.message == "planner_policy@3 waits until weekly_planner run 2 ends."
        assert everything(connection) == state
        if status == "active":
            pause_run(connection, running.id, change=BY)

    complete_run(connection, running.id, shipped="control", change=BY)
    opened = open_for(connection, second.id, treatment_name="candidate_v3")
    assert (opened.state, opened.run.run) == ("opened", 3)


def test_control_is_the_version_in_production_after_a_promotion(connection: psycopg.Connection[Any]) -> None:
    first, second = next_planner_version(connection, 2), next_planner_version(connection, 3)
    run = open_for(connection, first.id).run
    complete_run(connection, run.id, shipped="candidate_v2", change=BY)
    set_production(connection, first, change=BY)
    opened = open_for(connection, second.id, treatment_name="candidate_v3").run
    served = {variant.name: variant.config["policy_version_id"] for variant in opened.variants}
    assert served == {"control": str(first.id), "remainder": str(first.id), "candidate_v3": str(second.id)}


def test_both_arms_keep_the_params_of_the_experiment(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        """UPDATE exp.variants SET config = config || '{"params": {"exploration_rate": 0.2}}' WHERE name = 'control'"""
    )
    opened = open_for(connection, next_planner_version(connection).id).run
    assert [variant.config["params"] for variant in opened.variants] == [{"exploration_rate": 0.2}] * 3


def test_candidate_waits_when_a_run_of_the_file_compares_variants(connection: psycopg.Connection[Any]) -> None:
    (run,) = runs_of(connection, "weekly_planner")
    add_variant(connection, run.id, NewVariant("by_hand", "treatment", Decimal("0.05")), change=BY)
    waiting = open_for(connection, next_planner_version(connection).id)
    assert (waiting.state, waiting.run.id) == ("waits", run.id)


@pytest.mark.parametrize("share", ["0.1001", "0.5", "0", "-0.1", "0.12345"])
def test_candidate_is_refused_when_its_share_is_not_within_a_tenth(
    connection: psycopg.Connection[Any], share: str
) -> None:
    candidate = next_planner_version(connection)
    state = everything(connection)
    with pytest.raises(ExperimentationError, match=r"candidate_v2 of weekly_planner can't start: "):
        open_for(connection, candidate.id, share=Decimal(share))
    assert everything(connection) == state


def test_remainder_is_exact_when_the_share_is_smaller(connection: psycopg.Connection[Any]) -> None:
    result = open_for(connection, next_planner_version(connection).id, share=Decimal("0.0333"))
    opened = result.run
    assert result.message == "weekly_planner run 2 gives planner_policy@2 3.33 % of the units."
    assert [variant.allocation for variant in opened.variants] == [
        Decimal("0.0333"),
        Decimal("0.9334"),
        Decimal("0.0333"),
    ]
    assert epochs(connection, opened)[0][1]["remainder"] == "0.9334"


def test_version_is_refused_when_it_cannot_be_a_candidate(connection: psycopg.Connection[Any]) -> None:
    candidate, production = next_planner_version(connection), first_planner_version(connection)
    refused = [
        ({"version_id": production.id}, "planner_policy@1 is in production already"),
        ({"version_id": uuid4()}, "No policy version has the id"),
        ({"version_id": candidate.id, "experiment_name": "unknown"}, "No experiment is called unknown: add it to"),
    ]
    set_version_status(connection, candidate, "deprecated", change=BY)
    refused.append(({"version_id": candidate.id}, "planner_policy@2 is deprecated: only an active version"))
    for fields, message in refused:
        with pytest.raises(ExperimentationError, match=message):
            open_for(connection, **fields)  # type: ignore[arg-type]  # the fields of one call


def test_candidate_is_refused_when_the_last_run_is_a_draft(connection: psycopg.Connection[Any]) -> None:
    plain_split(connection, "1", status="draft")
    with pytest.raises(ExperimentationError, match="split run 1 is a draft: set its status to active"):
        open_for(connection, next_planner_version(connection).id, experiment_name="split")


def test_database_is_unchanged_when_opening_a_candidate_fails_half_way(connection: psycopg.Connection[Any]) -> None:
    candidate = next_planner_version(connection)
    connection.execute("ALTER TABLE exp.allocation_epochs ADD CHECK (epoch <> 1) NOT VALID")
    state = everything(connection)
    with pytest.raises(psycopg.errors.CheckViolation):
        open_for(connection, candidate.id)
    assert everything(connection) == state


def test_one_run_is_opened_when_processes_open_candidates_in_parallel(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    candidates = [next_planner_version(connection, number).id for number in (2, 3)]

    def open_candidate(number: int) -> str:
        with psycopg.connect(database_url) as own:
            return open_for(own, candidates[number % 2], treatment_name=f"candidate_v{number % 2 + 2}").state

    with ThreadPoolExecutor(6) as pool:
        states = sorted(pool.map(open_candidate, range(6)))
    assert states == ["existing", "existing", "opened", "waits", "waits", "waits"]
    assert [run.status for run in runs_of(connection, "weekly_planner")] == ["completed", "active"]


def test_run_can_be_started_paused_resumed_and_completed(connection: psycopg.Connection[Any]) -> None:
    run = plain_split(connection, "0.5", "0.5", status="draft")
    assert epochs(connection, run) == []
    run = start_run(connection, run.id, change=BY)
    assert epochs(connection, run) == [(1, {"arm_0": "0.5000", "arm_1": "0.5000"})]
    assert pause_run(connection, run.id, change=BY).status == "paused"
    assert resume_run(connection, run.id, change=BY).status == "active"
    completed = complete_run(connection, run.id, shipped="arm_1", change=BY)
    assert (completed.status, completed.shipped and completed.shipped.name) == ("completed", "arm_1")
    assert len(epochs(connection, run)) == 1
    actions = [action for subject, action in audited(connection) if subject == "split run 1"]
    assert actions == [f"experiment.{step}" for step in ("created", "started", "paused", "resumed", "completed")]


def test_status_change_is_refused_when_it_does_not_follow_from_the_current_one(
    connection: psycopg.Connection[Any],
) -> None:
    run = plain_split(connection, "0.5", "0.5", status="draft")
    steps = {"pause": pause_run, "resume": resume_run, "complete": complete_run, "start": start_run}

    def refused(*names: str) -> None:
        for name in names:
            state = everything(connection)
            with pytest.raises(ExperimentationError, match=r"split run 1 is (\w+, so it can't become|\w+ already)"):
                steps[name](connection, run.id, change=BY)
            assert everything(connection) == state

    refused("pause", "resume", "complete")
    start_run(connection, run.id, change=BY)
    refused("start", "resume")
    with pytest.raises(ExperimentationError, match="split run 1 has no variant nobody to ship"):
        complete_run(connection, run.id, shipped="nobody", change=BY)
    complete_run(connection, run.id, change=BY)
    refused("start", "pause", "resume", "complete")


def test_start_is_refused_when_allocations_do_not_sum_to_one(connection: psycopg.Connection[Any]) -> None:
    run = plain_split(connection, "0.5", "0.4", status="draft")
    with pytest.raises(ExperimentationError, match=r"The allocations of split run 1 sum to 0\.9000, not to 1"):
        start_run(connection, run.id, change=BY)
    with pytest.raises(ExperimentationError, match="split run 1 is draft: complete it before creating another run"):
        plain_split(connection, "1")


def test_other_variants_shrink_when_a_variant_is_added_to_a_running_split(connection: psycopg.Connection[Any]) -> None:
    run = plain_split(connection, "0.3333", "0.3333", "0.3334")
    grown = add_variant(connection, run.id, NewVariant("late", "treatment", Decimal("0.0700")), change=BY)
    allocations = [variant.allocation for variant in grown.variants]
    assert allocations == [Decimal("0.3100"), Decimal("0.3100"), Decimal("0.3100"), Decimal("0.0700")]
    assert [epoch for epoch, _ in epochs(connection, grown)] == [1, 2]
    assert epochs(connection, grown)[1][1] == {variant.name: str(variant.allocation) for variant in grown.variants}
    with pytest.raises(
        ExperimentationError, match=r"more of split run 1 starts with 0\.11: a new treatment gets at most 0\.10"
    ):
        add_variant(connection, run.id, NewVariant("more", "treatment", Decimal("0.11")), change=BY)


def test_loading_fails_when_the_run_is_unknown(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(ExperimentationError, match="No experiment run has the id"):
        load_run(connection, uuid4())
