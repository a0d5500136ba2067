"""Policies and their versions: what may be served, and what is in production."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from experimentation.runs.run import ExperimentationError, Policy, PolicyVersion, PolicyVersionStatus
from foundation.audit import Change, write_audit

_SELECT_POLICY = "SELECT id, name, description, production_version_id FROM exp.policies "
POLICY_BY_NAME = _SELECT_POLICY + "WHERE name = %s"
POLICY_FOR_UPDATE = POLICY_BY_NAME + " FOR UPDATE"
ADD_POLICY = "INSERT INTO exp.policies (name, description) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING RETURNING id"
DESCRIBE_POLICY = "UPDATE exp.policies SET description = %s WHERE name = %s"
SET_PRODUCTION = "UPDATE exp.policies SET production_version_id = %s WHERE id = %s"

_SELECT_VERSION = (
    "SELECT v.id, v.policy_id, p.name AS policy_name, v.version, v.mlflow_model_name, v.mlflow_model_version, "
    "v.config_defaults, v.status, v.description FROM exp.policy_versions v JOIN exp.policies p ON p.id = v.policy_id "
)
VERSION_BY_ID = _SELECT_VERSION + "WHERE v.id = %s"
VERSION_BY_NUMBER = _SELECT_VERSION + "WHERE p.name = %s AND v.version = %s"
VERSION_OF_MODEL = (
    _SELECT_VERSION
    + "WHERE p.name = %s AND v.mlflow_model_name = %s AND v.mlflow_model_version = %s ORDER BY v.version LIMIT 1"
)
VERSION_IDS_OF_MODEL = (
    "SELECT id FROM exp.policy_versions WHERE mlflow_model_name = %s AND mlflow_model_version = %s ORDER BY id"
)
VERSION_IN_PRODUCTION = _SELECT_VERSION + "WHERE p.name = %s AND p.production_version_id = v.id"
NEXT_NUMBER = "SELECT coalesce(max(version), 0) + 1 FROM exp.policy_versions WHERE policy_id = %s"
ADD_VERSION = """
INSERT INTO exp.policy_versions (policy_id, version, description, mlflow_model_name, mlflow_model_version, config_defaults, status)
VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id
"""
SET_STATUS = "UPDATE exp.policy_versions SET status = %s WHERE id = %s"
DESCRIBE_VERSION = "UPDATE exp.policy_versions SET description = %s WHERE id = %s"

# A unit can still be answered a version that an open run names, that the latest run of a name shipped, or that is in production.
USES = """
SELECT e.name || ' run ' || e.run || ' serves it as ' || v.name
FROM exp.variants v JOIN exp.experiments e ON e.id = v.experiment_id
WHERE v.config ->> 'policy_version_id' = %(id)s::text
  AND (e.status <> 'completed' OR (v.id = e.shipped_variant_id
       AND e.run = (SELECT max(run) FROM exp.experiments latest WHERE latest.name = e.name)))
UNION ALL
SELECT name || ' has it in production' FROM exp.policies WHERE production_version_id = %(id)s
ORDER BY 1
"""


def ensure_policy(
    connection: psycopg.Connection[Any], name: str, description: str | None = None, *, change: Change
) -> Policy:
    """The policy of that name, made with this description where there was none."""
    with connection.transaction(), connection.cursor(row_factory=class_row(Policy)) as cursor:
        if connection.execute(ADD_POLICY, (name, description)).rowcount:
            write_audit(connection, change=change, action="policy.created", subject=name)
        policy = cursor.execute(POLICY_BY_NAME, (name,)).fetchone()
    if policy is None:
        raise ExperimentationError(f"Policy {name} was removed while it was being made: try again.")
    return policy


def find_policy(connection: psycopg.Connection[Any], name: str) -> Policy | None:
    """The policy of that name."""
    with connection.cursor(row_factory=class_row(Policy)) as cursor:
        return cursor.execute(POLICY_BY_NAME, (name,)).fetchone()


def add_version(
    connection: psycopg.Connection[Any],
    policy_name: str,
    *,
    mlflow_model_name: str,
    mlflow_model_version: int | str,
    config_defaults: Mapping[str, Any] | None = None,
    status: PolicyVersionStatus = "active",
    description: str | None = None,
    version: int | None = None,
    change: Change,
) -> PolicyVersion:
    """Add the policy's next version (or the number that is asked for). The first version of a policy that can be served is its
    production version.

    Raises ExperimentationError for an unknown policy or a number that is taken.
    """
    with connection.transaction():
        policy = _locked(connection, policy_name)
        with connection.cursor(row_factory=scalar_row) as cursor:
            (following,) = cursor.execute(NEXT_NUMBER, (policy.id,)).fetchall()
            number: int = following if version is None else version
            if get_version(connection, policy_name, number) is not None:
                raise ExperimentationError(
                    f"{policy_name}@{number} exists already: a version never changes, so take the next."
                )
            pin = (mlflow_model_name, str(mlflow_model_version), Jsonb(dict(config_defaults or {})))
            (made_id,) = cursor.execute(ADD_VERSION, (policy.id, number, description, *pin, status)).fetchall()
        made = version_by_id(connection, made_id)
        write_audit(
            connection,
            change=change,
            action="policy_version.created",
            subject=made.label,
            after={"model": made.model_uri, "status": status, "config_defaults": dict(made.config_defaults)},
        )
        if policy.production_version_id is None and status != "archived":
            set_production(connection, made, change=Change(change.by, f"The first version of {policy_name}."))
    return made


def ensure_version_of_model(
    connection: psycopg.Connection[Any],
    policy_name: str,
    *,
    mlflow_model_name: str,
    mlflow_model_version: int | str,
    config_defaults: Mapping[str, Any] | None = None,
    description: str | None = None,
    change: Change,
) -> PolicyVersion:
    """The policy's version that is pinned to this model version; the next version is made where there is none.

    Two callers at once get the same version. Raises ExperimentationError for an unknown policy.
    """
    with connection.transaction():
        _locked(connection, policy_name)
        found = version_of_model(connection, policy_name, mlflow_model_name, mlflow_model_version)
        return found or add_version(
            connection,
            policy_name,
            mlflow_model_name=mlflow_model_name,
            mlflow_model_version=mlflow_model_version,
            config_defaults=config_defaults,
            description=description,
            change=change,
        )


def describe_policy(connection: psycopg.Connection[Any], name: str, description: str | None) -> None:
    """Change a policy's description."""
    connection.execute(DESCRIBE_POLICY, (description, name))


def describe_version(connection: psycopg.Connection[Any], version: PolicyVersion, description: str | None) -> None:
    """Change a version's description, the one thing of it that may change beside its status."""
    connection.execute(DESCRIBE_VERSION, (description, version.id))


def get_version(connection: psycopg.Connection[Any], policy_name: str, version: int) -> PolicyVersion | None:
    """`policy_name@version`, or None."""
    return _find_version(connection, VERSION_BY_NUMBER, policy_name, version)


def find_version(connection: psycopg.Connection[Any], version_id: UUID | str) -> PolicyVersion | None:
    """The version of that id, or None."""
    return _find_version(connection, VERSION_BY_ID, version_id)


def version_by_id(connection: psycopg.Connection[Any], version_id: UUID | str) -> PolicyVersion:
    """The version of that id. Raises ExperimentationError."""
    found = find_version(connection, version_id)
    if found is None:
        raise ExperimentationError(f"No policy version has the id {version_id}: `exp.v_policy_versions` lists them.")
    return found


def version_of_model(
    connection: psycopg.Connection[Any], policy_name: str, mlflow_model_name: str, mlflow_model_version: int | str
) -> PolicyVersion | None:
    """The lowest version that is pinned to this model version, or None."""
    return _find_version(connection, VERSION_OF_MODEL, policy_name, mlflow_model_name, str(mlflow_model_version))


def version_ids_of_model(
    connection: psycopg.Connection[Any], mlflow_model_name: str, mlflow_model_version: int | str
) -> list[UUID]:
    """Ids of every version of any policy that is pinned to this model version: whoever was served by one, was served by the model."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(VERSION_IDS_OF_MODEL, (mlflow_model_name, str(mlflow_model_version))).fetchall()


def production_version(connection: psycopg.Connection[Any], policy_name: str) -> PolicyVersion | None:
    """The version in production: the baseline of candidates. None before the policy has a version that can be served."""
    return _find_version(connection, VERSION_IN_PRODUCTION, policy_name)


def set_production(connection: psycopg.Connection[Any], version: PolicyVersion, *, change: Change) -> None:
    """Make a version the policy's production version. Raises ExperimentationError when it is archived."""
    if version.status == "archived":
        raise ExperimentationError(f"{version.label} is archived, so it can't be in production: make it active first.")
    with connection.transaction():
        before = production_version(connection, version.policy_name)
        connection.execute(SET_PRODUCTION, (version.id, version.policy_id))
        write_audit(
            connection,
            change=change,
            action="policy.production_changed",
            subject=version.policy_name,
            before=None if before is None else {"version": before.version},
            after={"version": version.version},
        )


def set_version_status(
    connection: psycopg.Connection[Any], version: PolicyVersion, status: PolicyVersionStatus, *, change: Change
) -> None:
    """Deprecate (works, warns), archive (can't be served) or reactivate a version.

    Raises ExperimentationError when a version that is still served would be archived.
    """
    with connection.transaction():
        _locked(connection, version.policy_name)
        if status == "archived" and (uses := version_uses(connection, version.id)):
            raise ExperimentationError(f"{version.label} can't be archived while {' and '.join(uses)}.")
        connection.execute(SET_STATUS, (status, version.id))
        write_audit(
            connection,
            change=change,
            action="policy_version.status_changed",
            subject=version.label,
            before={"status": version.status},
            after={"status": status},
        )


def version_uses(connection: psycopg.Connection[Any], version_id: UUID) -> list[str]:
    """Where the version is still served, as half sentences (`weekly_planner run 2 serves it as control`); empty when nowhere."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(USES, {"id": version_id}).fetchall()


def _locked(connection: psycopg.Connection[Any], name: str) -> Policy:
    """The policy, held until the transaction ends, so that two callers don't take the same number."""
    with connection.cursor(row_factory=class_row(Policy)) as cursor:
        policy = cursor.execute(POLICY_FOR_UPDATE, (name,)).fetchone()
    if policy is None:
        raise ExperimentationError(
            f"No policy is called {name}: add it to config/policies.yml and run `lifecycle sync`."
        )
    return policy


def _find_version(connection: psycopg.Connection[Any], query: str, *parameters: object) -> PolicyVersion | None:
    with connection.cursor(row_factory=class_row(PolicyVersion)) as cursor:
        return cursor.execute(query, parameters).fetchone()
