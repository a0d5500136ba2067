"""Names of settings: which are read, and the messages about unknown names and invalid values."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from foundation.settings import PROJECT_ROOT, Settings, invalid_settings, settings, unknown_names, variable_names

ROOMS = [*sorted(path.parent.name for path in PROJECT_ROOT.glob("*/__init__.py")), "client"]
PLACEHOLDERS = {"LIFECYCLE_X"}
"""Names in documentation that are not settings."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LIFECYCLE_PORTS", "Unknown setting LIFECYCLE_PORTS. Did you mean LIFECYCLE_PG_PORT?"),
        ("LIFECYCLE_APIPORT", "Unknown setting LIFECYCLE_APIPORT. Did you mean LIFECYCLE_API_PORT?"),
        ("LIFECYCLE_DATABASE", "Unknown setting LIFECYCLE_DATABASE. Did you mean DATABASE_URL?"),
        ("LIFECYCLE_DEBUGG", "Unknown setting LIFECYCLE_DEBUGG. Did you mean LIFECYCLE_DEBUG?"),
        ("lifecycle_hom", "Unknown setting lifecycle_hom. Did you mean LIFECYCLE_HOME?"),
        ("LIFECYCLE_XYZZY", "Unknown setting LIFECYCLE_XYZZY. docs/settings.md lists all settings."),
        ("LIFECYCLE_", "Unknown setting LIFECYCLE_. docs/settings.md lists all settings."),
    ],
)
def test_unknown_name_is_reported_with_a_suggestion(name: str, message: str) -> None:
    assert unknown_names({name: "1"}) == [message]


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_known_names(field: str) -> None:
    for name in variable_names(field):
        assert unknown_names({name: "1", name.lower(): "1"}) == []


def test_names_of_other_programs_are_not_reported() -> None:
    assert unknown_names({"PATH": "", "REDIS": "", "MY_LIFECYCLE_PORT": "", "LIFECYCLES": ""}) == []


def test_every_variable_in_the_code_is_known() -> None:
    texts = [path.read_text() for package in ROOMS for path in (PROJECT_ROOT / package).rglob("*.py")]
    texts += [path.read_text() for path in (PROJECT_ROOT / "dbt_project").glob("*.yml")]
    named = {name for text in texts for name in re.findall(r"\bLIFECYCLE_[A-Z_]*[A-Z]\b", text)} - PLACEHOLDERS
    assert {"LIFECYCLE_START", "LIFECYCLE_DEBUG", "LIFECYCLE_DBT_HOST", "LIFECYCLE_HOME"} <= named
    assert unknown_names(dict.fromkeys(named, "1")) == []


@pytest.mark.parametrize(("field", "value"), [("redis_url", "redis://a"), ("database_url", "postgresql://a")])
def test_usual_name_wins_when_both_names_are_set(
    field: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, ours = variable_names(field)
    monkeypatch.setenv(ours, value)
    assert getattr(settings(), field) == value
    monkeypatch.setenv(usual, "other")
    settings.cache_clear()
    assert getattr(settings(), field) == "other"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LIFECYCLE_API_PORT", "many", "LIFECYCLE_API_PORT=many can't be used (Input should be a valid integer"),
        ("LIFECYCLE_API_RETRY_DELAYS_MS", "[1", "A setting can't be read (error parsing value for field \"api_retry"),
    ],
)
def test_invalid_value_gives_a_one_line_message(
    name: str, value: str, message: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError)) as raised:
        settings()
    sentence = invalid_settings(raised.value)
    assert sentence.startswith(message) and sentence.endswith("correct it in the environment or in settings.env.")
    assert "\n" not in sentence


def test_command_line_reports_unknown_names_in_the_environment_and_the_file_once(home: Path) -> None:
    home.mkdir()
    (home / "settings.env").write_text("# LIFECYCLE_COMMENT=1\nLIFECYCLE_API_PROT=1\nLIFECYCLE_PORTS=2\n")
    process = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "status", "--json"], cwd=PROJECT_ROOT,
        env={**os.environ, "LIFECYCLE_HOME": str(home), "LIFECYCLE_PORTS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0
    assert process.stderr.splitlines() == [
        "Unknown setting LIFECYCLE_API_PROT. Did you mean LIFECYCLE_API_PORT?",
        "Unknown setting LIFECYCLE_PORTS. Did you mean LIFECYCLE_PG_PORT?",
    ]
    assert "Unknown setting" not in process.stdout
