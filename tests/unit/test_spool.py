"""The spool's files: durable records, torn and damaged ones told apart, bounds, writers that die and are taken over."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog import spool as spool_module
from eventlog.spool import (
    MAGIC,
    Segment,
    SpoolError,
    SpoolFullError,
    SpoolWriter,
    finish,
    orphans,
    read_segment,
    rewrite,
    taken_over,
)

MB = 2**20
PROJECT = Path(__file__).resolve().parents[2]


def written(root: Path, *groups: list[bytes]) -> tuple[SpoolWriter, Path]:
    """A writer, and its one segment."""
    writer = SpoolWriter(root, MB)
    for group in groups:
        writer.append(group)
    (path,) = writer.sealed()
    return writer, path


@settings(max_examples=40, deadline=None)  # each example writes and fsyncs
@given(st.lists(st.lists(st.binary(max_size=60) | st.just(MAGIC * 3)), max_size=8))
def test_what_was_written_is_read_in_order(tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]]) -> None:
    root = tmp_path_factory.mktemp("spool")
    writer = SpoolWriter(root, MB)
    for group in groups:
        writer.append(group)
    segments = [read_segment(path) for path in writer.sealed()]
    assert [record for segment in segments for record in segment.records] == [one for group in groups for one in group]
    assert all(segment.torn == segment.damaged == 0 for segment in segments)
    assert writer.records == sum(map(len, groups))


@settings(max_examples=40, deadline=None)  # each example writes and fsyncs
@given(st.data())
def test_a_cut_at_any_byte_loses_only_what_it_cuts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """As a crash in the middle of a write leaves it."""
    records = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6))
    _, path = written(tmp_path_factory.mktemp("spool"), records)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    found = read_segment(path)
    ends = [sum(12 + len(one) for one in records[: index + 1]) for index in range(len(records))]
    left = [record for record, end in zip(records, ends, strict=True) if end <= cut]
    assert (found.records, found.damaged) == (left, 0)
    assert found.torn == cut - sum(12 + len(one) for one in left)


@settings(max_examples=40, deadline=None)  # each example writes and fsyncs
@given(st.data())
def test_a_changed_byte_costs_one_record_and_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    records = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=6))
    _, path = written(tmp_path_factory.mktemp("spool"), records)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    ends = [sum(12 + len(one) for one in records[: index + 1]) for index in range(len(records))]
    hit = next(index for index, end in enumerate(ends) if place < end)
    found = read_segment(path)
    assert found.records == records[:hit] + records[hit + 1 :]
    assert found.torn + found.damaged == 12 + len(records[hit])
    assert bool(found.torn) is (hit == len(records) - 1)


def test_a_damaged_segment_is_kept_for_a_person_and_a_whole_one_is_removed(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"one", b"two"])
    whole = path.read_bytes()
    path.write_bytes(b"x" + whole[1:])
    segment = read_segment(path)
    assert segment.records == [b"two"]
    writer.done(segment)
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.read_bytes() == b"x" + whole[1:] and not path.exists() and writer.records == 0
    writer.append([b"three"])
    (path,) = writer.sealed()
    writer.done(read_segment(path))
    assert not path.exists()


def test_the_bound_counts_what_others_left_and_frees_what_is_stored(tmp_path: Path) -> None:
    left = SpoolWriter(tmp_path, 1000)
    left.append([b"x" * 388])
    writer = SpoolWriter(tmp_path, 1000)
    writer.append([b"y" * 388])
    with pytest.raises(SpoolFullError):
        writer.append([b"z" * 300])
    writer.append([b"z" * 100])
    for path in writer.sealed():
        writer.done(read_segment(path))
    writer.append([b"z" * 388])
    with pytest.raises(SpoolFullError):
        writer.append([b"z" * 388])


def test_a_disk_that_is_full_refuses_and_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SpoolWriter(tmp_path, MB)
    writer.append([b"before"])
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) > 5:
            return write(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(SpoolError, match="can't be written: No space left on device"):
            writer.append([b"during"])
    writer.append([b"after"])
    segments = [read_segment(path) for path in writer.sealed()]
    assert [(one.records, one.torn) for one in segments] == [([b"before"], 0), ([b"after"], 0)]


def test_large_segments_are_followed_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 100)
    writer = SpoolWriter(tmp_path, MB)
    for number in range(20):
        writer.append([b"%040d" % number])
    found = [record for path in writer.sealed() for record in read_segment(path).records]
    assert found == [b"%040d" % number for number in range(20)] and len(writer.sealed()) == 10


def test_only_the_dead_are_taken_over(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"mine"])
    (folder,) = orphans(tmp_path)
    with taken_over(folder) as segments:
        assert segments is None
    writer.close()
    with taken_over(folder) as segments:
        assert segments == [path]
        with taken_over(folder) as again:
            assert again is None
        segment = read_segment(path)
        rewrite(segment, [b"yours"])
        assert read_segment(path).records == [b"yours"]
        finish(tmp_path, segment)
    assert orphans(tmp_path) == [] and list(tmp_path.iterdir()) == []
    with taken_over(folder) as segments:
        assert segments is None


def test_a_killed_writer_leaves_what_it_acknowledged(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from eventlog.spool import SpoolWriter\n"
        "writer = SpoolWriter(Path(sys.argv[1]), 10**6)\n"
        "for number in range(50): writer.append([b'%d' % number])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=PROJECT, check=False)
    assert done.returncode == -9
    (folder,) = orphans(tmp_path)
    with taken_over(folder) as segments:
        assert segments is not None
        found = [record for path in segments for record in read_segment(path).records]
    assert found == [b"%d" % number for number in range(50)]


def test_nothing_is_made_before_the_first_record(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    writer = SpoolWriter(root, MB)
    assert (writer.records, writer.sealed(), root.exists()) == (0, [], False)
    writer.close()
    assert orphans(root) == [] and Segment(root).records == []


def test_room_that_others_gave_back_is_found(tmp_path: Path) -> None:
    """One that looked while others held everything must look again, not refuse for ever."""
    other, writer = SpoolWriter(tmp_path, 1000), SpoolWriter(tmp_path, 1000)
    other.append([b"x" * 900])
    writer.append([b"y"])
    with pytest.raises(SpoolFullError):
        writer.append([b"y" * 100])
    for owner in (other, writer):
        for path in owner.sealed():
            owner.done(read_segment(path))
    writer.append([b"y" * 900])
    assert writer.records == 1


def test_a_segment_that_somebody_removed_does_not_wait_for_ever(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"one"])
    segment = read_segment(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        writer.done(segment)
    assert (writer.records, writer.sealed()) == (0, [])
    # The whole folder, too: it is made anew.
    shutil.rmtree(tmp_path)
    writer.append([b"two"])
    assert [read_segment(path).records for path in writer.sealed()] == [[b"two"]]


def test_what_a_killed_rewriting_left_goes_with_its_folder(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"one"])
    writer.close()
    path.with_suffix(".new").write_bytes(b"half of it")
    (folder,) = orphans(tmp_path)
    with taken_over(folder) as segments:
        assert segments == [path] and list(folder.glob("*.new")) == []
        finish(tmp_path, read_segment(path))
    assert list(tmp_path.iterdir()) == []
