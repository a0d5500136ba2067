"""docs/settings.md lists every setting with its default and description."""

import subprocess
import sys
from pathlib import Path

import pytest

from foundation.settings import PROJECT_ROOT, Settings
from foundation.settings_page import GROUPS, shown, tables

PAGE = (PROJECT_ROOT / "docs" / "settings.md").read_text()
UPDATE = "put the output of `python -m foundation.settings_page` into docs/settings.md"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_on_the_page(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description, f"{name} has no description"
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| ") and f"`LIFECYCLE_{name.upper()}`" in line]
    variables, default, description = (cell.strip() for cell in row.strip("|").split(" | "))
    assert default.startswith("unset" if field.default is None else "`"), UPDATE
    assert description.replace("&lt;", "<") == field.description, UPDATE
    usual = getattr(field.validation_alias, "choices", None)
    assert variables.startswith(f"`{usual[0] if usual else 'LIFECYCLE_' + name.upper()}`"), UPDATE


def test_tables_of_the_page_match_the_settings() -> None:
    assert tables() in PAGE, UPDATE
    rows = [line for line in PAGE.partition("## Variables")[0].splitlines() if line.startswith("| `")]
    assert len(rows) == len(Settings.model_fields), UPDATE


def test_each_group_begins_with_a_setting() -> None:
    assert set(GROUPS) <= set(Settings.model_fields) and next(iter(Settings.model_fields)) in GROUPS


@pytest.mark.parametrize(
    ("default", "text"),
    [
        (None, "unset"),
        (PROJECT_ROOT / "config", "`config` of the repository"),
        (Path("/srv"), "`/srv`"),
        ("json", "`json`"),
        (True, "`true`"),
        (10_000, "`10000`"),
        ((1, 2), "`[1, 2]`"),
    ],
)
def test_default_is_shown_as_it_is_set_in_the_environment(default: object, text: str) -> None:
    assert shown(default) == text


def test_command_prints_the_tables() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "foundation.settings_page"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert result.stdout == tables() and str(PROJECT_ROOT) not in result.stdout
