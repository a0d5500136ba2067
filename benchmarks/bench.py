"""`make bench`: runs the chosen measurements, shows progress, prints a table, and writes JSON."""

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
    """The measurements to run."""

    ASSIGNMENTS = "assignments"
    EVENTS = "events"
    ALL = "all"


class Only(StrEnum):
    """The paths (assignments.NAMES, ingestion.WAYS, the archive), repeated here so that `--help` loads nothing else."""

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
    only: Annotated[list[Only] | None, typer.Option(help="Measure only this path; may be given several times.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Number of alternating rounds; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="Length of a round of requests.")] = 2.0,
    units: Annotated[
        int, typer.Option(min=100, max=2_000_000, help="Distinct units for the measurement of memory.")
    ] = (1_000_000),
    events: Annotated[int, typer.Option(min=1000, max=200_000, help="Events per round over HTTP.")] = 40_000,
    hour: Annotated[int, typer.Option(min=1000, max=10_000_000, help="Events in the archived hour.")] = 1_000_000,
    output: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Measure assignments and events against a floor, in one run, on a separate database."""
    from benchmarks.figures import Figure, Memory, figure_table

    out = console()
    figures: list[Figure] = []
    memory: Memory | None = None
    names = frozenset(path.value for path in only or Only)
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
        out.print(figure_table(figures))
    if any(figure.disturbed for figure in figures):
        out.print("Other programs used the processor meanwhile (disturbed): rely on the CPU ratio, or measure again.")
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
    """A function that creates a migrated database and returns its URL, and a folder. The server and all data end with the block."""
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
    """A function that shows the current step: as a status on a terminal, otherwise as a line of text."""
    if not out.is_terminal:
        yield lambda step: out.print(f"· {step}", markup=False)
        return
    # Refreshed only twice a second, because every frame takes time from the measurement.
    with out.status("starting", refresh_per_second=2) as status:
        yield status.update


if __name__ == "__main__":
    run(partial(typer.run, bench), "bench")
