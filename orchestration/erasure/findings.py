"""The unit to erase, how to erase it, what was found of it, and the error of an erasure."""

from collections.abc import Callable
from dataclasses import dataclass

from eventlog.validation import MAX_UNIT_ID, UNIT_TYPES
from foundation.errors import LifecycleError

Progress = Callable[[str, int, int], None]
"""Called with the place being searched, how much of it is done, and its total."""


class ErasureError(LifecycleError):
    """A unit can't be erased, or not in one place; the message says why and what to do."""


@dataclass(frozen=True)
class Unit:
    """A unit, by type and id."""

    unit_type: str
    unit_id: str

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """The unit of `user:123`. The id may contain any characters, also colons. Raises ErasureError if the text is not a valid unit."""
        unit_type, colon, unit_id = text.partition(":")
        if not colon or unit_type not in UNIT_TYPES:
            raise ErasureError(
                f"{text!r} is not a unit: write its type ({', '.join(sorted(UNIT_TYPES))}), a colon and its id, such as user:123."
            )
        if not 1 <= len(unit_id) <= MAX_UNIT_ID or "\0" in unit_id or not _is_unicode(unit_id):
            raise ErasureError(
                f"A unit can't have this id: it has {len(unit_id)} characters; give 1 to {MAX_UNIT_ID} of valid Unicode, without NUL."
            )
        return cls(unit_type, unit_id)


@dataclass(frozen=True)
class Found:
    """How many rows of the unit a place holds, or held. `done` says what happens to them; `kept` is True if they stay."""

    place: str
    rows: int
    done: str
    kept: bool = False


@dataclass(frozen=True)
class Mode:
    """How a unit is erased. `pseudonym` replaces its id, None removes its rows; without `change` nothing is changed."""

    pseudonym: str | None
    change: bool
    datasets: bool

    @property
    def done(self) -> str:
        """What happens to rows that aggregates count."""
        return "pseudonymised" if self.pseudonym else "removed"

    @property
    def changes_files(self) -> bool:
        """Whether datasets and the output of trainings and replays are rewritten."""
        return self.change and self.datasets

    @property
    def done_to_files(self) -> str:
        """What happens to the unit's rows in those files: no aggregate counts them, so they are removed in either mode."""
        return "removed" if self.datasets else "kept: --datasets removes it"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
