"""Events on disk, in append-only files. A process writes one file at a time; any process that shares the folder sends and removes files.

A line is the CRC-32 of an event in hex, a space, and the event's JSON, which contains no line break. A line torn by a crash fails its CRC,
and only that line is left out. A process locks a file (flock) while it writes or sends it; the kernel releases the locks of a dead process.
Why not SQLite: docs/decisions/client-store.md.
"""

import contextlib
import hashlib
import io
import os
import re
import secrets
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import httpx

SUFFIX = ".events"
# A file is sent once it is no longer written to. Small files free their disk space soon.
SEGMENT_BYTES = 1_048_576


class SpoolError(Exception):
    """Events cannot be written to or read from disk; the message is the reason, without a full stop."""


class Segment:
    """A file of events, locked by this process until it is released or removed."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        """`file` holds the lock."""
        self._path, self._file = path, file
        self.events, self.unreadable = _read(file.readall())

    def remove(self) -> None:
        """Remove the file, because all its events are sent."""
        self._path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave the file to the next process that looks for one."""
        _unlock(self._file)

    def after_fork(self) -> None:
        """In the forked child: close the file; the parent keeps the lock."""
        self._file.close()


class Spool:
    """The files of one folder. Every method is safe to call from any thread."""

    def __init__(self, folders: Iterable[Path], max_bytes: int) -> None:
        """Uses the first of `folders` that is writable, and creates it when needed. All its files together stay within `max_bytes`."""
        self._folders, self._max_bytes = tuple(folders), max_bytes
        self._folder: Path | None = None
        self._lock = threading.RLock()
        self._writer: io.FileIO | None = None

    def append(self, events: Sequence[bytes]) -> None:
        """Write events; they survive a crash once this returns. Raises SpoolError, and then none of them was written."""
        lines = b"".join(b"%08x %b\n" % (zlib.crc32(event), event) for event in events)
        with self._lock:
            try:
                if self.used_bytes() + len(lines) > self._max_bytes:
                    raise SpoolError(f"the limit of {self._max_bytes:,} bytes is reached")
                self._write(lines)
            except (OSError, ImportError) as error:
                raise SpoolError(str(error)) from error

    def next_segment(self) -> Segment | None:
        """The oldest file that no other process holds, or None; this process stops writing to its own file. Raises SpoolError."""
        with self._lock:
            try:
                self._seal()
                for path in self._files():
                    file = _lock(path)
                    if file is not None:
                        return Segment(path, file)
            except (OSError, ImportError) as error:
                raise SpoolError(str(error)) from error
        return None

    def used_bytes(self) -> int:
        """Bytes of all files together; 0 if there is no folder yet."""
        size = 0
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def close(self) -> None:
        """Leave all files to the next process that looks for them."""
        with self._lock:
            self._seal()

    def after_fork(self) -> None:
        """In the forked child, which uses a new spool: close the parent's file without releasing its lock."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, lines: bytes) -> None:
        writer = self._writer or self._begin()
        start = writer.tell()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[writer.write(rest) :]
            os.fsync(writer.fileno())
        except OSError:
            # Never append after a torn line. If even this fails, its CRC gives it away.
            with contextlib.suppress(OSError):
                writer.truncate(start)
            self._seal()
            raise
        if writer.tell() >= SEGMENT_BYTES:
            self._seal()

    def _begin(self) -> io.FileIO:
        """Create a file. It gets its final name once it is locked, since any process may take a file with that name and no lock."""
        folder = self._make_folder()
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}"
        hidden = folder / f".{name}"
        descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        file = io.FileIO(descriptor, "r+")
        try:
            if not _try_lock(file):
                raise BlockingIOError(f"{hidden} is locked by another process")
            hidden.rename(folder / f"{name}{SUFFIX}")
            _sync_folder(folder)
        except BaseException:
            hidden.unlink(missing_ok=True)
            file.close()
            raise
        self._writer = file
        return file

    def _seal(self) -> None:
        if self._writer is not None:
            _unlock(self._writer)
            self._writer = None

    def _files(self) -> list[Path]:
        """Oldest first."""
        folder = self._folder or next((candidate for candidate in self._folders if _usable(candidate)), None)
        if folder is None or not folder.is_dir():
            return []
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(SUFFIX)]

    def _make_folder(self) -> Path:
        if self._folder is None or not self._folder.is_dir():
            self._folder = _make_first(self._folders)
        return self._folder


def spool_folders(spool_dir: Path | None, url: str) -> list[Path]:
    """Folders for the events of a service, best first. Each service has its own, so that none gets events meant for another."""
    address = httpx.URL(url)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{address.host}-{address.port or address.scheme}")
    name = f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    if spool_dir is not None:
        return [spool_dir / name]
    folders = []
    with contextlib.suppress(RuntimeError):
        state = os.environ.get("XDG_STATE_HOME", "")
        home = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
        folders.append(home / "lifecycle-events" / name)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return [*folders, Path(tempfile.gettempdir()) / f"lifecycle-events-{user}" / name]


def _make_first(folders: Sequence[Path]) -> Path:
    """Create and return the first folder that is usable. Raises the error of the last one."""
    last_error: OSError = FileNotFoundError("there is no folder")
    for folder in folders:
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            last_error = error
            continue
        if _usable(folder):
            return folder
        last_error = PermissionError(f"{folder} belongs to another user or is not writable")
    raise last_error


def _usable(folder: Path) -> bool:
    """Whether this user may write there. In the shared temporary folder another user may have created one of that name, to read along."""
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        return False
    shared = folder.is_relative_to(tempfile.gettempdir()) and hasattr(os, "getuid")
    return not shared or folder.parent.stat().st_uid == folder.stat().st_uid == os.getuid()


def _lock(path: Path) -> io.FileIO | None:
    """The locked file, or None if another process holds it, another user owns it, or it is gone."""
    try:
        file = io.FileIO(path, "r+")
    except (FileNotFoundError, PermissionError):
        return None
    if _try_lock(file) and os.fstat(file.fileno()).st_nlink:
        return file
    file.close()
    return None


def _try_lock(file: io.FileIO) -> bool:
    # Missing on Windows, where the disk is not used.
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: io.FileIO) -> None:
    """Unlock before closing: a child forked at the wrong moment may hold the file open."""
    import fcntl

    if not file.closed:
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(content: bytes) -> tuple[list[bytes], int]:
    """Intact events, and the number of lines that are not."""
    events, unreadable = [], 0
    for line in content.split(b"\n"):
        checksum, _, event = line.partition(b" ")
        if event and checksum == b"%08x" % zlib.crc32(event):
            events.append(event)
        elif line:
            unreadable += 1
    return events, unreadable
