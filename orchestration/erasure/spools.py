"""A unit's events that are not yet in PostgreSQL: in the spools of this machine, and among the dead letters.

They are always removed, even when stored events are pseudonymised: no aggregate counts them yet.
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
    """Dead letters of the unit. With `change` they are removed, one page per transaction."""
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
    """Spooled events of the unit. They are removed from the spools of dead processes; a running API drops its own while it drains.

    Raises ErasureError if the API did not within `wait_seconds`, or if a damaged segment contains the unit; also OSError.
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
    """Rewrite a dead writer's segments without the unit; returns how many records were removed."""
    taken = 0
    with take_over(folder) as segments:
        for path in segments or ():
            # Left by a killed rewrite.
            path.with_suffix(".new").unlink(missing_ok=True)
            segment = read_segment(path)
            kept = [record for record in segment.records if not _is_of(record, unit)]
            # A damaged segment may hold more than can be read: it is drained unchanged, and then a person has to look at it.
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
            paths = ", ".join(str(path) for path in held)
            raise ErasureError(
                f"{sum(held.values())} spooled events of the unit are still in {paths}: a running API drops them as it "
                "drains its spool into PostgreSQL; look at a damaged segment and remove it. Then run this again."
            )
        time.sleep(_EVERY_SECONDS)


def _segments(root: Path) -> list[Path]:
    """The segments of writers, and damaged segments that were set aside."""
    return sorted({*root.glob("*/*.events"), *root.glob("damaged/*")})


def _count(path: Path, unit: Unit) -> int:
    try:
        return sum(_is_of(record, unit) for record in read_segment(path).records)
    except FileNotFoundError:  # drained meanwhile
        return 0


def _is_of(record: bytes, unit: Unit) -> bool:
    try:
        event = _decode(record)
    except msgspec.MsgspecError:  # not an event, so it belongs to no unit
        return False
    return (event.unit_type, event.unit_id) == (unit.unit_type, unit.unit_id)
