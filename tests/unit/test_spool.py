"""The spool's files: durable records, torn and damaged segments, the size limit, and taking over from dead writers."""

import errno
import os
import shutil
import subprocess
import sys
from itertools import accumulate, chain
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
    read_segment,
    remove_segment,
    rewrite_segment,
    take_over,
    writer_folders,
)

MB = 2**20
HEADER_BYTES = 12
PROJECT = Path(__file__).resolve().parents[2]


def record_ends(records: list[bytes]) -> list[int]:
    """Where each record ends in a segment."""
    return list(accumulate(HEADER_BYTES + len(record) for record in records))


def written(root: Path, *groups: list[bytes]) -> tuple[SpoolWriter, Path]:
    """A writer and its only segment, with these groups of records."""
    writer = SpoolWriter(root, MB)
    for group in groups:
        writer.append(group)
    (path,) = writer.seal()
    return writer, path


@settings(max_examples=40, deadline=None)  # each example writes and fsyncs
@given(st.lists(st.lists(st.binary(max_size=60) | st.just(MAGIC * 3)), max_size=8))
def test_records_are_read_in_the_order_of_writing(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]]
) -> None:
    root = tmp_path_factory.mktemp("spool")
    writer = SpoolWriter(root, MB)
    for group in groups:
        writer.append(group)
    segments = [read_segment(path) for path in writer.seal()]
    assert [record for segment in segments for record in segment.records] == list(chain.from_iterable(groups))
    assert all(segment.torn == segment.damaged == 0 for segment in segments)
    assert writer.records == sum(map(len, groups))


@settings(max_examples=40, deadline=None)  # each example writes and fsyncs
@given(st.data())
def test_complete_records_are_read_when_a_segment_is_cut_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A crash in the middle of a write leaves such a segment."""
    records = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6))
    _, path = written(tmp_path_factory.mktemp("spool"), records)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    segment = read_segment(path)
    ends = record_ends(records)
    complete = [record for record, end in zip(records, ends, strict=True) if end <= cut]
    assert (segment.records, segment.damaged) == (complete, 0)
    assert segment.torn == cut - sum(HEADER_BYTES + len(record) for record in complete)


@settings(max_examples=40, deadline=None)  # each example writes and fsyncs
@given(st.data())
def test_one_record_is_lost_and_counted_when_a_byte_changes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    records = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=6))
    _, path = written(tmp_path_factory.mktemp("spool"), records)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    hit = next(index for index, end in enumerate(record_ends(records)) if place < end)
    segment = read_segment(path)
    assert segment.records == records[:hit] + records[hit + 1 :]
    assert segment.torn + segment.damaged == HEADER_BYTES + len(records[hit])
    assert bool(segment.torn) is (hit == len(records) - 1)


def test_damaged_segment_is_set_aside_and_an_intact_one_is_removed(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"one", b"two"])
    whole = path.read_bytes()
    path.write_bytes(b"x" + whole[1:])
    segment = read_segment(path)
    assert segment.records == [b"two"]
    writer.remove(segment)
    (damaged,) = (tmp_path / "damaged").iterdir()
    assert damaged.read_bytes() == b"x" + whole[1:] and not path.exists() and writer.records == 0
    writer.append([b"three"])
    (path,) = writer.seal()
    writer.remove(read_segment(path))
    assert not path.exists()


def test_size_limit_counts_other_writers_and_frees_stored_records(tmp_path: Path) -> None:
    other = SpoolWriter(tmp_path, 1000)
    other.append([b"x" * 388])
    writer = SpoolWriter(tmp_path, 1000)
    writer.append([b"y" * 388])
    with pytest.raises(SpoolFullError):
        writer.append([b"z" * 300])
    writer.append([b"z" * 100])
    for path in writer.seal():
        writer.remove(read_segment(path))
    writer.append([b"z" * 388])
    with pytest.raises(SpoolFullError):
        writer.append([b"z" * 388])


def test_append_fails_and_keeps_earlier_records_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SpoolWriter(tmp_path, MB)
    writer.append([b"before"])
    write = os.write

    def write_five_bytes_at_most(descriptor: int, data: memoryview) -> int:
        if len(data) > 5:
            return write(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_five_bytes_at_most)
        with pytest.raises(SpoolError, match="can't be written: No space left on device"):
            writer.append([b"during"])
    writer.append([b"after"])
    segments = [read_segment(path) for path in writer.seal()]
    assert [(segment.records, segment.torn) for segment in segments] == [([b"before"], 0), ([b"after"], 0)]


def test_writer_opens_a_new_segment_when_one_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 100)
    writer = SpoolWriter(tmp_path, MB)
    for number in range(20):
        writer.append([b"%040d" % number])
    records = [record for path in writer.seal() for record in read_segment(path).records]
    assert records == [b"%040d" % number for number in range(20)] and len(writer.seal()) == 10


def test_only_dead_writers_are_taken_over(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"mine"])
    (folder,) = writer_folders(tmp_path)
    with take_over(folder) as segments:
        assert segments is None
    writer.close()
    with take_over(folder) as segments:
        assert segments == [path]
        with take_over(folder) as again:
            assert again is None
        segment = read_segment(path)
        rewrite_segment(segment, [b"yours"])
        assert read_segment(path).records == [b"yours"]
        remove_segment(tmp_path, segment)
    assert writer_folders(tmp_path) == [] and list(tmp_path.iterdir()) == []
    with take_over(folder) as segments:
        assert segments is None


def test_all_appended_records_are_there_when_the_writer_was_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from eventlog.spool import SpoolWriter\n"
        "writer = SpoolWriter(Path(sys.argv[1]), 10**6)\n"
        "for number in range(50): writer.append([b'%d' % number])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=PROJECT, check=False)
    assert process.returncode == -9
    (folder,) = writer_folders(tmp_path)
    with take_over(folder) as segments:
        assert segments is not None
        records = [record for path in segments for record in read_segment(path).records]
    assert records == [b"%d" % number for number in range(50)]


def test_spool_creates_no_folder_before_the_first_record(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    writer = SpoolWriter(root, MB)
    assert (writer.records, writer.seal(), root.exists()) == (0, [], False)
    writer.close()
    assert writer_folders(root) == [] and Segment(root).records == []


def test_append_succeeds_when_other_writers_have_freed_room(tmp_path: Path) -> None:
    """A writer that found the spool full must measure it again, not refuse forever."""
    other, writer = SpoolWriter(tmp_path, 1000), SpoolWriter(tmp_path, 1000)
    other.append([b"x" * 900])
    writer.append([b"y"])
    with pytest.raises(SpoolFullError):
        writer.append([b"y" * 100])
    for owner in (other, writer):
        for path in owner.seal():
            owner.remove(read_segment(path))
    writer.append([b"y" * 900])
    assert writer.records == 1


def test_writer_forgets_a_segment_when_its_file_is_gone(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"one"])
    segment = read_segment(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        writer.remove(segment)
    assert (writer.records, writer.seal()) == (0, [])
    # The folder is created again when it is gone as well.
    shutil.rmtree(tmp_path)
    writer.append([b"two"])
    assert [read_segment(path).records for path in writer.seal()] == [[b"two"]]


def test_unfinished_rewrite_is_removed_when_its_folder_is_taken_over(tmp_path: Path) -> None:
    writer, path = written(tmp_path, [b"one"])
    writer.close()
    path.with_suffix(".new").write_bytes(b"half of it")
    (folder,) = writer_folders(tmp_path)
    with take_over(folder) as segments:
        assert segments == [path] and list(folder.glob("*.new")) == []
        remove_segment(tmp_path, read_segment(path))
    assert list(tmp_path.iterdir()) == []
