"""`make soak`: is anything lost or doubled while processes are killed?"""

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
    minutes: Annotated[float, typer.Option(min=0.05, max=24 * 60, help="How long.")] = 10.0,
    senders: Annotated[int, typer.Option(min=2, max=64, help="Clients that send at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of what is sent, and of when something is killed.")] = 1,
) -> None:
    """Kill the API and stop PostgreSQL at random moments under load, and count: acknowledged, stored, lost, doubled."""
    from benchmarks.killing import Soak

    out = console()
    ends = time.monotonic() + minutes * 60
    with tempfile.TemporaryDirectory(prefix="lifecycle-soak-") as folder, out.status("starting") as status:
        said = 0.0

        def say(step: str) -> None:
            nonlocal said
            left = max(0.0, ends - time.monotonic())
            told = f"{step}; {left // 60:.0f} min {left % 60:02.0f} s left"
            status.update(told)
            # Where nobody looks, a line every half minute.
            if not out.is_terminal and time.monotonic() - said > 30:
                said = time.monotonic()
                out.print(told, markup=False)

        found = Soak(Path(folder), seed, senders, say).run(seconds=minutes * 60)
    table = Table()
    rows = {
        "acknowledged": found.acknowledged, "stored": found.stored, "lost": found.lost, "doubled": found.doubled,
        "dead letters": found.dead, "API killed": found.kills, "PostgreSQL stopped": found.outages, "refused with 503": found.refused,
    }  # fmt: skip
    for heading in ("", f"in {found.seconds:.0f} s, seed {seed}"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    out.print(table)
    for answer in found.unexpected:
        out.print(f"An answer that no client expects: {answer}", markup=False)
    if not found.sound:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(partial(typer.run, soak), "soak")
