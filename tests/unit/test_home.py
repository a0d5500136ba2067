"""The home folder: a folder that can't be written is a clear error, and recorded settings are kept."""

import errno
import os
import shutil
from collections import namedtuple
from datetime import date
from pathlib import Path

import pytest

from foundation.errors import LifecycleError
from foundation.settings import settings
from orchestration.local.home import (
    SETTINGS_FILE,
    cannot_write,
    holder,
    locked,
    prepare,
    record_setting,
    recorded_settings,
)


def test_the_first_start_creates_folders_and_records_the_first_day(home: Path) -> None:
    prepared = prepare(settings())

    assert (home / "logs").is_dir() and (home / "dagster").is_dir()
    assert (home / "run").stat().st_mode & 0o077 == 0
    assert prepared.first_day == settings().first_day is not None
    assert recorded_settings(home) == {"LIFECYCLE_FIRST_DAY": str(prepared.first_day)}


def test_a_later_start_keeps_the_recorded_first_day(home: Path) -> None:
    prepare(settings())
    record_setting("first_day", date(2026, 1, 5))

    assert prepare(settings()).first_day == date(2026, 1, 5)


def test_recording_a_setting_keeps_every_other_line(home: Path) -> None:
    prepare(settings())
    file = home / SETTINGS_FILE
    file.write_text("# mine\nLIFECYCLE_API_PORT=8123\nLIFECYCLE_FIRST_DAY=2026-01-05\n")
    settings.cache_clear()

    after = record_setting("replay_from", date(2008, 1, 1))

    assert (
        file.read_text()
        == "# mine\nLIFECYCLE_API_PORT=8123\nLIFECYCLE_FIRST_DAY=2026-01-05\nLIFECYCLE_REPLAY_FROM=2008-01-01\n"
    )
    assert (after.replay_from, after.api_port) == (date(2008, 1, 1), 8123)
    assert record_setting("replay_from", None).replay_from is None
    assert "REPLAY_FROM" not in file.read_text()


def test_an_unknown_setting_is_refused(home: Path) -> None:
    prepare(settings())
    with pytest.raises(ValueError, match="'first_dya' is not a setting"):
        record_setting("first_dya", 1)


def test_prepare_fails_with_a_clear_error_when_the_home_is_under_a_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / "file" / "home"))
    settings.cache_clear()

    with pytest.raises(LifecycleError, match=r"^Can't write to .*file/home \(Not a directory\): .*LIFECYCLE_HOME\.$"):
        prepare(settings())


def test_prepare_fails_with_a_clear_error_without_write_permission(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Injected, because root, which runs these tests in containers, may write everywhere.
    def refuse(path: Path, *_args: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        LifecycleError, match=r"^Can't write to .* \(Permission denied\): give yourself write access, or .*\.$"
    ):
        prepare(settings())


def test_a_nearly_full_disk_is_refused_before_anything_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(2**40, 2**40, 3 * 2**20))

    with pytest.raises(LifecycleError, match="has 3 MB left, but 256 MB are needed"):
        prepare(settings())
    assert not (home / SETTINGS_FILE).exists()


def test_a_full_disk_is_reported_as_full() -> None:
    error = cannot_write(Path("/home"), OSError(errno.ENOSPC, "No space left on device"))
    assert str(error).startswith("The disk of /home is full: free some space")


def test_lock_error_names_the_holder_and_the_lock_is_released_afterwards(home: Path) -> None:
    prepare(settings())
    with locked(home, "lifecycle up"):
        user = holder(home)
        assert user is not None and (user.pid, user.purpose) == (os.getpid(), "lifecycle up")
        with (
            pytest.raises(
                LifecycleError, match=rf"in use by `lifecycle up` \(process {os.getpid()}, since .*`lifecycle down`"
            ),
            locked(home, "lifecycle demo"),
        ):
            pytest.fail("the home was given to two commands")
    assert holder(home) is None
    with locked(home, "lifecycle demo"):
        pass
