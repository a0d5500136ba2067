"""Reading a mapping from YAML: what it says, or every rule that it breaks with file and line."""

import difflib
import hashlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import yaml

from eventlog.imports.mapping import (
    EPOCHS,
    OBJECTS,
    WHOLE_OBJECT,
    DeclaredExperiment,
    EventEntry,
    EventMapping,
    Moment,
    NamedExperiment,
    Value,
)
from eventlog.validation import EVENT_TYPES, UNIT_TYPES
from experimentation.config.yaml_nodes import ConfigError, Reader, UnusableValueError
from experimentation.runs.allocations import WHOLE
from experimentation.runs.run import NewVariant
from foundation.errors import LifecycleError

P = ParamSpec("P")
T = TypeVar("T")

REQUIRED = ("event_type", "unit_type", "unit_id", "timestamp")
OF_AN_EVENT = (*REQUIRED, "event_id", *OBJECTS, "where")
OF_THE_FILE = ("experiment", "variant", "assigned_at", "events", "nulls", "header")
KINDS = ("text", "number", "flag", "json", "hash")
ROLES = ("control", "treatment", "remainder")
_VALUE_KEYS = ("column", "columns", "values", "default", "as")
_TIME_KEYS = (*_VALUE_KEYS[:4], "format", "zone")
_SCALARS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")


class MappingMissingError(LifecycleError):
    """There is no such mapping file."""


def read_mapping(path: Path) -> EventMapping:
    """Read a mapping. Raises MappingMissingError, and ConfigError with every problem."""
    if not path.exists():
        raise MappingMissingError(f"{path} does not exist: write a mapping there, as docs/importing-events.md shows.")
    reader = _MappingFile(path)
    with suppress(UnusableValueError):
        mapping = reader.read()
        if not reader.problems:
            return mapping
    raise ConfigError(reader.problems)


class _MappingFile(Reader):
    def read(self) -> EventMapping:
        root = self.document()
        if root is None:
            if not self.problems:
                self._note(1, f"The file is empty: a mapping needs at least {', '.join(REQUIRED)}.")
            raise UnusableValueError
        values = self.mapping(root, "A mapping", (), (*OF_THE_FILE, *OF_AN_EVENT))
        experiment = self._experiment(values["experiment"]) if "experiment" in values else None
        declared = experiment if isinstance(experiment, DeclaredExperiment) else None
        variant = self._tried(self._value, values["variant"], "variant", "text") if "variant" in values else None
        if ("experiment" in values) != ("variant" in values):
            raise self.refuse(
                values["variant" if "variant" in values else "experiment"],
                "`experiment` and `variant` go together: one says which experiment, the other which variant a row had.",
            )
        assigned_at = None
        if "assigned_at" in values:
            assigned_at = self._tried(self._moment, values["assigned_at"], "assigned_at")
            if declared is None:
                self.refuse(
                    values["assigned_at"],
                    "`assigned_at` is for an experiment that the mapping declares, with its variants.",
                )
        if declared is not None:
            self._check_constant_variant(values["variant"], variant, declared)
        events = self._events(root, values, declared)
        return EventMapping(
            path=self.path,
            # After all was read, which refuses what contains itself.
            digest="" if self.problems else hashlib.sha256(msgspec.json.encode(_plain(root))).hexdigest(),
            events=events,
            experiment=experiment,
            variant=variant,
            assigned_at=assigned_at,
            nulls=frozenset(self._texts(values["nulls"], "`nulls`")) if "nulls" in values else frozenset(),
            header=self._header(values["header"]) if "header" in values else (),
        )

    # events

    def _events(
        self, root: yaml.Node, values: Mapping[str, yaml.Node], declared: DeclaredExperiment | None
    ) -> tuple[EventEntry, ...]:
        shared = {key: values[key] for key in OF_AN_EVENT if key in values}
        if "events" not in values:
            return (self._event(root, shared, declared),)
        found = []
        members = self.sequence(values["events"], "`events`")
        if not members:
            raise self.refuse(values["events"], "`events` is empty: list at least one event, or leave it out.")
        for member in members:
            with suppress(UnusableValueError):
                own = self.mapping(member, "An event", (), OF_AN_EVENT)
                found.append(self._event(member, {**shared, **own}, declared))
        if len(members) > 1 and any(entry.event_id is not None and entry.event_id.kind != "hash" for entry in found):
            self.refuse(
                values["events"], "The events of a row would share one event_id: say `as: hash` there, or leave it out."
            )
        return tuple(found)

    def _event(
        self, node: yaml.Node, values: Mapping[str, yaml.Node], declared: DeclaredExperiment | None
    ) -> EventEntry:
        needed = [key for key in REQUIRED if key not in values and not (key == "unit_type" and declared is not None)]
        if needed:
            raise self.refuse(node, f"An event needs {' and '.join(needed)}.")
        event_type = self._tried(self._event_type, values["event_type"])
        unit_type = self._tried(self._unit_type, values.get("unit_type"), declared)
        unit_id = self._tried(self._value, values["unit_id"], "unit_id", "text")
        timestamp = self._tried(self._moment, values["timestamp"], "timestamp")
        event_id = self._tried(self._value, values["event_id"], "event_id", "text") if "event_id" in values else None
        objects = {key: self._tried(self._object, values[key], key) or {} for key in OBJECTS if key in values}
        where = self._tried(self._where, values["where"]) if "where" in values else None
        if event_type is None or unit_type is None or unit_id is None or timestamp is None:
            raise UnusableValueError
        return EventEntry(event_type, unit_type, unit_id, timestamp, event_id, **objects, where=where or {})

    def _tried(self, read: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | None:
        """What `read` makes of it; None where it noted a problem, so that what is wrong elsewhere is told as well."""
        with suppress(UnusableValueError):
            return read(*given, **named)
        return None

    def _event_type(self, node: yaml.Node) -> Value:
        value = self._value(node, "event_type", "text")
        for given in value.choices.values() if value.choices else [value.constant]:
            if given is not None and given not in EVENT_TYPES and not str(given).startswith("custom."):
                near = difflib.get_close_matches(str(given), EVENT_TYPES, n=1)
                meant = f" Did you mean {near[0]}?" if near else ""
                self.refuse(
                    node,
                    f"There is no event type {given}: use {', '.join(sorted(EVENT_TYPES))}, or custom. and a name.{meant}",
                )
        return value

    def _unit_type(self, node: yaml.Node | None, declared: DeclaredExperiment | None) -> Value:
        if node is None:
            assert declared is not None
            return Value(declared.place, constant=declared.unit_type)
        value = self._value(node, "unit_type", "text")
        for given in value.choices.values() if value.choices else [value.constant]:
            if given is not None and given not in UNIT_TYPES:
                self.refuse(node, f"unit_type must be one of {', '.join(sorted(UNIT_TYPES))}, not {given}.")
        if declared is not None and value.constant != declared.unit_type:
            self.refuse(
                node, f"The units of {declared.name} are of the type {declared.unit_type}: leave unit_type out here."
            )
        return value

    def _object(self, node: yaml.Node, what: str) -> dict[str, Value]:
        """`{key: value}`, or a list of columns that keep their names."""
        kind = "number" if what == "metrics" else None
        if isinstance(node, yaml.SequenceNode):
            names = [self.name(member, f"A column of {what}") for member in node.value]
            return {name: Value(self.place(node), columns=(name,), kind=kind) for name in names}  # type: ignore[arg-type]
        found: dict[str, Value] = {}
        for key, given in self.pairs(node, f"`{what}`"):
            with suppress(UnusableValueError):
                name = str(key.value)
                if name in found:
                    raise self.refuse(key, f"{what} has {name} twice.")
                value = self._value(given, f"{what}.{name}", kind)
                if name == WHOLE_OBJECT and len(value.columns) != 1:
                    raise self.refuse(given, f"{what}.{WHOLE_OBJECT} must name the one column that holds an object.")
                found[name] = value
        return found

    def _where(self, node: yaml.Node) -> dict[str, frozenset[str]]:
        found = {}
        for key, given in self.pairs(node, "`where`"):
            name = self.name(key, "A column of `where`")
            found[name] = frozenset(self._texts(given, f"`where` of {name}"))
        return found

    # values

    def _value(self, node: yaml.Node, what: str, kind: Any, keys: Collection[str] = _VALUE_KEYS) -> Value:
        """A scalar is a constant, a mapping says which column."""
        if isinstance(node, yaml.ScalarNode):
            return Value(self.place(node), constant=self._constant(node, what, kind), kind=kind)
        values = self.mapping(node, what, (), keys)
        if ("column" in values) == ("columns" in values):
            raise self.refuse(node, f"{what} must be a constant, or name its `column`, or several `columns`.")
        if "column" in values:
            columns: tuple[str, ...] = (self.name(values["column"], f"The column of {what}"),)
        else:
            members = self.sequence(values["columns"], f"The columns of {what}")
            columns = tuple(self.name(member, f"A column of {what}") for member in members)
        if not columns:
            raise self.refuse(values["columns"], f"The columns of {what} are none.")
        if "as" in values:
            kind = self.choice(values["as"], f"`as` of {what}", KINDS)
            if (kind == "hash") != (what == "event_id"):
                raise self.refuse(
                    values["as"],
                    "`as: hash` makes an event_id of a text, and nothing else can be an event_id but a UUID.",
                )
        choices = None
        if "values" in values:
            pairs = self.pairs(values["values"], f"The values of {what}")
            choices = {str(key.value): self._constant(given, f"A value of {what}", kind) for key, given in pairs}
        default = self._constant(values["default"], f"The default of {what}", kind) if "default" in values else None
        return Value(self.place(node), columns, None, choices, default, kind)

    def _constant(self, node: yaml.Node, what: str, kind: str | None) -> Any:
        if node.tag not in _SCALARS and not node.tag.endswith(":timestamp"):
            raise self.refuse(node, f"{what} must be one value: text, a number, yes or no.")
        if kind == "text" or node.tag.endswith(":timestamp"):
            if not str(node.value):
                raise self.refuse(node, f"{what} is empty.")
            return str(node.value)
        value = _scalar(node)
        if kind == "number":
            if isinstance(value, bool):
                return int(value)
            if not isinstance(value, int | float):
                raise self.refuse(node, f"{what} must be a number, yes or no, not {node.value}.")
        return value

    def _moment(self, node: yaml.Node, what: str) -> Moment:
        if isinstance(node, yaml.ScalarNode):
            return Moment(Value(self.place(node), constant=self.moment(node, what)))
        value = self._value(node, what, "text", _TIME_KEYS)
        values = self.mapping(node, what, (), _TIME_KEYS)
        form = self.text(values["format"], f"The format of {what}") if "format" in values else "iso"
        if form != "iso" and form not in EPOCHS and "%" not in form:
            raise self.refuse(
                values["format"],
                f"The format of {what} must be iso, {', '.join(EPOCHS)} or a pattern like '%d.%m.%Y %H:%M', not {form}.",
            )
        zone = self._zone(values["zone"], what) if "zone" in values else None
        if "%" in form and "%z" not in form and zone is None:
            raise self.refuse(
                node, f"{what} has a format without an offset (%z): say its `zone`, like Europe/Berlin or UTC."
            )
        return Moment(value, form, zone)

    def _zone(self, node: yaml.Node, what: str) -> ZoneInfo:
        name = self.text(node, f"The zone of {what}")
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise self.refuse(
                node, f"The zone of {what} must be like Europe/Berlin or UTC: {name} is not known."
            ) from None

    def _texts(self, node: yaml.Node, what: str) -> list[str]:
        """One scalar, or a list of them, each as it is written."""
        members = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for member in members:
            if not isinstance(member, yaml.ScalarNode):
                raise self.refuse(member, f"{what} must be single values.")
        return [str(member.value) for member in members]

    def _header(self, node: yaml.Node) -> tuple[str, ...]:
        names = [self.name(member, "A column of `header`") for member in self.sequence(node, "`header`")]
        if len(set(names)) != len(names):
            raise self.refuse(node, "`header` names a column twice.")
        return tuple(names)

    # experiments

    def _experiment(self, node: yaml.Node) -> NamedExperiment | DeclaredExperiment:
        if isinstance(node, yaml.ScalarNode):
            return NamedExperiment(
                Value(self.place(node), constant=self.name(node, "The name of the experiment"), kind="text")
            )
        keys = {key.value for key, _ in self.pairs(node, "`experiment`") if isinstance(key, yaml.ScalarNode)}
        if "column" in keys or "columns" in keys:
            return NamedExperiment(self._value(node, "experiment", "text"))
        if "variants" not in keys:
            values = self.mapping(node, "An experiment", ("name",), ("run",))
            name = Value(
                self.place(node), constant=self.name(values["name"], "The name of the experiment"), kind="text"
            )
            return NamedExperiment(
                name, self.number(values["run"], "The run of the experiment") if "run" in values else None
            )
        return self._declared(node)

    def _declared(self, node: yaml.Node) -> DeclaredExperiment:
        required = ("name", "unit_type", "variants", "started", "ended")
        values = self.mapping(node, "An experiment that ran elsewhere", required, ("description",))
        name = self.name(values["name"], "The name of the experiment")
        if "/" in name:
            self.refuse(values["name"], f"The name of experiment {name} must have no /: it stands in URLs.")
        started = self.moment(values["started"], f"The start of {name}")
        ended = self.moment(values["ended"], f"The end of {name}")
        if ended <= started:
            self.refuse(values["ended"], f"{name} must end after it started.")
        return DeclaredExperiment(
            name=name,
            unit_type=self.choice(values["unit_type"], f"The unit_type of {name}", sorted(UNIT_TYPES)),
            variants=self._variants(values["variants"], name),
            started=started,
            ended=ended,
            description=self.text(values["description"], f"The description of {name}")
            if "description" in values
            else None,
            place=self.place(node),
        )

    def _variants(self, node: yaml.Node, experiment: str) -> tuple[NewVariant, ...]:
        found: dict[str, NewVariant] = {}
        for key, given in self.pairs(node, f"The variants of {experiment}"):
            name = self.name(key, f"The name of a variant of {experiment}")
            label = f"{experiment}'s variant {name}"
            if name in found:
                raise self.refuse(key, f"{label} stands here twice.")
            values = self.mapping(given, label, ("role", "allocation"), ("description",))
            share = self.share(values["allocation"], f"The allocation of {label}")
            if not share:
                raise self.refuse(
                    values["allocation"], f"The allocation of {label} is 0: then no unit could have had it."
                )
            described = (
                self.text(values["description"], f"The description of {label}") if "description" in values else None
            )
            role = self.choice(values["role"], f"The role of {label}", ROLES)
            found[name] = NewVariant(name, role, share, description=described)
        if sum(variant.allocation for variant in found.values()) != WHOLE:
            raise self.refuse(
                node,
                f"The allocations of {experiment} must sum to 1: give what nobody was enrolled in as a variant with the role remainder.",
            )
        if [variant.role for variant in found.values()].count("control") != 1:
            raise self.refuse(node, f"{experiment} needs exactly one variant with the role control.")
        return tuple(found.values())

    def _check_constant_variant(self, node: yaml.Node, variant: Value | None, declared: DeclaredExperiment) -> None:
        if variant is None:
            return
        given = [*(variant.choices or {}).values(), variant.constant, variant.default]
        names = [known.name for known in declared.variants if known.role != "remainder"]
        for name in given:
            if name is not None and name not in names:
                self.refuse(
                    node, f"{declared.name} has no variant {name} that units are in: it has {', '.join(names)}."
                )


def _scalar(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node)


def _plain(node: yaml.Node) -> Any:
    """What is said, without comments and layout."""
    if isinstance(node, yaml.MappingNode):
        return [[_plain(key), _plain(value)] for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [_plain(member) for member in node.value]
    return [node.tag, node.value]
