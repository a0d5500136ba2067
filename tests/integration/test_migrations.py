"""Migrations on a real PostgreSQL: complete, forward only, repeatable, safe in parallel and with data; what the schema rejects."""

import multiprocessing
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from alembic import command
from ground_support import sync_project_config
from psycopg import errors, sql
from psycopg.rows import dict_row

from experimentation.runs.lifecycle import runs_of
from foundation import migrate as migrate_module
from foundation.migrate import MigrationError, migrate, schema_state

TABLES = {
    "exp.experiments": "id name run description status unit_type made_by policy_id shipped_variant_id start_at end_at created_at "
    "updated_at targeting layer_id layer_from layer_to overrides",
    "exp.overridden_units": "experiment_id unit_id since",
    "exp.layers": "id name description holdout created_at",
    "exp.variants": "id experiment_id name position role description allocation config withdrawn_at created_at",
    "exp.assignments": "id experiment_id unit_type unit_id variant_id epoch propensity assigned_at",
    "exp.events": "id event_type unit_type unit_id experiments context metrics payload flags timestamp created_at",
    "exp.policies": "id name description production_version_id created_at",
    "exp.policy_versions": "id policy_id version description mlflow_model_name mlflow_model_version config_defaults status created_at",
    "exp.offline_replay_results": "id policy_version_id mlflow_model_name mlflow_model_version dataset_version mlflow_run_id "
    "plan_alignment_score constraint_respect_score edit_distance_score diversity_score leftovers_score offline_eval_score "
    "baseline_version_id baseline_model_version is_better_than_baseline verdict anchored reasons details status error_message "
    "created_at",
    "exp.allocation_epochs": "experiment_id epoch started_at allocations targeting",
    "exp.audit_log": "id at actor action subject before after reason",
    "exp.api_keys": "id name salt hash scopes created_at revoked_at previous_salt previous_hash previous_until",
    "exp.dead_letters": "id event_id timestamp event error tries received_at failed_at",
    "exp.archived_hours": "hour database_rows file_rows checksum file_checksum first_event last_event key bytes sha256 late archived_at",
    "exp.archive_watch": "one seen_until",
    "exp.restored_days": "day rows restored_at keep_until",
    "exp.erasure_salt": "one salt",
    "exp.erased_units": "unit_hash erased_at pseudonym",
    "exp.erased_days": "day partition erased_at",
    "exp.imports": "id kind source digest counts created_at",
    "exp.alembic_version": "version_num",
    "planner.recipes": "id title ingredients prep_minutes dietary_tags servings cost submitted",
    "planner.households": "id size preferences restrictions region created_at",
    "planner.household_constraints": "household_id valid_from budget max_prep_time excluded_ingredients",
    "planner.pantry_snapshots": "household_id snapshot_time items",
}
# Changing one of these types would affect readers of the tables.
TYPES = {
    ("experiments", "name"): "character varying(255)",
    ("variants", "allocation"): "numeric(5,4)",
    ("variants", "config"): "jsonb",
    ("assignments", "unit_id"): "character varying(255)",
    ("assignments", "propensity"): "numeric(5,4)",
    ("events", "event_type"): "character varying(100)",
    ("events", "flags"): "text[]",
    ("offline_replay_results", "offline_eval_score"): "numeric(10,6)",
    ("allocation_epochs", "allocations"): "jsonb",
    ("layers", "holdout"): "numeric(5,4)",
    ("experiments", "targeting"): "text",
    ("experiments", "layer_from"): "integer",
    ("experiments", "overrides"): "jsonb",
    ("api_keys", "previous_until"): "timestamp with time zone",
}
INDEXED = {
    "experiments": ["(name, run)", "(status)", "(layer_id)"],
    "variants": ["(experiment_id, name)"],
    "assignments": ["(experiment_id, unit_id)", "(unit_type, unit_id)"],
    "events": ["(event_type, \"timestamp\")", "(unit_type, unit_id, \"timestamp\")", "(experiments jsonb_path_ops)"],
    "offline_replay_results": ["(policy_version_id)", "(dataset_version)"],
}  # fmt: skip


# Data of a database that was created by the first revision.
FILLED = ("policies", "policy_versions", "experiments", "variants", "allocation_epochs", "assignments", "api_keys")
USED = """
INSERT INTO exp.policies (name) VALUES ('planner_policy');
INSERT INTO exp.policy_versions (policy_id, version, mlflow_model_name, mlflow_model_version)
    SELECT id, 1, 'planner_model', '1' FROM exp.policies;
INSERT INTO exp.experiments (name, status, unit_type) VALUES ('cards', 'active', 'user'), ('plain', 'draft', 'user');
INSERT INTO exp.variants (experiment_id, name, position, role, allocation, config)
    SELECT e.id, v.name, v.position, v.role, 0.5, '{"shown": true}'
    FROM exp.experiments e, (VALUES ('control', 0, 'control'), ('with_cards', 1, 'treatment')) AS v (name, position, role);
INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations)
    SELECT experiment_id, 1, jsonb_object_agg(id, allocation::text) FROM exp.variants GROUP BY experiment_id;
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity)
    SELECT v.experiment_id, 'user', 'u-' || n, v.id, 1, 0.5
    FROM generate_series(1, 1000) AS n
    JOIN exp.variants v ON v.position = n % 2 JOIN exp.experiments e ON e.id = v.experiment_id AND e.name = 'cards';
INSERT INTO exp.api_keys (name, salt, hash, scopes) VALUES ('shop', 'salt', 'hash', '{assign}'), ('old', 's', 'h', '{read}');
"""


@pytest.fixture
def empty_database(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield urlsplit(postgres_server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to this test's own migrated database."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def columns(connection: psycopg.Connection[Any]) -> dict[str, set[str]]:
    rows = connection.execute(
        "SELECT table_schema || '.' || table_name, array_agg(column_name::text) FROM information_schema.columns "
        "WHERE table_schema IN ('exp', 'planner') GROUP BY 1"
    )
    return {table: set(names) for table, names in rows}


def test_schema_has_every_table_and_column_of_the_data_model(connection: psycopg.Connection[Any]) -> None:
    assert columns(connection) == {table: set(names.split()) for table, names in TABLES.items()}


def test_columns_have_the_types_of_the_data_model(connection: psycopg.Connection[Any]) -> None:
    rows = connection.execute(
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('exp', 'planner') AND a.attnum > 0 AND c.relkind IN ('r', 'p')"
    ).fetchall()
    types = {(table, column): kind for table, column, kind in rows}
    assert {key: types[key] for key in TYPES} == TYPES
    ids = [
        kind
        for (table, column), kind in types.items()
        if column == "id" and table in {"experiments", "variants", "events"}
    ]
    assert ids == ["uuid"] * 3
    # Clients would interpret local times differently.
    assert "timestamp without time zone" not in types.values()


def test_columns_used_for_lookups_are_indexed(connection: psycopg.Connection[Any]) -> None:
    rows = connection.execute("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'exp'").fetchall()
    for table, indexes in INDEXED.items():
        definitions = [definition for name, definition in rows if name == table]
        for index in indexes:
            assert any(definition.endswith(index) for definition in definitions), f"{table} {index}"


def test_migrating_again_changes_nothing(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        assert schema_state(connection) == "missing"
        migrate(empty_database)
        assert schema_state(connection) == "current"
        before = columns(connection)
        connection.execute("INSERT INTO exp.policies (name) VALUES ('kept')")
        migrate(empty_database)
        assert columns(connection) == before
        assert connection.execute("SELECT name FROM exp.policies").fetchall() == [("kept",)]


def test_all_processes_succeed_when_they_migrate_in_parallel(empty_database: str) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=migrate, args=(empty_database,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with psycopg.connect(empty_database) as connection:
        assert schema_state(connection) == "current"
        assert connection.execute("SELECT count(*) FROM exp.alembic_version").fetchone() == (1,)


def test_migration_is_refused_when_the_database_is_newer(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE exp.alembic_version SET version_num = '9999'")
        assert schema_state(connection) == "newer"
        with pytest.raises(
            MigrationError, match=r"schema version 9999, .* versions up to 0003: upgrade the installation"
        ):
            migrate(database_url)
        assert connection.execute("SELECT version_num FROM exp.alembic_version").fetchone() == ("9999",)


def test_schema_is_behind_when_the_database_is_older(
    connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "_revisions", lambda: ("0004", "0003", "0002", "0001"))
    assert schema_state(connection) == "behind"


def test_migration_leaves_nothing_behind_when_it_fails(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        # Conflicts with the last table of the schema.
        connection.execute("CREATE SCHEMA planner; CREATE TABLE planner.pantry_snapshots ()")
        with pytest.raises(errors.DuplicateTable):
            migrate(empty_database)
        assert schema_state(connection) == "missing"
        assert connection.execute("SELECT to_regclass('exp.experiments')").fetchone() == (None,)
        connection.execute("DROP SCHEMA planner CASCADE")
        migrate(empty_database)
        assert schema_state(connection) == "current"


def test_audit_log_is_append_only(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    written = connection.execute("SELECT count(*) FROM exp.audit_log").fetchone()
    assert written != (0,)
    for statement in (
        "UPDATE exp.audit_log SET reason = 'another'",
        "DELETE FROM exp.audit_log WHERE id = 1",
        "TRUNCATE exp.audit_log",
    ):
        with pytest.raises(errors.RaiseException, match=r"exp\.audit_log is append only"):
            connection.execute(statement)
    assert connection.execute("SELECT count(*) FROM exp.audit_log").fetchone() == written


def test_experiment_cannot_be_deleted_when_it_has_assignments(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    assigned, plain = runs_of(connection, "weekly_planner")[0], runs_of(connection, "recipe_cards")[0]
    connection.execute(
        "INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity) "
        "VALUES (%s, 'household', 'h-1', %s, 1, 1)",
        (assigned.id, assigned.control.id),
    )
    with pytest.raises(
        errors.ForeignKeyViolation, match=r"Experiment weekly_planner run 1 has assignments.*complete it instead"
    ):
        connection.execute("DELETE FROM exp.experiments WHERE id = %s", (assigned.id,))
    connection.execute("DELETE FROM exp.experiments WHERE id = %s", (plain.id,))
    assert [run.status for run in runs_of(connection, "weekly_planner")] == ["active"]
    assert runs_of(connection, "recipe_cards") == []


def test_database_maintains_updated_at(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    connection.execute("UPDATE exp.experiments SET description = 'changed' WHERE name = 'recipe_cards'")
    rows = dict(connection.execute("SELECT name, updated_at > created_at FROM exp.experiments").fetchall())
    assert rows["recipe_cards"] is True


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE exp.variants SET allocation = 1.0001", errors.CheckViolation),
        ("UPDATE exp.variants SET role = 'other'", errors.CheckViolation),
        ("UPDATE exp.experiments SET status = 'live'", errors.CheckViolation),
        ("UPDATE exp.experiments SET unit_type = 'person'", errors.CheckViolation),
        ("UPDATE exp.experiments SET shipped_variant_id = gen_random_uuid()", errors.ForeignKeyViolation),
        ("UPDATE exp.experiments SET targeting = ''", errors.CheckViolation),
        ("UPDATE exp.experiments SET overrides = '[]'", errors.CheckViolation),
        ("UPDATE exp.experiments SET layer_from = 0, layer_to = 100", errors.CheckViolation),
        (
            "WITH l AS (INSERT INTO exp.layers (name) VALUES ('l') RETURNING id) "
            "INSERT INTO exp.experiments (name, unit_type, layer_id, layer_from, layer_to) SELECT 'x', 'user', id, 5, 5 FROM l",
            errors.CheckViolation,
        ),
        ("INSERT INTO exp.layers (name, holdout) VALUES ('l', 1.0001)", errors.CheckViolation),
        ("UPDATE exp.policy_versions SET status = 'gone'", errors.CheckViolation),
        (
            "INSERT INTO exp.experiments (name, run, unit_type) SELECT name, 2, unit_type FROM exp.experiments",
            errors.UniqueViolation,
        ),
        ("INSERT INTO exp.api_keys (name, salt, hash, scopes) VALUES ('k', '', '', '{root}')", errors.CheckViolation),
    ],
)
def test_schema_rejects_invalid_rows(
    connection: psycopg.Connection[Any], statement: str, error: type[Exception]
) -> None:
    sync_project_config(connection)
    with pytest.raises(error):
        connection.execute(statement)


@pytest.fixture
def used(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """A connection to a database at revision 0001 with data."""
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
        migrate(empty_database)
    with psycopg.connect(empty_database, autocommit=True, row_factory=dict_row) as connection:
        connection.execute(USED)
        yield connection


def all_rows(connection: psycopg.Connection[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """All rows of the tables with data."""
    return {
        table: connection.execute(
            sql.SQL("SELECT * FROM exp.{} ORDER BY 1, 2").format(sql.Identifier(table))
        ).fetchall()
        for table in FILLED
    }


def test_migration_keeps_all_rows(used: psycopg.Connection[dict[str, Any]], empty_database: str) -> None:
    before = all_rows(used)
    assert schema_state(used) == "behind"
    assert {table: len(rows) for table, rows in before.items()} == {
        "policies": 1, "policy_versions": 1, "experiments": 2, "variants": 4, "allocation_epochs": 2, "assignments": 1000, "api_keys": 2,
    }  # fmt: skip
    migrate(empty_database)
    assert schema_state(used) == "current"
    for table, rows in all_rows(used).items():
        old = before[table]
        assert [{name: row[name] for name in old[0]} for row in rows] == old
    cards = runs_of(used, "cards")[0]
    assert (cards.status, cards.targeting, cards.layer, cards.overrides) == ("active", None, None, {})
    assert used.execute("SELECT * FROM exp.overridden_units").fetchall() == []


def test_constraints_apply_to_rows_from_before_the_migration(
    used: psycopg.Connection[dict[str, Any]], empty_database: str
) -> None:
    migrate(empty_database)
    with pytest.raises(errors.ForeignKeyViolation, match="cards run 1 has assignments and is not deleted"):
        used.execute("DELETE FROM exp.experiments WHERE name = 'cards'")
    with pytest.raises(errors.ForeignKeyViolation):
        used.execute("UPDATE exp.assignments SET variant_id = gen_random_uuid() WHERE unit_id = 'u-1'")
    with pytest.raises(errors.UniqueViolation):
        used.execute("INSERT INTO exp.assignments SELECT * FROM exp.assignments WHERE unit_id = 'u-1'")
    used.execute("DELETE FROM exp.experiments WHERE name = 'plain'")
    assert [row["name"] for row in all_rows(used)["experiments"]] == ["cards"]


def test_overridden_units_are_recorded_once_and_kept(
    used: psycopg.Connection[dict[str, Any]], empty_database: str
) -> None:
    migrate(empty_database)
    overridden = "SELECT e.name, o.unit_id FROM exp.overridden_units o JOIN exp.experiments e ON e.id = o.experiment_id ORDER BY 1, 2"
    since = "SELECT since FROM exp.overridden_units WHERE unit_id = 'u-1'"
    used.execute("""UPDATE exp.experiments SET overrides = '{"u-1": "control"}' WHERE name = 'cards'""")
    first = used.execute(since).fetchall()
    for overrides in ("{}", '{"u-1": "with_cards", "qa": "control"}', "{}"):
        used.execute("UPDATE exp.experiments SET overrides = %s WHERE name = 'cards'", (overrides,))
    used.execute(
        """INSERT INTO exp.experiments (name, unit_type, overrides) VALUES ('new', 'user', '{"qa": "control"}')"""
    )
    units = [tuple(row.values()) for row in used.execute(overridden)]
    assert units == [("cards", "qa"), ("cards", "u-1"), ("new", "qa")]
    assert used.execute(since).fetchall() == first
    used.execute("DELETE FROM exp.experiments WHERE name = 'new'")
    assert [tuple(row.values()) for row in used.execute(overridden)] == [("cards", "qa"), ("cards", "u-1")]
