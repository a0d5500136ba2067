"""Errors that a user can put right, as Dagster shows them: the sentence first, and no retry."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from foundation.errors import LifecycleError


@contextmanager
def as_failures() -> Iterator[None]:
    """Raise a LifecycleError as a dagster Failure with its sentence; any other exception is a defect and passes unchanged."""
    try:
        yield
    except LifecycleError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
