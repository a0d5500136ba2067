"""The home folder: all local state of one installation.

settings.env   settings that must not change between starts      lock      who uses the home now
postgres/      the embedded server                               run/      one record a running service, and their sockets
dagster/       DAGSTER_HOME, written anew at each start          logs/     one log a service
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
# A fresh PostgreSQL needs 60 MB and the sample about as much again: better refused at the door than half-way through a migration.
LEAST_FREE_BYTES = 256 * 1024 * 1024
_PROBE_BYTES = 64 * 1024


def prepare(settings: Settings) -> Settings:
    """Make the home's folders, see that they can be written, and record the first day of the partitions.

    Returns the settings as they are then. Raises LifecycleError with one sentence when the folder can't be used.
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
            f"The disk of {home} has {free // 2**20} MB left and {LEAST_FREE_BYTES // 2**20} MB are needed: free some space, "
            "or choose another folder with LIFECYCLE_HOME."
        )
    if "LIFECYCLE_FIRST_DAY" not in recorded_settings(home):
        return record_setting("first_day", settings.lineage_start, settings)
    return settings


def recorded_settings(home: Path) -> dict[str, str]:
    """What `settings.env` of a home holds, by environment variable name. Empty before the first start."""
    file = home / SETTINGS_FILE
    if not file.exists():
        return {}
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def record_setting(name: str, value: object, settings: Settings | None = None) -> Settings:
    """Write one setting (a field's name, such as `replay_from`) to `settings.env`, keeping every other line; None removes it.

    Returns the settings read anew. An environment variable still wins over the file. Raises ValueError for a name that is no
    setting, LifecycleError when the file can't be written.
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
    """Replace a file as a whole: a reader, or the next start after a kill, sees the old text or the new one."""
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
    """Who uses a home: the command, its process, and since when."""

    purpose: str
    pid: int
    since: datetime

    def __str__(self) -> str:
        return f"`{self.purpose}` (process {self.pid}, since {self.since.astimezone():%Y-%m-%d %H:%M})"


@contextmanager
def locked(home: Path, purpose: str) -> Iterator[None]:
    """Hold the home for one command. Raises LifecycleError naming the holder when another one does.

    The kernel frees the lock when its process ends, however it ends. Children do not inherit it.
    """
    try:
        file = (home / "lock").open("a+")
    except OSError as error:
        raise cannot_write(home, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = str(holder(home) or "another command")
            raise LifecycleError(
                f"The home {home} is in use by {who}: end it with `lifecycle down`, or choose another home with LIFECYCLE_HOME."
            ) from error
        mine = {"pid": os.getpid(), "created": psutil.Process().create_time(), "purpose": purpose}
        _rewrite(file.fileno(), json.dumps({**mine, "since": datetime.now(UTC).isoformat(timespec="seconds")}))
        try:
            yield
        finally:
            _rewrite(file.fileno(), "")


def holder(home: Path) -> Holder | None:
    """Who holds the home now, or None. A holder that was killed is no holder."""
    try:
        noted = json.loads((home / "lock").read_text())
        alive = psutil.Process(noted["pid"])
        if alive.status() == psutil.STATUS_ZOMBIE or abs(alive.create_time() - noted["created"]) > 5:
            return None
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, psutil.NoSuchProcess):
        return None
    return Holder(noted["purpose"], noted["pid"], datetime.fromisoformat(noted["since"]))


def _rewrite(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def cannot_write(folder: Path, error: OSError) -> LifecycleError:
    """The sentence for a folder of the home that can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LifecycleError(
            f"The disk of {folder} is full: free some space, or choose another folder with LIFECYCLE_HOME."
        )
    return LifecycleError(
        f"Can't write to {folder} ({error.strerror}): give yourself write access, or choose another folder with LIFECYCLE_HOME."
    )
