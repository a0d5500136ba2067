"""`make soak`: checks that no acknowledged event is lost or duplicated while processes are killed."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orchestration.commands.console import console
from orchestration.commands.failures import run


def soak(
    minutes: Annotated[float, typer.Option(min=0.05, max=24 * 60, help="Duration in minutes.")] = 10.0,
    senders: Annotated[int, typer.Option(min=2, max=64, help="Number of concurrent clients.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the events and of the times of kills.")] = 1,
) -> None:
    """Kill the API and stop PostgreSQL at random moments under load, and count acknowledged, stored, lost and duplicated events."""
    from benchmarks.killing import Soak

    out = console()
    ends = time.monotonic() + minutes * 60
    with tempfile.TemporaryDirectory(prefix="lifecycle-soak-") as folder, out.status("starting") as status:
        printed_at = 0.0

        def say(step: str) -> None:
            nonlocal printed_at
            left = max(0.0, ends - time.monotonic())
            message = f"{step}; {left // 60:.0f} min {left % 60:02.0f} s left"
            status.update(message)
            # Without a terminal, print a line every half minute.
            if not out.is_terminal and time.monotonic() - printed_at > 30:
                printed_at = time.monotonic()
                out.print(message, markup=False)

        outcome = Soak(Path(folder), seed, senders, say).run(seconds=minutes * 60)
    table = Table()
    rows = {
        "acknowledged": outcome.acknowledged,
        "stored": outcome.stored,
        "lost": outcome.lost,
        "duplicated": outcome.doubled,
        "dead letters": outcome.dead,
        "API killed": outcome.kills,
        "PostgreSQL stopped": outcome.outages,
        "refused with 503": outcome.refused,
    }
    for heading in ("", f"in {outcome.seconds:.0f} s, seed {seed}"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    out.print(table)
    for answer in outcome.unexpected:
        out.print(f"An unexpected answer: {answer}", markup=False)
    if not outcome.sound:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(partial(typer.run, soak), "soak")
