"""The command line: it answers at once, and an error is a one-line message on stderr."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundation import settings as config
from orchestration.commands import services

HEAVY = ("dagster", "mlflow", "torch", "transformers", "peft", "pandas", "polars", "sqlalchemy", "fastapi", "alembic")


def lifecycle(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person without a terminal does."""
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, "LIFECYCLE_HOME": str(home), **environment}, check=False, timeout=60,
    )  # fmt: skip


def test_help_imports_nothing_heavy() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, orchestration.cli; print(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(HEAVY) & set(loaded.stdout.split())


def test_help_lists_the_verbs_quickly(home: Path) -> None:
    started = time.monotonic()
    shown = lifecycle(home, "--help")
    assert shown.returncode == 0
    for verb in ("up", "down", "status", "clean", "docs", "db"):
        assert f" {verb} " in shown.stdout
    assert time.monotonic() - started < 5  # 0.6 s on an idle machine


@pytest.mark.parametrize("arguments", [["status", "--json"], ["down"], ["clean", "--yes"]])
def test_verbs_do_not_create_a_missing_home(home: Path, arguments: list[str]) -> None:
    assert lifecycle(home, *arguments).returncode == 0
    assert not home.exists()


def test_an_error_is_one_line_with_exit_code_1(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = lifecycle(tmp_path / "file" / "home", "up")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("lifecycle: Can't write to ") and failed.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = lifecycle(tmp_path / "file" / "home", "--debug", "up")
    assert failed.returncode == 1 and "Traceback" in failed.stderr


def test_an_unknown_option_exits_with_code_2(home: Path) -> None:
    assert lifecycle(home, "up", "--nonsense").returncode == 2


def test_clean_removes_nothing_without_confirmation(home: Path) -> None:
    home.mkdir()
    (home / "settings.env").write_text("LIFECYCLE_FIRST_DAY=2026-01-05\n")
    refused = lifecycle(home, "clean")
    assert refused.returncode == 1 and "add --yes" in refused.stderr and home.exists()
    assert lifecycle(home, "clean", "--yes").returncode == 0
    assert not home.exists()


def test_clean_removes_datasets_built_by_the_default_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Versions never change: any left behind would block the next home's dataset of the same day."""
    monkeypatch.setattr(config, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(services, "PROJECT_ROOT", tmp_path)
    version = tmp_path / "datasets" / "planner" / "2026-01-05"
    for folder in (version, tmp_path / ".lifecycle", tmp_path / "datasets" / "reference"):
        folder.mkdir(parents=True)
    (version / "training.parquet").touch()
    (tmp_path / ".lifecycle" / "settings.env").touch()
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / ".lifecycle"))
    config.settings.cache_clear()
    services.clean(yes=True)
    assert not version.exists() and not (tmp_path / ".lifecycle").exists()
    assert (tmp_path / "datasets" / "reference").exists()


def test_clean_refuses_a_folder_that_is_not_a_home(tmp_path: Path, home: Path) -> None:
    (tmp_path / "photos").mkdir()
    refused = lifecycle(tmp_path / "photos", "clean", "--yes")
    assert refused.returncode == 1 and "does not look like a home" in refused.stderr
    assert (tmp_path / "photos").exists()
