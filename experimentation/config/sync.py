"""Bringing the database to what the configuration files say: the difference as readable lines, applied in one transaction or not at all.

What promotion made is not the files': its policy versions and runs are left alone, and so is an experiment from its first such run on,
but for the overrides of that run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from experimentation import policies
from experimentation.config.differences import (
    Refused,
    added_variant,
    narrowing_lines,
    narrowing_of,
    override_changes,
    same,
    shares_of,
    substance,
)
from experimentation.config.files import (
    ConfigFiles,
    ExperimentEntry,
    LayerEntry,
    PolicyEntry,
    VariantEntry,
    VersionEntry,
)
from experimentation.runs import layers
from experimentation.runs import lifecycle as experiments
from experimentation.runs import store as run_store
from experimentation.runs.run import ExperimentationError, NewVariant, PolicyVersion, Run, RunStatus
from foundation import locks
from foundation.audit import Change
from foundation.yaml_files import ConfigError, Place, Problem

ModelStage = Callable[[str, int], str | None]
"""The stage of a registered model version (`none`, `candidate`, `production`, `archived`); None where MLflow has no such version."""

WHY = "The configuration files say so."


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
    connection: psycopg.Connection[Any], files: ConfigFiles, *, model_stage: ModelStage, by: str, check: bool = False
) -> SyncReport:
    """Apply the files in one transaction; with `check`, go through it all and change nothing.

    Raises ConfigError with every rule that is broken, each with file and line; nothing is changed then.
    """
    work = _Sync(connection, model_stage, Change(by, WHY))
    with connection.transaction(force_rollback=check):
        locks.hold(connection, locks.SYNC)
        for policy in files.policies:
            work.policy(policy)
        work.look_who_leaves(files)
        for layer in files.layers:
            work.layer(layer)
        for experiment in files.experiments:
            work.experiment(experiment)
        work.tell_of_others(files)
        if work.problems:
            raise ConfigError(work.problems)
    return SyncReport(tuple(work.changes), tuple(work.notes), applied=not check)


class _ToldError(Exception):
    """What is wrong is among the problems already."""


class _Sync:
    def __init__(self, connection: psycopg.Connection[Any], model_stage: ModelStage, change: Change) -> None:
        self.connection, self.model_stage, self.change = connection, model_stage, change
        self.changes: list[str] = []
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self.leaving: set[UUID] = set()
        self.unmade: set[tuple[str, int]] = set()

    @contextmanager
    def attempt(self, place: Place, layer_place: Place | None = None) -> Iterator[None]:
        """What the ground refuses is a problem of this place; what was done for it is undone, and the rest is still looked at."""
        try:
            with self.connection.transaction():
                yield
        except _ToldError:
            return
        except ExperimentationError as error:
            if isinstance(error, Refused):
                place = error.place
            elif isinstance(error, layers.LayerError):
                place = layer_place or place
            self.problems.append(Problem(place, str(error)))

    # policies

    def policy(self, entry: PolicyEntry) -> None:
        found = policies.find_policy(self.connection, entry.name)
        if found is None:
            self.changes.append(f"+ policy {entry.name}")
            policies.ensure_policy(self.connection, entry.name, entry.description, change=self.change)
        elif found.description != entry.description:
            self.changes.append(f"~ policy {entry.name}: description")
            policies.describe_policy(self.connection, entry.name, entry.description)
        for version in entry.versions:
            before = len(self.problems)
            with self.attempt(version.place):
                self.version(entry.name, version)
            if len(self.problems) > before:
                self.unmade.add((entry.name, version.version))

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
                change=self.change,
            )
            return
        if found.model_uri != pin:
            raise ExperimentationError(
                f"{found.label} is {found.model_uri} for good, not {pin}: add a version instead."
            )
        if not same(found.config_defaults, entry.config_defaults):
            raise ExperimentationError(f"The config_defaults of {found.label} can't change: add a version instead.")
        if found.status != entry.status:
            if found.status == "archived":
                self.check_model(entry, found.label, pin)
            policies.set_version_status(self.connection, found, entry.status, change=self.change)
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

    # layers

    def look_who_leaves(self, files: ConfigFiles) -> None:
        """Note runs that these files take out of their range, so that others may have it whatever the order in the file."""
        for entry in files.experiments:
            runs = experiments.runs_of(self.connection, entry.name)
            if not runs or runs[-1].layer is None or any(run.made_by == "promotion" for run in runs):
                continue
            if entry.status == "completed" or entry.layer != runs[-1].layer:
                self.leaving.add(runs[-1].id)

    def layer(self, entry: LayerEntry) -> None:
        with self.attempt(entry.place):
            # All layers are locked before any run is, as whoever opens a candidate's run does.
            layers.lock_layer(self.connection, entry.name)
            found = layers.find_layer(self.connection, entry.name)
            if found is None:
                self.changes.append(f"+ layer {entry.name}: holdout {entry.holdout}")
                layers.ensure_layer(
                    self.connection,
                    entry.name,
                    holdout=entry.holdout,
                    description=entry.description,
                    change=self.change,
                )
                return
            if found.holdout != entry.holdout:
                self.changes.append(f"~ layer {entry.name}: holdout {found.holdout} → {entry.holdout}")
                found = layers.set_holdout(
                    self.connection, found, entry.holdout, leaving=self.leaving, change=self.change
                )
            if found.description != entry.description:
                self.changes.append(f"~ layer {entry.name}: description")
                layers.describe_layer(self.connection, found, entry.description, change=self.change)

    # experiments

    def experiment(self, entry: ExperimentEntry) -> None:
        runs = experiments.runs_of(self.connection, entry.name)
        if any(run.made_by == "promotion" for run in runs):
            latest = runs[-1]
            but = "left alone" if latest.status == "completed" else "left alone, but for its overrides"
            self.notes.append(f"{latest.label} ({latest.status}) is promotion's: the file's {entry.name} is {but}")
            if latest.status != "completed":
                self.override_promoted(entry, latest)
        elif runs and runs[-1].status == "completed":
            if entry.status != "completed":
                self.notes.append(
                    f"{runs[-1].label} is completed for good: to try anew, give the experiment another name"
                )
        elif not runs and entry.status == "completed":
            self.notes.append(f"{entry.name} is completed and never ran here: nothing is made for it")
        else:
            entry = self.with_known_overrides(entry)
            with self.attempt(entry.place, entry.place_of("layer") if entry.layer else None):
                variants, control = self.resolved(entry)
                if not runs:
                    self.new_run(entry, variants, control)
                else:
                    self.change_run(entry, runs[-1], variants, control)

    def with_known_overrides(self, entry: ExperimentEntry) -> ExperimentEntry:
        """The entry without overrides to variants that it does not have, each of which is a problem."""
        known = {variant.name for variant in entry.variants}
        for unit_id, name in entry.overrides.items():
            if name not in known:
                rule = f"The overrides of {entry.name} give {unit_id} the variant {name}, which {entry.name} does not have."
                self.problems.append(Problem(entry.override_place(unit_id), rule))
        return entry.model_copy(
            update={"overrides": {unit: name for unit, name in entry.overrides.items() if name in known}}
        )

    def override_promoted(self, entry: ExperimentEntry, run: Run) -> None:
        """The file's overrides for a run of promotion's, which has other variants: those that it does not have are left out."""
        known = {variant.name for variant in run.variants}
        overrides = {unit_id: name for unit_id, name in entry.overrides.items() if name in known}
        if left_out := sorted(set(entry.overrides.values()) - known):
            self.notes.append(f"{run.label} has no variant {' and no '.join(left_out)}: overrides to it are left out")
        if told := override_changes(run.overrides, overrides):
            experiments.set_overrides(self.connection, run.id, overrides, change=self.change)
            self.changes.append(f"~ experiment {run.label}: overrides {told}")

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
            targeting=entry.targeting,
            layer=entry.layer,
            overrides=entry.overrides,
            leaving=self.leaving,
            change=self.change,
        )
        told = "; ".join([shares_of(run.variants), *narrowing_of(run)])
        self.changes.append(f"+ experiment {run.label} ({entry.unit_type}, {entry.status}): {told}")
        self.move(run, entry.status, tell=False)

    def change_run(
        self, entry: ExperimentEntry, run: Run, variants: list[NewVariant], control: PolicyVersion | None
    ) -> None:
        changed = [
            key
            for key in ("description", "unit_type", "start_at", "end_at")
            if getattr(run, key) != getattr(entry, key)
        ]
        narrowed = narrowing_lines(run, entry)
        if changed or narrowed:
            run = self.update(run, entry, run.overrides)
            if changed:
                self.changes.append(f"~ experiment {run.label}: {', '.join(changed)}")
            self.changes += narrowed
            if entry.status != "completed":
                self.leaving.discard(run.id)
        if run.status == "draft":
            if [substance(old) for old in run.variants] != [substance(new) for new in variants]:
                policy_id = None if control is None else control.policy_id
                run = experiments.replace_variants(self.connection, run.id, variants, policy_id, change=self.change)
                self.changes.append(f"~ experiment {run.label}, a draft: {shares_of(run.variants)}")
        elif added := added_variant(entry, run, variants):
            before = shares_of(run.variants)
            run = experiments.add_variant(self.connection, run.id, added, change=self.change)
            self.changes.append(f"~ experiment {run.label} gets {added.name}: {before} → {shares_of(run.variants)}")
        for old, new in zip(run.variants, variants, strict=True):
            if old.description != new.description:
                run_store.describe_variant(self.connection, old.id, new.description)
                self.changes.append(f"~ experiment {run.label}: description of {old.name}")
        if told := override_changes(run.overrides, entry.overrides):
            self.update(run, entry, entry.overrides)
            self.changes.append(f"~ experiment {run.label}: overrides {told}")
        self.move(run, entry.status, tell=True)

    def update(self, run: Run, entry: ExperimentEntry, overrides: Mapping[str, str]) -> Run:
        """What the file says beside the variants. Overrides come after the variants that they name."""
        return experiments.update_run(
            self.connection,
            run.id,
            description=entry.description,
            unit_type=entry.unit_type,
            start_at=entry.start_at,
            end_at=entry.end_at,
            targeting=entry.targeting,
            layer=entry.layer,
            overrides=overrides,
            leaving=self.leaving,
            change=self.change,
        )

    def move(self, run: Run, status: RunStatus, *, tell: bool) -> None:
        """Take the run to a status by the steps that lead there."""
        if status == run.status:
            return
        if status == "draft":
            raise ExperimentationError(f"{run.label} is {run.status}: a started run does not become a draft again.")
        before = run.status
        if run.status == "draft":
            run = experiments.start_run(self.connection, run.id, change=self.change)
        if status == "paused":
            experiments.pause_run(self.connection, run.id, change=self.change)
        elif status == "completed":
            experiments.complete_run(self.connection, run.id, change=self.change)
        elif run.status == "paused":
            experiments.resume_run(self.connection, run.id, change=self.change)
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
            if found is None and (variant.policy.policy, variant.policy.version) in self.unmade:
                raise _ToldError
            if found is None:
                raise Refused(
                    variant.place,
                    f"{variant.name} names {variant.policy.label}, which is neither in policies.yml nor in the database.",
                )
        elif given is not None:
            found = policies.find_version(self.connection, given)
            if found is None:
                raise Refused(
                    variant.place, f"{variant.name} names the policy version {given}, which the database does not have."
                )
        else:
            return None
        if found.status == "archived":
            raise Refused(variant.place, f"{variant.name} names {found.label}, which is archived and can't be served.")
        if found.status == "deprecated":
            self.notes.append(
                f"{variant.name} names {found.label}, which is deprecated: it works, and should be replaced"
            )
        return found

    def tell_of_others(self, files: ConfigFiles) -> None:
        named = {entry.name for entry in files.experiments}
        for name in run_store.names_of_open_runs(self.connection):
            if name not in named:
                self.notes.append(f"{name} is in the database only, and is left alone")
        for name in layers.names_of_layers(self.connection):
            if name not in {entry.name for entry in files.layers}:
                self.notes.append(f"layer {name} is in the database only, and is left alone")
