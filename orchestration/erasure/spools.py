"""A unit's events that are on their way into PostgreSQL: in the spools of this machine, and among the dead letters.

What was never stored is removed, whatever is done with the rest: nothing counts it yet.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from eventlog.dead_letters import delete_dead_letters, list_dead_letters
from eventlog.spool import read_segment, rewrite_segment, take_over, writer_folders
from orchestration.erasure.findings import ErasureError, Found, Unit

WAIT_SECONDS = 15.0
"""How long a running API is given to drain its spool, which it does twice a second while PostgreSQL answers."""
_EVERY_SECONDS = 0.2
_PAGE = 1_000


class _Named(msgspec.Struct):
    unit_type: str
    unit_id: str


_decode = msgspec.json.Decoder(_Named).decode


def dead_letters_of(connection: psycopg.Connection[Any], unit: Unit, change: bool) -> Iterator[Found]:
    """Dead letters of the unit, removed where `change`, a page a transaction."""
    rows = last = 0
    while page := list_dead_letters(connection, after=last, limit=_PAGE):
        mine = [letter.id for letter in page if _is_of(letter.event, unit)]
        if mine and change:
            delete_dead_letters(connection, mine)
        rows += len(mine)
        last = page[-1].id
    if rows:
        yield Found("exp.dead_letters", rows, "removed")


def spooled_events(root: Path, unit: Unit, change: bool, wait_seconds: float = WAIT_SECONDS) -> Iterator[Found]:
    """Spooled events of the unit: taken out of what dead processes left; a running API drops its own as it drains.

    Raises ErasureError when it did not within `wait_seconds`, or where a segment that a person has to look at holds the unit; OSError.
    """
    if not change:
        rows = sum(_count(path, unit) for path in _segments(root))
        if rows:
            yield Found(f"spool {root}", rows, "removed")
        return
    rows = sum(_take_out(folder, unit) for folder in writer_folders(root))
    if rows:
        yield Found(f"spool {root}", rows, "removed")
    _wait_for_writers(root, unit, wait_seconds)


def _take_out(folder: Path, unit: Unit) -> int:
    """Rewrite a dead writer's segments without the unit; how many records that were."""
    taken = 0
    with take_over(folder) as segments:
        for path in segments or ():
            # What a killed rewriting left beside it.
            path.with_suffix(".new").unlink(missing_ok=True)
            segment = read_segment(path)
            kept = [record for record in segment.records if not _is_of(record, unit)]
            # A damaged one may hold more than can be read: it is drained as it is, and then a person has to look at it.
            if len(kept) == len(segment.records) or segment.damaged:
                continue
            if kept:
                rewrite_segment(segment, kept)
            else:
                path.unlink()
            taken += len(segment.records) - len(kept)
    return taken


def _wait_for_writers(root: Path, unit: Unit, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while held := {path: rows for path in _segments(root) if (rows := _count(path, unit))}:
        if all(path.parent.name == "damaged" for path in held) or time.monotonic() >= deadline:
            named = ", ".join(str(path) for path in held)
            raise ErasureError(
                f"{sum(held.values())} spooled events of it are still in {named}: a running API drops them as it drains its spool into "
                "PostgreSQL, and a damaged segment is yours to look at and to remove; run this again then."
            )
        time.sleep(_EVERY_SECONDS)


def _segments(root: Path) -> list[Path]:
    """Those of writers, and the damaged ones that were kept aside."""
    return sorted({*root.glob("*/*.events"), *root.glob("damaged/*")})


def _count(path: Path, unit: Unit) -> int:
    try:
        return sum(_is_of(record, unit) for record in read_segment(path).records)
    except FileNotFoundError:  # drained meanwhile
        return 0


def _is_of(record: bytes, unit: Unit) -> bool:
    try:
        named = _decode(record)
    except msgspec.MsgspecError:  # no event: nobody's
        return False
    return (named.unit_type, named.unit_id) == (unit.unit_type, unit.unit_id)
