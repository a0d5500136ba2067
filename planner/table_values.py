"""Single values of somebody else's table → text, ids, numbers, moments, lists; what can't be read raises with a reason to count by."""

import ast
import math
from datetime import UTC, date, datetime, time
from typing import Any

EARLIEST = date(1970, 1, 1)
LONGEST_ID = 255


class UnusableError(Exception):
    """This value can't be used: `reason` to count by, `detail` for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def clean_text(value: Any) -> str:
    """Any value as text that PostgreSQL can store: zero bytes go, and half of a surrogate pair becomes `?`.

    Neither is in a text file; Parquet and escapes within a quoted list can bring both.
    """
    return "" if value is None else str(value).encode("utf-8", "replace").decode().replace("\x00", "").strip()


def shown(value: Any) -> str:
    """A value as a message quotes it, cut short."""
    text = clean_text(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def id_text(value: Any) -> str | None:
    """An id as text, or None. 123.0 is 123: pandas writes whole numbers so once one is missing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = clean_text(value)
    fine = 0 < len(text) <= LONGEST_ID and all(character.isprintable() for character in text)
    return text if fine else None


def number(value: Any, field: str, least: float, most: float) -> float | None:
    """A number within bounds, or None for nothing. Raises UnusableError `bad_{field}`."""
    text = clean_text(value)
    if not text:
        return None
    try:
        parsed = float(text)
    except ValueError:
        parsed = math.nan
    if not least <= parsed <= most:
        raise UnusableError(f"bad_{field}", f"{shown(value)} is no {field}")
    return parsed


def minutes(value: Any, most: int) -> int | None:
    """Minutes; 0 means that nobody said, as an empty value does."""
    given = number(value, "minutes", 0, math.inf)
    if given is not None and given > most:
        raise UnusableError("absurd_minutes", f"{given:,.0f} minutes; at most {most:,} are believed")
    return math.ceil(given) if given else None


def moment_of(value: Any, not_after: datetime | None) -> tuple[datetime, str]:
    """The moment in UTC (a day is its first moment), and how the source wrote it."""
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
        raise UnusableError("bad_date", f"{shown(value)} is no date such as 2008-02-19") from None
    if moment.date() < EARLIEST or (not_after is not None and moment > not_after):
        raise UnusableError("bad_date", f"{shown(value)} lies before {EARLIEST} or in the future")
    return moment, text


def texts(value: Any, field: str) -> list[str]:
    """A list of texts: a list, `['a', 'b']`, `["a", "b"]`, or parts between semicolons or commas."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                raise UnusableError(f"bad_{field}", f"{shown(text)} is no list") from None
        else:
            value = text.split(";" if ";" in text else ",")
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise UnusableError(f"bad_{field}", f"{shown(value)} is no list")
    return list(dict.fromkeys(part for part in map(clean_text, value) if part))
