"""Values of a user's table as text, ids, numbers, moments and lists. A value that can't be used raises UnusableError."""

import ast
import math
from datetime import UTC, date, datetime, time
from typing import Any

from foundation.table_files import UnusableError, shown

EARLIEST = date(1970, 1, 1)
LONGEST_ID = 255


def clean_text(value: Any) -> str:
    """Any value as text that PostgreSQL can store: without zero bytes, and with `?` for half of a surrogate pair.

    A text file has neither, but Parquet and escapes in a quoted list can bring both.
    """
    return "" if value is None else str(value).encode("utf-8", "replace").decode().replace("\x00", "").strip()


def id_text(value: Any) -> str | None:
    """An id as text, or None if it is not one. 123.0 is 123: pandas writes integers like that if a value is missing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = clean_text(value)
    valid = 0 < len(text) <= LONGEST_ID and all(character.isprintable() for character in text)
    return text if valid else None


def number(value: Any, field: str, least: float, most: float) -> float | None:
    """A number within bounds, or None for an empty value. Raises UnusableError `bad_{field}`."""
    text = clean_text(value)
    if not text:
        return None
    try:
        parsed = float(text)
    except ValueError:
        parsed = math.nan
    if not least <= parsed <= most:
        raise UnusableError(f"bad_{field}", f"{field} can't be {shown(value)}")
    return parsed


def minutes(value: Any, most: int) -> int | None:
    """Minutes, rounded up. 0 means unknown, as an empty value does."""
    given = number(value, "minutes", 0, math.inf)
    if given is not None and given > most:
        raise UnusableError("absurd_minutes", f"{given:,.0f} minutes; at most {most:,} are accepted")
    return math.ceil(given) if given else None


def moment_of(value: Any, not_after: datetime | None) -> tuple[datetime, str]:
    """The moment in UTC (a day is its first moment), and the text in the file. Raises UnusableError `bad_date`."""
    text = clean_text(value)
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime.combine(value, time())
        else:
            moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UnusableError("bad_date", f"{shown(value)} is not a date like 2008-02-19") from None
    if moment.date() < EARLIEST or (not_after is not None and moment > not_after):
        raise UnusableError("bad_date", f"{shown(value)} is before {EARLIEST} or in the future")
    return moment, text


def texts(value: Any, field: str) -> list[str]:
    """A list of different texts from a list, `['a', 'b']`, `["a", "b"]`, or text with semicolons or commas between the parts.

    Raises UnusableError `bad_{field}`.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                raise UnusableError(f"bad_{field}", f"{shown(text)} is not a list") from None
        else:
            value = text.split(";" if ";" in text else ",")
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise UnusableError(f"bad_{field}", f"{shown(value)} is not a list")
    return list(dict.fromkeys(part for part in map(clean_text, value) if part))
