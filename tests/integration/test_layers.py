"""Layers on a real database: free and taken ranges, concurrent writers, and what a candidate's run inherits."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from ground_support import BY, next_planner_version, sync_project_config

from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs import store as run_store
from experimentation.runs.layers import LayerError, describe_layer, ensure_layer, find_layer, set_holdout
from experimentation.runs.lifecycle import (
    add_variant,
    complete_run,
    create_run,
    load_run,
    pause_run,
    replace_variants,
    runs_of,
    start_run,
    update_run,
)
from experimentation.runs.run import ExperimentationError, LayerRange, NewVariant, Run

ARMS = [NewVariant("control", "control", Decimal("0.5")), NewVariant("blue", "treatment", Decimal("0.5"))]
IOS, WEB = 'context.platform == "ios"', 'context.platform == "web"'


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database that has the layer `page`, of which a tenth is held out."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        ensure_layer(opened, "page", holdout=Decimal("0.1"), change=BY)
        yield opened


def page(first: int, end: int) -> LayerRange:
    return LayerRange("page", first, end)


def made(connection: psycopg.Connection[Any], name: str, layer: LayerRange | None = None, **options: Any) -> Run:
    return create_run(connection, name=name, unit_type="user", variants=ARMS, layer=layer, **{"change": BY, **options})


def changed(connection: psycopg.Connection[Any], run: Run, **fields: Any) -> Run:
    keys = ("description", "unit_type", "start_at", "end_at", "targeting", "layer", "overrides")
    values: dict[str, Any] = {**{key: getattr(run, key) for key in keys}, **fields, "change": BY}
    return update_run(connection, run.id, **values)


def audited(connection: psycopg.Connection[Any]) -> list[Any]:
    return connection.execute("SELECT action, subject, before, after FROM exp.audit_log ORDER BY id").fetchall()


# layers


def test_layer_is_created_once_and_every_change_is_audited(connection: psycopg.Connection[Any]) -> None:
    again = ensure_layer(connection, "page", holdout=Decimal("0.9"), change=BY)
    assert again.holdout == Decimal("0.1")
    described = describe_layer(connection, again, "The page.", change=BY)
    smaller = set_holdout(connection, described, Decimal("0.05"), change=BY)
    assert find_layer(connection, "page") == smaller and smaller.description == "The page."
    assert [row[:2] for row in audited(connection)] == [
        ("layer.created", "layer page"),
        ("layer.described", "layer page"),
        ("layer.holdout_changed", "layer page"),
    ]
    assert audited(connection)[-1][2:] == (
        {"holdout": "0.1000", "description": "The page."},
        {"holdout": "0.0500", "description": "The page."},
    )


def test_holdout_cannot_grow_into_the_range_of_an_uncompleted_run(connection: psycopg.Connection[Any]) -> None:
    run = made(connection, "one", page(1_000, 2_000))
    layer = find_layer(connection, "page")
    assert layer is not None
    with pytest.raises(LayerError) as caught:
        set_holdout(connection, layer, Decimal("0.1001"), change=BY)
    assert str(caught.value) == (
        "The holdout of page can't be 0.1001, its first 1001 buckets, while one run 1 (draft) has 1000 to 2000: "
        "complete those runs first."
    )
    start_run(connection, run.id, change=BY)
    complete_run(connection, run.id, change=BY)
    assert set_holdout(connection, layer, Decimal("0.1001"), change=BY).holdout == Decimal("0.1001")


# ranges


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (page(999, 2_000), "page: the layer's first 1000 buckets are the holdout, so take a range after them."),
        (page(2_999, 4_000), "page while one run 1 (draft) has 2000 to 3000: take a free range, or complete those runs first."),
        (page(1_000, 2_001), "page while one run 1 (draft) has 2000 to 3000: take a free range, or complete those runs first."),
        (page(2_400, 2_500), "page while one run 1 (draft) has 2000 to 3000: take a free range, or complete those runs first."),
        (
            page(1_000, 10_000),
            "page while one run 1 (draft) has 2000 to 3000 and two run 1 (draft) has 5000 to 10000: take a free range, or complete "
            "those runs first.",
        ),
        (page(5, 5), "page: a range needs 0 ≤ first < end ≤ 10000."),
        (page(4_000, 10_001), "page: a range needs 0 ≤ first < end ≤ 10000."),
    ],
)  # fmt: skip
def test_range_is_refused_when_it_is_not_free(
    connection: psycopg.Connection[Any], wish: LayerRange, expected: str
) -> None:
    made(connection, "one", page(2_000, 3_000))
    made(connection, "two", page(5_000, 10_000))
    with pytest.raises(LayerError) as caught:
        made(connection, "late", wish)
    assert str(caught.value) == f"late can't take the buckets {wish.first} to {wish.end} of {expected}"
    assert runs_of(connection, "late") == []
    made(connection, "late", page(3_000, 5_000))


def test_range_is_refused_when_the_layer_is_unknown(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(LayerError, match=r"No layer is called pages: add it to `layers` in config/"):
        made(connection, "late", LayerRange("pages", 0, 10))


def test_completed_run_releases_its_range_and_a_paused_run_keeps_it(connection: psycopg.Connection[Any]) -> None:
    run = start_run(connection, made(connection, "one", page(1_000, 5_000)).id, change=BY)
    pause_run(connection, run.id, change=BY)
    with pytest.raises(LayerError, match=r"one run 1 \(paused\) has 1000 to 5000"):
        made(connection, "late", page(1_000, 5_000))
    complete_run(connection, run.id, change=BY)
    assert made(connection, "late", page(1_000, 5_000)).layer == page(1_000, 5_000)


def test_only_a_draft_can_change_its_range(connection: psycopg.Connection[Any]) -> None:
    run = made(connection, "one", page(1_000, 5_000))
    assert changed(connection, run, layer=page(1_500, 5_500)).layer == page(1_500, 5_500)
    assert changed(connection, run, layer=None).layer is None
    moved = start_run(connection, changed(connection, run, layer=page(1_000, 2_000)).id, change=BY)
    for wish in (page(1_000, 1_500), None):
        with pytest.raises(LayerError) as caught:
            changed(connection, moved, layer=wish)
        assert str(caught.value) == (
            "one run 1 is active: only a draft's layer and range can be changed, or units would be in two experiments of the layer."
        )
    assert load_run(connection, run.id).layer == page(1_000, 2_000)


def take(url: str, name: str, first: int, end: int, barrier: Any, answers: Any) -> None:
    """In a process of its own: take a range as soon as the others are ready to."""
    with psycopg.connect(url, autocommit=True) as own:
        barrier.wait(60)
        try:
            made(own, name, page(first, end))
        except LayerError:
            answers.put((name, "refused"))
        else:
            answers.put((name, "taken"))


def test_one_process_gets_the_range_when_several_request_overlapping_ranges(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(3), context.Queue()
    # The first and the last don't overlap, so that both may have theirs when the one in the middle comes too late.
    wishes = {"low": (1_000, 4_000), "middle": (3_999, 7_001), "high": (7_000, 10_000)}
    processes = [
        context.Process(target=take, args=(database_url, name, *wish, barrier, queue)) for name, wish in wishes.items()
    ]
    for process in processes:
        process.start()
    answers = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    got = {name for name, answer in answers.items() if answer == "taken"}
    assert got in ({"middle"}, {"low", "high"})
    assert {name for name in wishes if runs_of(connection, name)} == got


def test_writer_waits_for_another_writer_to_commit(connection: psycopg.Connection[Any], database_url: str) -> None:
    """Without the lock, both would find the range free: neither sees the other's run."""
    with (
        psycopg.connect(database_url, autocommit=True) as first,
        psycopg.connect(database_url, autocommit=True) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        with first.transaction():
            made(first, "one", page(1_000, 5_000))
            waiting = pool.submit(made, second, "late", page(4_999, 6_000))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
        with pytest.raises(LayerError, match="one run 1"):
            waiting.result(timeout=30)


# targeting and overrides


def epochs(connection: psycopg.Connection[Any], run: Run) -> list[tuple[int, str | None]]:
    return [(epoch.epoch, epoch.targeting) for epoch in run_store.epochs_of(connection, run.id)]


def test_changing_the_rule_of_a_running_run_opens_an_epoch(connection: psycopg.Connection[Any]) -> None:
    run = made(connection, "one", targeting=IOS)
    run = changed(connection, run, targeting=WEB)
    assert epochs(connection, run) == []
    run = start_run(connection, run.id, change=BY)
    changed(connection, run, description="Said otherwise.")
    assert epochs(connection, run) == [(1, WEB)]
    run = changed(connection, run, targeting=IOS)
    pause_run(connection, run.id, change=BY)
    run = changed(connection, run, targeting=None)
    assert epochs(connection, run) == [(1, WEB), (2, IOS), (3, None)]
    assert [epoch.allocations for epoch in run_store.epochs_of(connection, run.id)] == [
        {str(variant.id): "0.5000" for variant in run.variants}
    ] * 3
    complete_run(connection, run.id, change=BY)
    with pytest.raises(ExperimentationError, match="one run 1 is completed, so its targeting can't change any more"):
        changed(connection, run, targeting=WEB)


def test_an_added_variants_epoch_keeps_the_rule(connection: psycopg.Connection[Any]) -> None:
    run = start_run(connection, made(connection, "one", targeting=IOS).id, change=BY)
    run = add_variant(connection, run.id, NewVariant("late", "treatment", Decimal("0.1")), change=BY)
    assert epochs(connection, run) == [(1, IOS), (2, IOS)] and run.targeting == IOS


def test_invalid_targeting_rule_is_refused(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(ExperimentationError, match=r"The targeting of one can't be used: it uses x"):
        made(connection, "one", targeting="x == 1")
    run = made(connection, "one")
    with pytest.raises(ExperimentationError, match=r"The targeting of one run 1 can't be used: it returns 1;"):
        changed(connection, run, targeting="1")


def test_overrides_change_at_any_time_and_name_variants(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(
        ExperimentationError, match="An override of one gives h1 the variant red, which it does not have"
    ):
        made(connection, "one", overrides={"h1": "red"})
    run = made(connection, "one", overrides={"h1": "blue"})
    for step in (start_run, pause_run, complete_run):
        run = step(connection, run.id, change=BY)
        run = changed(connection, run, overrides={**run.overrides, f"h{len(run.overrides) + 1}": "control"})
    assert run.overrides == {"h1": "blue", "h2": "control", "h3": "control", "h4": "control"}
    assert len(epochs(connection, run)) == 1
    with pytest.raises(ExperimentationError, match="An override of one run 1 gives h9 the variant red"):
        changed(connection, run, overrides={"h9": "red"})


def test_overrides_of_a_draft_are_removed_with_their_variant(connection: psycopg.Connection[Any]) -> None:
    run = made(connection, "one", overrides={"h1": "blue", "h2": "control"})
    whole = [NewVariant("control", "control", Decimal(1))]
    assert replace_variants(connection, run.id, whole, None, change=BY).overrides == {"h2": "control"}


def test_audit_log_records_targeting_layer_and_overrides(connection: psycopg.Connection[Any]) -> None:
    run = made(connection, "one", page(1_000, 5_000), targeting=IOS, overrides={"h1": "blue"})
    changed(connection, run, targeting=WEB, layer=None, overrides={})
    (_, _, before, after) = audited(connection)[-1]
    kept = ("targeting", "layer", "overrides")
    assert [before[key] for key in kept] == [IOS, {"name": "page", "from": 1_000, "to": 5_000}, {"h1": "blue"}]
    assert [after[key] for key in kept] == [WEB, None, {}]


# candidates


def narrowed_planner(connection: psycopg.Connection[Any]) -> Run:
    """`weekly_planner` run 2, the file's second, with a layer, a rule and overrides, running."""
    sync_project_config(connection)
    (first,) = runs_of(connection, "weekly_planner")
    complete_run(connection, first.id, change=BY)
    control = NewVariant("control", "control", Decimal("0.9"), first.control.config)
    spare = NewVariant("remainder", "remainder", Decimal("0.1"))
    run = create_run(
        connection,
        name="weekly_planner",
        unit_type="household",
        variants=[control, spare],
        targeting=IOS,
        layer=page(1_000, 5_000),
        overrides={"h1": "control", "h2": "remainder"},
        policy_id=first.policy_id,
        change=BY,
    )
    return start_run(connection, run.id, change=BY)


def candidate(connection: psycopg.Connection[Any], version: int = 2) -> Run:
    return open_candidate_run(
        connection,
        experiment_name="weekly_planner",
        policy_version_id=next_planner_version(connection, version).id,
        treatment_name=f"candidate_v{version}",
        change=BY,
    ).run


def test_candidate_run_inherits_layer_targeting_and_overrides(connection: psycopg.Connection[Any]) -> None:
    before = narrowed_planner(connection)
    opened = candidate(connection)
    assert (opened.made_by, opened.layer, opened.targeting) == ("promotion", page(1_000, 5_000), IOS)
    assert opened.overrides == {"h1": "control", "h2": "remainder"}
    assert epochs(connection, opened) == [(1, IOS)]
    assert load_run(connection, before.id).status == "completed"
    with pytest.raises(LayerError, match=r"weekly_planner run 3 \(active\) has 1000 to 5000"):
        made(connection, "late", page(4_000, 6_000))


def test_overrides_to_a_removed_variant_are_not_inherited(connection: psycopg.Connection[Any]) -> None:
    narrowed_planner(connection)
    first = candidate(connection)
    changed(connection, first, overrides={"h1": "candidate_v2", "h2": "control"})
    complete_run(connection, first.id, shipped="control", change=BY)
    assert candidate(connection, 3).overrides == {"h2": "control"}


def test_candidate_is_refused_when_another_run_took_its_range(connection: psycopg.Connection[Any]) -> None:
    run = narrowed_planner(connection)
    complete_run(connection, run.id, change=BY)
    made(connection, "late", page(1_000, 2_000))
    with pytest.raises(
        LayerError, match=r"weekly_planner can't take the buckets 1000 to 5000 of page while late run 1"
    ):
        candidate(connection)
    assert len(runs_of(connection, "weekly_planner")) == 2
