"""Reading and storing rows together: concurrent writers agree, outdated decisions are not stored, each unit gets its own row."""

import asyncio
from decimal import Decimal
from uuid import UUID

import asyncpg
import pytest
from api_support import Api, make_run

from experimentation.assignments.store import Arm, StoredRow, read_or_store

pytest_plugins = ["api_service"]

ROWS = "SELECT unit_id FROM exp.assignments"


@pytest.mark.parametrize("store_first", [True, False])
def test_concurrent_writers_with_overlapping_keys_agree_and_never_deadlock(api: Api, store_first: bool) -> None:
    run_id, variants = make_run(api.connection, "planner")
    units = [f"u{n}" for n in range(40)]

    def arm(variant: str) -> list[Arm]:
        return [Arm(run_id, variants[variant], 1, Decimal("0.5"))]

    async def write() -> list[list[UUID]]:
        connections = [await asyncpg.connect(api.database_url) for _ in range(6)]
        try:
            writers = [
                read_or_store(
                    connection,
                    arm("control" if n % 2 else "treatment"),
                    [(unit, 0) for unit in units[:: 1 if n % 2 else -1]],
                    store_first=store_first,
                )
                for n, connection in enumerate(connections)
            ]
            results = await asyncio.gather(*writers)
            return [[row.variant_id for row in rows[:: 1 if n % 2 else -1] if row] for n, rows in enumerate(results)]
        finally:
            for connection in connections:
                await connection.close()

    for _ in range(15):
        api.connection.execute("DELETE FROM exp.assignments")
        answers = asyncio.run(write())
        assert all(answer == answers[0] for answer in answers)
        assert len(answers[0]) == len(units)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE exp.experiments SET status = 'paused'",
        "UPDATE exp.variants SET withdrawn_at = now() WHERE name = 'control'",
        "UPDATE exp.variants SET allocation = 0.25 WHERE name = 'control'",
        "INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations) SELECT id, 2, '{}' FROM exp.experiments",
    ],
)
@pytest.mark.parametrize("store_first", [True, False])
def test_decision_from_before_a_change_is_not_stored(api: Api, change: str, store_first: bool) -> None:
    run_id, variants = make_run(api.connection, "planner")
    decided = [Arm(run_id, variants["control"], 1, Decimal("0.5"))]
    api.connection.execute(change)

    async def store() -> list[StoredRow | None]:
        connection = await asyncpg.connect(api.database_url)
        try:
            return await read_or_store(connection, decided, [("u1", 0)], store_first=store_first)
        finally:
            await connection.close()

    assert asyncio.run(store()) == [None]
    assert api.rows(ROWS) == []


@pytest.mark.parametrize("store_first", [True, False])
def test_group_reads_existing_rows_and_stores_the_others(api: Api, store_first: bool) -> None:
    run_id, variants = make_run(api.connection, "planner")
    other_id, others = make_run(api.connection, "other")
    arms = [
        Arm(run_id, variants["control"], 1, Decimal("0.5")),
        Arm(run_id, None, 0, Decimal(0)),
        Arm(other_id, others["treatment"], 1, Decimal("0.5")),
        Arm(other_id, others["treatment"], 1, Decimal("0.25")),
    ]

    async def ask(units: list[tuple[str, int]]) -> list[StoredRow | None]:
        connection = await asyncpg.connect(api.database_url)
        try:
            return await read_or_store(connection, arms, units, store_first=store_first)
        finally:
            await connection.close()

    control, treatment = variants["control"], others["treatment"]
    assert asyncio.run(ask([("a", 0), ("b", 1), ("a", 2), ("c", 3)])) == [
        (control, True),
        None,
        (treatment, True),
        None,
    ]
    again = [("c", 2), ("a", 1), ("d", 0), ("a", 2), ("b", 1)]
    assert asyncio.run(ask(again)) == [(treatment, True), (control, False), (control, True), (treatment, False), None]
