"""The manifest of a day or of the history: a description of each file next to the files, so that the archive needs no database.

events/{year}/{month}/{day}/manifest.json
events/history/manifest.json
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

from eventlog.archive.files import HISTORY_FOLDER, day_folder, is_history
from eventlog.archive.hours import ArchivedHour, archived_hours, record_archived, record_late
from foundation.object_store import MissingObjectError, ObjectStore

# Without the fields about PostgreSQL, which change when the file does not.
_FILE_FIELDS = (
    "hour",
    "key",
    "file_rows",
    "file_checksum",
    "first_event",
    "last_event",
    "bytes",
    "sha256",
    "archived_at",
)


def folder_of(key: str) -> str:
    """The folder of a file's manifest."""
    return HISTORY_FOLDER if is_history(key) else key.rsplit("/", 2)[0]


def record_files(
    connection: psycopg.Connection[Any],
    store: ObjectStore,
    files: Sequence[ArchivedHour],
    unchanged: Sequence[ArchivedHour] = (),
    *,
    late: bool = False,
) -> None:
    """Record published files: a row for each in `exp.archived_hours`, then the manifests of their folders.

    `unchanged` files match their rows; their manifests are corrected if a killed process left them out of date. `late`: PostgreSQL has
    events that are not in `files`. The caller holds the archive's lock of these days, and the connection is idle. Raises
    foundation.object_store.StoreError.
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
        # Other entries of the manifest stay: the archive may be older than this database.
        current = {file.key: _file_fields(file) for file in read_manifest(store, folder)}
        recorded = {row.key: _file_fields(row) for row in rows.values() if folder_of(row.key) == folder}
        if any(current.get(key) != file for key, file in recorded.items()):
            _write(store, folder, current | recorded)


def manifest_matches(store: ObjectStore, day: date, rows: Iterable[ArchivedHour]) -> bool:
    """Whether a day's manifest agrees with the rows of these hours. Raises foundation.object_store.StoreError."""
    entries = [_file_fields(file) for file in day_manifest(store, day)]
    return all(_file_fields(row) in entries for row in rows)


def read_manifest(store: ObjectStore, folder: str) -> list[ArchivedHour]:
    """The files in a folder's manifest, in order; empty if there is no manifest. Raises foundation.object_store.StoreError.

    A manifest does not record PostgreSQL's counts: they are zero here.
    """
    try:
        files = json.loads(store.read(f"{folder}/manifest.json"))["files"]
    except MissingObjectError:
        return []
    return [
        ArchivedHour(**{name: _from_json(name, value) for name, value in file.items()}, database_rows=0, checksum=0)
        for file in files
    ]


def day_manifest(store: ObjectStore, day: date) -> list[ArchivedHour]:
    """The files in a day's manifest. Raises foundation.object_store.StoreError."""
    return read_manifest(store, day_folder(day))


def _file_fields(row: ArchivedHour) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _FILE_FIELDS}


def _write(store: ObjectStore, folder: str, files: Mapping[str, dict[str, Any]]) -> None:
    entries = [{name: _to_json(name, value) for name, value in files[key].items()} for key in sorted(files)]
    lines = ",\n  ".join(json.dumps(entry) for entry in entries)
    store.write(f"{folder}/manifest.json", f'{{"files": [\n  {lines}\n]}}\n'.encode())


def _to_json(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    # As text, because many JSON readers keep fewer digits than a checksum has.
    return str(value) if name == "file_checksum" else value


def _from_json(name: str, value: Any) -> Any:
    if name in ("hour", "first_event", "last_event", "archived_at"):
        return None if value is None else datetime.fromisoformat(value)
    return int(value) if name == "file_checksum" else value
