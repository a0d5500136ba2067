"""The commands and snippets that the documentation shows, read from its pages."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

from foundation.settings import PROJECT_ROOT

PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (PROJECT_ROOT / "docs").glob("*.md"))]
PROGRAMS = ("make", "lifecycle")


@dataclass(frozen=True)
class Command:
    """One command of a page: a line of a block, or a word between backticks."""

    page: str
    text: str
    in_block: bool

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> list[str]:
        """The words of the shell, without a comment."""
        return shlex.split(self.text, comments=True)

    @property
    def program(self) -> str:
        """`make` or `lifecycle`."""
        return self.words[0]

    @property
    def arguments(self) -> list[str]:
        """Words after the program."""
        return self.words[1:]

    @property
    def verbs(self) -> list[str]:
        """Words before the first option or ellipsis."""
        found = []
        for word in self.arguments:
            if word.startswith("-") or word == "…":
                break
            found.append(word)
        return found


def page_id(page: str) -> str:
    """A page as a test's name."""
    return page


@cache
def commands() -> tuple[Command, ...]:
    """Every command of every page, each once a page, in order."""
    found: dict[tuple[str, str], Command] = {}
    for page in PAGES:
        text = (PROJECT_ROOT / page).read_text()
        for block in _blocks(text, ""):
            for line in block.splitlines():
                _keep(found, Command(page, line.strip(), True))
        for inline in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            _keep(found, Command(page, inline.strip(), False))
    return tuple(found.values())


def snippets(page: str, language: str) -> list[Any]:
    """Texts of a page's blocks in that language."""
    return _blocks((PROJECT_ROOT / page).read_text(), language)


def _keep(found: dict[tuple[str, str], Command], command: Command) -> None:
    first = command.text.split(" ", 1)[0]
    if first in PROGRAMS and command.text != first:
        found.setdefault((command.page, command.text), command)


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
