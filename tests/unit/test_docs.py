"""The docs say what is there: modules, settings, links, commands and targets all exist.

Running the commands: tests/integration/test_docs_commands.py.
"""

import re
import subprocess

import pytest
from docs_support import PAGES, Command, commands, page_id

from foundation.settings import OTHER_VARIABLES, PROJECT_ROOT, Settings

OUTSIDE_SETTINGS = set(OTHER_VARIABLES)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: str) -> None:
    text = (PROJECT_ROOT / page).read_text()
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    inside = [target for target in targets if target and "://" not in target]
    broken = [target for target in inside if not ((PROJECT_ROOT / page).parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_are_settings(page: str) -> None:
    known = {f"LIFECYCLE_{name.upper()}" for name in Settings.model_fields} | OUTSIDE_SETTINGS
    named = set(re.findall(r"\bLIFECYCLE_[A-Z_]+\b", (PROJECT_ROOT / page).read_text()))
    assert named <= known


@pytest.mark.parametrize("command", [one for one in commands() if one.program == "make"], ids=str)
def test_make_targets_exist(command: Command) -> None:
    shown = subprocess.run(
        ["make", "-n", *command.arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("command", [one for one in commands() if one.program == "lifecycle"], ids=str)
def test_lifecycle_verbs_exist(command: Command) -> None:
    from typer.main import get_command

    from orchestration.cli import app

    found = get_command(app)
    for word in command.verbs:
        subcommands = getattr(found, "commands", None)
        if subcommands is None:
            break
        assert word in subcommands, f"{command.page} says `{command}`, and there is no `{word}`"
        found = subcommands[word]


def test_the_docs_hold_commands() -> None:
    """What is parametrised above is not empty by mistake."""
    assert {one.program for one in commands()} == {"make", "lifecycle"}
    assert len(commands()) > 12
