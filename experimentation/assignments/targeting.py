"""Rules that say which units an experiment is for, in CEL, the Common Expression Language (cel.dev).

A rule reads `unit_type` (text) and `context` (what the client sent along) and says true or false: `context.platform == "ios"`.
"""

import re
from collections.abc import Mapping
from typing import Any

import cel

from experimentation.runs.run import ExperimentationError

MAX_RULE = 2_000
# A context with more values than this is judged by no rule: turning it into CEL's values would hold up everybody else.
MAX_VALUES = 1_000
VARIABLES = ("unit_type", "context")
# The functions of CEL's standard definitions. An unknown one would only be noticed by the first unit whose rule comes to it.
FUNCTIONS = frozenset(
    "bool bytes contains double duration dyn endsWith getDate getDayOfMonth getDayOfWeek getDayOfYear getFullYear getHours "
    "getMilliseconds getMinutes getMonth getSeconds int matches max min size startsWith string timestamp type uint".split()
)
# A pattern from the context would let any client choose what has to be compiled.
_PATTERN_IS_NO_TEXT = re.compile(r"\.matches\(\s*(?![rR]?[\"'])")
_BOUND_BY_MACRO = re.compile(r"\.(?:all|exists|exists_one|filter|map)\(\s*(\w+)\s*,")
_NAME = re.compile(r"[A-Za-z]\w*")


class TargetingError(ExperimentationError):
    """A rule that can't work; the text says why."""


class Asker:
    """Who asks, as rules see it: turned into CEL's values at the first rule of a request, and for all of them."""

    __slots__ = ("_context", "_unit_type", "_view")

    def __init__(self, unit_type: str, context: Mapping[str, Any] | None = None) -> None:
        """`context`: what the client sent along, any JSON."""
        self._unit_type, self._context = unit_type, context or {}
        self._view: Any = None

    def view(self) -> Any:
        """The values, for Targeting. Raises ValueError when there are too many of them."""
        if self._view is None:
            if _more_values_than(self._context, MAX_VALUES):
                raise ValueError(f"the context holds more than {MAX_VALUES:,} values")
            self._view = cel.Context(variables={"unit_type": self._unit_type, "context": self._context})
        return self._view


class Targeting:
    """A compiled rule, asked once for each unit that is not stored yet."""

    __slots__ = ("_program", "rule")

    def __init__(self, rule: str) -> None:
        """Raises TargetingError when `rule` is no CEL, names another variable than `unit_type` and `context`, or an unknown function."""
        if len(rule) > MAX_RULE:
            raise TargetingError(f"it has {len(rule):,} characters, and at most {MAX_RULE:,} are allowed")
        try:
            self._program = cel.compile(rule)
        except ValueError as error:
            raise TargetingError(f"it is no CEL expression ({_first_line(error)})") from None
        self.rule = rule
        unknown = sorted(set(self._program.variables()) - set(VARIABLES) - set(_BOUND_BY_MACRO.findall(rule)))
        if unknown:
            raise TargetingError(f"it names {', '.join(unknown)}, and a rule knows only {' and '.join(VARIABLES)}")
        called = {name for name in self._program.functions() if _NAME.fullmatch(name)}
        if called - FUNCTIONS:
            raise TargetingError(f"it calls {', '.join(sorted(called - FUNCTIONS))}, which CEL does not have")
        if _PATTERN_IS_NO_TEXT.search(rule):
            raise TargetingError("the pattern of `matches` must stand in the rule as text")
        self._try_out()

    def holds(self, asker: Asker) -> bool | None:
        """Whether the rule lets the unit in. What the context lacks is no; None when the rule can't judge what the context holds."""
        try:
            judged = self._program.execute(asker.view())
        except KeyError:
            return False
        except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError):
            return None
        return judged if isinstance(judged, bool) else None

    def _try_out(self) -> None:
        """An empty context finds what parsing does not: a wrong call, a result that is no truth value."""
        try:
            judged = self._program.execute({"unit_type": "user", "context": {}})
        except RuntimeError as error:
            raise TargetingError(f"it can't be evaluated ({_first_line(error)})") from None
        except (KeyError, TypeError, ValueError, ArithmeticError, IndexError):
            return
        if not isinstance(judged, bool):
            raise TargetingError(f"it says {judged!r}, and a rule must say true or false")


def _more_values_than(value: Any, most: int) -> bool:
    """Whether JSON-like data holds more values than that, whatever their depth."""
    left = [value]
    count = 0
    while left:
        count += 1
        if count > most:
            return True
        here = left.pop()
        if isinstance(here, dict):
            left += here.values()
        elif isinstance(here, list):
            left += here
    return False


def _first_line(error: Exception) -> str:
    """What went wrong, without the parser's list of everything that could have stood there instead."""
    said = str(error).rpartition("<input>:")[2].partition(" expecting ")[0].strip()
    return said.splitlines()[0][:200].rstrip(".") if said else type(error).__name__
