"""Reading a mapping from YAML: what it says, or every rule that it breaks with file and line."""

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import msgspec
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from eventlog.imports.mapping import (
    EPOCHS,
    WHOLE_OBJECT,
    DeclaredExperiment,
    EventEntry,
    EventMapping,
    Kind,
    Moment,
    NamedExperiment,
    Value,
)
from eventlog.validation import EVENT_TYPES, UNIT_TYPES
from experimentation.config.files import Number
from experimentation.runs.run import ExperimentationError
from foundation import yaml_files
from foundation.yaml_files import (
    ConfigError,
    Items,
    Name,
    RuleError,
    Scalar,
    Section,
    Text,
    YamlFile,
    YamlModel,
    placed,
)

_CONSTANTS = ("text", "a number", "yes or no", "a date")
REQUIRED = ("event_type", "unit_type", "unit_id", "timestamp")


class MappingMissingError(ExperimentationError):
    """The mapping file does not exist."""


# values


def _zone(given: Any) -> ZoneInfo:
    name = yaml_files.text(given)
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"must be like Europe/Berlin or UTC: {name} is unknown") from None


class _Source(YamlModel):
    """The columns that a value comes from, and what their texts become."""

    column: Name | None = None
    columns: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    values: dict[Annotated[str, BeforeValidator(str)], Any] | None = None
    default: Any = None

    def value(self, kind: Kind | None) -> Value:
        """What is read from a row. Raises ValueError."""
        if (self.column is None) == (self.columns is None):
            raise ValueError("must be a constant, or name its `column`, or several `columns`")
        kind = getattr(self, "kind", None) or kind
        choices = None if self.values is None else {key: _constant(given, kind) for key, given in self.values.items()}
        default = None if self.default is None else _constant(self.default, kind)
        columns = self.columns if self.column is None else (self.column,)
        return Value(self.place, columns or (), None, choices, default, kind)


class _Columns(_Source):
    kind: Literal["text", "number", "flag", "json"] | None = Field(default=None, alias="as")


class _IdColumns(_Source):
    """Only a UUID can be an event_id, so any other text is hashed to one."""

    kind: Literal["hash"] | None = Field(default=None, alias="as")


class _TimeColumns(_Source):
    format: Text = "iso"
    zone: Annotated[ZoneInfo, PlainValidator(_zone)] | None = None

    @field_validator("format")
    @classmethod
    def _known(cls, form: str) -> str:
        if form != "iso" and form not in EPOCHS and "%" not in form:
            raise ValueError(f"must be iso, {', '.join(EPOCHS)} or a pattern like '%d.%m.%Y %H:%M', not {form}")
        return form

    def moment(self) -> Moment:
        """The point in time that is read from a row. Raises ValueError."""
        if "%" in self.format and "%z" not in self.format and self.zone is None:
            raise ValueError("has a format without an offset (%z): state its `zone`, like Europe/Berlin or UTC")
        return Moment(self.value("text"), self.format, self.zone)


@dataclass(frozen=True)
class _Read:
    """Makes a Value: a scalar is a constant, a mapping names columns."""

    kind: Kind | None
    source: type[_Source] = _Columns

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self.read, handler.generate_schema(self.source))

    def read(self, given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Raises ValueError."""
        if isinstance(given, Scalar):
            return Value(given.place, constant=_constant(given, self.kind), kind=self.kind)
        return handler(given).value(self.kind)


class _ReadMoment(_Read):
    def read(self, given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(given, Scalar):
            return Moment(Value(given.place, constant=yaml_files.moment(given)))
        return handler(given).moment()


def _constant(given: Any, kind: Kind | None) -> Any:
    if not isinstance(given, Scalar) or yaml_files.kind_of(given) not in _CONSTANTS:
        raise RuleError(given.place, "must be one value: text, a number, yes or no")
    if kind == "text" or yaml_files.kind_of(given) == "a date":
        if not given:
            raise RuleError(given.place, "is empty")
        return str(given)
    value = given.value
    if kind != "number":
        return value
    if not isinstance(value, int | float):
        raise RuleError(given.place, f"must be a number, yes or no, not {given}")
    return int(value) if isinstance(value, bool) else value


def _as_written(given: Any) -> str:
    if not isinstance(given, Scalar):
        raise ValueError("must be a single value")
    return str(given)


def _constants_of(value: Value) -> list[Any]:
    """What the mapping itself makes of rows: the choices, or the constant."""
    return [given for given in (value.choices.values() if value.choices else [value.constant]) if given is not None]


def _of_a_known_event_type(value: Value) -> Value:
    for given in _constants_of(value):
        if given not in EVENT_TYPES and not str(given).startswith("custom."):
            near = difflib.get_close_matches(str(given), EVENT_TYPES, n=1)
            hint = f". Did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be {', '.join(sorted(EVENT_TYPES))} or start with custom., not {given}{hint}")
    return value


def _of_a_known_unit_type(value: Value) -> Value:
    for given in _constants_of(value):
        if given not in UNIT_TYPES:
            raise ValueError(f"must be one of {', '.join(sorted(UNIT_TYPES))}, not {given}")
    return value


def _named_columns(given: Any) -> Any:
    """A list of columns is short for a mapping in which each keeps its name."""
    if not isinstance(given, Items):
        return given
    for member in given:
        yaml_files.name(member)
    return placed(Section({name: placed(Section(column=name), given.place) for name in given}), given.place)


def _one_column_each_object(given: dict[str, Value]) -> dict[str, Value]:
    if WHOLE_OBJECT in given and len(given[WHOLE_OBJECT].columns) != 1:
        raise RuleError(given[WHOLE_OBJECT].place, f"must name the one column that holds an object for {WHOLE_OBJECT}")
    return given


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("names a column twice")
    return names


_Key = Annotated[str, BeforeValidator(str)]
_Texts = Annotated[
    frozenset[Annotated[str, PlainValidator(_as_written)]],
    BeforeValidator(lambda given: given if isinstance(given, Items) else [given]),
]
_Text = Annotated[Value, _Read("text")]
_Time = Annotated[Moment, _ReadMoment("text", _TimeColumns)]
_LIST, _WHOLE = BeforeValidator(_named_columns), AfterValidator(_one_column_each_object)
_Object = Annotated[dict[_Key, Annotated[Value, _Read(None)]], _LIST, _WHOLE]
_Metrics = Annotated[dict[_Key, Annotated[Value, _Read("number")]], _LIST, _WHOLE]


# the file


class _EventFields(YamlModel):
    """What events of the mapping share, or what one of them says itself."""

    event_type: Annotated[_Text, AfterValidator(_of_a_known_event_type)] | None = None
    unit_type: Annotated[_Text, AfterValidator(_of_a_known_unit_type)] | None = None
    unit_id: _Text | None = None
    timestamp: _Time | None = None
    event_id: Annotated[Value, _Read("text", _IdColumns)] | None = None
    context: _Object = Field(default_factory=dict)
    metrics: _Metrics = Field(default_factory=dict)
    payload: _Object = Field(default_factory=dict)
    where: dict[Name, _Texts] = Field(default_factory=dict)

    def event_fields(self) -> dict[str, Any]:
        """The fields of an EventEntry that are stated here."""
        return {key: getattr(self, key) for key in _EventFields.model_fields if key in self.model_fields_set}


class _MappingFile(_EventFields):
    experiment: Any = None
    variant: _Text | None = None
    assigned_at: _Time | None = None
    events: Annotated[list[Any], Field(min_length=1)] | None = None
    nulls: _Texts = frozenset()
    header: Annotated[tuple[Name, ...], AfterValidator(_different)] = ()


class _Named(YamlModel):
    name: Name
    run: Number | None = None


def read_mapping(path: Path) -> EventMapping:
    """Read a mapping. Raises MappingMissingError, and ConfigError with every problem."""
    if not path.exists():
        raise MappingMissingError(f"{path} does not exist: write a mapping there, as docs/importing-events.md shows.")
    file = YamlFile(path)
    fields = file.read(_MappingFile, file.root, partly=True)
    mapping = None if fields is None or not isinstance(file.root, Section) else _mapping(file, file.root, fields)
    if mapping is None or file.problems:
        raise ConfigError(file.problems)
    return mapping


def _mapping(file: YamlFile, root: Section, fields: _MappingFile) -> EventMapping:
    """Notes what is wrong with the experiment and the events, and with both together."""
    experiment = _experiment(file, root["experiment"]) if "experiment" in root else None
    declared = experiment if isinstance(experiment, DeclaredExperiment) else None
    if ("experiment" in root) != ("variant" in root):
        file.refuse(
            root["variant" if "variant" in root else "experiment"].place,
            "`experiment` and `variant` go together: the first says which experiment, the second which variant a row had.",
        )
    if "assigned_at" in root and not _declares(root.get("experiment")):
        file.refuse(
            root["assigned_at"].place,
            "`assigned_at` is only for an experiment that the mapping declares, with its variants.",
        )
    if declared is not None and fields.variant is not None:
        _check_variants(file, fields.variant, declared)
    return EventMapping(
        path=file.path,
        digest=hashlib.sha256(msgspec.json.encode(_plain(root))).hexdigest(),
        events=tuple(_events(file, root, fields, declared)),
        experiment=experiment,
        variant=fields.variant,
        assigned_at=fields.assigned_at,
        nulls=fields.nulls,
        header=fields.header,
    )


def _events(
    file: YamlFile, root: Section, shared: _MappingFile, declared: DeclaredExperiment | None
) -> Iterator[EventEntry]:
    """The usable events; notes what is wrong with the others."""
    members = root["events"] if isinstance(root.get("events"), Items) else placed(Items([root]), root.place)
    shared_id = False
    optional = ("unit_type",) if _declares(root.get("experiment")) else ()
    for index, node in enumerate(members):
        label = "The mapping" if node is root else f"events[{index}]"
        own = shared if node is root else file.read(_EventFields, node, label, partly=True)
        if own is None:
            continue
        if missing := [key for key in REQUIRED if key not in {*root, *node, *optional}]:
            file.refuse(node.place, f"{label} needs {' and '.join(missing)}.")
        given = {**shared.event_fields(), **own.event_fields()}
        if declared is not None:
            unit_type = given.setdefault("unit_type", Value(declared.place, constant=declared.unit_type))
            if unit_type.constant != declared.unit_type:
                file.refuse(
                    unit_type.place,
                    f"The units of {declared.name} are of the type {declared.unit_type}: leave unit_type out here.",
                )
        event_id = given.get("event_id")
        shared_id |= len(members) > 1 and event_id is not None and event_id.kind != "hash"
        if given.keys() >= {*REQUIRED}:
            yield EventEntry(**given)
    if shared_id:
        file.refuse(
            members.place, "The events of a row would share one event_id: add `as: hash` to it, or leave it out."
        )


def _experiment(file: YamlFile, node: Any) -> NamedExperiment | DeclaredExperiment | None:
    if isinstance(node, Scalar):
        name = file.read(Name, node, "experiment")
        return None if name is None else NamedExperiment(Value(node.place, constant=name, kind="text"))
    if _declares(node):
        return file.read(DeclaredExperiment, node, "experiment")
    if isinstance(node, Section) and ("column" in node or "columns" in node):
        value = file.read(_Text, node, "experiment")
        return None if value is None else NamedExperiment(value)
    named = file.read(_Named, node, "experiment")
    return None if named is None else NamedExperiment(Value(node.place, constant=named.name, kind="text"), named.run)


def _declares(node: Any) -> bool:
    """Whether `experiment` declares one that ran elsewhere, usable or not."""
    return isinstance(node, Section) and "variants" in node and not node.keys() & {"column", "columns"}


def _check_variants(file: YamlFile, variant: Value, declared: DeclaredExperiment) -> None:
    names = [known.name for known in declared.variants if known.role != "remainder"]
    for name in (*(variant.choices or {}).values(), variant.constant, variant.default):
        if name is not None and name not in names:
            file.refuse(
                variant.place,
                f"{declared.name} has no variant {name} that units are in: it has {', '.join(names)}.",
            )


def _plain(node: Any) -> Any:
    """What the file says, without comments and layout."""
    if isinstance(node, Section):
        return [[_plain(key), _plain(value)] for key, value in node.items()]
    if isinstance(node, Items):
        return [_plain(member) for member in node]
    return [node.tag, str(node)]
