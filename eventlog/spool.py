"""The spool: records that were acknowledged while PostgreSQL was away, in append-only segment files.

    <root>/<writer>/owner.lock           locked as long as the writer lives
    <root>/<writer>/00000001.events      a segment: magic, length, CRC-32, record; again and again
    <root>/damaged/…                     segments that hold something unreadable, kept for a person

A writer whose process is gone is taken over by whoever gets its lock. A segment is removed after all of it is stored; a crash before
that stores it again, which events allow (the same id and time is the same event).
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
    """The spool holds as much as it may."""


class SpoolError(Exception):
    """The disk refused; the message says where and why. What was to be appended is not acknowledged."""


@dataclass
class Segment:
    """What a segment holds. `torn`: bytes at its end that are no whole record; `damaged`: bytes before others that are."""

    path: Path
    records: list[bytes] = field(default_factory=list)
    torn: int = 0
    damaged: int = 0


class SpoolWriter:
    """This process's part of the spool. Threads may share it; nothing is made on disk before the first record."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """The whole spool under `root`, with what others left, holds at most `limit_bytes`."""
        self._root, self._limit = root, limit_bytes
        self._folder: Path | None = None
        self._lock_file: int | None = None
        self._mutex = threading.Lock()
        self._segment: int | None = None
        self._path = root
        self._number = self._size = self._others = 0
        self._waiting: dict[Path, tuple[int, int]] = {}
        """Segments that are not stored yet, the open one among them: records and bytes."""

    @property
    def records(self) -> int:
        """How many records wait."""
        return sum(records for records, _ in list(self._waiting.values()))

    def append(self, records: Sequence[bytes]) -> None:
        """Write and fsync; they are durable on return. Raises SpoolFullError, SpoolError: then none of them is acknowledged."""
        data = b"".join(_HEADER.pack(MAGIC, len(one), zlib.crc32(one)) + one for one in records)
        with self._mutex:
            held = sum(size for _, size in self._waiting.values())
            if held + self._others + len(data) > self._limit:
                # What others left may be stored by now.
                self._others = self._size_of_others()
                if held + self._others + len(data) > self._limit:
                    raise SpoolFullError
            try:
                segment, path = self._open()
                try:
                    _write(segment, data)
                    os.fsync(segment)
                except OSError:
                    self._give_up(segment)
                    raise
            except OSError as error:
                raise SpoolError(f"The spool {self._root} can't be written: {error.strerror or error}.") from error
            count, size = self._waiting[path]
            self._waiting[path] = count + len(records), size + len(data)
            self._size += len(data)
            if self._size >= SEGMENT_BYTES:
                self._close_segment()

    def sealed(self) -> list[Path]:
        """Every segment that waits, oldest first; none of them is written any more."""
        with self._mutex:
            self._close_segment()
            return list(self._waiting)

    def done(self, segment: Segment) -> None:
        """All of the segment is stored: remove it. Raises OSError; one that is gone all the same does not wait any more."""
        try:
            finish(self._root, segment)
        finally:
            if not segment.path.exists():
                self.forget(segment.path)

    def forget(self, path: Path) -> None:
        """The segment is gone: nothing of it waits."""
        with self._mutex:
            self._waiting.pop(path, None)

    def close(self) -> None:
        """End. What waits stays on disk for the next process."""
        with self._mutex:
            self._close_segment()
            if self._folder is None or self._lock_file is None:
                return
            if not self._waiting:
                _remove_folder(self._folder)
            os.close(self._lock_file)
            self._folder = self._lock_file = None

    def _open(self) -> tuple[int, Path]:
        """The open segment, made where there is none. Raises OSError."""
        if self._segment is not None:
            return self._segment, self._path
        if self._folder is None or not self._folder.exists():
            self._make_folder()
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

    def _make_folder(self) -> None:
        # Made and locked under a name that nobody looks at, so that nobody takes it over meanwhile.
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

    def _give_up(self, segment: int) -> None:
        """After a failed write: cut off what came of it, and write to another segment from now on."""
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


def orphans(root: Path) -> list[Path]:
    """Folders of other writers, dead or alive."""
    return sorted(path.parent for path in root.glob(f"*/{_LOCK}") if not path.parent.name.startswith("."))


@contextmanager
def taken_over(folder: Path) -> Iterator[list[Path] | None]:
    """The segments of a dead writer, oldest first, as long as the block runs; None where the writer lives or is taken over already."""
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
        # What a rewriting that was killed left: the segment itself is whole.
        for unfinished in folder.glob(f"*{_UNFINISHED}"):
            unfinished.unlink()
        yield sorted(folder.glob(_SEGMENTS))
        if not any(folder.glob(_SEGMENTS)):
            _remove_folder(folder)
    finally:
        os.close(lock)


def read_segment(path: Path) -> Segment:
    """All records of a segment; what is not readable is counted. Raises OSError."""
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


def finish(root: Path, segment: Segment) -> None:
    """Remove a segment that is stored; one that is damaged is kept aside for a person. Raises OSError."""
    if segment.damaged:
        aside = root / _DAMAGED
        aside.mkdir(exist_ok=True)
        segment.path.rename(aside / f"{segment.path.parent.name}-{segment.path.name}.damaged")
    else:
        segment.path.unlink()
    _sync_folder(segment.path.parent)


def rewrite(segment: Segment, records: Sequence[bytes]) -> None:
    """Put other records in a segment's place, whole or not at all. Only for who has taken its folder over. Raises OSError."""
    fresh = segment.path.with_suffix(_UNFINISHED)
    with fresh.open("wb") as file:
        file.write(b"".join(_HEADER.pack(MAGIC, len(one), zlib.crc32(one)) + one for one in records))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(segment.path)
    _sync_folder(segment.path.parent)


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
    """Where the next whole record begins. A record may hold the magic itself, so each place is looked at."""
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
        # Another process removes what it has stored.
        with suppress(FileNotFoundError):
            yield path, path.stat().st_size


def _remove_folder(folder: Path) -> None:
    """An empty one, whose lock is held."""
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
