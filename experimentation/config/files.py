"""Reading experiments.yml and policies.yml: what they say, or every rule they break with its file and line.

A variant called `control` is the control and one called `remainder` is not enrolled; without a `control` the first variant is it.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml

from experimentation.assignments.targeting import Targeting, TargetingError
from experimentation.config.layer_entries import LayerEntry, RangeEntry, check_ranges, read_layer, read_range
from experimentation.config.yaml_nodes import ConfigError, Place, Reader, UnusableValueError
from experimentation.runs.allocations import WHOLE, shrink_shares
from experimentation.runs.run import LayerRange, PolicyVersionStatus, Role, RunStatus, UnitType

EXPERIMENTS, POLICIES = "experiments.yml", "policies.yml"
UNIT_TYPES = ("user", "household", "session")
RUN_STATUSES = ("draft", "active", "paused", "completed")
VERSION_STATUSES = ("active", "deprecated", "archived")
_LONGEST_UNIT_ID = 255
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


@dataclass(frozen=True)
class VariantEntry:
    """One variant of an experiment, in the file's order."""

    name: str
    role: Role
    allocation: Decimal
    config: dict[str, Any]
    policy: PolicyReference | None
    description: str | None
    place: Place


@dataclass(frozen=True)
class ExperimentEntry:
    """One experiment; `variants_place` is where its variants begin, `layer_place` where its layer does.

    Whether its `overrides` name variants that there are, the run knows: promotion's has others than the file.
    """

    name: str
    unit_type: UnitType
    status: RunStatus
    variants: tuple[VariantEntry, ...]
    description: str | None
    start_at: datetime | None
    end_at: datetime | None
    place: Place
    variants_place: Place
    targeting: str | None = None
    layer: LayerRange | None = None
    layer_place: Place | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    override_places: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionEntry:
    """One version of a policy."""

    version: int
    mlflow_model_name: str
    mlflow_model_version: int
    status: PolicyVersionStatus
    config_defaults: dict[str, Any]
    description: str | None
    place: Place


@dataclass(frozen=True)
class PolicyEntry:
    """One policy with the versions that the file names."""

    name: str
    description: str | None
    versions: tuple[VersionEntry, ...]
    place: Place


@dataclass(frozen=True)
class ConfigFiles:
    """What both files say."""

    experiments: tuple[ExperimentEntry, ...] = field(default=())
    policies: tuple[PolicyEntry, ...] = field(default=())
    layers: tuple[LayerEntry, ...] = field(default=())


def read_config(folder: Path) -> ConfigFiles:
    """Read both files of a folder; policies.yml may be missing where no variant names a policy. Raises ConfigError with every problem."""
    experiments, policies = _Experiments(folder / EXPERIMENTS), _Policies(folder / POLICIES)
    entries = experiments.read()
    # Flags need no policies, nor a file of them.
    needed = any(variant.policy for entry in entries for variant in entry.variants) or not experiments.path.exists()
    versions = policies.read() if needed or policies.path.exists() else ()
    read = ConfigFiles(entries, versions, tuple(experiments.layers))
    if problems := [*policies.problems, *experiments.problems]:
        raise ConfigError(problems)
    return read


class _File(Reader):
    """What both files have in common: lists of named entries."""

    def lists(self, key: str, optional: Collection[str] = ()) -> dict[str, list[yaml.Node]]:
        """The members of the file's lists."""
        root = self.document()
        if root is None:
            if not self.problems:
                self._note(1, f"The file is empty: it needs a list `{key}`.")
            return {}
        found = {}
        with self.going_on():
            for name, node in self.mapping(root, self.path.name, [key], optional).items():
                with self.going_on():
                    found[name] = self.sequence(node, f"`{name}`")
        return found

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Leave out what can't be used, of which the problem is noted, and go on with the rest."""
        try:
            yield
        except UnusableValueError:
            return

    def once(self, names: set[str], node: yaml.Node, name: str, what: str) -> None:
        """Refuse a name that was there before."""
        if name in names:
            raise self.refuse(node, f"{what} {name} stands here twice.")
        names.add(name)


class _Experiments(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.layers: list[LayerEntry] = []
        self.ranges: list[RangeEntry] = []

    def read(self) -> tuple[ExperimentEntry, ...]:
        lists = self.lists("experiments", ["layers"])
        listed: set[str] = set()
        for node in lists.get("layers", ()):
            with self.going_on():
                self.layers.append(read_layer(self, node, listed))
        names: set[str] = set()
        found = []
        for node in lists.get("experiments", ()):
            with self.going_on():
                found.append(self._experiment(node, names))
        check_ranges(self, listed, self.layers, self.ranges)
        return tuple(found)

    def _experiment(self, node: yaml.Node, names: set[str]) -> ExperimentEntry:
        optional = ("description", "status", "start_at", "end_at", "layer", "targeting", "overrides")
        values = self.mapping(node, "An experiment", ("name", "unit_type", "variants"), optional)
        name = self.name(values["name"], "The name of an experiment")
        if "/" in name:
            raise self.refuse(values["name"], f"The name of experiment {name} must have no /: it stands in URLs.")
        self.once(names, values["name"], name, "Experiment")
        status: RunStatus = "draft"
        if "status" in values:
            status = self.choice(values["status"], f"The status of {name}", RUN_STATUSES)
        times = {key: self.moment(values[key], f"{key} of {name}") for key in ("start_at", "end_at") if key in values}
        start_at, end_at = times.get("start_at"), times.get("end_at")
        if start_at is not None and end_at is not None and end_at <= start_at:
            raise self.refuse(values["end_at"], f"end_at of {name} must be after its start_at.")
        layer = None
        if "layer" in values:
            layer = read_range(self, values["layer"], name)
            self.ranges.append(RangeEntry(name, status, layer, values["layer"]))
        variants = self._variants(values["variants"], name)
        overrides, override_places = self._overrides(values["overrides"], name) if "overrides" in values else ({}, {})
        entry = ExperimentEntry(
            name=name,
            unit_type=self.choice(values["unit_type"], f"The unit_type of {name}", UNIT_TYPES),
            status=status,
            variants=variants,
            description=self.text(values["description"], f"The description of {name}")
            if "description" in values
            else None,
            start_at=start_at,
            end_at=end_at,
            place=self.place(node),
            variants_place=self.place(values["variants"]),
            targeting=self._targeting(values["targeting"], name) if "targeting" in values else None,
            layer=layer,
            layer_place=self.place(values["layer"]) if "layer" in values else None,
            overrides=overrides,
            override_places=override_places,
        )
        total = sum(variant.allocation for variant in entry.variants)
        if status in ("active", "paused") and total != WHOLE:
            self.refuse(
                values["variants"],
                f"The allocations of {name} sum to {total}: they must sum to 1 when it is {status}{_room_for_last(variants)}.",
            )
        return entry

    def _targeting(self, node: yaml.Node, experiment: str) -> str:
        rule = self.text(node, f"The targeting of {experiment}").strip()
        try:
            Targeting(rule)
        except TargetingError as error:
            raise self.refuse(node, f"The targeting of {experiment} can't be used: {error}.") from None
        return rule

    def _overrides(self, node: yaml.Node, experiment: str) -> tuple[dict[str, str], dict[str, Place]]:
        """Units whose variant is said, and where it is. What is wrong with one of them does not hide what is wrong with the next."""
        overrides: dict[str, str] = {}
        places: dict[str, Place] = {}
        for unit, variant in self.pairs(node, f"The overrides of {experiment}"):
            with self.going_on():
                unit_id = self._unit_id(unit, experiment)
                if unit_id in overrides:
                    raise self.refuse(unit, f"The overrides of {experiment} have the unit {unit_id} twice.")
                overrides[unit_id] = self.text(variant, f"The variant of {unit_id} in the overrides of {experiment}")
                places[unit_id] = self.place(variant)
        return overrides, places

    def _unit_id(self, node: yaml.Node, experiment: str) -> str:
        unit_id = self.text(node, f"A unit in the overrides of {experiment}")
        if len(unit_id) > _LONGEST_UNIT_ID:
            raise self.refuse(
                node,
                f"A unit in the overrides of {experiment} has {len(unit_id)} characters, of at most {_LONGEST_UNIT_ID}.",
            )
        return unit_id

    def _variants(self, node: yaml.Node, experiment: str) -> tuple[VariantEntry, ...]:
        members = self.sequence(node, f"The variants of {experiment}")
        names: set[str] = set()
        before = len(self.problems)
        found = []
        for member in members:
            with self.going_on():
                found.append(self._variant(member, experiment, names))
        if len(self.problems) > before:
            raise UnusableValueError(f"Variants of {experiment} are noted.")
        if not any(variant.role == "control" for variant in found):
            first = next((index for index, variant in enumerate(found) if variant.role == "treatment"), None)
            if first is None:
                raise self.refuse(node, f"{experiment} needs at least one variant that is its control.")
            found[first] = _as_control(found[first])
        return tuple(found)

    def _variant(self, node: yaml.Node, experiment: str, names: set[str]) -> VariantEntry:
        values = self.mapping(
            node, f"A variant of {experiment}", ("name", "allocation"), ("description", "policy", "config")
        )
        name = self.name(values["name"], f"The name of a variant of {experiment}")
        label = f"{experiment}'s variant {name}"
        self.once(names, values["name"], name, f"In {experiment}, the variant")
        config = self.json(values["config"], f"The config of {label}") if "config" in values else {}
        role: Role = "control" if name == "control" else "remainder" if name == "remainder" else "treatment"
        entry = VariantEntry(
            name=name,
            role=role,
            allocation=self.share(values["allocation"], f"The allocation of {label}"),
            config=config,
            policy=self._policy(values["policy"], label) if "policy" in values else None,
            description=self.text(values["description"], f"The description of {label}")
            if "description" in values
            else None,
            place=self.place(node),
        )
        if "config" in values:
            self._check_config(values["config"], entry, label)
        return entry

    def _policy(self, node: yaml.Node, label: str) -> PolicyReference:
        found = _POLICY_VERSION.fullmatch(self.text(node, f"The policy of {label}"))
        if found is None:
            raise self.refuse(node, f"The policy of {label} must be like planner_policy@3, not {node.value}.")
        return PolicyReference(found["policy"], int(found["version"]))

    def _check_config(self, node: yaml.Node, entry: VariantEntry, label: str) -> None:
        config = entry.config
        if isinstance(config.get("policy"), str) and _POLICY_VERSION.fullmatch(config["policy"]):
            self.refuse(node, f"`policy: {config['policy']}` of {label} stands beside its config, not in it.")
        if not isinstance(config.get("params", {}), dict):
            self.refuse(node, f"The params of {label} must be a mapping.")
        if "policy_version_id" in config:
            if entry.policy is not None:
                self.refuse(node, f"{label} names its policy version twice: keep `policy` or `policy_version_id`.")
            try:
                config["policy_version_id"] = str(UUID(config["policy_version_id"]))
            except (ValueError, AttributeError, TypeError):
                self.refuse(
                    node, f"The policy_version_id of {label} must be a UUID: name the version as `policy: name@1`."
                )


class _Policies(_File):
    def read(self) -> tuple[PolicyEntry, ...]:
        names: set[str] = set()
        found = []
        for node in self.lists("policies").get("policies", ()):
            with self.going_on():
                found.append(self._policy(node, names))
        return tuple(found)

    def _policy(self, node: yaml.Node, names: set[str]) -> PolicyEntry:
        values = self.mapping(node, "A policy", ("name", "versions"), ("description",))
        name = self.name(values["name"], "The name of a policy")
        if _POLICY_VERSION.fullmatch(f"{name}@1") is None:
            raise self.refuse(values["name"], f"The name of policy {name} must have no blanks and no @.")
        self.once(names, values["name"], name, "Policy")
        numbers: set[str] = set()
        versions = []
        for member in self.sequence(values["versions"], f"The versions of {name}"):
            with self.going_on():
                versions.append(self._version(member, name, numbers))
        return PolicyEntry(
            name=name,
            description=self.text(values["description"], f"The description of {name}")
            if "description" in values
            else None,
            versions=tuple(sorted(versions, key=lambda version: version.version)),
            place=self.place(node),
        )

    def _version(self, node: yaml.Node, policy: str, numbers: set[str]) -> VersionEntry:
        required = ("version", "mlflow_model_name", "mlflow_model_version")
        values = self.mapping(node, f"A version of {policy}", required, ("description", "status", "config_defaults"))
        number = self.number(values["version"], f"A version of {policy}")
        label = f"{policy}@{number}"
        self.once(numbers, values["version"], str(number), f"In {policy}, version")
        defaults = values.get("config_defaults")
        status = values.get("status")
        return VersionEntry(
            version=number,
            mlflow_model_name=self.name(values["mlflow_model_name"], f"The mlflow_model_name of {label}"),
            mlflow_model_version=self.number(values["mlflow_model_version"], f"The mlflow_model_version of {label}"),
            status="active" if status is None else self.choice(status, f"The status of {label}", VERSION_STATUSES),
            config_defaults={} if defaults is None else self.json(defaults, f"The config_defaults of {label}"),
            description=self.text(values["description"], f"The description of {label}")
            if "description" in values
            else None,
            place=self.place(node),
        )


def _room_for_last(variants: Sequence[VariantEntry]) -> str:
    """What the others shrink to, where the last variant was added to allocations that summed to 1."""
    *others, last = variants
    if sum(other.allocation for other in others) != WHOLE or not last.allocation:
        return ""
    shares = shrink_shares([other.allocation for other in others], last.allocation)
    told = ", ".join(f"{other.name} to {share}" for other, share in zip(others, shares, strict=True))
    return f"; to make room for {last.name}, shrink {told}"


def _as_control(entry: VariantEntry) -> VariantEntry:
    return VariantEntry(**{**vars(entry), "role": "control"})
