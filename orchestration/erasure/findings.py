"""What is erased, what was found of it where, and the one error type."""

from collections.abc import Callable
from dataclasses import dataclass

from eventlog.validation import MAX_UNIT_ID, UNIT_TYPES
from foundation.errors import LifecycleError

Progress = Callable[[str, int, int], None]
"""What is being looked through, how much of it is done, how much there is."""


class ErasureError(LifecycleError):
    """A unit can't be erased, or not here; the message says why and what to do."""


@dataclass(frozen=True)
class Unit:
    """One unit, by type and id."""

    unit_type: str
    unit_id: str

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """`user:123` → the unit; the id may hold anything, colons too. Raises ErasureError for what can be no unit."""
        unit_type, colon, unit_id = text.partition(":")
        if not colon or unit_type not in UNIT_TYPES:
            raise ErasureError(
                f"{text!r} is not a unit: write its type ({', '.join(sorted(UNIT_TYPES))}), a colon and its id, such as user:123."
            )
        if not 1 <= len(unit_id) <= MAX_UNIT_ID or "\0" in unit_id or not _is_unicode(unit_id):
            raise ErasureError(
                f"No unit can have this id: it has {len(unit_id)} characters, and 1 to {MAX_UNIT_ID} of Unicode are allowed."
            )
        return cls(unit_type, unit_id)


@dataclass(frozen=True)
class Found:
    """What one place holds (or held) of the unit. `done` says what becomes of it; `kept` is True where it stays."""

    place: str
    rows: int
    done: str
    kept: bool = False


@dataclass(frozen=True)
class Mode:
    """How a unit is erased. `pseudonym` is what stands for it from now on, or None where its rows go; `change` False only looks."""

    pseudonym: str | None
    change: bool
    datasets: bool

    @property
    def done(self) -> str:
        """What becomes of a row that aggregates count."""
        return "pseudonymised" if self.pseudonym else "removed"

    @property
    def changes_files(self) -> bool:
        """Whether datasets and what trainings and replays left are written anew."""
        return self.change and self.datasets

    @property
    def done_to_files(self) -> str:
        """What becomes of the unit's rows in them: no number that anybody looks at is counted from them, so they go in either mode."""
        return "removed" if self.datasets else "kept: --datasets removes it"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
