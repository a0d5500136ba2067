"""Bringing the database to what the configuration files say, in one transaction or not at all.

Files → difference to the database → steps → applied, or only shown. The difference is in difference.py; reading the database and applying
the steps is here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from uuid import UUID

import psycopg

from experimentation import policies
from experimentation.config import steps
from experimentation.config.difference import Difference, ModelStage, State, difference
from experimentation.config.files import ConfigFiles, ExperimentEntry
from experimentation.runs import layers, lifecycle
from experimentation.runs import store as run_store
from experimentation.runs.run import (
    ExperimentationError,
    Layer,
    NewVariant,
    Policy,
    PolicyVersion,
    Run,
    RunStatus,
    Variant,
)
from foundation import locks
from foundation.audit import Change
from foundation.yaml_files import ConfigError, Place, Problem

WHY = "The configuration files say so."


@dataclass(frozen=True)
class SyncReport:
    """What was changed (or would be, if only checked), a line each, and what was left alone on purpose."""

    changes: tuple[str, ...]
    notes: tuple[str, ...]
    applied: bool

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        changes = list(self.changes) or ["Files and database agree."]
        return [*changes, *(f"  ({note})" for note in self.notes)]


def sync(
    connection: psycopg.Connection[Any], files: ConfigFiles, *, model_stage: ModelStage, by: str, check: bool = False
) -> SyncReport:
    """Apply the files in one transaction. With `check`, everything is checked and nothing is changed.

    Raises ConfigError with every rule that is broken, each with file and line; nothing is changed then.
    """
    with connection.transaction(force_rollback=check):
        found = apply_difference(connection, files, model_stage=model_stage, by=by)
    changes = tuple(sentence for step in found.steps for sentence in step.sentences)
    return SyncReport(changes, tuple(found.notes), applied=not check)


def apply_difference(
    connection: psycopg.Connection[Any], files: ConfigFiles, *, model_stage: ModelStage, by: str
) -> Difference:
    """Apply the files in the transaction of the caller, who takes it back to see only what would change.

    Returns the steps that were taken. Raises ConfigError with every broken rule.
    """
    locks.hold(connection, locks.SYNC)
    # Before the runs are read, so that no candidate is opened in between; in the order in which one is opened: names, layers, runs.
    for name in sorted(entry.name for entry in files.experiments):
        run_store.lock_name(connection, name)
    for layer in files.layers:
        layers.lock_layer(connection, layer.name)
    found = difference(files, read_state(connection, files), model_stage)
    problems = found.problems + _apply(connection, found, Change(by, WHY))
    if problems:
        # Those of policies.yml first, because experiments build on it; of a file by line.
        first = {entry.place.file for entry in files.policies}
        raise ConfigError(sorted(problems, key=lambda problem: (problem.place.file not in first, problem.place.line)))
    return found


def read_state(connection: psycopg.Connection[Any], files: ConfigFiles) -> State:
    """What the database has of everything that the files may name or change."""
    variants = [variant for entry in files.experiments for variant in entry.variants]
    numbers = {(policy.name, entry.version) for policy in files.policies for entry in policy.versions}
    numbers |= {(variant.policy.policy, variant.policy.version) for variant in variants if variant.policy}
    archived = {
        (policy.name, entry.version)
        for policy in files.policies
        for entry in policy.versions
        if entry.status == "archived"
    }
    versions = {key: version for key in numbers if (version := policies.get_version(connection, *key))}
    ids = {variant.config["policy_version_id"] for variant in variants if "policy_version_id" in variant.config}
    by_id = {version_id: version for version_id in ids if (version := policies.find_version(connection, version_id))}
    names = layers.names_of_layers(connection)
    return State(
        policies={
            entry.name: policy for entry in files.policies if (policy := policies.find_policy(connection, entry.name))
        },
        versions={**{(version.policy_name, version.version): version for version in by_id.values()}, **versions},
        versions_by_id=by_id,
        uses={
            version.id: policies.version_uses(connection, version.id)
            for key, version in versions.items()
            if key in archived
        },
        layers={name: layer for name in names if (layer := layers.find_layer(connection, name))},
        runs={entry.name: lifecycle.runs_of(connection, entry.name) for entry in files.experiments},
        open_names=run_store.names_of_open_runs(connection),
    )


def _apply(connection: psycopg.Connection[Any], found: Difference, change: Change) -> list[Problem]:
    """Take the steps. What is refused is noted and undone with all steps of its subject, and the next subject is tried."""
    problems: list[Problem] = []
    leaving = set(found.leaving)
    for _, group in groupby(found.steps, key=lambda step: step.subject):
        members = list(group)
        with _noting(connection, members, problems):
            for step in members:
                _take(connection, step, change, leaving)
    return problems


@contextmanager
def _noting(connection: psycopg.Connection[Any], members: list[steps.Step], problems: list[Problem]) -> Iterator[None]:
    try:
        with connection.transaction():
            yield
    except ExperimentationError as error:
        entry = getattr(members[0], "entry", None)
        place: Place = members[0].place
        if isinstance(error, layers.LayerError) and isinstance(entry, ExperimentEntry) and entry.layer is not None:
            place = entry.place_of("layer")
        problems.append(Problem(place, str(error)))


def _take(connection: psycopg.Connection[Any], step: steps.Step, change: Change, leaving: set[UUID]) -> None:  # noqa: PLR0912
    match step:
        case steps.AddPolicy(entry=entry):
            policies.ensure_policy(connection, entry.name, entry.description, change=change)
        case steps.AddVersion(policy=policy, entry=version):
            policies.add_version(
                connection,
                policy,
                mlflow_model_name=version.mlflow_model_name,
                mlflow_model_version=version.mlflow_model_version,
                config_defaults=version.config_defaults,
                status=version.status,
                description=version.description,
                version=version.version,
                change=change,
            )
        case steps.SetVersionStatus(version=stored, status=status):
            policies.set_version_status(connection, stored, status, change=change)
        case steps.AddLayer(entry=layer):
            layers.ensure_layer(
                connection, layer.name, holdout=layer.holdout, description=layer.description, change=change
            )
        case steps.SetHoldout(entry=layer, layer=stored_layer):
            layers.set_holdout(connection, stored_layer, layer.holdout, leaving=leaving, change=change)
        case steps.CreateRun(entry=experiment):
            _create(connection, experiment, change, leaving)
        case steps.UpdateRun(run=run, entry=experiment):
            lifecycle.update_run(
                connection,
                run.id,
                description=experiment.description,
                unit_type=experiment.unit_type,
                start_at=experiment.start_at,
                end_at=experiment.end_at,
                targeting=experiment.targeting,
                layer=experiment.layer,
                overrides=run.overrides,
                leaving=leaving,
                change=change,
            )
            if experiment.status != "completed":
                leaving.discard(run.id)
        case steps.ReplaceVariants(run=run, entry=experiment):
            variants, policy_id = _stored_variants(connection, experiment)
            lifecycle.replace_variants(connection, run.id, variants, policy_id, change=change)
        case steps.AddVariant(run=run, entry=experiment):
            variants, _ = _stored_variants(connection, experiment)
            lifecycle.add_variant(connection, run.id, variants[-1], change=change)
        case steps.SetOverrides(run=run, overrides=overrides):
            lifecycle.set_overrides(connection, run.id, overrides, change=change)
        case steps.SetStatus(run=run, status=run_status):
            _move(connection, run, run_status, change)
        case steps.Describe(stored=described, description=description):
            _describe(connection, described, description, change)
        case _:
            raise AssertionError(f"no way to take {step}")


def _describe(
    connection: psycopg.Connection[Any],
    stored: Policy | PolicyVersion | Layer | Variant,
    description: str | None,
    change: Change,
) -> None:
    match stored:
        case Policy():
            policies.describe_policy(connection, stored.name, description)
        case PolicyVersion():
            policies.describe_version(connection, stored, description)
        case Layer():
            # A step before this one may have changed its holdout, which the audit log shows.
            layers.describe_layer(
                connection, layers.find_layer(connection, stored.name) or stored, description, change=change
            )
        case Variant():
            run_store.describe_variant(connection, stored.id, description)


def _create(connection: psycopg.Connection[Any], entry: ExperimentEntry, change: Change, leaving: set[UUID]) -> None:
    variants, policy_id = _stored_variants(connection, entry)
    run = lifecycle.create_run(
        connection,
        name=entry.name,
        unit_type=entry.unit_type,
        variants=variants,
        description=entry.description,
        policy_id=policy_id,
        start_at=entry.start_at,
        end_at=entry.end_at,
        targeting=entry.targeting,
        layer=entry.layer,
        overrides=entry.overrides,
        leaving=leaving,
        change=change,
    )
    _move(connection, run, entry.status, change)


def _move(connection: psycopg.Connection[Any], run: Run, status: RunStatus, change: Change) -> None:
    """Take the run to a status by the steps that lead there."""
    if run.status == "draft" and status != "draft":
        run = lifecycle.start_run(connection, run.id, change=change)
    if status == run.status:
        return
    if status == "paused":
        lifecycle.pause_run(connection, run.id, change=change)
    elif status == "completed":
        lifecycle.complete_run(connection, run.id, change=change)
    else:
        lifecycle.resume_run(connection, run.id, change=change)


def _stored_variants(
    connection: psycopg.Connection[Any], entry: ExperimentEntry
) -> tuple[list[NewVariant], UUID | None]:
    """The variants with the ids of the policy versions that they name, and the policy of the control."""
    variants, policy_id = [], None
    for variant in entry.variants:
        config = dict(variant.config)
        version_id = config.get("policy_version_id")
        if (named := variant.policy) is not None:
            version = policies.get_version(connection, named.policy, named.version)
        else:
            version = None if version_id is None else policies.find_version(connection, version_id)
        if version is not None:
            config["policy_version_id"] = str(version.id)
            policy_id = version.policy_id if variant.role == "control" else policy_id
        variants.append(NewVariant(variant.name, variant.role, variant.allocation, config, variant.description))
    return variants, policy_id
