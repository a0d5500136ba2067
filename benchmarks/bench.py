"""`make bench`: what is measured is chosen, shown while it runs, printed as a table, written as JSON."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer
from rich.console import Console

from orchestration.commands.console import console
from orchestration.commands.failures import run


class What(StrEnum):
    """What can be measured."""

    ASSIGNMENTS = "assignments"
    EVENTS = "events"
    ALL = "all"


class Only(StrEnum):
    """The paths (assignments.NAMES, ingestion.NAMES, the archive), written out so that `--help` loads nothing else."""

    HIT = "hit"
    NO_CACHE = "no-cache"
    NEW = "new"
    NEW_4 = "new-4"
    NEW_1 = "new-1"
    NEW_ALIKE = "new-alike"
    NEW_ALIKE_4 = "new-alike-4"
    NEW_ALIKE_1 = "new-alike-1"
    MEMORY = "memory"
    BATCH = "batch"
    BATCH_1 = "batch-1"
    BATCH_100 = "batch-100"
    SINGLE = "single"
    SINGLE_ALIKE = "single-alike"
    SINGLE_32 = "single-32"
    ARCHIVE = "archive"


def bench(
    what: Annotated[What, typer.Argument(help="Assignments, events and their archive, or all.")] = What.ALL,
    only: Annotated[
        list[Only] | None, typer.Option(help="Of these, only this path; may be given again for another.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Alternating rounds; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="Length of a round of requests.")] = 2.0,
    units: Annotated[int, typer.Option(min=100, max=2_000_000, help="Distinct units that memory is measured with.")] = (
        1_000_000
    ),
    events: Annotated[int, typer.Option(min=1000, max=200_000, help="Events of a round over HTTP.")] = 40_000,
    hour: Annotated[
        int, typer.Option(min=1000, max=10_000_000, help="Events of the hour that is archived.")
    ] = 1_000_000,
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Measure the API and the events as ratios to a floor, in one run, on a database of its own."""
    from benchmarks.figures import Figure, Memory, table

    out = console()
    figures: list[Figure] = []
    memory: Memory | None = None
    names = frozenset(one.value for one in only or Only)
    with _server() as (new_database, folder), _progress(out) as say:
        if what is not What.EVENTS:
            from benchmarks.assignments import NAMES, AssignmentBench, Plan

            if chosen := names.intersection(NAMES):
                plan = Plan(names=chosen, rounds=rounds, seconds=seconds, memory_units=units)
                figures, memory = AssignmentBench(new_database("assignments"), folder, plan, say).measure()
        if what is not What.ASSIGNMENTS:
            from benchmarks.archive import measure_archive
            from benchmarks.ingestion import WAYS, IngestionBench

            if chosen := names.intersection(way.name for way in WAYS):
                figures += IngestionBench(new_database("events"), folder, events, rounds, say).measure(chosen)
            if Only.ARCHIVE.value in names:
                figures += measure_archive(new_database("archive"), folder, hour, rounds, say)
    if figures:
        out.print(table(figures))
    if any(figure.disturbed for figure in figures):
        out.print("Other programs took the processor meanwhile (disturbed): trust the CPU ratio, or measure again.")
    if memory is not None:
        out.print(str(memory))
    out.print(f"Medians of {rounds} rounds. Ratios are to the floor on the same machine in the same run.")
    if output is not None:
        output.write_text(json.dumps(_as_json(figures, memory, rounds, seconds, events), indent=2) + "\n")


def _as_json(figures: list[Any], memory: Any, rounds: int, seconds: float, events: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "seconds": seconds,
        "events": events,
        "figures": [figure.as_json() for figure in figures],
        "memory": None if memory is None else memory.as_json(),
    }


@contextmanager
def _server() -> Iterator[tuple[Callable[[str], str], Path]]:
    """What makes a migrated database and returns its address, on a server of its own, and a folder; all goes when the block ends."""
    from foundation.migrate import migrate
    from orchestration.local.ports import free_port
    from orchestration.local.postgres import EmbeddedPostgres, make_databases

    with tempfile.TemporaryDirectory(prefix="lifecycle-bench-") as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "postgres", free_port())
        server.start()

        def new_database(database: str) -> str:
            make_databases(server.url, [database])
            url = urlunsplit(urlsplit(server.url)._replace(path=f"/{database}"))
            migrate(url)
            return url

        try:
            yield new_database, folder
        finally:
            server.stop()


@contextmanager
def _progress(out: Console) -> Iterator[Callable[[str], None]]:
    """What to call with the step that runs now; where nobody looks, nothing is drawn, and each step is a line."""
    if not out.is_terminal:
        yield lambda step: out.print(f"· {step}", markup=False)
        return
    # Drawn twice a second: every frame takes time from what is measured.
    with out.status("starting", refresh_per_second=2) as status:
        yield status.update


if __name__ == "__main__":
    run(partial(typer.run, bench), "bench")
