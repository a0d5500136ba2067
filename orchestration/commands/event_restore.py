"""`lifecycle events restore`: brings archived days back into PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import typer

from foundation.errors import LifecycleError
from orchestration.commands.access import bring_up_to_date
from orchestration.commands.console import moment, progress, say

PURPOSE = "lifecycle events restore"
_DAY = ["%Y-%m-%d"]


class RestoreError(LifecycleError):
    """The requested days can't be restored; the message says why."""


def restore(
    first: Annotated[datetime, typer.Option("--from", formats=_DAY, help="First day (UTC).")],
    last: Annotated[datetime, typer.Option("--to", formats=_DAY, help="Last day (UTC), inclusive.")],
    keep_days: Annotated[int, typer.Option(min=1, help="Days from now until retention may drop them again.")] = 7,
) -> None:
    """Bring archived days back into PostgreSQL, exactly as they were. Running it again brings back only what is missing."""
    import psycopg

    from eventlog.archive.restore import restorable, restore_hours
    from foundation.object_store import ObjectStore
    from foundation.settings import settings
    from orchestration.local.databases import database

    with database(settings(), PURPOSE):
        current = settings()
        _require_days(first.date(), last.date(), current.lineage_start)
        bring_up_to_date(current)
        store = ObjectStore(current.store_root)
        hours = restorable(store, first.date(), last.date() + timedelta(days=1))
        keep_until = datetime.now(UTC) + timedelta(days=keep_days)
        rows = new = erased = 0
        total = sum(hour.file_rows for hour in hours)
        with psycopg.connect(current.platform_url, connect_timeout=10) as connection, _progress(total) as show_hour:
            for done in restore_hours(connection, store, hours, keep_until):
                rows, new, erased = rows + done.rows, new + done.new, erased + done.erased
                show_hour(f"{done.hour:%Y-%m-%d %H}:00", rows)
    say(
        f"{rows:,} events of {first:%Y-%m-%d} to {last:%Y-%m-%d} are archived: {new:,} were restored, "
        f"{rows - new - erased:,} were in PostgreSQL already."
    )
    if erased:
        say(f"{erased:,} belong to units that were erased since, and were not restored.")
    say(f"Retention keeps these days until {moment(keep_until)}.")


def _require_days(first: date, last: date, first_day: date) -> None:
    if last < first:
        raise RestoreError(f"--to {last} is before --from {first}: give the first and the last day.")
    if first < first_day:
        raise RestoreError(
            f"{first} is before the first day ({first_day}): older events are history, which never leaves PostgreSQL. "
            f"Give days from {first_day} on."
        )
    today = datetime.now(UTC).date()
    if last >= today:
        raise RestoreError(
            f"{last} is not over yet (UTC): its events are still in PostgreSQL. Give days up to {today - timedelta(days=1)}."
        )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """On a terminal, a bar with the hour restored last and the time left."""
    with progress() as bar:
        task = bar.add_task("events restored", total=max(1, total))
        yield lambda hour, rows: bar.update(task, description=f"restored up to {hour}", completed=rows)
