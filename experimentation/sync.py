"""Bringing the database to what the configuration files say: the difference as readable lines, applied in one transaction or not at all.

Belongs here: what files and database together can break, and the order of changes. Does not belong here: reading files
(config_files.py), SQL, MLflow (its answer comes in as a callable).

What promotion made is not the files': its policy versions and runs are left alone, and so is an experiment from its first such run on.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg

from experimentation import experiments, policies, run_store
from experimentation.allocations import MOST_FOR_A_NEW_TREATMENT, shrunk
from experimentation.config_files import (
    ConfigFiles,
    ExperimentEntry,
    PolicyEntry,
    VariantEntry,
    VersionEntry,
)
from experimentation.records import ExperimentationError, Json, NewVariant, PolicyVersion, Run, RunStatus, Variant
from experimentation.yaml_nodes import ConfigError, Place, Problem

ModelStage = Callable[[str, int], str | None]
"""The stage of a registered model version (`none`, `candidate`, `production`, `archived`); None where MLflow has no such version."""

REASON = "The configuration files say so."
_LOCK = 7_236_003


@dataclass(frozen=True)
class SyncReport:
    """What was changed (or would be, where only checked), a line each, and what was left alone on purpose."""

    changes: tuple[str, ...]
    notes: tuple[str, ...]
    applied: bool

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        told = list(self.changes) or ["Files and database agree."]
        return [*told, *(f"  ({note})" for note in self.notes)]


def sync(
    connection: psycopg.Connection[Any], files: ConfigFiles, *, model_stage: ModelStage, actor: str, check: bool = False
) -> SyncReport:
    """Apply the files in one transaction; with `check`, go through it all and change nothing.

    Raises ConfigError with every rule that is broken, each with file and line; nothing is changed then.
    """
    work = _Sync(connection, model_stage, actor)
    with connection.transaction(force_rollback=check):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        for policy in files.policies:
            work.policy(policy)
        for experiment in files.experiments:
            work.experiment(experiment)
        work.tell_of_others(files)
        if work.problems:
            raise ConfigError(work.problems)
    return SyncReport(tuple(work.changes), tuple(work.notes), applied=not check)


class _Refused(ExperimentationError):
    """A broken rule, with the line that breaks it."""

    def __init__(self, place: Place, rule: str) -> None:
        super().__init__(rule)
        self.place = place


class _Sync:
    def __init__(self, connection: psycopg.Connection[Any], model_stage: ModelStage, actor: str) -> None:
        self.connection, self.model_stage, self.actor = connection, model_stage, actor
        self.changes: list[str] = []
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    @contextmanager
    def attempt(self, place: Place) -> Iterator[None]:
        """What the ground refuses is a problem of this place; what was done for it is undone, and the rest is still looked at."""
        try:
            with self.connection.transaction():
                yield
        except ExperimentationError as error:
            self.problems.append(Problem(error.place if isinstance(error, _Refused) else place, str(error)))

    # policies

    def policy(self, entry: PolicyEntry) -> None:
        found = policies.find_policy(self.connection, entry.name)
        if found is None:
            self.changes.append(f"+ policy {entry.name}")
            policies.ensure_policy(self.connection, entry.name, entry.description, actor=self.actor, reason=REASON)
        elif found.description != entry.description:
            self.changes.append(f"~ policy {entry.name}: description")
            policies.describe_policy(self.connection, entry.name, entry.description)
        for version in entry.versions:
            with self.attempt(version.place):
                self.version(entry.name, version)

    def version(self, policy: str, entry: VersionEntry) -> None:
        found = policies.get_version(self.connection, policy, entry.version)
        pin = f"models:/{entry.mlflow_model_name}/{entry.mlflow_model_version}"
        if found is None:
            self.check_model(entry, f"{policy}@{entry.version}", pin)
            self.changes.append(f"+ policy version {policy}@{entry.version} ({entry.status}): {pin}")
            policies.add_version(
                self.connection,
                policy,
                mlflow_model_name=entry.mlflow_model_name,
                mlflow_model_version=entry.mlflow_model_version,
                config_defaults=entry.config_defaults,
                status=entry.status,
                description=entry.description,
                version=entry.version,
                actor=self.actor,
                reason=REASON,
            )
            return
        if found.model_uri != pin:
            raise ExperimentationError(
                f"{found.label} is {found.model_uri} for good, not {pin}: add a version instead."
            )
        if not _same(found.config_defaults, entry.config_defaults):
            raise ExperimentationError(f"The config_defaults of {found.label} can't change: add a version instead.")
        if found.status != entry.status:
            if found.status == "archived":
                self.check_model(entry, found.label, pin)
            policies.set_version_status(self.connection, found, entry.status, actor=self.actor, reason=REASON)
            self.changes.append(f"~ policy version {found.label}: status {found.status} → {entry.status}")
        if found.description != entry.description:
            self.changes.append(f"~ policy version {found.label}: description")
            policies.describe_version(self.connection, found, entry.description)

    def check_model(self, entry: VersionEntry, label: str, pin: str) -> None:
        stage = self.model_stage(entry.mlflow_model_name, entry.mlflow_model_version)
        if stage is None:
            raise ExperimentationError(
                f"{label} names {pin}, which MLflow does not have: register the model version first."
            )
        if stage == "archived" and entry.status != "archived":
            raise ExperimentationError(f"{label} names {pin}, which is archived in MLflow: name another model version.")

    # experiments

    def experiment(self, entry: ExperimentEntry) -> None:
        runs = experiments.runs_of(self.connection, entry.name)
        if any(run.made_by == "promotion" for run in runs):
            latest = runs[-1]
            self.notes.append(f"{latest.label} ({latest.status}) is promotion's: the file's {entry.name} is left alone")
        elif runs and runs[-1].status == "completed":
            if entry.status != "completed":
                self.notes.append(
                    f"{runs[-1].label} is completed for good: to try anew, give the experiment another name"
                )
        elif not runs and entry.status == "completed":
            self.notes.append(f"{entry.name} is completed and never ran here: nothing is made for it")
        else:
            with self.attempt(entry.place):
                variants, control = self.resolved(entry)
                if not runs:
                    self.new_run(entry, variants, control)
                else:
                    self.change_run(entry, runs[-1], variants, control)

    def new_run(self, entry: ExperimentEntry, variants: list[NewVariant], control: PolicyVersion | None) -> None:
        run = experiments.create_run(
            self.connection,
            name=entry.name,
            unit_type=entry.unit_type,
            variants=variants,
            description=entry.description,
            policy_id=None if control is None else control.policy_id,
            start_at=entry.start_at,
            end_at=entry.end_at,
            actor=self.actor,
            reason=REASON,
        )
        self.changes.append(f"+ experiment {run.label} ({entry.unit_type}, {entry.status}): {_shares(run.variants)}")
        self.move(run, entry.status, tell=False)

    def change_run(
        self, entry: ExperimentEntry, run: Run, variants: list[NewVariant], control: PolicyVersion | None
    ) -> None:
        changed = [
            key
            for key in ("description", "unit_type", "start_at", "end_at")
            if getattr(run, key) != getattr(entry, key)
        ]
        if changed:
            run = experiments.update_run(
                self.connection,
                run.id,
                description=entry.description,
                unit_type=entry.unit_type,
                start_at=entry.start_at,
                end_at=entry.end_at,
                actor=self.actor,
                reason=REASON,
            )
            self.changes.append(f"~ experiment {run.label}: {', '.join(changed)}")
        if run.status == "draft":
            if [_substance(old) for old in run.variants] != [_substance(new) for new in variants]:
                policy_id = None if control is None else control.policy_id
                run = experiments.replace_variants(
                    self.connection, run.id, variants, policy_id, actor=self.actor, reason=REASON
                )
                self.changes.append(f"~ experiment {run.label}, a draft: {_shares(run.variants)}")
        elif added := self.added_variant(entry, run, variants):
            before = _shares(run.variants)
            run = experiments.add_variant(self.connection, run.id, added, actor=self.actor, reason=REASON)
            self.changes.append(f"~ experiment {run.label} gets {added.name}: {before} → {_shares(run.variants)}")
        for old, new in zip(run.variants, variants, strict=True):
            if old.description != new.description:
                run_store.describe_variant(self.connection, old.id, new.description)
                self.changes.append(f"~ experiment {run.label}: description of {old.name}")
        self.move(run, entry.status, tell=True)

    def move(self, run: Run, status: RunStatus, *, tell: bool) -> None:
        """Take the run to a status by the steps that lead there."""
        if status == run.status:
            return
        if status == "draft":
            raise ExperimentationError(f"{run.label} is {run.status}: a started run does not become a draft again.")
        why = {"actor": self.actor, "reason": REASON}
        before = run.status
        if run.status == "draft":
            run = experiments.start_run(self.connection, run.id, **why)
        if status == "paused":
            experiments.pause_run(self.connection, run.id, **why)
        elif status == "completed":
            experiments.complete_run(self.connection, run.id, **why)
        elif run.status == "paused":
            experiments.resume_run(self.connection, run.id, **why)
        if tell:
            self.changes.append(f"~ experiment {run.label}: status {before} → {status}")

    def resolved(self, entry: ExperimentEntry) -> tuple[list[NewVariant], PolicyVersion | None]:
        """The variants with the ids of the policy versions they name, and the version of the control."""
        variants, control = [], None
        for variant in entry.variants:
            version = self.policy_version(variant)
            named = {} if version is None else {"policy_version_id": str(version.id)}
            variants.append(
                NewVariant(
                    variant.name, variant.role, variant.allocation, {**variant.config, **named}, variant.description
                )
            )
            if variant.role == "control":
                control = version
        return variants, control

    def policy_version(self, variant: VariantEntry) -> PolicyVersion | None:
        given = variant.config.get("policy_version_id")
        if variant.policy is not None:
            found = policies.get_version(self.connection, variant.policy.policy, variant.policy.version)
            if found is None:
                raise _Refused(
                    variant.place,
                    f"{variant.name} names {variant.policy.label}, which is neither in policies.yml nor in the database.",
                )
        elif given is not None:
            found = policies.find_version(self.connection, given)
            if found is None:
                raise _Refused(
                    variant.place, f"{variant.name} names the policy version {given}, which the database does not have."
                )
        else:
            return None
        if found.status == "archived":
            raise _Refused(variant.place, f"{variant.name} names {found.label}, which is archived and can't be served.")
        if found.status == "deprecated":
            self.notes.append(
                f"{variant.name} names {found.label}, which is deprecated: it works, and should be replaced"
            )
        return found

    def added_variant(self, entry: ExperimentEntry, run: Run, variants: list[NewVariant]) -> NewVariant | None:
        """The one variant that the file adds to a running experiment; any other change of its variants is refused."""
        places = {variant.name: variant.place for variant in entry.variants}
        new = variants[len(run.variants) :]
        if [old.name for old in run.variants] != [kept.name for kept in variants[: len(run.variants)]]:
            raise _Refused(
                entry.variants_place,
                f"{run.label} is {run.status} with the variants {', '.join(old.name for old in run.variants)}: "
                "they stay, in this order, and a new one comes last.",
            )
        for old, kept in zip(run.variants, variants, strict=False):
            if old.role != kept.role or not _same(old.config, kept.config):
                raise _Refused(
                    places[old.name],
                    f"{old.name} of {run.label} can't change while it is {run.status}: complete it first.",
                )
        if not new:
            shares = [old.allocation for old in run.variants]
        elif len(new) > 1:
            raise _Refused(places[new[1].name], f"{run.label} is {run.status}: add one variant at a time.")
        elif new[0].allocation > MOST_FOR_A_NEW_TREATMENT:
            raise _Refused(
                places[new[0].name],
                f"{new[0].name} starts with {new[0].allocation} while {run.label} is {run.status}: a new treatment gets at most "
                f"{MOST_FOR_A_NEW_TREATMENT}.",
            )
        else:
            shares = list(shrunk([old.allocation for old in run.variants], new[0].allocation))
        for old, kept, share in zip(run.variants, variants, shares, strict=False):
            if kept.allocation != share and new:
                raise _Refused(
                    places[old.name],
                    f"{new[0].name} makes {old.name} shrink in proportion, to {share}, not {kept.allocation}.",
                )
            if kept.allocation != share:
                raise _Refused(
                    places[old.name],
                    f"{old.name} of {run.label} has {share} while it is {run.status}, not {kept.allocation}: allocations of a running "
                    "experiment change through promotion.",
                )
        return new[0] if new else None

    def tell_of_others(self, files: ConfigFiles) -> None:
        named = {entry.name for entry in files.experiments}
        for name in run_store.names_of_open_runs(self.connection):
            if name not in named:
                self.notes.append(f"{name} is in the database only, and is left alone")


def _shares(variants: Sequence[Variant]) -> str:
    return ", ".join(f"{variant.name} {variant.allocation}" for variant in variants)


def _substance(variant: NewVariant) -> tuple[str, str, Decimal, str]:
    """What makes two variants the same, whatever is said about them."""
    return variant.name, variant.role, variant.allocation, _canonical(variant.config)


def _canonical(config: Json) -> str:
    """Text that is equal for equal JSON. Python takes True for 1, and PostgreSQL gives some floats back as integers."""
    return json.dumps(_plain_numbers(config), sort_keys=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_numbers(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _same(one: Json, other: Json) -> bool:
    return _canonical(one) == _canonical(other)
