"""Targeting rules: which units an experiment is for, in CEL, the Common Expression Language (cel.dev).

A rule reads `unit_type` (text) and `context` (from the request) and returns true or false: `context.platform == "ios"`.
"""

import re
from collections.abc import Mapping
from typing import Any

import cel

from experimentation.runs.run import ExperimentationError

MAX_RULE = 2_000
# No rule is evaluated for a context with more values than this: converting it to CEL would delay other requests.
MAX_VALUES = 1_000
VARIABLES = ("unit_type", "context")
# The functions of CEL's standard definitions. CEL itself reports an unknown function only when an evaluation reaches it.
FUNCTIONS = frozenset(
    "bool bytes contains double duration dyn endsWith getDate getDayOfMonth getDayOfWeek getDayOfYear getFullYear getHours "
    "getMilliseconds getMinutes getMonth getSeconds int matches max min size startsWith string timestamp type uint".split()
)
# A pattern taken from the context would let clients choose which regular expression the server compiles.
_PATTERN_IS_NOT_LITERAL = re.compile(r"\.matches\(\s*(?![rR]?[\"'])")
_BOUND_BY_MACRO = re.compile(r"\.(?:all|exists|exists_one|filter|map)\(\s*(\w+)\s*,")
_NAME = re.compile(r"[A-Za-z]\w*")


class TargetingError(ExperimentationError):
    """An invalid rule. The message says why."""


class TargetingInput:
    """The unit type and context that rules read, converted to CEL once per request, when the first rule needs them."""

    __slots__ = ("_context", "_unit_type", "_values")

    def __init__(self, unit_type: str, context: Mapping[str, Any] | None = None) -> None:
        """`context`: any JSON object from the request."""
        self._unit_type, self._context = unit_type, context or {}
        self._values: Any = None

    def values(self) -> Any:
        """The values as CEL. Raises ValueError if the context holds more than MAX_VALUES values."""
        if self._values is None:
            if _more_values_than(self._context, MAX_VALUES):
                raise ValueError(f"the context holds more than {MAX_VALUES:,} values")
            self._values = cel.Context(variables={"unit_type": self._unit_type, "context": self._context})
        return self._values


class Targeting:
    """A compiled rule, evaluated for units without a stored row."""

    __slots__ = ("_program", "rule")

    def __init__(self, rule: str) -> None:
        """Raises TargetingError if `rule` is not valid CEL, or uses a variable or a function that rules do not have."""
        if len(rule) > MAX_RULE:
            raise TargetingError(f"it has {len(rule):,} characters; at most {MAX_RULE:,} are allowed")
        try:
            self._program = cel.compile(rule)
        except ValueError as error:
            raise TargetingError(f"it is not a valid CEL expression ({_first_line(error)})") from None
        self.rule = rule
        unknown = sorted(set(self._program.variables()) - set(VARIABLES) - set(_BOUND_BY_MACRO.findall(rule)))
        if unknown:
            raise TargetingError(f"it uses {', '.join(unknown)}; a rule can only use {' and '.join(VARIABLES)}")
        called = {name for name in self._program.functions() if _NAME.fullmatch(name)}
        if called - FUNCTIONS:
            raise TargetingError(f"it calls {', '.join(sorted(called - FUNCTIONS))}, which is not a CEL function")
        if _PATTERN_IS_NOT_LITERAL.search(rule):
            raise TargetingError("the pattern of `matches` must be a string literal in the rule")
        self._evaluate_once()

    def holds(self, targeting_input: TargetingInput) -> bool | None:
        """Whether the rule matches the unit: False if the context lacks a key, None if the rule can't be evaluated on the context."""
        try:
            result = self._program.execute(targeting_input.values())
        except KeyError:
            return False
        except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError):
            return None
        return result if isinstance(result, bool) else None

    def _evaluate_once(self) -> None:
        """Evaluate with an empty context, which finds errors that parsing misses: a wrong call, a result that is not a boolean."""
        try:
            result = self._program.execute({"unit_type": "user", "context": {}})
        except RuntimeError as error:
            raise TargetingError(f"it can't be evaluated ({_first_line(error)})") from None
        except (KeyError, TypeError, ValueError, ArithmeticError, IndexError):
            return
        if not isinstance(result, bool):
            raise TargetingError(f"it returns {result!r}; a rule must return true or false")


def _more_values_than(value: Any, limit: int) -> bool:
    """Whether JSON-like data holds more than `limit` values at any depth."""
    stack = [value]
    count = 0
    while stack:
        count += 1
        if count > limit:
            return True
        current = stack.pop()
        if isinstance(current, dict):
            stack += current.values()
        elif isinstance(current, list):
            stack += current
    return False


def _first_line(error: Exception) -> str:
    """The first line of the error, without the parser's list of the tokens that it expected."""
    message = str(error).rpartition("<input>:")[2].partition(" expecting ")[0].strip()
    return message.splitlines()[0][:200].rstrip(".") if message else type(error).__name__
