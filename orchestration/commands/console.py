"""Shared by all commands: consoles, progress bars, and sizes and times for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

# Lines are not folded at 80 columns when the output is a pipe or a log file.
_PIPED_WIDTH = 160


def console(stderr: bool = False) -> Console:
    """A new console, which detects whether it writes to a terminal."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPED_WIDTH)


def say(sentence: str) -> None:
    """Print a sentence unchanged: without rich markup and without folding long paths."""
    console().print(sentence, markup=False, soft_wrap=True)


def human_size(size: int) -> str:
    """Bytes as MB or GB."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def moment(at: datetime | None) -> str:
    """A point in time to the minute, in UTC; empty for None."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def progress() -> Iterator["Progress"]:
    """Progress bars with the time left, on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    out = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bars:
        yield bars
