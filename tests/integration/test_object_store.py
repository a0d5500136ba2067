"""The same calls on a folder and on a real S3 API over HTTP: whole or nothing, listed, refused with one sentence."""

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


def test_what_is_written_is_read_listed_and_deleted(store: ObjectStore) -> None:
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


def test_a_refusing_verification_leaves_what_was_there(store: ObjectStore) -> None:
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


def test_an_exclusive_write_is_won_once(store: ObjectStore) -> None:
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


def test_missing_objects_say_so(store: ObjectStore) -> None:
    store.write("there", b"")
    with pytest.raises(MissingObjectError, match="nothing lies there"):
        store.read("not/there")
    assert store.read("there") == b""


def test_unfinished_writes_are_neither_listed_nor_kept_for_ever(store: ObjectStore) -> None:
    store._put(f"{STAGING}/left-behind", b"half")
    assert store.list() == []
    assert store.sweep() == 0
    assert store.sweep(older_than_s=-1) == 1


def test_a_store_travels_to_another_process(store: ObjectStore) -> None:
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/", "./a", "a\x00b"])
def test_keys_that_leave_the_root_are_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="no key of an object store"):
        store.write(key, b"")


def test_other_schemes_are_refused() -> None:
    with pytest.raises(StoreError, match="neither a folder nor s3://"):
        ObjectStore("gs://bucket/prefix")
    with pytest.raises(StoreError, match="names no bucket"):
        ObjectStore("s3://")


@pytest.mark.parametrize("call", ["write", "read", "list", "exists"])
def test_a_missing_bucket_is_named(s3_environment: str, call: str) -> None:
    store = ObjectStore("s3://no-such-bucket/prefix")
    arguments = ("a", b"1") if call == "write" else ("a",)
    with pytest.raises(StoreError, match="bucket does not exist"):
        getattr(store, call)(*arguments)


def test_an_endpoint_that_is_away_is_named_soon(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match="Check the S3 endpoint"):
        ObjectStore("s3://bucket/prefix").write("a", b"1")


def test_forbidden_is_one_sentence_on_s3(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_forbidden_is_one_sentence_on_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):
        # root may write anywhere: a file in the folder's place is refused to root too.
        folder.rmdir()
        folder.write_text("not a folder")
    with pytest.raises(StoreError, match=r"Can't write .*locked/a"):
        ObjectStore(str(folder)).write("a", b"1")
