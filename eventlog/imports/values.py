"""Single values of a row: what a mapping says of one, made into a function of a row."""

import math
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from eventlog.imports.mapping import EPOCHS, Moment, Value
from eventlog.imports.reading import Getter, Source

YES = frozenset({"true", "t", "yes", "y"})
NO = frozenset({"false", "f", "no", "n"})
LONGEST_SHOWN = 60
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REMEMBERED = 65_536
_MOST_DIGITS = 20

Extract = Callable[[Any], Any]
"""A row → the value, None for nothing. Raises UnusableError."""


class UnusableError(Exception):
    """This value can't be used: `reason` to count by, `detail` for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        """Both say what is wrong; `detail` quotes the value."""
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def shown(value: Any) -> str:
    """A value as a message quotes it, cut short."""
    text = str(value).encode("utf-8", "replace").decode()
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…")


def extractor(value: Value, what: str, source: Source, nulls: Collection[str]) -> Extract:
    """The function that takes this value out of a row of this source. `what` is the field that a complaint names."""
    if not value.columns:
        constant = value.constant
        return lambda row: constant
    given = _given([source.getter(column) for column in value.columns], nulls)
    convert = _CONVERT[value.kind] if value.kind else None
    choices, default = value.choices, value.default
    code = f"invalid_{what.partition('.')[0].replace('metrics', 'metric')}"

    def extract(row: Any) -> Any:
        found = given(row)
        if found is None:
            return default
        if choices is not None:
            return _chosen(choices, found, what)
        if convert is None:
            return found
        try:
            return convert(found)
        except ValueError as error:
            raise UnusableError(code, f"{what} is {shown(found)}, {error}") from None

    return extract


def moment_extractor(moment: Moment, what: str, source: Source, nulls: Collection[str]) -> Extract:
    """The function that takes a point in time, in UTC, out of a row."""
    if not moment.value.columns:
        constant = moment.value.constant
        return lambda row: constant
    given = extractor(Value(moment.value.place, moment.value.columns), what, source, nulls)
    choices, default = moment.value.choices, moment.value.default
    form, zone = moment.format, moment.zone

    # Logs repeat their times, and strptime is slow.
    @lru_cache(_REMEMBERED)
    def read(found: Any) -> datetime:
        return moment_of(found, form, zone)

    def extract(row: Any) -> Any:
        found = given(row)
        if found is None:
            found = default
        elif choices is not None:
            found = _chosen(choices, found, what)
        if found is None:
            return None
        try:
            return read(found)
        except (ValueError, ArithmeticError, TypeError) as error:
            why = str(error) if isinstance(error, _TimeError) else f"no time in the format {form}"
            raise UnusableError("invalid_timestamp", f"{what} is {shown(found)}, {why}") from None

    return extract


class _TimeError(ValueError):
    """A time that is one, and names no moment."""


def moment_of(value: Any, form: str, zone: ZoneInfo | None) -> datetime:
    """The moment in UTC. Of an hour that comes twice when clocks go back the first is meant. Raises ValueError, ArithmeticError."""
    if form in EPOCHS:
        number = Decimal(str(value))
        # 1e999999999 is a number of a billion digits.
        if not number.is_finite() or number.adjusted() > _MOST_DIGITS:
            raise ValueError("no time")
        return _EPOCH + timedelta(microseconds=int(number * EPOCHS[form]))
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime.combine(value, time())
    elif form == "iso":
        moment = datetime.fromisoformat(text_of(value).strip())
    else:
        moment = datetime.strptime(text_of(value), form)
    if moment.tzinfo is None:
        if zone is None:
            raise _TimeError("which names no offset: say its `zone`")
        local = moment.replace(tzinfo=zone)
        if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != moment:
            raise _TimeError(f"which no clock in {zone.key} showed")
        moment = local
    return moment.astimezone(UTC)


def text_of(value: Any) -> str:
    """A value as text. 123.0 is 123: pandas writes whole numbers so once one is missing. Raises ValueError."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict | list):
        raise ValueError("which is no text")
    return str(value)


def number_of(value: Any) -> int | float:
    """A number; true and yes are 1, false and no are 0. Raises ValueError."""
    if isinstance(value, str):
        return _number_of_text(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, Decimal):
        return float(value)
    raise ValueError("which is no number")


@lru_cache(_REMEMBERED)
def _number_of_text(text: str) -> int | float:
    text = text.strip()
    # Python reads 1_000 as a number, and nobody else does.
    if "_" not in text:
        for read in (int, float):
            try:
                return read(text)
            except ValueError:
                continue
    word = text.lower()
    if word in YES or word in NO:
        return int(word in YES)
    raise ValueError("which is no number, yes or no")


def flag_of(value: Any) -> bool:
    """True or false, from a bool, 1, 0 or a word. Raises ValueError."""
    number = number_of(value)
    if number not in (0, 1):
        raise ValueError("which is neither yes nor no")
    return bool(number)


def json_of(value: Any) -> Any:
    """What a text in JSON says. Raises ValueError."""
    try:
        return msgspec.json.decode(value) if isinstance(value, str | bytes) else value
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"which is no JSON ({error})") from None


def _given(getters: list[Getter], nulls: Collection[str]) -> Extract:
    """What stands there, with nothing as None. Several columns are one text, or nothing when one of them is nothing."""

    # Texts of a CSV file are all that most rows hold: numbers are only looked at where the mapping says more than "".
    numbers = frozenset(nulls) - {""}

    def one(getter: Getter) -> Extract:
        def get(row: Any) -> Any:
            found = getter(row)
            if found.__class__ is str:
                return None if found in nulls else found
            # Data frames write NaN where nothing was measured.
            if found.__class__ is float and math.isnan(found):
                return None
            return None if numbers and isinstance(found, int | float) and text_of(found) in numbers else found

        return get

    parts = [one(getter) for getter in getters]
    if len(parts) == 1:
        return parts[0]

    def joined(row: Any) -> str | None:
        found = [part(row) for part in parts]
        return None if None in found else " ".join(str(part) for part in found)

    return joined


def _chosen(choices: Any, found: Any, what: str) -> Any:
    try:
        return choices[text_of(found)]
    except (KeyError, ValueError):
        if isinstance(found, bool) and str(found) in choices:
            return choices[str(found)]
        raise UnusableError("unlisted_value", f"{what} is {shown(found)}, which `values` does not list") from None


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "text": text_of,
    "hash": text_of,
    "number": number_of,
    "flag": flag_of,
    "json": json_of,
}
