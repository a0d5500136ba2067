"""Errors that a user can put right, as Dagster shows them: the sentence first, no retry.

Belongs here: the translation. Does not belong here: the sentences.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

_OURS = frozenset({"assets", "experimentation", "planner", "training"})


@contextmanager
def as_failures() -> Iterator[None]:
    """An error type that our packages define is meant for its reader: raise it as a dagster Failure with that sentence."""
    try:
        yield
    except dg.Failure:
        raise
    except Exception as error:  # what is not ours is a defect, and is raised as it is
        if type(error).__module__.partition(".")[0] not in _OURS:
            raise
        raise dg.Failure(str(error), allow_retries=False) from error
