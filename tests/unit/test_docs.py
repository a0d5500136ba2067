"""The docs are correct: links, settings, commands and make targets exist.

Running the commands: tests/integration/test_docs_commands.py.
"""

import re
import subprocess
from pathlib import Path

import pytest
from docs_support import PAGES, Command, commands, page_id

from foundation.settings import OTHER_VARIABLES, PROJECT_ROOT, Settings

OUTSIDE_SETTINGS = set(OTHER_VARIABLES)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_of_a_page_have_a_target(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (PROJECT_ROOT / page).read_text())
    broken = [link for link in links if "://" not in link and not _has_target(PROJECT_ROOT / page, link)]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_of_a_page_exist(page: str) -> None:
    known = {f"LIFECYCLE_{name.upper()}" for name in Settings.model_fields} | OUTSIDE_SETTINGS
    named = set(re.findall(r"\bLIFECYCLE_[A-Z_]+\b", (PROJECT_ROOT / page).read_text()))
    assert named <= known


@pytest.mark.parametrize("command", [command for command in commands() if command.program == "make"], ids=str)
def test_make_targets_exist(command: Command) -> None:
    result = subprocess.run(
        ["make", "-n", *command.arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", [command for command in commands() if command.program == "lifecycle"], ids=str)
def test_lifecycle_verbs_exist(command: Command) -> None:
    from typer.main import get_command

    from orchestration.cli import app

    group = get_command(app)
    for word in command.verbs:
        subcommands = getattr(group, "commands", None)
        if subcommands is None:
            break
        assert word in subcommands, f"{command.page} says `{command}`, but there is no command `{word}`"
        group = subcommands[word]


def test_the_docs_contain_commands() -> None:
    """The parametrised tests above are not empty by mistake."""
    assert {command.program for command in commands()} == {"make", "lifecycle"}
    assert len(commands()) > 12


@pytest.mark.parametrize("image", sorted((PROJECT_ROOT / "docs" / "images").iterdir()), ids=lambda image: image.name)
def test_an_image_is_small_and_used_by_a_page(image: Path) -> None:
    assert image.stat().st_size < 200_000
    assert any(f"images/{image.name}" in (PROJECT_ROOT / page).read_text() for page in PAGES)


def test_every_decision_is_in_the_index() -> None:
    folder = PROJECT_ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    records = [record.name for record in folder.glob("*.md") if record.name != "README.md"]
    assert records and not [name for name in records if f"]({name})" not in index]


def _has_target(page: Path, link: str) -> bool:
    """Whether a relative link leads to a file, and its anchor to one of the file's headings."""
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    if not anchor or not target.is_file():
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
