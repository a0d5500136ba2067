"""The home folder: all local state of one installation.

settings.env   settings that must not change between starts      lock      the command that uses the home now
postgres/      the embedded server                               run/      one record per running service, and their sockets
dagster/       DAGSTER_HOME, rewritten at each start             logs/     one log per service
store/         archives and artefacts, unless LIFECYCLE_STORE    docs/     the dbt docs site
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from foundation.errors import LifecycleError
from foundation.settings import Settings
from foundation.settings import settings as current_settings

SETTINGS_FILE = "settings.env"
# A new PostgreSQL needs 60 MB and the sample about as much: better to refuse at once than to fail in the middle of a migration.
LEAST_FREE_BYTES = 256 * 1024 * 1024
_PROBE_BYTES = 64 * 1024


def prepare(settings: Settings) -> Settings:
    """Create the home's folders, check that they are writable, and record the first day of the partitions.

    Returns the settings after that. Raises LifecycleError if the folder can't be used.
    """
    home = settings.home
    try:
        for folder in (home, home / "logs", home / "dagster"):
            folder.mkdir(parents=True, exist_ok=True)
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"\0" * _PROBE_BYTES)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(home).free
    except OSError as error:
        raise cannot_write(home, error) from error
    if free < LEAST_FREE_BYTES:
        raise LifecycleError(
            f"The disk of {home} has {free // 2**20} MB left, but {LEAST_FREE_BYTES // 2**20} MB are needed: free some space, "
            "or choose another folder with LIFECYCLE_HOME."
        )
    if "LIFECYCLE_FIRST_DAY" not in recorded_settings(home):
        return record_setting("first_day", settings.lineage_start, settings)
    return settings


def recorded_settings(home: Path) -> dict[str, str]:
    """The settings in a home's `settings.env`, by environment variable. Empty before the first start."""
    file = home / SETTINGS_FILE
    if not file.exists():
        return {}
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def record_setting(name: str, value: object, settings: Settings | None = None) -> Settings:
    """Write a setting (a field's name, such as `replay_from`) to `settings.env`, keeping all other lines; None removes it.

    Returns the new settings. An environment variable still overrides the file. Raises ValueError for an unknown setting, and
    LifecycleError if the file can't be written.
    """
    if name not in Settings.model_fields:
        raise ValueError(f"'{name}' is not a setting: {', '.join(sorted(Settings.model_fields))}.")
    home = (settings or current_settings()).home
    variable = variable_name(name)
    file = home / SETTINGS_FILE
    try:
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [line for line in lines if line.partition("=")[0].strip() != variable]
        if value is not None:
            kept.append(f"{variable}={value}")
        write_atomically(file, "".join(f"{line}\n" for line in kept))
    except OSError as error:
        raise cannot_write(home, error) from error
    current_settings.cache_clear()
    if current_settings().home == home:
        return current_settings()
    return Settings(_env_file=file, home=home)  # type: ignore[call-arg]


def variable_name(field: str) -> str:
    """The environment variable of a setting."""
    return field.upper() if field in ("database_url", "mlflow_tracking_uri") else f"LIFECYCLE_{field.upper()}"


def write_atomically(file: Path, text: str) -> None:
    """Replace a file atomically: a reader, or the next start after a kill, sees either the old text or the new one."""
    descriptor, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


@dataclass(frozen=True)
class Holder:
    """The command that uses a home, its process, and since when."""

    purpose: str
    pid: int
    since: datetime

    def __str__(self) -> str:
        return f"`{self.purpose}` (process {self.pid}, since {self.since.astimezone():%Y-%m-%d %H:%M})"


@contextmanager
def locked(home: Path, purpose: str) -> Iterator[None]:
    """Lock the home for one command. Raises LifecycleError, naming the holder, if another command has locked it.

    The kernel releases the lock when the process ends, even after a kill. Children do not inherit it.
    """
    try:
        file = (home / "lock").open("a+")
    except OSError as error:
        raise cannot_write(home, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            user = str(holder(home) or "another command")
            raise LifecycleError(
                f"The home {home} is in use by {user}: stop it with `lifecycle down`, or choose another home with LIFECYCLE_HOME."
            ) from error
        process = {"pid": os.getpid(), "created": psutil.Process().create_time(), "purpose": purpose}
        _rewrite(file.fileno(), json.dumps({**process, "since": datetime.now(UTC).isoformat(timespec="seconds")}))
        try:
            yield
        finally:
            _rewrite(file.fileno(), "")


def holder(home: Path) -> Holder | None:
    """The command that holds the home's lock now, or None. A command that was killed does not count."""
    try:
        recorded = json.loads((home / "lock").read_text())
        process = psutil.Process(recorded["pid"])
        if process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - recorded["created"]) > 5:
            return None
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, psutil.NoSuchProcess):
        return None
    return Holder(recorded["purpose"], recorded["pid"], datetime.fromisoformat(recorded["since"]))


def _rewrite(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def cannot_write(folder: Path, error: OSError) -> LifecycleError:
    """The error for a folder of the home that can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LifecycleError(
            f"The disk of {folder} is full: free some space, or choose another folder with LIFECYCLE_HOME."
        )
    return LifecycleError(
        f"Can't write to {folder} ({error.strerror}): give yourself write access, or choose another folder with LIFECYCLE_HOME."
    )
