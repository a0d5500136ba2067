"""The store of archives, datasets and artefacts: a folder or `s3://bucket/prefix`, with the same methods.

The endpoint and credentials of S3 come from the usual variables: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or MLFLOW_S3_ENDPOINT_URL, and
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_REGION, …
"""

import errno
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

from foundation.errors import LifecycleError

STAGING = ".staging"
"""Prefix of unfinished writes. Never listed; the objects of killed processes stay there until `sweep`."""

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")


class StoreError(LifecycleError):
    """An operation of the store failed; the message says what, where and what to do."""


class MissingObjectError(StoreError):
    """There is no object under this key."""


class ObjectExistsError(StoreError):
    """An exclusive write found an existing object under its key."""


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 (hexadecimal) of an object."""

    size: int
    sha256: str


class ObjectStore:
    """The objects under one root. Keys are relative, with `/` between parts. Thread-safe, cheap to create, connects on first use."""

    def __init__(self, root: str) -> None:
        """`root` is a folder (created on the first write) or `s3://bucket[/prefix]`. Raises StoreError for any other scheme."""
        scheme, separator, _ = root.partition("://")
        if separator and scheme not in ("s3", "file"):
            raise StoreError(
                f"The object store {root!r} is neither a folder nor s3://bucket/prefix: set LIFECYCLE_STORE to one."
            )
        self.remote = scheme == "s3" and bool(separator)
        self.root = root.rstrip("/") if self.remote else os.path.abspath(root.removeprefix("file://"))
        if self.remote and not root.removeprefix("s3://").strip("/"):
            raise StoreError(f"The object store {root!r} names no bucket: give s3://bucket/prefix.")

    def __repr__(self) -> str:
        return f"ObjectStore({self.root!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A live S3 client can't be sent to another process: the copy creates its own.
        return {"root": self.root, "remote": self.remote}

    def uri(self, key: str = "") -> str:
        """The address of a key or of the root, as pandas, polars, MLflow and people understand it."""
        return f"{self.root}/{_checked(key)}" if key else self.root

    def write(
        self, key: str, data: bytes, *, verify: Callable[[bytes], None] | None = None, exclusive: bool = False
    ) -> None:
        """Write `data` under `key` atomically, replacing an existing object; durable on return.

        The bytes are written to a staging key, read back, compared, and passed to `verify` (which raises to reject them); only then are
        they published. With `exclusive`, raises ObjectExistsError if the key is taken. Raises StoreError.
        """
        _checked(key)
        staged = f"{STAGING}/{uuid.uuid4().hex}"
        with self._sentences("write", key):
            if self.remote and verify is None:
                # A put is atomic, and the server compares its checksum: staging is not needed.
                self._put(key, data, exclusive)
                return
            try:
                self._put(staged, data)
                stored = self._get(staged)
                if stored != data:
                    raise StoreError(
                        f"{self.uri(key)} was not written: {len(data)} bytes were sent, and {len(stored)} different bytes were read back. "
                        "Check the disk or the service behind the store."
                    )
                if verify is not None:
                    verify(stored)
                self._publish(staged, key, data, exclusive)
            finally:
                self._discard(staged)

    @contextmanager
    def staged_file(self) -> Iterator[Path]:
        """A local path for an object too large for memory: write the file, then call `publish_file`. Removed at the end."""
        if self.remote:
            with tempfile.TemporaryDirectory(prefix="lifecycle-") as folder:
                yield Path(folder) / "staged"
            return
        staged = f"{STAGING}/{uuid.uuid4().hex}"
        path = Path(self.uri(staged))
        with self._sentences("write", staged):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
        finally:
            self._discard(staged)

    def publish_file(self, key: str, staged: Path, verify: Callable[[Path], None]) -> FileFacts:
        """Write the file at `staged` under `key` as `write` does: durable, read back, passed to `verify`, and only then published.

        `staged` comes from `staged_file` of this store. Raises StoreError.
        """
        _checked(key)
        with self._sentences("write", key):
            facts = _facts(staged)
            if not self.remote:
                _to_disk(staged)
                verify(staged)
                self._publish(f"{STAGING}/{staged.name}", key, b"", False)
                return facts
            remote = f"{STAGING}/{uuid.uuid4().hex}"
            try:
                self._fs.put_file(str(staged), self.uri(remote))
                with self.local_file(remote) as stored:
                    if _facts(stored) != facts:
                        raise StoreError(
                            f"{self.uri(key)} was not written: the data read back differs from the data sent. "
                            "Check the service behind the store."
                        )
                    verify(stored)
                self._publish(remote, key, b"", False)
            finally:
                self._discard(remote)
        return facts

    @contextmanager
    def local_file(self, key: str) -> Iterator[Path]:
        """The object under `key` as a local file, for reading in parts. Raises MissingObjectError, StoreError."""
        _checked(key)
        if not self.remote:
            path = Path(self.uri(key))
            if not path.is_file():
                raise MissingObjectError(f"Can't read {path}: it does not exist.")
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="lifecycle-") as folder:
            path = Path(folder) / "object"
            with self._sentences("read", key):
                self._fs.get_file(self.uri(key), str(path))
            yield path

    def facts(self, key: str) -> FileFacts | None:
        """Size and SHA-256 of the object under `key`, or None if there is none; reads all of it. Raises StoreError."""
        try:
            with self.local_file(key) as path, self._sentences("read", key):
                return _facts(path)
        except MissingObjectError:
            return None

    def read(self, key: str) -> bytes:
        """The bytes of the object under `key`. Raises MissingObjectError, StoreError."""
        _checked(key)
        with self._sentences("read", key):
            return self._get(key)

    def size(self, key: str) -> int | None:
        """The size in bytes of the object under `key`, or None if there is none. Raises StoreError."""
        _checked(key)
        with self._sentences("look up", key):
            try:
                info = self._fs.info(self.uri(key))
            except FileNotFoundError as error:
                if "bucket" in str(error):
                    raise
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def exists(self, key: str) -> bool:
        """Whether there is an object under `key`. Raises StoreError."""
        return self.size(key) is not None

    def list(self, prefix: str = "") -> list[str]:
        """The keys under the folder `prefix`, sorted, without unfinished writes. Raises StoreError."""
        with self._sentences("list", prefix):
            start = self._fs._strip_protocol(self.uri())
            paths = self._fs.find(self.uri(prefix))
        keys = (path.removeprefix(start).lstrip("/") for path in paths)
        return sorted(key for key in keys if not key.startswith(f"{STAGING}/"))

    def delete(self, key: str) -> None:
        """Delete the object under `key`, if there is one. Raises StoreError."""
        _checked(key)
        with self._sentences("delete", key):
            self._discard(key)

    def delete_prefix(self, prefix: str) -> int:
        """Delete all objects under the folder `prefix`, which must not be empty; returns how many. Raises StoreError."""
        keys = self.list(_checked(prefix))
        for key in keys:
            self.delete(key)
        return len(keys)

    def sweep(self, older_than_s: float = 86_400.0) -> int:
        """Delete objects of killed writers in staging that are older than this, in seconds; returns how many. Raises StoreError."""
        with self._sentences("sweep", STAGING):
            staged = self._fs.find(f"{self.root}/{STAGING}", detail=True)
            old = [path for path, info in staged.items() if time.time() - _modified(info) > older_than_s]
            for path in old:
                self._fs.rm_file(path)
        return len(old)

    @cached_property
    def _fs(self) -> Any:
        if not self.remote:
            return fsspec.filesystem("file")
        endpoint = next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
        # Fail in seconds, not minutes, if the endpoint is down; never cache listings, because other processes write too.
        client = fsspec.filesystem(
            "s3",
            endpoint_url=endpoint,
            config_kwargs={"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        # s3fs retries on top of the client's own retries: with its default of 5, a failure took ten minutes.
        client.retries = 3
        return client

    def _put(self, key: str, data: bytes, exclusive: bool = False) -> None:
        if self.remote:
            self._fs.pipe_file(self.uri(key), data, mode="create" if exclusive else "overwrite")
            return
        path = Path(self.uri(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _get(self, key: str) -> bytes:
        return bytes(self._fs.cat_file(self.uri(key)))

    def _publish(self, staged: str, key: str, data: bytes, exclusive: bool) -> None:
        if self.remote:
            if exclusive:
                # Few S3 services can copy only if the key is free, but a put can.
                self._put(key, data, exclusive=True)
            else:
                self._fs.cp_file(self.uri(staged), self.uri(key))
            return
        target = Path(self.uri(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        if exclusive:
            os.link(self.uri(staged), target)
        else:
            os.replace(self.uri(staged), target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _discard(self, key: str) -> None:
        try:
            self._fs.rm_file(self.uri(key))
        except FileNotFoundError:
            return

    @contextmanager
    def _sentences(self, verb: str, key: str) -> Iterator[None]:
        """Turn errors of the file system or the S3 client into StoreErrors that say what to do."""
        where = self.uri(key)
        try:
            yield
        except FileExistsError as error:
            raise ObjectExistsError(f"{where} exists already, so it was not written.") from error
        except FileNotFoundError as error:
            if "bucket" in str(error):
                raise StoreError(
                    f"Can't {verb} {where}: the bucket does not exist. Create it, or correct LIFECYCLE_STORE."
                ) from error
            raise MissingObjectError(f"Can't {verb} {where}: it does not exist.") from error
        except PermissionError as error:
            remedy = "Check the AWS_* credentials and the bucket's policy" if self.remote else "Give yourself access"
            raise StoreError(
                f"Can't {verb} {where}: no permission. {remedy}, or choose another LIFECYCLE_STORE."
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"Can't {verb} {where}: the disk is full. Free some space and run it again."
                ) from error
            raise StoreError(f"Can't {verb} {where}: {_one_line(error)}.") from error
        except _client_errors(self.remote) as error:
            raise StoreError(
                f"Can't {verb} {where}: {_one_line(error)}. Check the S3 endpoint ({' or '.join(ENDPOINT_VARIABLES[1:])}) "
                "and the AWS_* credentials."
            ) from error


def _client_errors(remote: bool) -> tuple[type[Exception], ...]:
    """What the S3 client raises besides OSErrors: no endpoint, no credentials, a bad answer."""
    if not remote:  # importing the client takes half a second
        return ()
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError)


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(path.stat().st_size, digest)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _checked(key: str) -> str:
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\x00" in key:
        raise ValueError(
            f"{key!r} is not a valid key of an object store: it must be relative, without empty parts, `.` or `..`."
        )
    return key


def _modified(info: dict[str, Any]) -> float:
    if "mtime" in info:
        return float(info["mtime"])
    return float(info["LastModified"].timestamp())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
