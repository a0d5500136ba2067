"""Reading YAML with its line numbers: every complaint names file and line, and all complaints of a file come at once."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from experimentation.runs.allocations import parse_share
from experimentation.runs.run import ExperimentationError

_LONGEST_NAME = 255
_KINDS = {
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:bool": "yes or no",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:map": "a mapping",
    "tag:yaml.org,2002:seq": "a list",
    "tag:yaml.org,2002:str": "text",
}
_JSON_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True)
class Place:
    """Where something stands: a file and a line, counted from 1."""

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


class ConfigError(ExperimentationError):
    """Configuration files can't be used. The text has a line for each problem, which names file, line and rule."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """`problems`: at least one."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class UnusableValueError(Exception):
    """A value was refused; its problem is noted already, and what contains it is left out."""


class Reader:
    """Takes nodes apart and notes in `problems` what is wrong with them."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self.problems: list[Problem] = []

    def document(self) -> yaml.Node | None:
        """The file's content; None, with the problem noted, when it can't be read or is not YAML."""
        try:
            return yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._note(mark.line + 1 if mark else 1, f"This is not YAML: {error.problem or error.context}.")
        except (yaml.YAMLError, UnicodeDecodeError):
            self._note(1, "This is not YAML: the file holds characters that are no text.")
        except FileNotFoundError:
            self._note(1, "The file does not exist: make it, or name its folder with LIFECYCLE_CONFIG_DIR.")
        return None

    def place(self, node: yaml.Node) -> Place:
        """Where the node begins."""
        return Place(str(self.path), node.start_mark.line + 1)

    def refuse(self, node: yaml.Node, rule: str) -> UnusableValueError:
        """Note a problem; the error is returned for who wants to raise it."""
        self._note(node.start_mark.line + 1, rule)
        return UnusableValueError(rule)

    def mapping(
        self, node: yaml.Node, what: str, required: Collection[str], optional: Collection[str]
    ) -> dict[str, yaml.Node]:
        """The values by key. Unknown, repeated and missing keys are refused."""
        if not isinstance(node, yaml.MappingNode):
            raise self.refuse(node, f"{what} must be a mapping, not {_kind(node)}.")
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
            if name not in (*required, *optional):
                self.refuse(key, f"{what} has no key {name!r}: it may have {', '.join((*required, *optional))}.")
            elif name in values:
                self.refuse(key, f"{what} has the key {name!r} twice.")
            else:
                values[name] = value
        missing = [name for name in required if name not in values]
        if missing:
            raise self.refuse(node, f"{what} needs {' and '.join(missing)}.")
        return values

    def pairs(self, node: yaml.Node, what: str) -> list[tuple[yaml.Node, yaml.Node]]:
        """Keys and values of a mapping whose keys are not known beforehand."""
        if not isinstance(node, yaml.MappingNode):
            raise self.refuse(node, f"{what} must be a mapping, not {_kind(node)}.")
        return list(node.value)

    def sequence(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """The members of a list."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.refuse(node, f"{what} must be a list, not {_kind(node)}.")
        return list(node.value)

    def text(self, node: yaml.Node, what: str) -> str:
        """Text that is not blank."""
        if node.tag != "tag:yaml.org,2002:str":
            raise self.refuse(node, f"{what} must be text, not {_kind(node)}: put it in quotes.")
        if not str(node.value).strip():
            raise self.refuse(node, f"{what} is empty.")
        if "\0" in node.value or _has_surrogate(node.value):
            raise self.refuse(node, f"{what} holds a character that PostgreSQL can't keep: NUL, or half of one.")
        return str(node.value)

    def name(self, node: yaml.Node, what: str) -> str:
        """Text without blanks around it that fits the database's columns."""
        text = self.text(node, what)
        if text != text.strip() or len(text) > _LONGEST_NAME or not text.isprintable():
            raise self.refuse(
                node, f"{what} must be one line of at most {_LONGEST_NAME} characters, without blanks around it."
            )
        return text

    def choice(self, node: yaml.Node, what: str, choices: Sequence[str]) -> Any:
        """One of the choices."""
        if node.value not in choices or node.tag != "tag:yaml.org,2002:str":
            given = node.value if isinstance(node, yaml.ScalarNode) else _kind(node)
            raise self.refuse(node, f"{what} must be one of {', '.join(choices)}, not {given}.")
        return node.value

    def number(self, node: yaml.Node, what: str, least: int = 1, most: int | None = None) -> int:
        """A whole number from `least` on, up to and including `most`."""
        number = _scalar(node) if node.tag == "tag:yaml.org,2002:int" else None
        if number is None or number < least or (most is not None and number > most):
            given = node.value if isinstance(node, yaml.ScalarNode) else _kind(node)
            reach = f"{least} on" if most is None else f"{least} to {most}"
            raise self.refuse(node, f"{what} must be a whole number from {reach}, not {given}.")
        return int(number)

    def share(self, node: yaml.Node, what: str) -> Decimal:
        """An exact share, taken from the text as it stands, never by way of a binary float."""
        if _kind(node) != "a number":
            raise self.refuse(node, f"{what} must be a number from 0 to 1, not {_kind(node)}.")
        try:
            return parse_share(node.value)
        except ValueError as error:
            raise self.refuse(node, f"{what} must be a number from 0 to 1 of at most 4 decimals: {error}.") from None

    def moment(self, node: yaml.Node, what: str) -> datetime:
        """A point in time, which names its offset from UTC."""
        try:
            moment = datetime.fromisoformat(node.value if isinstance(node, yaml.ScalarNode) else "")
        except ValueError:
            raise self.refuse(node, f"{what} must be a time like 2025-01-31T08:00:00Z.") from None
        if moment.tzinfo is None:
            raise self.refuse(node, f"{what} must name its offset from UTC, like 2025-01-31T08:00:00Z.")
        return moment.astimezone(UTC)

    def json(self, node: yaml.Node, what: str) -> dict[str, Any]:
        """A mapping of what JSON can hold."""
        if not isinstance(node, yaml.MappingNode):
            raise self.refuse(node, f"{what} must be a mapping, not {_kind(node)}.")
        value: dict[str, Any] = self._json(node, what, ())
        return value

    def _json(self, node: yaml.Node, what: str, inside: tuple[yaml.Node, ...]) -> Any:
        if any(node is outer for outer in inside):
            raise self.refuse(node, f"{what} contains itself.")
        if isinstance(node, yaml.SequenceNode):
            return [self._json(member, what, (*inside, node)) for member in node.value]
        if isinstance(node, yaml.MappingNode):
            values: dict[str, Any] = {}
            for key, value in node.value:
                if key.tag != "tag:yaml.org,2002:str" or key.value in values:
                    raise self.refuse(key, f"{what} must have text as keys, each once: {key.value!r} is not.")
                values[key.value] = self._json(value, what, (*inside, node))
            return values
        value = _scalar(node) if node.tag in _JSON_SCALARS else None
        if node.tag not in _JSON_SCALARS or (isinstance(value, float) and not math.isfinite(value)):
            raise self.refuse(node, f"{what} can't hold {node.value}, which JSON does not know: put it in quotes.")
        return value

    def _note(self, line: int, rule: str) -> None:
        self.problems.append(Problem(Place(str(self.path), line), rule))


def _kind(node: yaml.Node) -> str:
    return _KINDS.get(node.tag, node.tag)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _scalar(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node)
