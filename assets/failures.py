"""Shows errors that a user can fix in Dagster: with their message first, and without a retry."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from foundation.errors import LifecycleError


@contextmanager
def as_failures() -> Iterator[None]:
    """Raise a LifecycleError as a dagster Failure with the same message. Any other exception is a defect and passes unchanged."""
    try:
        yield
    except LifecycleError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
