"""YAML files, read into pydantic models.

Every problem names file and line, and all problems of a file are reported at once. A file becomes a tree of `Section`, `Items` and
`Scalar`, which are plain dicts, lists and texts that know their line. The types below (`Text`, `Name`, `Whole`, `Moment`, `Json`) take
their values from it: a scalar keeps the text as written, so nothing exact goes through a float.
"""

import difflib
import math
from bisect import insort
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    PlainValidator,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from foundation.errors import LifecycleError

T = TypeVar("T")
LONGEST_NAME = 255
# An alias stands for all that its anchor holds, so a short file of nested aliases can stand for billions of values.
MOST_REPEATED = 10_000
_CORE = "tag:yaml.org,2002:"
STR, INT = f"{_CORE}str", f"{_CORE}int"
_JSON_KINDS = {
    f"{_CORE}null": "nothing",
    f"{_CORE}bool": "yes or no",
    INT: "a number",
    f"{_CORE}float": "a number",
    STR: "text",
}
_KINDS = {**_JSON_KINDS, f"{_CORE}timestamp": "a date", f"{_CORE}merge": "<<", f"{_CORE}value": "="}


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1."""

    file: str
    line: int


@dataclass(frozen=True)
class Problem:
    """A rule that a file breaks, and where."""

    place: Place
    rule: str

    def __str__(self) -> str:
        """`config/experiments.yml:12: the rule.`"""
        return f"{self.place.file}:{self.place.line}: {self.rule}"


class ConfigError(LifecycleError):
    """A file can't be used. The text has a line for each problem, with file, line and rule."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """`problems`: at least one."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class RuleError(ValueError):
    """A value inside the validated one breaks a rule. The text completes a sentence that begins with the validated value."""

    def __init__(self, place: Place, rule: str) -> None:
        """`place`: where the value inside stands."""
        super().__init__(rule)
        self.place = place


class Section(dict[str, Any]):
    """A mapping. Its keys are scalars."""

    place: Place


class Items(list[Any]):
    """A list."""

    place: Place


class Scalar(str):
    """A scalar: its text as written, and the YAML tag that says what the text stands for."""

    place: Place
    tag: str

    @property
    def value(self) -> Any:
        """What YAML takes the text for; dates stay text. Raises ValueError for a text that does not fit its tag."""
        if self.tag not in _JSON_KINDS:
            return str(self)
        try:
            return yaml.constructor.SafeConstructor().construct_document(yaml.ScalarNode(self.tag, str(self)))
        except (KeyError, ValueError, IndexError):
            raise ValueError(f"must be {_KINDS[self.tag]} that can be read, not {self[:40]}") from None


N = TypeVar("N", Section, Items, Scalar)


def placed(node: N, place: Place) -> N:
    """The node, which now knows its place."""
    node.place = place
    return node


class _UnknownKey(str):
    """Takes the place of the value of an unknown key, so that the problem is noted for the line of the key."""

    place: Place


class YamlModel(BaseModel):
    """A mapping of a YAML file. Unknown keys are refused. It knows where it and its values stand."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    _section: Section = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_section(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, Section):
            return handler(given)
        known = [field.alias or name for name, field in cls.model_fields.items()]
        marked = {key: value if key in known else _unknown(key, known) for key, value in given.items()}
        entry = handler(placed(Section(marked), given.place))
        entry._section = given
        return entry

    @property
    def place(self) -> Place:
        """Where the mapping begins."""
        return self._section.place

    def place_of(self, key: str) -> Place:
        """Where the value of a key begins. Raises KeyError for a key that the file does not have."""
        place: Place = self._section[key].place
        return place


class YamlFile:
    """A YAML file as a tree, `root`: None when it can't be read. `problems` collects what is wrong, in the order of the lines."""

    def __init__(self, path: Path) -> None:
        """Reads the file."""
        self.path = path
        self.problems: list[Problem] = []
        self.root: Section | Items | Scalar | None = None
        self._known: set[yaml.Node] = set()
        self._repeated = 0
        try:
            document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            self.root = placed(Section(), self._place(0)) if document is None else self._tree(document, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.refuse(self._place(mark.line if mark else 0), f"This is not YAML: {error.problem or error.context}.")
        except (yaml.YAMLError, UnicodeDecodeError):
            self.refuse(self._place(0), "This is not YAML: the file contains characters that are not text.")
        except RecursionError:
            self.refuse(self._place(0), "The file is nested too deeply.")
        except RuleError as error:
            self.refuse(error.place, f"{error}.")
        except FileNotFoundError:
            self.refuse(
                self._place(0),
                "The file does not exist: create it, or set LIFECYCLE_CONFIG_DIR to the folder that has it.",
            )

    def read(self, kind: type[T], node: Any, label: str = "", *, partly: bool = False) -> T | None:
        """The node as this type; None, with every problem noted, if it does not fit. None is read as None.

        `label` is what messages call the node. With `partly`, a mapping is read without the values that don't fit, which suits models
        without required keys.
        """
        if node is None:
            return None
        failed: set[int | str] = set()
        try:
            return TypeAdapter(kind).validate_python(node, context=self)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                cause = item.get("ctx", {}).get("error")
                given = cause if isinstance(cause, RuleError) else item["input"]
                self.refuse(getattr(given, "place", node.place), _sentence(node, item, label))
                failed.update(item["loc"][:1])
        if not partly or not isinstance(node, Section):
            return None
        usable = Section({key: value for key, value in node.items() if key not in failed})
        return TypeAdapter(kind).validate_python(placed(usable, node.place))

    def usable(self, kind: type[T], key: str) -> list[T]:
        """Those members of one of the file's lists that fit the type; problems are not noted."""
        members = self.root.get(key) if isinstance(self.root, Section) else None
        result = []
        for member in members if isinstance(members, Items) else ():
            with suppress(ValidationError):
                result.append(TypeAdapter(kind).validate_python(member))
        return result

    def refuse(self, place: Place, rule: str) -> None:
        """Note a problem."""
        insort(self.problems, Problem(place, rule), key=lambda known: known.place.line)

    def _place(self, line: int) -> Place:
        return Place(str(self.path), line + 1)

    def _tree(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> Any:
        place = self._place(node.start_mark.line)
        if node in above:
            raise RuleError(place, "This value contains itself, through an alias")
        self._repeated += node in self._known
        self._known.add(node)
        if self._repeated > MOST_REPEATED:
            raise RuleError(place, f"Aliases repeat more than {MOST_REPEATED} values")
        inside = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return placed(Items(self._tree(member, inside) for member in node.value), place)
        if isinstance(node, yaml.MappingNode):
            section = placed(Section(), place)
            for key, value in ((self._tree(key, inside), self._tree(value, inside)) for key, value in node.value):
                if not isinstance(key, Scalar):
                    self.refuse(key.place, f"A key must be text, not {kind_of(key)}.")
                elif key in section:
                    self.refuse(key.place, f"The key {key} is repeated.")
                else:
                    section[key] = value
            return section
        if node.tag not in _KINDS:
            self.refuse(place, f"The tag {node.tag} is not supported: leave it out.")
        scalar = placed(Scalar(node.value), place)
        scalar.tag = node.tag if node.tag in _KINDS else STR
        return scalar


def unique(identity: str) -> BeforeValidator:
    """For a list of mappings: notes each member whose identity an earlier one has, and lets the list pass."""

    def check(given: Any, info: ValidationInfo) -> Any:
        names = (
            [member.get(identity) for member in given if isinstance(member, Section)]
            if isinstance(given, Items)
            else []
        )
        for index, name in enumerate(names):
            if name in names[:index] and isinstance(name, Scalar) and info.context is not None:
                info.context.refuse(name.place, f"The {identity} {name} is repeated.")
        return given

    return BeforeValidator(check)


def kind_of(value: Any) -> str:
    """What a person calls this kind of value: `a mapping`, `text`."""
    if isinstance(value, Scalar):
        return _KINDS.get(value.tag, value.tag)
    return "a mapping" if isinstance(value, Section) else "a list"


def shown(value: Any) -> str:
    """A value as a message quotes it: its text, or what kind of value it is."""
    return str(value)[:80] if isinstance(value, Scalar) and value else kind_of(value)


def text(given: Any) -> str:
    """Text that is not blank. Raises ValueError."""
    if not isinstance(given, Scalar) or given.tag != STR:
        raise ValueError(f"must be text, not {kind_of(given)}: put it in quotes")
    if not given.strip():
        raise ValueError("is empty")
    if "\0" in given or any("\ud800" <= character <= "\udfff" for character in given):
        raise ValueError("has a character that PostgreSQL can't store: NUL, or half of one")
    return str(given)


def name(given: Any) -> str:
    """Text without blanks around it that fits the database's columns. Raises ValueError."""
    result = text(given)
    if result != result.strip() or len(result) > LONGEST_NAME or not result.isprintable():
        raise ValueError(f"must be one line of at most {LONGEST_NAME} characters, without blanks around it")
    return result


def _whole(given: Any) -> int:
    if not isinstance(given, Scalar) or given.tag != INT:
        raise ValueError(f"must be a whole number, not {shown(given)}")
    return int(given.value)


def moment(given: Any) -> datetime:
    """A point in time, in UTC. Raises ValueError, also for a time without an offset."""
    try:
        result = datetime.fromisoformat(given if isinstance(given, Scalar) else "")
    except ValueError:
        raise ValueError("must be a time like 2025-01-31T08:00:00Z") from None
    if result.tzinfo is None:
        raise ValueError("must state its offset from UTC, like 2025-01-31T08:00:00Z")
    return result.astimezone(UTC)


def _json_object(given: Any) -> Any:
    if not isinstance(given, Section):
        raise ValueError(f"must be a mapping, not {kind_of(given)}")
    return _json(given)


def _json(given: Any) -> Any:
    if isinstance(given, Items):
        return [_json(member) for member in given]
    if isinstance(given, Section):
        for key in given:
            if isinstance(key, Scalar) and key.tag != STR:
                raise RuleError(key.place, f"must have text as keys, not {kind_of(key)}: put {key} in quotes")
        return {str(key): _json(member) for key, member in given.items()}
    value = given.value
    if given.tag not in _JSON_KINDS or (isinstance(value, float) and not math.isfinite(value)):
        raise RuleError(given.place, f"can't contain {given}, which JSON does not have: put it in quotes")
    return value


Text = Annotated[str, PlainValidator(text)]
Name = Annotated[str, PlainValidator(name)]
Whole = Annotated[int, BeforeValidator(_whole)]
Moment = Annotated[datetime, PlainValidator(moment)]
"""A point in time, in UTC. The file must state an offset."""
Json = Annotated[dict[str, Any], PlainValidator(_json_object)]


def _unknown(key: Any, known: list[str]) -> _UnknownKey:
    near = difflib.get_close_matches(key, known, 1)
    problem = _UnknownKey(
        f"Unknown key {key}" + (f". Did you mean {near[0]}?" if near else f": use {', '.join(known)}.")
    )
    problem.place = key.place
    return problem


def _name(node: Any, index: int) -> str:
    """How a member of a list is called in messages."""
    names = [node.get(key) for key in ("name", "version")] if isinstance(node, Section) else []
    return next((str(name) for name in names if isinstance(name, Scalar) and name), str(index))


def _label(node: Any, loc: tuple[int | str, ...], label: str) -> str:
    """`experiments[cards].variants[blue].allocation`."""
    for part in loc:
        if isinstance(part, int):
            if isinstance(node, Items):
                label += f"[{_name(node[part], part)}]"
                node = node[part]
        else:
            label = f"{label}.{part}" if label else part
            node = node.get(part) if isinstance(node, Section) else None
    return label


def _sentence(node: Any, item: Any, label: str) -> str:
    """A problem that pydantic found, as a sentence that names the value."""
    loc, given = item["loc"], item["input"]
    if isinstance(given, _UnknownKey):
        return given
    match item["type"]:
        case "missing":
            return f"{_label(node, loc[:-1], label) or 'The file'} needs {loc[-1]}."
        case "value_error":
            rule = str(item["ctx"]["error"])
        case "model_type" | "dict_type":
            rule = f"must be a mapping, not {kind_of(given)}"
        case "list_type" | "tuple_type" | "frozen_set_type":
            rule = f"must be a list, not {kind_of(given)}"
        case "too_short":
            rule = "is empty"
        case _:
            rule = f"{item['msg'].replace('Input should', 'must', 1)}, not {shown(given)}"
    is_key = loc[-1:] == ("[key]",)
    subject = f"A key of {_label(node, loc[:-2], label)}" if is_key else _label(node, loc, label) or "The file"
    return f"{subject} {rule}" + ("" if rule.endswith("?") else ".")
