"""The error of everything local. Belongs here: the type, and what is said of a file that can't be had."""

import errno
from pathlib import Path


class LocalServiceError(Exception):
    """A local service can't be had; the message is one sentence: what is wrong, where, and what to do."""


def cannot_write(folder: Path, error: OSError) -> LocalServiceError:
    """The sentence for a folder of the home that can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LocalServiceError(
            f"The disk of {folder} is full: free some space, or choose another folder with LIFECYCLE_HOME."
        )
    return LocalServiceError(
        f"Can't write to {folder} ({error.strerror}): give yourself write access, or choose another folder with LIFECYCLE_HOME."
    )
