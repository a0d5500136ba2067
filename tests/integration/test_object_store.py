"""The object store in a folder and on a real S3 API over HTTP: atomic writes, listing, and error messages."""

import http.server
import os
import pickle
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foundation.object_store import STAGING, MissingObjectError, ObjectExistsError, ObjectStore, StoreError

pytest_plugins = ["s3_service"]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return ObjectStore(str(tmp_path / "store"))
    return ObjectStore(request.getfixturevalue("s3_root"))


def test_written_objects_can_be_read_listed_and_deleted(store: ObjectStore) -> None:
    store.write("events/2025/01/a.parquet", b"one")
    store.write("events/2025/02/b c.parquet", b"\x00two", verify=lambda stored: None)
    store.write("events/2025/01/a.parquet", b"newer")

    assert store.read("events/2025/01/a.parquet") == b"newer"
    assert store.read("events/2025/02/b c.parquet") == b"\x00two"
    assert store.list("events/2025") == ["events/2025/01/a.parquet", "events/2025/02/b c.parquet"]
    assert store.list() == store.list("events")
    assert store.list("nowhere") == []
    assert store.size("events/2025/01/a.parquet") == 5
    assert store.size("events/2025") is None
    assert store.exists("events/2025/01/a.parquet")
    assert not store.exists("events/2025/03/a.parquet")
    assert store.uri("events/x") == f"{store.root}/events/x"

    store.delete("events/2025/01/a.parquet")
    store.delete("events/2025/01/a.parquet")
    assert not store.exists("events/2025/01/a.parquet")
    assert store.delete_prefix("events") == 1
    assert store.list() == []


def test_old_object_stays_when_verification_fails(store: ObjectStore) -> None:
    store.write("a", b"old")
    seen = []

    def refuse(stored: bytes) -> None:
        seen.append((stored, store.read("a")))
        raise ValueError("counted wrong")

    with pytest.raises(ValueError, match="counted wrong"):
        store.write("a", b"new", verify=refuse)
    assert seen == [(b"new", b"old")]
    assert store.read("a") == b"old"
    assert store.sweep(older_than_s=-1) == 0


def test_one_writer_succeeds_when_exclusive_writes_compete(store: ObjectStore) -> None:
    def attempt(number: int) -> bool:
        try:
            store.write("version", str(number).encode(), exclusive=True, verify=lambda stored: None)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(16)))
    assert sum(won) == 1
    assert store.read("version") == str(won.index(True)).encode()
    with pytest.raises(ObjectExistsError, match="exists already"):
        store.write("version", b"again", exclusive=True)


def test_reading_fails_when_the_object_is_missing(store: ObjectStore) -> None:
    store.write("there", b"")
    with pytest.raises(MissingObjectError, match="does not exist"):
        store.read("not/there")
    assert store.read("there") == b""


def test_unfinished_writes_are_not_listed_and_are_swept(store: ObjectStore) -> None:
    store._put(f"{STAGING}/left-behind", b"half")
    assert store.list() == []
    assert store.sweep() == 0
    assert store.sweep(older_than_s=-1) == 1


def test_store_can_be_pickled(store: ObjectStore) -> None:
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/", "./a", "a\x00b"])
def test_write_is_refused_when_the_key_is_invalid(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a valid key"):
        store.write(key, b"")


def test_store_is_refused_when_its_scheme_is_unknown_or_the_bucket_missing() -> None:
    with pytest.raises(StoreError, match="neither a folder nor s3://"):
        ObjectStore("gs://bucket/prefix")
    with pytest.raises(StoreError, match="names no bucket"):
        ObjectStore("s3://")


@pytest.mark.parametrize("call", ["write", "read", "list", "exists"])
def test_error_says_that_the_bucket_does_not_exist(s3_environment: str, call: str) -> None:
    store = ObjectStore("s3://no-such-bucket/prefix")
    arguments = ("a", b"1") if call == "write" else ("a",)
    with pytest.raises(StoreError, match="bucket does not exist"):
        getattr(store, call)(*arguments)


def test_write_fails_soon_when_the_endpoint_is_down(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match="Check the S3 endpoint"):
        ObjectStore("s3://bucket/prefix").write("a", b"1")


def test_error_says_no_permission_when_s3_denies_access(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbid(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # answers the client's "Expect: 100-continue"

        def do_PUT(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbid) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(StoreError, match="no permission"):
                ObjectStore("s3://bucket/prefix").write("a", b"1")
        finally:
            server.shutdown()


def test_write_fails_when_the_folder_is_not_writable(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):
        # root may write anywhere, but not below a file in the folder's place.
        folder.rmdir()
        folder.write_text("not a folder")
    with pytest.raises(StoreError, match=r"Can't write .*locked/a"):
        ObjectStore(str(folder)).write("a", b"1")
