"""What all commands share: the two consoles, sizes and times for people. Belongs here: printing. Does not belong here: any command."""

from datetime import UTC, datetime

from rich.console import Console

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
