"""What `lifecycle sync` can do to the database: one record a step, each with its subject and its sentences."""

from collections.abc import Mapping
from dataclasses import dataclass

from experimentation.config.files import (
    ExperimentEntry,
    LayerEntry,
    PolicyEntry,
    VersionEntry,
)
from experimentation.runs.run import (
    Layer,
    Policy,
    PolicyVersion,
    PolicyVersionStatus,
    Run,
    RunStatus,
    Variant,
)
from foundation.yaml_files import Place


@dataclass(frozen=True)
class Step:
    """One change. `sentences` say what it changes, `subject` is what it belongs to: steps of one subject fail together."""

    subject: str
    place: Place
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class AddPolicy(Step):
    """A policy without versions."""

    entry: PolicyEntry


@dataclass(frozen=True)
class AddVersion(Step):
    """A version of a policy."""

    policy: str
    entry: VersionEntry


@dataclass(frozen=True)
class SetVersionStatus(Step):
    """Another status of a version."""

    version: PolicyVersion
    status: PolicyVersionStatus


@dataclass(frozen=True)
class AddLayer(Step):
    """A layer."""

    entry: LayerEntry


@dataclass(frozen=True)
class SetHoldout(Step):
    """Another holdout of a layer."""

    entry: LayerEntry
    layer: Layer


@dataclass(frozen=True)
class CreateRun(Step):
    """The first run of an experiment, a draft at first."""

    entry: ExperimentEntry


@dataclass(frozen=True)
class UpdateRun(Step):
    """Other details of a run: all but its variants, overrides and status."""

    run: Run
    entry: ExperimentEntry


@dataclass(frozen=True)
class ReplaceVariants(Step):
    """Other variants of a draft."""

    run: Run
    entry: ExperimentEntry


@dataclass(frozen=True)
class AddVariant(Step):
    """The last variant of the entry joins a running experiment."""

    run: Run
    entry: ExperimentEntry


@dataclass(frozen=True)
class SetOverrides(Step):
    """Other overrides of a run."""

    run: Run
    overrides: Mapping[str, str]


@dataclass(frozen=True)
class SetStatus(Step):
    """Another status of a run."""

    run: Run
    status: RunStatus


@dataclass(frozen=True)
class Describe(Step):
    """Another description of something that is in the database."""

    stored: Policy | PolicyVersion | Layer | Variant
    description: str | None
