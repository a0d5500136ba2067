"""The spool: append-only segment files of records that were acknowledged while PostgreSQL was unavailable.

    <root>/<writer>/owner.lock           locked while the writer's process lives
    <root>/<writer>/00000001.events      a segment: magic, length, CRC-32 and record, repeated
    <root>/damaged/…                     segments with unreadable parts, kept for a person to look at

The first process to get a dead writer's lock takes over its folder. A segment is removed once all of it is stored; after a crash
before that it is stored again, which is safe: the same id and time is the same event.
"""

import fcntl
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = b"EVT1"
_HEADER = struct.Struct(">4sII")
SEGMENT_BYTES = 8 * 2**20
_SEGMENTS, _UNFINISHED, _LOCK, _DAMAGED = "*.events", ".new", "owner.lock", "damaged"


class SpoolFullError(Exception):
    """The spool has reached its size limit."""


class SpoolError(Exception):
    """The spool can't be written; the message says where and why. The records must not be acknowledged."""


@dataclass
class Segment:
    """The contents of a segment. `torn`: bytes of an incomplete record at its end; `damaged`: unreadable bytes before a good record."""

    path: Path
    records: list[bytes] = field(default_factory=list)
    torn: int = 0
    damaged: int = 0


class SpoolWriter:
    """This process's part of the spool. It is thread-safe, and creates nothing on disk before the first record."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """`limit_bytes` limits the whole spool under `root`, including the segments of other writers."""
        self._root, self._limit = root, limit_bytes
        self._folder: Path | None = None
        self._lock_file: int | None = None
        self._mutex = threading.Lock()
        self._segment: int | None = None
        self._path = root
        self._number = self._size = self._others = 0
        self._waiting: dict[Path, tuple[int, int]] = {}
        """Records and bytes of each segment that is not stored yet, including the open one."""

    @property
    def records(self) -> int:
        """The number of records that are not stored yet."""
        return sum(records for records, _ in list(self._waiting.values()))

    def append(self, records: Sequence[bytes]) -> None:
        """Write the records and fsync; on return they are durable. Raises SpoolFullError, SpoolError: then acknowledge none of them."""
        data = _encode(records)
        with self._mutex:
            own = sum(size for _, size in self._waiting.values())
            if own + self._others + len(data) > self._limit:
                # The segments of other writers may have been stored by now.
                self._others = self._size_of_others()
                if own + self._others + len(data) > self._limit:
                    raise SpoolFullError
            try:
                segment, path = self._open()
                try:
                    _write(segment, data)
                    os.fsync(segment)
                except OSError:
                    self._abandon(segment)
                    raise
            except OSError as error:
                raise SpoolError(f"The spool {self._root} can't be written: {error.strerror or error}.") from error
            count, size = self._waiting[path]
            self._waiting[path] = count + len(records), size + len(data)
            self._size += len(data)
            if self._size >= SEGMENT_BYTES:
                self._close_segment()

    def seal(self) -> list[Path]:
        """Close the open segment, and return every segment that is not stored yet, oldest first. None of them changes any more."""
        with self._mutex:
            self._close_segment()
            return list(self._waiting)

    def remove(self, segment: Segment) -> None:
        """Remove a segment that is stored completely. Raises OSError; if the file is gone anyway, the segment is forgotten."""
        try:
            remove_segment(self._root, segment)
        finally:
            if not segment.path.exists():
                self.forget(segment.path)

    def forget(self, path: Path) -> None:
        """Stop tracking a segment whose file is gone."""
        with self._mutex:
            self._waiting.pop(path, None)

    def close(self) -> None:
        """Close the files and release the lock. Records that are not stored yet stay on disk for the next process."""
        with self._mutex:
            self._close_segment()
            if self._folder is None or self._lock_file is None:
                return
            if not self._waiting:
                _remove_folder(self._folder)
            os.close(self._lock_file)
            self._folder = self._lock_file = None

    def _open(self) -> tuple[int, Path]:
        """The open segment; creates one if there is none. Raises OSError."""
        if self._segment is not None:
            return self._segment, self._path
        if self._folder is None or not self._folder.exists():
            self._create_folder()
        assert self._folder is not None
        self._number += 1
        path = self._folder / f"{self._number:08d}.events"
        segment = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            _sync_folder(self._folder)
        except OSError:
            os.close(segment)
            raise
        self._segment, self._path, self._size = segment, path, 0
        self._waiting[path] = 0, 0
        self._others = self._size_of_others()
        return segment, path

    def _size_of_others(self) -> int:
        return sum(size for other, size in _sizes(self._root) if other.parent != self._folder)

    def _create_folder(self) -> None:
        # Created and locked under a hidden name, so that no other process can take it over before it is locked.
        name = uuid.uuid4().hex
        hidden = self._root / f".{name}"
        hidden.mkdir(parents=True, mode=0o700)
        lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = hidden.rename(self._root / name)
            _sync_folder(self._root)
            _sync_folder(self._root.parent)
        except OSError:
            os.close(lock)
            raise
        if self._lock_file is not None:
            os.close(self._lock_file)
        self._folder, self._lock_file = folder, lock

    def _abandon(self, segment: int) -> None:
        """After a failed write: cut off the incomplete data and close the segment, so that the next write opens a new one."""
        with suppress(OSError):
            os.ftruncate(segment, self._size)
        self._close_segment()

    def _close_segment(self) -> None:
        if self._segment is None:
            return
        os.close(self._segment)
        self._segment = None
        if self._waiting[self._path][0] == 0:
            del self._waiting[self._path]
            self._path.unlink(missing_ok=True)


def writer_folders(root: Path) -> list[Path]:
    """The folders of all writers, dead or alive."""
    return sorted(path.parent for path in root.glob(f"*/{_LOCK}") if not path.parent.name.startswith("."))


@contextmanager
def take_over(folder: Path) -> Iterator[list[Path] | None]:
    """Lock a dead writer's folder for the block and yield its segments, oldest first; None if another process has the lock."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        # Left by a process that was killed while rewriting a segment; the segment itself is intact.
        for unfinished in folder.glob(f"*{_UNFINISHED}"):
            unfinished.unlink()
        yield sorted(folder.glob(_SEGMENTS))
        if not any(folder.glob(_SEGMENTS)):
            _remove_folder(folder)
    finally:
        os.close(lock)


def read_segment(path: Path) -> Segment:
    """Read all records of a segment and count its unreadable bytes. Raises OSError."""
    data = path.read_bytes()
    segment = Segment(path)
    offset = 0
    while offset < len(data):
        record = _record_at(data, offset)
        if record is not None:
            segment.records.append(record)
            offset += _HEADER.size + len(record)
            continue
        following = _next_record(data, offset + 1)
        if following is None:
            segment.torn = len(data) - offset
            break
        segment.damaged += following - offset
        offset = following
    return segment


def remove_segment(root: Path, segment: Segment) -> None:
    """Remove a stored segment; a damaged one moves to the folder `damaged` for a person to look at. Raises OSError."""
    if segment.damaged:
        damaged_folder = root / _DAMAGED
        damaged_folder.mkdir(exist_ok=True)
        segment.path.rename(damaged_folder / f"{segment.path.parent.name}-{segment.path.name}.damaged")
    else:
        segment.path.unlink()
    _sync_folder(segment.path.parent)


def rewrite_segment(segment: Segment, records: Sequence[bytes]) -> None:
    """Replace the records of a segment atomically. The caller has taken over its folder. Raises OSError."""
    unfinished = segment.path.with_suffix(_UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(_encode(records))
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(segment.path)
    _sync_folder(segment.path.parent)


def _encode(records: Sequence[bytes]) -> bytes:
    return b"".join(_HEADER.pack(MAGIC, len(record), zlib.crc32(record)) + record for record in records)


def _record_at(data: bytes, offset: int) -> bytes | None:
    start = offset + _HEADER.size
    if start > len(data):
        return None
    magic, length, checksum = _HEADER.unpack_from(data, offset)
    if magic != MAGIC or start + length > len(data):
        return None
    record = data[start : start + length]
    return record if zlib.crc32(record) == checksum else None


def _next_record(data: bytes, offset: int) -> int | None:
    """Where the next complete record begins. A record may contain the magic itself, so every occurrence is checked."""
    while (offset := data.find(MAGIC, offset)) >= 0:
        if _record_at(data, offset) is not None:
            return offset
        offset += 1
    return None


def _write(segment: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(segment, view) :]


def _sizes(root: Path) -> Iterator[tuple[Path, int]]:
    for path in root.glob(f"*/{_SEGMENTS}"):
        # Another process may remove a segment that it has stored.
        with suppress(FileNotFoundError):
            yield path, path.stat().st_size


def _remove_folder(folder: Path) -> None:
    """Remove a writer's empty folder. The caller holds its lock."""
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
