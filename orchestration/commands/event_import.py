"""`lifecycle events import`: a log of any origin as events."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.access import bring_up_to_date, by_hand
from orchestration.commands.console import console, moment, progress, say

if TYPE_CHECKING:
    from eventlog.imports.judging import Tally
    from eventlog.imports.storing import Imported, Told

PURPOSE = "lifecycle events import"


def import_events(
    file: Annotated[Path, typer.Argument(help="CSV, JSON lines (both also as .gz) or Parquet.")],
    mapping: Annotated[Path, typer.Option(help="What its columns mean: docs/importing-events.md.")],
    check: Annotated[bool, typer.Option("--check", help="Only judge every row; store nothing.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rejected rows are listed with their reasons, as JSON lines.")
    ] = None,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="The share of rejected rows beyond which nothing is stored.")
    ] = 0.01,
) -> None:
    """Store a log's rows as events, and a finished experiment with its units. Importing twice stores nothing twice."""
    import gc

    import psycopg

    from eventlog.imports.mapping_file import read_mapping
    from eventlog.imports.reading import open_source
    from eventlog.imports.storing import EventImport, ImportRefusedError, too_many
    from eventlog.store import make_partitions, recorded_first_day
    from foundation.settings import settings
    from orchestration.local.databases import database

    if rejects is not None and rejects.resolve() in (file.resolve(), mapping.resolve()):
        raise typer.BadParameter("would overwrite what is read", param_hint="--rejects")
    # What was imported up to here stays: looking through it again and again took a third of the time.
    gc.freeze()
    said = read_mapping(mapping)
    source = open_source(file, said.header)
    with ExitStack() as stack:
        listed = stack.enter_context(rejects.open("w", encoding="utf-8")) if rejects else None
        stack.enter_context(database(settings(), PURPOSE))
        current = settings()
        bring_up_to_date(current, reads=check)
        connection = stack.enter_context(psycopg.connect(current.platform_url, connect_timeout=10, autocommit=True))
        told = stack.enter_context(_progress())
        work = EventImport(connection, source, said, told)
        imported = work.judge(listed)
        refused = too_many(imported.tally, max_rejects, file)
        if refused is None and not check:
            make_partitions(current.platform_url, current.lineage_start, days_ahead=7, days=imported.tally.days)
            work.store(imported, actor=by_hand(PURPOSE))
            first_day = recorded_first_day(connection) or current.lineage_start
    _show_rejects(imported.tally, rejects)
    if imported.other_content is not None:
        say(
            f"{file} was imported with other content on {moment(imported.other_content)}: without an `event_id` in the mapping, rows that "
            "were in it then are stored a second time (docs/importing-events.md)."
        )
    if refused is not None:
        raise ImportRefusedError(refused)
    _show(imported, stored=not check)
    if check:
        say("Nothing was stored: this was a check.")
    else:
        for sentence in _next_steps(imported, first_day):
            say(sentence)


@contextmanager
def _progress() -> Iterator["Told"]:
    """A bar with the time that is left, on a terminal."""
    with progress() as bar:
        tasks = {doing: bar.add_task(f"rows {doing}", total=1.0) for doing in ("judged", "stored")}
        yield lambda doing, share: bar.update(tasks[doing], completed=share)


def _show_rejects(tally: "Tally", rejects: Path | None) -> None:
    from rich.table import Table

    if not tally.rejects:
        return
    table = Table("rejected because", "rows", "first lines", box=None)
    table.columns[1].justify = "right"
    for reason, count in tally.rejects.most_common():
        table.add_row(reason, f"{count:,}", ", ".join(map(str, tally.lines[reason])))
    console().print(table)
    if rejects is not None:
        say(f"Every rejected row, with its reason: {rejects}")


def _show(imported: "Imported", *, stored: bool) -> None:
    from rich.table import Table

    tally = imported.tally
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("rows", f"{tally.rows:,}")
    if tally.left_out:
        table.add_row("  left out by `where`", f"{tally.left_out:,}")
    table.add_row("  rejected", f"{tally.rejected:,}")
    for event_type, count in sorted(tally.events.items()):
        table.add_row(f"events {event_type}", f"{count:,}")
    if tally.without_experiment:
        table.add_row("  without an experiment", f"{tally.without_experiment:,}")
    if stored:
        table.add_row("  of all, new", f"{imported.new_events:,}")
    for variant, count in sorted(imported.units.items()):
        table.add_row(f"units in {variant}", f"{count:,}")
    if stored and imported.units:
        table.add_row("  of all, new", f"{imported.new_units:,}")
    console().print(table)
    if tally.first is not None:
        say(f"From {moment(tally.first)} to {moment(tally.last)}.")


def _next_steps(imported: "Imported", first_day: date) -> list[str]:
    if imported.before:
        return ["Nothing new: this file was imported before."]
    told = [] if imported.run is None else [f"{imported.run.label} is completed, with its units enrolled."]
    days = imported.tally.days
    history = [day for day in days if day < first_day]
    if history:
        told.append(
            f"Next: materialise `history_events` and `cleaned_history` in Dagster, which archive what is older than {first_day}."
        )
    if len(history) < len(days):
        newest = sorted(set(days) - set(history))
        told.append(f"Next: materialise `raw_events` in Dagster for the hours from {newest[0]} to {newest[-1]}.")
    if days:
        told.append("The dbt assets bring the numbers into `exp.metric_aggregates` on their next run.")
    return told
