"""The manifest of a day (and of the history): what each of its files holds, beside the files, so that the archive explains itself.

events/{year}/{month}/{day}/manifest.json
events/history/manifest.json
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

from eventlog.archive.files import HISTORY_FOLDER, day_folder
from eventlog.archive.hours import ArchivedHour, archived_hours, record_archived, record_late
from foundation.object_store import MissingObjectError, ObjectStore

# What an hour's row knows of PostgreSQL changes without the file.
_OF_FILE = ("hour", "key", "file_rows", "file_checksum", "first_event", "last_event", "bytes", "sha256", "archived_at")


def folder_of(key: str) -> str:
    """The folder of a file's manifest."""
    return HISTORY_FOLDER if key.startswith(f"{HISTORY_FOLDER}/") else key.rsplit("/", 2)[0]


def record_files(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    files: Sequence[ArchivedHour],
    unchanged: Sequence[ArchivedHour] = (),
    *,
    late: bool = False,
) -> None:
    """Note what was just published: a row of each in `exp.archived_hours`, then the manifests of their folders.

    `unchanged` files were found as their rows tell: their manifests are put right where a killed process left them behind the rows.
    `late`: PostgreSQL has events that are not in `files`. The caller holds the archive's lock of these days, and the connection is idle.
    Raises foundation.object_store.StoreError.
    """
    with connection.transaction():
        record_archived(connection, files, unchanged)
        for file in files if late else ():
            record_late(connection, file.hour)
    latest_of: dict[str, datetime] = {}
    for file in sorted((*files, *unchanged), key=lambda file: file.hour):
        latest_of[folder_of(file.key)] = file.hour
    for folder, latest in sorted(latest_of.items()):
        start = datetime.min.replace(tzinfo=UTC) if folder == HISTORY_FOLDER else latest.replace(hour=0)
        with connection.transaction():
            rows = archived_hours(connection, start, latest.replace(hour=0) + timedelta(days=1))
        # What stood there stays: the archive may be older than this database.
        told = {file.key: _of_file(file) for file in read_manifest(store, folder)}
        noted = {row.key: _of_file(row) for row in rows.values() if folder_of(row.key) == folder}
        if any(told.get(key) != file for key, file in noted.items()):
            _write(store, folder, told | noted)


def is_told_of(store: ObjectStore, day: date, rows: Iterable[ArchivedHour]) -> bool:
    """Whether a day's manifest says of each of these hours what its row says. Raises foundation.object_store.StoreError."""
    told = [_of_file(file) for file in day_manifest(store, day)]
    return all(_of_file(row) in told for row in rows)


def read_manifest(store: ObjectStore, folder: str) -> list[ArchivedHour]:
    """What a folder's manifest says of its files, in order; nothing where there is none. Raises foundation.object_store.StoreError.

    What PostgreSQL held is not in it, and reads as zero.
    """
    try:
        files = json.loads(store.read(f"{folder}/manifest.json"))["files"]
    except MissingObjectError:
        return []
    return [
        ArchivedHour(**{name: _read(name, value) for name, value in file.items()}, database_rows=0, checksum=0)
        for file in files
    ]


def day_manifest(store: ObjectStore, day: date) -> list[ArchivedHour]:
    """`read_manifest` of a day."""
    return read_manifest(store, day_folder(day))


def _of_file(row: ArchivedHour) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _OF_FILE}


def _write(store: ObjectStore, folder: str, files: Mapping[str, dict[str, Any]]) -> None:
    written = [{name: _written(name, value) for name, value in files[key].items()} for key in sorted(files)]
    lines = ",\n  ".join(json.dumps(file) for file in written)
    store.write(f"{folder}/manifest.json", f'{{"files": [\n  {lines}\n]}}\n'.encode())


def _written(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    # Many readers of JSON keep fewer digits than a checksum has.
    return str(value) if name == "file_checksum" else value


def _read(name: str, value: Any) -> Any:
    if name in ("hour", "first_event", "last_event", "archived_at"):
        return None if value is None else datetime.fromisoformat(value)
    return int(value) if name == "file_checksum" else value
