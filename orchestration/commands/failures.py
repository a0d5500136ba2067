"""Running a command so that an error that the user can fix becomes one message and exit code 1.

A `LifecycleError` carries its message. Of other libraries' errors, only those that users run into get a message: PostgreSQL is down,
a setting is invalid, a file can't be read or written.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from foundation.errors import LifecycleError
from orchestration.commands.console import console
from orchestration.local.signals import interrupt_on_signals


def run(command: Callable[[], object], name: str) -> None:
    """Call `command`. An error with a message is printed as `name: message` and ends the process with 1; a defect is raised.

    With LIFECYCLE_DEBUG set, every error is raised.
    """
    interrupt_on_signals()
    try:
        command()
    except Exception as error:  # the top of the process: an error without a message is raised again
        message = sentence(error)
        if message is None or os.environ.get("LIFECYCLE_DEBUG"):
            raise
        console(stderr=True).print(f"{name}: {message}", markup=False, soft_wrap=True)
        sys.exit(1)


def sentence(error: BaseException) -> str | None:
    """The message for an error, or None for a defect, which deserves its traceback."""
    if isinstance(error, LifecycleError):
        return str(error)
    if isinstance(error, OSError):
        return _of_a_file(error)
    module = type(error).__module__.partition(".")[0]
    if module in ("psycopg", "psycopg2", "sqlalchemy") and type(error).__name__ in (
        "OperationalError",
        "ConnectionTimeout",
    ):
        return (
            f"PostgreSQL can't be reached ({_first_line(error)}): `lifecycle status` shows what is running, "
            "`lifecycle db start` starts the embedded one."
        )
    if module == "pydantic_core" and getattr(error, "title", "") == "Settings":
        return "; ".join(_of_a_setting(item) for item in error.errors())  # type: ignore[attr-defined]  # pydantic's own type
    if module == "pydantic_settings":
        return f"A setting can't be read ({_first_line(error)}): correct it in the environment or in settings.env."
    return None


def _of_a_file(error: OSError) -> str:
    if error.strerror is None:
        # Raised with its own message, as `Settings.platform_url` does.
        return str(error)
    if error.filename is None:
        return f"The system refused ({error.strerror})."
    return f"{Path(str(error.filename))}: {error.strerror}."


def _of_a_setting(item: dict[str, object]) -> str:
    from orchestration.local.home import variable_name

    place = item["loc"]
    name = str(place[0]) if isinstance(place, tuple) and place else "a setting"
    variable = name if name.isupper() else variable_name(name.lower())
    return (
        f"{variable}={item['input']} can't be used ({item['msg']}): correct it in the environment or in settings.env."
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
