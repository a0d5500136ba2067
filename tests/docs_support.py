"""The commands and snippets that the documentation shows, read from its pages."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

from foundation.settings import PROJECT_ROOT

PAGES = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
    *sorted(str(page.relative_to(PROJECT_ROOT)) for page in (PROJECT_ROOT / "docs").rglob("*.md")),
]  # fmt: skip
PROGRAMS = ("make", "lifecycle")


@dataclass(frozen=True)
class Command:
    """A command on a page: a line of a code block, or text between backticks."""

    page: str
    text: str
    in_block: bool

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> list[str]:
        """The words as the shell splits them, without a comment."""
        return shlex.split(self.text, comments=True)

    @property
    def program(self) -> str:
        """`make` or `lifecycle`."""
        return self.words[0]

    @property
    def arguments(self) -> list[str]:
        """The words after the program."""
        return self.words[1:]

    @property
    def verbs(self) -> list[str]:
        """The words before the first option or ellipsis."""
        verbs = []
        for word in self.arguments:
            if word.startswith("-") or word == "…":
                break
            verbs.append(word)
        return verbs


def page_id(page: str) -> str:
    """The page as the name of a test."""
    return page


@cache
def commands() -> tuple[Command, ...]:
    """Every command of every page, once for each page, in order."""
    by_text: dict[tuple[str, str], Command] = {}
    for page in PAGES:
        text = (PROJECT_ROOT / page).read_text()
        for block in _blocks(text, ""):
            for line in block.splitlines():
                _add(by_text, Command(page, line.strip(), True))
        for inline in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            _add(by_text, Command(page, inline.strip(), False))
    return tuple(by_text.values())


def snippets(page: str, language: str) -> list[Any]:
    """The page's code blocks in a language."""
    return _blocks((PROJECT_ROOT / page).read_text(), language)


def _add(by_text: dict[tuple[str, str], Command], command: Command) -> None:
    first = command.text.split(" ", 1)[0]
    if first in PROGRAMS and command.text != first:
        by_text.setdefault((command.page, command.text), command)


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
