"""experiments.yml and policies.yml: what they say, or every rule that they break with its file and line.

A variant called `control` is the control, one called `remainder` is not enrolled; without a `control` the first variant is the control.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator

from experimentation.assignments.bucketing import BUCKETS
from experimentation.assignments.targeting import Targeting, TargetingError
from experimentation.runs.allocations import WHOLE, parse_share, shrink_shares
from experimentation.runs.run import LayerRange, PolicyVersionStatus, Role, RunStatus, UnitType
from foundation.yaml_files import (
    ConfigError,
    Json,
    Moment,
    Name,
    Place,
    Text,
    Whole,
    YamlFile,
    YamlModel,
    kind_of,
    text,
    unique,
)

EXPERIMENTS, POLICIES = "experiments.yml", "policies.yml"
LONGEST_UNIT_ID = 255
NO_HOLDOUT = Decimal("0.0000")
_POLICY_VERSION = re.compile(r"(?P<policy>[^@\s]+)@(?P<version>[1-9]\d*)")


@dataclass(frozen=True)
class PolicyReference:
    """`policy: planner_policy@3`."""

    policy: str
    version: int

    @property
    def label(self) -> str:
        """`planner_policy@3`."""
        return f"{self.policy}@{self.version}"


def _share(given: Any) -> Decimal:
    """The exact share that the file states."""
    if kind_of(given) != "a number":
        raise ValueError(f"must be a number from 0 to 1, not {kind_of(given)}")
    try:
        return parse_share(given)
    except ValueError as error:
        raise ValueError(f"must be a number from 0 to 1 of at most 4 decimals: {error}") from None


def _without_slash(name: str) -> str:
    if "/" in name:
        raise ValueError(f"must not contain /, since it is part of URLs: {name}")
    return name


def _policy_name(name: str) -> str:
    if _POLICY_VERSION.fullmatch(f"{name}@1") is None:
        raise ValueError(f"must not contain blanks or @: {name}")
    return name


def _policy_reference(given: Any) -> PolicyReference:
    match = _POLICY_VERSION.fullmatch(text(given))
    if match is None:
        raise ValueError(f"must be like planner_policy@3, not {given}")
    return PolicyReference(match["policy"], int(match["version"]))


def _unit_id(given: Any) -> str:
    unit_id = text(given)
    if len(unit_id) > LONGEST_UNIT_ID:
        raise ValueError(f"has {len(unit_id)} characters: a unit id has at most {LONGEST_UNIT_ID}")
    return unit_id


def _targeting(given: Any) -> str:
    rule = text(given).strip()
    try:
        Targeting(rule)
    except TargetingError as error:
        raise ValueError(f"can't be used: {error}") from None
    return rule


Share = Annotated[Decimal, PlainValidator(_share)]
ExperimentName = Annotated[Name, AfterValidator(_without_slash)]
Number = Annotated[Whole, Field(ge=1)]
Bucket = Annotated[Whole, Field(ge=0, le=BUCKETS)]


class LayerEntry(YamlModel):
    """One layer of the file."""

    name: Name
    description: Text | None = None
    holdout: Share = NO_HOLDOUT


class _Range(YamlModel):
    """`{name: plan_page, from: 500, to: 5250}`."""

    name: Name
    first: Bucket = Field(alias="from")
    end: Bucket = Field(alias="to")

    @field_validator("end")
    @classmethod
    def _after_first(cls, end: int, info: ValidationInfo) -> int:
        if "first" in info.data and end <= info.data["first"]:
            raise ValueError(f"must be greater than `from`, {info.data['first']}")
        return end


class _Listed(YamlModel, extra="ignore"):
    """What a member of a list is called, usable or not."""

    name: Name


class _Occupant(YamlModel, extra="ignore"):
    """Which buckets of a layer an experiment takes, whatever else the file says about it."""

    name: ExperimentName
    status: RunStatus = "draft"
    buckets: _Range | None = Field(default=None, alias="layer")

    @property
    def layer(self) -> LayerRange | None:
        """The buckets of the layer that the experiment takes."""
        taken = self.buckets
        return None if taken is None else LayerRange(taken.name, taken.first, taken.end)


class VariantEntry(YamlModel):
    """One variant of an experiment."""

    name: Name
    allocation: Share
    description: Text | None = None
    policy: Annotated[PolicyReference, PlainValidator(_policy_reference)] | None = None
    config: Json = Field(default_factory=dict)
    _stands_in_for_control: bool = False

    @field_validator("config")
    @classmethod
    def _names_one_policy_version(cls, config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        rules = []
        if isinstance(config.get("policy"), str) and _POLICY_VERSION.fullmatch(config["policy"]):
            rules.append(f"contains `policy: {config['policy']}`: put it next to `config`, not inside")
        if not isinstance(config.get("params", {}), dict):
            rules.append("has params that are not a mapping")
        if "policy_version_id" in config:
            if info.data.get("policy") is not None:
                rules.append("names the policy version a second time: keep `policy` or `policy_version_id`")
            try:
                config["policy_version_id"] = str(UUID(config["policy_version_id"]))
            except (ValueError, AttributeError, TypeError):
                rules.append("has a policy_version_id that is not a UUID: name the version as `policy: name@1`")
        if rules:
            raise ValueError("; it ".join(rules))
        return config

    @property
    def role(self) -> Role:
        """The role that the name says, or that the first variant has where none is called control."""
        if self.name == "remainder":
            return "remainder"
        return "control" if self.name == "control" or self._stands_in_for_control else "treatment"


class ExperimentEntry(_Occupant, extra="forbid"):
    """One experiment.

    Only the run knows whether its `overrides` name variants that exist: a run that promotion opened has others than the file.
    """

    unit_type: UnitType
    description: Text | None = None
    start_at: Moment | None = None
    end_at: Moment | None = None
    targeting: Annotated[str, PlainValidator(_targeting)] | None = None
    overrides: dict[Annotated[str, PlainValidator(_unit_id)], Text] = Field(default_factory=dict)
    variants: Annotated[tuple[VariantEntry, ...], unique("name")]

    @field_validator("end_at")
    @classmethod
    def _after_start(cls, end_at: Any, info: ValidationInfo) -> Any:
        start_at = info.data.get("start_at")
        if start_at is not None and end_at is not None and end_at <= start_at:
            raise ValueError("must be after start_at")
        return end_at

    @field_validator("variants")
    @classmethod
    def _have_a_control_and_share_all_units(
        cls, variants: tuple[VariantEntry, ...], info: ValidationInfo
    ) -> tuple[VariantEntry, ...]:
        if not any(variant.role == "control" for variant in variants):
            first = next((variant for variant in variants if variant.role == "treatment"), None)
            if first is None:
                raise ValueError("need at least one variant that is the control")
            first._stands_in_for_control = True
        total = sum(variant.allocation for variant in variants)
        status = info.data.get("status")
        if status in ("active", "paused") and total != WHOLE:
            hint = _room_for_last(variants)
            raise ValueError(
                f"have allocations that sum to {total}: they must sum to 1 in an {status} experiment{hint}"
            )
        return variants

    def override_place(self, unit_id: str) -> Place:
        """Where the file says which variant a unit gets. Raises KeyError."""
        place: Place = self._section["overrides"][unit_id].place
        return place


class VersionEntry(YamlModel):
    """One version of a policy."""

    version: Number
    mlflow_model_name: Name
    mlflow_model_version: Number
    description: Text | None = None
    status: PolicyVersionStatus = "active"
    config_defaults: Json = Field(default_factory=dict)


class PolicyEntry(YamlModel):
    """One policy with its versions, the lowest first."""

    name: Annotated[Name, AfterValidator(_policy_name)]
    description: Text | None = None
    versions: Annotated[tuple[VersionEntry, ...], unique("version")]

    @field_validator("versions")
    @classmethod
    def _in_order(cls, versions: tuple[VersionEntry, ...]) -> tuple[VersionEntry, ...]:
        return tuple(sorted(versions, key=lambda entry: entry.version))


class _ExperimentsFile(YamlModel):
    layers: Annotated[tuple[LayerEntry, ...], unique("name")] = ()
    experiments: Annotated[tuple[ExperimentEntry, ...], unique("name")]


class _PoliciesFile(YamlModel):
    policies: Annotated[tuple[PolicyEntry, ...], unique("name")]


@dataclass(frozen=True)
class ConfigFiles:
    """What both files say."""

    experiments: tuple[ExperimentEntry, ...] = field(default=())
    policies: tuple[PolicyEntry, ...] = field(default=())
    layers: tuple[LayerEntry, ...] = field(default=())


def read_config(folder: Path) -> ConfigFiles:
    """Both files of a folder; policies.yml may be missing if no variant names a policy. Raises ConfigError with every problem."""
    file = YamlFile(folder / EXPERIMENTS)
    experiments = file.read(_ExperimentsFile, file.root)
    _check_ranges(file)
    problems, policies = file.problems, None
    variants = [variant for entry in file.usable(ExperimentEntry, "experiments") for variant in entry.variants]
    # Flags need no policies, nor a file of them.
    if (folder / POLICIES).exists() or not file.path.exists() or any(variant.policy for variant in variants):
        policies_file = YamlFile(folder / POLICIES)
        policies = policies_file.read(_PoliciesFile, policies_file.root)
        problems = policies_file.problems + problems
    if problems or experiments is None:
        raise ConfigError(problems)
    return ConfigFiles(experiments.experiments, policies.policies if policies else (), experiments.layers)


def _check_ranges(file: YamlFile) -> None:
    """Note ranges of layers that are not listed, and ranges that overlap a holdout or that of another experiment.

    Completed experiments have given their range back. Unusable layers count as listed, their problems are noted already.
    """
    listed = {layer.name for layer in file.usable(_Listed, "layers")}
    holdouts = {layer.name: int(layer.holdout * BUCKETS) for layer in file.usable(LayerEntry, "layers")}
    earlier: list[tuple[str, LayerRange]] = []
    for occupant in file.usable(_Occupant, "experiments"):
        if (taken := occupant.layer) is None:
            continue
        place = occupant.place_of("layer")
        wish = f"{occupant.name} takes the buckets {taken.first} to {taken.end} of {taken.layer}"
        if taken.layer not in listed:
            file.refuse(
                place, f"{occupant.name} is in the layer {taken.layer}, which `layers` of this file does not list."
            )
        if occupant.status == "completed":
            continue
        holdout = holdouts.get(taken.layer, 0)
        if taken.first < holdout:
            file.refuse(place, f"{wish}, but the first {holdout} are its holdout: take a range after them.")
        for other, range_ in earlier:
            if range_.layer == taken.layer and range_.first < taken.end and taken.first < range_.end:
                file.refuse(
                    place,
                    f"{wish}, but {other} takes {range_.first} to {range_.end}: ranges of experiments that are not completed must "
                    "not overlap.",
                )
        earlier.append((occupant.name, taken))


def _room_for_last(variants: Sequence[VariantEntry]) -> str:
    """What the others shrink to, where the last variant was added to allocations that summed to 1."""
    *others, last = variants
    if sum(other.allocation for other in others) != WHOLE or not last.allocation:
        return ""
    shares = shrink_shares([other.allocation for other in others], last.allocation)
    targets = ", ".join(f"{other.name} to {share}" for other, share in zip(others, shares, strict=True))
    return f"; to make room for {last.name}, shrink {targets}"
