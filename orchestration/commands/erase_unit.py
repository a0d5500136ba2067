"""`lifecycle erase-unit`: removes a unit from everything that the platform stores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.commands.access import bring_up_to_date, by_hand
from orchestration.commands.console import console, progress, say

if TYPE_CHECKING:
    from orchestration.erasure.erase import Platform, Report

PURPOSE = "lifecycle erase-unit"


def erase_unit(
    name: Annotated[str, typer.Argument(metavar="UNIT", help="Type and id, such as user:123.")],
    pseudonymise: Annotated[
        bool,
        typer.Option(
            "--pseudonymise", help="Keep its events and assignments under a random id, without context and payload."
        ),
    ] = False,
    datasets: Annotated[
        bool,
        typer.Option(
            "--datasets",
            help="Also remove it from dataset versions (published again as revisions), replay files and MLflow artefacts.",
        ),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only list what would be erased.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a unit (or pseudonymise it) everywhere: events, assignments, spool, dead letters, archive.

    Run it again to complete an erasure that was interrupted.
    """
    import psycopg

    from foundation.settings import settings
    from orchestration.erasure.erase import erase, look
    from orchestration.erasure.findings import Unit
    from orchestration.local.databases import database

    unit = Unit.parse(name)
    with database(settings(), PURPOSE):
        current = settings()
        bring_up_to_date(current, reads=check)
        with psycopg.connect(current.platform_url, connect_timeout=10, autocommit=True) as connection:
            if check or not yes:
                with _progress() as on_progress:
                    report = look(
                        connection, _platform(), unit, pseudonymise=pseudonymise, files=datasets, on_progress=on_progress
                    )  # fmt: skip
                _show(name, report, planned=True)
            if not check:
                if not yes:
                    typer.confirm(f"{'Pseudonymise' if pseudonymise else 'Remove'} {name} for good?", abort=True)
                with _progress() as on_progress:
                    report = erase(
                        connection, _platform(), unit, pseudonymise=pseudonymise, files=datasets, on_progress=on_progress,
                        by=by_hand(PURPOSE),
                    )  # fmt: skip
                _show(name, report, planned=False)
                _show_next_steps(report, current.assignment_cache_seconds)
    for place, sentence in report.left.items():
        console(stderr=True).print(f"lifecycle: {place}: {sentence}", markup=False, soft_wrap=True)
    if report.left:
        if not check:
            console(stderr=True).print("Run the same command again to complete it.", markup=False)
        raise typer.Exit(1)


def _platform() -> "Platform":
    from foundation.object_store import ObjectStore
    from foundation.settings import settings
    from orchestration.erasure.erase import Platform

    current = settings()
    return Platform(
        ObjectStore(current.store_root),
        ObjectStore(current.datasets_root),
        current.spool_root,
        current.tracking_uri,
        current.config_dir,
        current.lineage_start,
    )


def _show(name: str, report: "Report", *, planned: bool) -> None:
    from rich.table import Table

    if not report.found:
        recorded = "" if planned else " It is recorded as erased all the same."
        say(f"{name} was found nowhere.{recorded}")
        return
    table = Table()
    for heading in ("place", "rows", "would be done" if planned else "done"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "rows" else "left")
    for found in report.found:
        table.add_row(found.place, f"{found.rows:,}", found.done)
    console().print(table, markup=False)


def _show_next_steps(report: "Report", seconds: float) -> None:
    """Print what still happens after the command: aggregates to rebuild, and answers that the API may have cached."""
    if report.days:
        say(
            f"Aggregates to rebuild: {report.days:,} {'day' if report.days == 1 else 'days'}. The next dbt build does this; "
            "materialise metric_aggregates to do it now."
        )
    if any(found.place.startswith("exp.assignments") for found in report.found):
        say(
            f"A running API may still answer from its memory or from Redis for up to {seconds:,.0f} s: restart it to end this at once."
        )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """On a terminal, a bar per searched place, with the time left."""
    with progress() as bar:
        tasks: dict[str, int] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield on_progress
