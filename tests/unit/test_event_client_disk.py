"""The event client's files: torn writes, who may send them, their size limit and their folder."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from event_client_support import event
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle_client.event_disk import SEGMENT_BYTES, Spool, SpoolError, spool_folders

URL = "http://events.test/api/v1/events/batch"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def make(folder: Path) -> Callable[..., Spool]:
    """Makes a spool of the folder, as each process does."""
    return lambda max_bytes=100_000_000: Spool([folder], max_bytes)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.events"))


def take_all(spool: Spool) -> list[bytes]:
    """Take and remove all events that this spool may send."""
    events: list[bytes] = []
    while (segment := spool.next_segment()) is not None:
        events += segment.events
        segment.remove()
    return events


def test_events_come_back_in_order(make: Callable[..., Spool], folder: Path) -> None:
    events = [event(f"u{number}", 5_000) for number in range(500)]
    writer = make()
    for start in range(0, 500, 50):
        writer.append(events[start : start + 50])
    assert [path.stat().st_size // SEGMENT_BYTES for path in files(folder)] == [1, 1]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *files(folder))} == {0o700, 0o600}
    assert take_all(writer) == events
    assert files(folder) == [] and writer.used_bytes() == 0


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.data())
def test_torn_or_damaged_file_loses_only_the_damaged_events(
    tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    events = [event(f"u{number}") for number in range(count)]
    writer = Spool([folder], 100_000)
    writer.append(events)
    writer.close()
    (path,) = files(folder)
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        kept = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:kept])
        # The last line is intact even without its line break.
        expected = events[: whole[: kept + 1].count(b"\n")]
    else:
        at = data.draw(st.integers(0, len(whole) - 2))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :])
        line = whole[:at].count(b"\n")
        expected = [
            intact
            for index, intact in enumerate(events)
            if index != line and not (whole[at : at + 1] == b"\n" and index == line + 1)
        ]
    segment = Spool([folder], 100_000).next_segment()
    assert segment is not None and segment.events == expected
    assert segment.unreadable == len([line for line in path.read_bytes().split(b"\n") if line]) - len(expected)
    segment.release()


def test_file_belongs_to_one_spool_at_a_time(make: Callable[..., Spool], folder: Path) -> None:
    mine, theirs = make(), make()
    mine.append([event("mine")])
    assert theirs.next_segment() is None
    theirs.append([event("theirs")])
    first = mine.next_segment()
    assert first is not None and len(first.events) == 1
    second = theirs.next_segment()
    assert second is not None and second.events != first.events
    assert make().next_segment() is None
    first.release()
    first_again = make().next_segment()
    assert first_again is not None and first_again.events == first.events
    first_again.remove()
    second.remove()
    assert files(folder) == []


def test_files_are_taken_over_when_their_process_is_dead_and_not_before(
    make: Callable[..., Spool], folder: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from lifecycle_client.event_disk import Spool\n"
        f"spool = Spool([Path({str(folder)!r})], 100_000); spool.append([b'{{}}'] * 3); print('written', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None and process.stdout.readline() == b"written\n"
    assert make().next_segment() is None and make().used_bytes() > 0
    process.kill()
    process.wait(10)
    assert take_all(make()) == [b"{}"] * 3
    process.stdin.close()
    process.stdout.close()


def test_forked_child_neither_keeps_nor_releases_its_parents_locks(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.append([b"{}"])
    segment_holder = make()
    segment_holder.append([b"{}"])
    segment = segment_holder.next_segment()
    assert segment is not None
    child_may_end, let_child_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_child_end)
        spool.after_fork()
        segment.after_fork()
        os.read(child_may_end, 1)
        os._exit(0)
    os.close(child_may_end)
    try:
        assert make().next_segment() is None
        segment.release()
        spool.close()
        assert len(take_all(make())) == 2
    finally:
        os.close(let_child_end)
        os.waitpid(child, 0)


def test_byte_limit_covers_all_spools_that_share_the_folder(make: Callable[..., Spool]) -> None:
    first, second = make(1_000), make(1_000)
    first.append([b"x" * 900])
    for spool in (first, second):
        with pytest.raises(SpoolError, match="limit of 1,000 bytes"):
            spool.append([b"x" * 100])
    assert take_all(first) == [b"x" * 900]
    second.append([b"x" * 100])


def test_failed_write_leaves_no_torn_line(folder: Path) -> None:
    """A limit on the file size cuts the write short, as a full disk does."""
    code = (
        "import resource; from pathlib import Path; from lifecycle_client.event_disk import Spool, SpoolError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))\n"
        f"spool, failed = Spool([Path({str(folder)!r})], 100_000), 0\n"
        "for number in range(5):\n"
        "    try: spool.append([b'%d' % number * 900])\n"
        "    except SpoolError as error: failed += 1; assert 'File too large' in str(error), error\n"
        "print(failed)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # A file takes two events, then a write fails, and a new file begins.
    assert (done.stdout, done.stderr) == ("1\n", "")
    segments = []
    spool = Spool([folder], 100_000)
    while (segment := spool.next_segment()) is not None:
        segments.append((len(segment.events), segment.unreadable))
        segment.remove()
    assert segments == [(2, 0), (2, 0)]


def test_each_service_has_its_own_folder_in_the_users_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    best, temporary = spool_folders(None, URL)
    assert best.parent == tmp_path / "state" / "lifecycle-events" and best.name.startswith("events.test-http-")
    assert temporary.is_relative_to(tmp_path / "tmp")
    assert (
        len(
            {
                spool_folders(tmp_path, url)[0]
                for url in (URL, URL.replace("http", "https"), URL.replace("test", "test:81"))
            }
        )
        == 3
    )
    (tmp_path / "state").write_text("a file where the folder should be")
    spool = Spool([best, temporary], 1_000)
    spool.append([b"{}"])
    assert len(files(temporary)) == 1
    temporary.parent.rename(tmp_path / "other")
    with pytest.raises(SpoolError):
        Spool([best], 1_000).append([b"{}"])


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a folder away")
def test_folder_in_tmp_is_not_used_when_another_user_created_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "lifecycle-events-0" / "x"
    folder.mkdir(parents=True)
    os.chown(folder.parent, 12345, 12345)
    with pytest.raises(SpoolError, match="another user"):
        Spool([folder], 1_000).append([b"{}"])
