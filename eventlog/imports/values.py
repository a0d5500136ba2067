"""Single values of a row: what a mapping says about a value, as a function of a row."""

import math
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from eventlog.imports.mapping import EPOCHS, Moment, Value
from foundation.table_files import Getter, TableFile, UnusableError, shown

YES = frozenset({"true", "t", "yes", "y"})
NO = frozenset({"false", "f", "no", "n"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CACHED = 65_536
_MOST_DIGITS = 20

Extract = Callable[[Any], Any]
"""Returns a row's value, or None if it is missing. Raises UnusableError."""


def extractor(value: Value, what: str, table: TableFile, nulls: Collection[str]) -> Extract:
    """The function that takes this value out of a row of this table. `what` is the field that messages name."""
    if not value.columns:
        constant = value.constant
        return lambda row: constant
    given = _given([table.getter(column) for column in value.columns], nulls)
    convert = _CONVERT[value.kind] if value.kind else None
    choices, default = value.choices, value.default
    code = f"invalid_{what.partition('.')[0].replace('metrics', 'metric')}"

    def extract(row: Any) -> Any:
        raw = given(row)
        if raw is None:
            return default
        if choices is not None:
            return _chosen(choices, raw, what)
        if convert is None:
            return raw
        try:
            return convert(raw)
        except ValueError as error:
            raise UnusableError(code, f"{what} is {shown(raw)}, {error}") from None

    return extract


def moment_extractor(moment: Moment, what: str, table: TableFile, nulls: Collection[str]) -> Extract:
    """The function that takes a point in time, in UTC, out of a row of this table."""
    if not moment.value.columns:
        constant = moment.value.constant
        return lambda row: constant
    given = extractor(Value(moment.value.place, moment.value.columns), what, table, nulls)
    choices, default = moment.value.choices, moment.value.default
    form, zone = moment.format, moment.zone

    # Logs repeat times, and strptime is slow.
    @lru_cache(_CACHED)
    def read(raw: Any) -> datetime:
        return moment_of(raw, form, zone)

    def extract(row: Any) -> Any:
        raw = given(row)
        if raw is None:
            raw = default
        elif choices is not None:
            raw = _chosen(choices, raw, what)
        if raw is None:
            return None
        try:
            return read(raw)
        except (ValueError, ArithmeticError, TypeError) as error:
            why = str(error) if isinstance(error, _TimeError) else f"which is not a time in the format {form}"
            raise UnusableError("invalid_timestamp", f"{what} is {shown(raw)}, {why}") from None

    return extract


class _TimeError(ValueError):
    """A time that does not say which moment it is."""


def moment_of(value: Any, form: str, zone: ZoneInfo | None) -> datetime:
    """The moment in UTC. An hour that comes twice, when clocks go back, means the first one. Raises ValueError, ArithmeticError."""
    if form in EPOCHS:
        number = Decimal(str(value))
        # 1e999999999 would be a number of a billion digits.
        if not number.is_finite() or number.adjusted() > _MOST_DIGITS:
            raise ValueError("the number is too large")
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
            raise _TimeError("which has no UTC offset: give its `zone`")
        local = moment.replace(tzinfo=zone)
        if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != moment:
            raise _TimeError(f"which clocks in {zone.key} skipped")
        moment = local
    return moment.astimezone(UTC)


def text_of(value: Any) -> str:
    """A value as text. 123.0 is 123: pandas writes integers like that if a value is missing. Raises ValueError."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict | list):
        raise ValueError("which is not text")
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
    raise ValueError("which is not a number")


@lru_cache(_CACHED)
def _number_of_text(text: str) -> int | float:
    text = text.strip()
    # Only Python reads 1_000 as a number.
    if "_" not in text:
        for read in (int, float):
            try:
                return read(text)
            except ValueError:
                continue
    word = text.lower()
    if word in YES or word in NO:
        return int(word in YES)
    raise ValueError("which is not a number, yes or no")


def flag_of(value: Any) -> bool:
    """True or false, from a bool, 1, 0 or a word. Raises ValueError."""
    number = number_of(value)
    if number not in (0, 1):
        raise ValueError("which is neither yes nor no")
    return bool(number)


def json_of(value: Any) -> Any:
    """The value of a JSON text. Raises ValueError."""
    try:
        return msgspec.json.decode(value) if isinstance(value, str | bytes) else value
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"which is not JSON ({error})") from None


def _given(getters: list[Getter], nulls: Collection[str]) -> Extract:
    """The value in the file, or None if it is missing. Several columns are one text, which is missing if one of them is."""

    # Most rows hold only the texts of a CSV file. Numbers are looked at only if the mapping's `nulls` could mean one.
    numbers = frozenset(nulls) - {""}

    def part_of(getter: Getter) -> Extract:
        def get(row: Any) -> Any:
            raw = getter(row)
            if raw.__class__ is str:
                return None if raw in nulls else raw
            # Data frames write NaN for a missing number.
            if raw.__class__ is float and math.isnan(raw):
                return None
            return None if numbers and isinstance(raw, int | float) and text_of(raw) in numbers else raw

        return get

    parts = [part_of(getter) for getter in getters]
    if len(parts) == 1:
        return parts[0]

    def joined(row: Any) -> str | None:
        values = [part(row) for part in parts]
        return None if None in values else " ".join(str(value) for value in values)

    return joined


def _chosen(choices: Any, raw: Any, what: str) -> Any:
    try:
        return choices[text_of(raw)]
    except (KeyError, ValueError):
        if isinstance(raw, bool) and str(raw) in choices:
            return choices[str(raw)]
        raise UnusableError("unlisted_value", f"{what} is {shown(raw)}, which `values` does not list") from None


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "text": text_of,
    "hash": text_of,
    "number": number_of,
    "flag": flag_of,
    "json": json_of,
}
