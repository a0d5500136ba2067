"""The difference between the configuration files and the database, as steps that lead from one to the other.

Everything here is pure: `State` is what was read from the database, and nothing is changed. The rules of policies, layers and runs that
need the database (such as whether a range is free) are checked when the steps are applied.

The files do not own what promotion made: its policy versions and runs are left alone, and so is an experiment from its first such run
on, except for the overrides of that run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from experimentation.config.files import (
    ConfigFiles,
    ExperimentEntry,
    LayerEntry,
    PolicyEntry,
    VariantEntry,
    VersionEntry,
)
from experimentation.config.steps import (
    AddLayer,
    AddPolicy,
    AddVariant,
    AddVersion,
    CreateRun,
    Describe,
    ReplaceVariants,
    SetHoldout,
    SetOverrides,
    SetStatus,
    SetVersionStatus,
    Step,
    UpdateRun,
)
from experimentation.config.variant_changes import (
    Refused,
    added_variant,
    narrowing_lines,
    narrowing_of,
    override_changes,
    same,
    shares_of,
    substance,
)
from experimentation.runs.run import (
    ExperimentationError,
    Layer,
    NewVariant,
    Policy,
    PolicyVersion,
    PolicyVersionStatus,
    Run,
)
from foundation.yaml_files import Problem

ModelStage = Callable[[str, int], str | None]
"""The stage of a registered model version (`none`, `candidate`, `production`, `archived`); None if MLflow has no such version."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the database has of everything that the files may name or change.

    `versions` has what the files name, by number, and `versions_by_id` by id; `uses` says where the versions that the files archive are
    still served. `runs` has all runs of the experiments in the files, and those of the names in `open_names` are not all completed.
    """

    policies: Mapping[str, Policy]
    versions: Mapping[tuple[str, int], PolicyVersion]
    versions_by_id: Mapping[str, PolicyVersion]
    uses: Mapping[UUID, Sequence[str]]
    layers: Mapping[str, Layer]
    runs: Mapping[str, Sequence[Run]]
    open_names: Sequence[str]


@dataclass
class Difference:
    """The steps in the order to take them, what is left alone on purpose, and rules that the files break.

    Runs that are `leaving` give up their range of a layer in these steps, so that others may take it, whatever the order of the file.
    """

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    leaving: set[UUID] = field(default_factory=set)


@dataclass(frozen=True)
class _Version:
    """A policy version as it is after the steps; a version that is not there yet has no id to compare, so its label stands for it."""

    id: str
    label: str
    status: PolicyVersionStatus


class _RefusedVersionError(Exception):
    """A variant names a version that was refused: its problem is noted already."""


def difference(files: ConfigFiles, state: State, model_stage: ModelStage) -> Difference:
    """What leads from the database to the files. `model_stage` is only asked about versions that become served."""
    result = Difference()
    versions: dict[tuple[str, int], _Version | None] = {key: _as_stored(found) for key, found in state.versions.items()}
    for policy in files.policies:
        _compare_policy(result, policy, state.policies.get(policy.name))
        for entry in policy.versions:
            key = (policy.name, entry.version)
            try:
                versions[key] = _compare_version(result, policy.name, entry, state, model_stage)
            except ExperimentationError as error:
                result.problems.append(Problem(entry.place, str(error)))
                versions.setdefault(key, None)
    for layer in files.layers:
        _compare_layer(result, layer, state.layers.get(layer.name))
    for experiment in files.experiments:
        _compare_experiment(result, experiment, state, versions)
    named = {entry.name for entry in files.experiments}
    result.notes += [
        f"{name} is in the database only, and is left alone" for name in state.open_names if name not in named
    ]
    named = {entry.name for entry in files.layers}
    result.notes += [
        f"layer {name} is in the database only, and is left alone" for name in state.layers if name not in named
    ]
    return result


# policies


def _compare_policy(result: Difference, entry: PolicyEntry, stored: Policy | None) -> None:
    subject = f"policy {entry.name}"
    if stored is None:
        result.steps.append(AddPolicy(subject, entry.place, (f"+ {subject}",), entry))
    elif stored.description != entry.description:
        result.steps.append(Describe(subject, entry.place, (f"~ {subject}: description",), stored, entry.description))


def _compare_version(
    result: Difference, policy: str, entry: VersionEntry, state: State, model_stage: ModelStage
) -> _Version:
    label, pin = f"{policy}@{entry.version}", f"models:/{entry.mlflow_model_name}/{entry.mlflow_model_version}"
    subject, stored = f"policy version {label}", state.versions.get((policy, entry.version))
    if stored is None:
        _check_model(entry, label, pin, model_stage)
        sentence = f"+ {subject} ({entry.status}): {pin}"
        result.steps.append(AddVersion(subject, entry.place, (sentence,), policy, entry))
        return _Version(label, label, entry.status)
    if stored.model_uri != pin:
        raise ExperimentationError(f"{label} is {stored.model_uri} for good, not {pin}: add a version instead.")
    if not same(stored.config_defaults, entry.config_defaults):
        raise ExperimentationError(f"The config_defaults of {label} can't change: add a version instead.")
    if stored.status != entry.status:
        if stored.status == "archived":
            _check_model(entry, label, pin, model_stage)
        if entry.status == "archived" and (uses := state.uses.get(stored.id)):
            raise ExperimentationError(f"{label} can't be archived while {' and '.join(uses)}.")
        sentence = f"~ {subject}: status {stored.status} → {entry.status}"
        result.steps.append(SetVersionStatus(subject, entry.place, (sentence,), stored, entry.status))
    if stored.description != entry.description:
        sentence = f"~ {subject}: description"
        result.steps.append(Describe(subject, entry.place, (sentence,), stored, entry.description))
    return _Version(str(stored.id), label, entry.status)


def _check_model(entry: VersionEntry, label: str, pin: str, model_stage: ModelStage) -> None:
    stage = model_stage(entry.mlflow_model_name, entry.mlflow_model_version)
    if stage is None:
        raise ExperimentationError(
            f"{label} names {pin}, which MLflow does not have: register the model version first."
        )
    if stage == "archived" and entry.status != "archived":
        raise ExperimentationError(f"{label} names {pin}, which is archived in MLflow: name another model version.")


def _as_stored(version: PolicyVersion) -> _Version:
    return _Version(str(version.id), version.label, version.status)


# layers


def _compare_layer(result: Difference, entry: LayerEntry, stored: Layer | None) -> None:
    subject = f"layer {entry.name}"
    if stored is None:
        result.steps.append(AddLayer(subject, entry.place, (f"+ {subject}: holdout {entry.holdout}",), entry))
        return
    if stored.holdout != entry.holdout:
        sentence = f"~ {subject}: holdout {stored.holdout} → {entry.holdout}"
        result.steps.append(SetHoldout(subject, entry.place, (sentence,), entry, stored))
    if stored.description != entry.description:
        result.steps.append(Describe(subject, entry.place, (f"~ {subject}: description",), stored, entry.description))


# experiments


def _compare_experiment(
    result: Difference, entry: ExperimentEntry, state: State, versions: Mapping[tuple[str, int], _Version | None]
) -> None:
    runs = state.runs.get(entry.name, ())
    latest = runs[-1] if runs else None
    if latest is not None and any(run.made_by == "promotion" for run in runs):
        _compare_promoted(result, entry, latest)
        return
    if latest is not None and latest.layer is not None and (entry.status == "completed" or entry.layer != latest.layer):
        result.leaving.add(latest.id)
    if latest is not None and latest.status == "completed":
        if entry.status != "completed":
            result.notes.append(
                f"{latest.label} is completed for good: to run it again, give the experiment another name"
            )
        return
    if latest is None and entry.status == "completed":
        result.notes.append(f"{entry.name} is completed and never ran here: nothing is made for it")
        return
    entry = _with_known_overrides(result, entry)
    try:
        variants = [_wanted_variant(result, variant, state, versions) for variant in entry.variants]
        result.steps += [_created(entry)] if latest is None else _changed(entry, latest, variants)
    except _RefusedVersionError:
        return
    except ExperimentationError as error:
        place = error.place if isinstance(error, Refused) else entry.place
        result.problems.append(Problem(place, str(error)))


def _compare_promoted(result: Difference, entry: ExperimentEntry, run: Run) -> None:
    """The file's overrides for a run of promotion, which has other variants: overrides to those that it lacks are left out."""
    but = "left alone" if run.status == "completed" else "left alone, but for its overrides"
    result.notes.append(f"{run.label} ({run.status}) is promotion's: the file's {entry.name} is {but}")
    if run.status == "completed":
        return
    known = {variant.name for variant in run.variants}
    overrides = {unit_id: name for unit_id, name in entry.overrides.items() if name in known}
    if left_out := sorted(set(entry.overrides.values()) - known):
        result.notes.append(f"{run.label} has no variant {' and no '.join(left_out)}: overrides to it are left out")
    result.steps += _overridden(entry, run, run.overrides, overrides)


def _with_known_overrides(result: Difference, entry: ExperimentEntry) -> ExperimentEntry:
    """The entry without overrides to variants that it does not have, each of which is a problem."""
    known = {variant.name for variant in entry.variants}
    for unit_id, name in entry.overrides.items():
        if name not in known:
            rule = f"The overrides of {entry.name} give {unit_id} the variant {name}, which {entry.name} does not have."
            result.problems.append(Problem(entry.override_place(unit_id), rule))
    overrides = {unit_id: name for unit_id, name in entry.overrides.items() if name in known}
    return entry.model_copy(update={"overrides": overrides})


def _wanted_variant(
    result: Difference, entry: VariantEntry, state: State, versions: Mapping[tuple[str, int], _Version | None]
) -> NewVariant:
    """The variant as it is stored, if the version that it names can be served."""
    version = _named_version(entry, state, versions)
    config = dict(entry.config)
    if version is not None:
        if version.status == "archived":
            raise Refused(entry.place, f"{entry.name} names {version.label}, which is archived and can't be served.")
        if version.status == "deprecated":
            result.notes.append(
                f"{entry.name} names {version.label}, which is deprecated: it works, and should be replaced"
            )
        config["policy_version_id"] = version.id
    return NewVariant(entry.name, entry.role, entry.allocation, config, entry.description)


def _named_version(
    entry: VariantEntry, state: State, versions: Mapping[tuple[str, int], _Version | None]
) -> _Version | None:
    if (reference := entry.policy) is not None:
        key = (reference.policy, reference.version)
        if key not in versions:
            rule = f"{entry.name} names {reference.label}, which is neither in policies.yml nor in the database."
            raise Refused(entry.place, rule)
        version = versions[key]
        if version is None:
            raise _RefusedVersionError
        return version
    version_id = entry.config.get("policy_version_id")
    if version_id is None:
        return None
    stored = state.versions_by_id.get(version_id)
    if stored is None:
        rule = f"{entry.name} names the policy version {version_id}, which the database does not have."
        raise Refused(entry.place, rule)
    return versions.get((stored.policy_name, stored.version)) or _as_stored(stored)


def _created(entry: ExperimentEntry) -> Step:
    details = "; ".join([shares_of(entry.variants), *narrowing_of(entry)])
    sentence = f"+ experiment {entry.name} run 1 ({entry.unit_type}, {entry.status}): {details}"
    return CreateRun(f"experiment {entry.name}", entry.place, (sentence,), entry)


def _changed(entry: ExperimentEntry, run: Run, variants: Sequence[NewVariant]) -> list[Step]:
    subject, label, steps = f"experiment {entry.name}", f"~ experiment {run.label}", list[Step]()
    keys = ("description", "unit_type", "start_at", "end_at")
    details = [key for key in keys if getattr(run, key) != getattr(entry, key)]
    sentences = [f"{label}: {', '.join(details)}"] if details else []
    if sentences := sentences + narrowing_lines(run, entry):
        steps.append(UpdateRun(subject, entry.place, tuple(sentences), run, entry))
    overrides, described = run.overrides, list(zip(run.variants, variants, strict=False))
    if run.status == "draft":
        if [substance(old) for old in run.variants] != [substance(new) for new in variants]:
            sentence = f"{label}, a draft: {shares_of(variants)}"
            steps.append(ReplaceVariants(subject, entry.place, (sentence,), run, entry))
            names = {variant.name for variant in variants}
            overrides = {unit_id: name for unit_id, name in overrides.items() if name in names}
            described = []
    elif added := added_variant(entry, run, variants):
        sentence = f"{label} gets {added.name}: {shares_of(run.variants)} → {shares_of(variants)}"
        steps.append(AddVariant(subject, entry.place, (sentence,), run, entry))
    for old, new in described:
        if old.description != new.description:
            sentence = f"{label}: description of {old.name}"
            steps.append(Describe(subject, entry.place, (sentence,), old, new.description))
    steps += _overridden(entry, run, overrides, entry.overrides)
    if entry.status != run.status:
        if entry.status == "draft":
            raise ExperimentationError(f"{run.label} is {run.status}: a started run does not become a draft again.")
        sentence = f"{label}: status {run.status} → {entry.status}"
        steps.append(SetStatus(subject, entry.place, (sentence,), run, entry.status))
    return steps


def _overridden(entry: ExperimentEntry, run: Run, before: Mapping[str, str], after: Mapping[str, str]) -> list[Step]:
    changes = override_changes(before, after)
    sentence = f"~ experiment {run.label}: overrides {changes}"
    return [SetOverrides(f"experiment {entry.name}", entry.place, (sentence,), run, after)] if changes else []
