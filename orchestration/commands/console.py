"""What all commands share: consoles, bars, sizes and times for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

# Where nobody looks (a pipe, a log), lines are not folded at 80 columns.
_PIPED_WIDTH = 160


def console(stderr: bool = False) -> Console:
    """A console that finds out anew whether it writes to a terminal."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPED_WIDTH)


def say(sentence: str) -> None:
    """Print a sentence as it is: brackets and long paths untouched."""
    console().print(sentence, markup=False, soft_wrap=True)


def human_size(size: int) -> str:
    """Bytes as MB or GB."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def moment(at: datetime | None) -> str:
    """A point in time to the minute, in UTC; empty when there is none."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def progress() -> Iterator["Progress"]:
    """Bars with the time that is left, on a terminal; nothing where nobody looks."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bars:
        yield bars
