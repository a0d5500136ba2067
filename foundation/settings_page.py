"""`python -m foundation.settings_page`: prints the tables of docs/settings.md, generated from the settings."""

import json
from pathlib import Path
from typing import Any

from foundation.settings import PROJECT_ROOT, Settings, variable_names

# The first setting of each group, and the group's heading.
GROUPS = {
    "home": "Where things live",
    "pg_port": "Ports",
    "first_day": "Days, datasets and replay",
    "redis_url": "The API",
    "schedules": "Dagster",
}
HEAD = "| variable | default | what it does |\n|---|---|---|\n"


def tables() -> str:
    """All settings by group, as Markdown."""
    parts = []
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            parts.append(f"\n## {GROUPS[name]}\n\n{HEAD}")
        names = " or ".join(f"`{variable}`" for variable in variable_names(name))
        parts.append(f"| {names} | {shown(field.default)} | {plain(field.description or '')} |\n")
    return "".join(parts).lstrip()


def shown(default: Any) -> str:
    """A default as it is written in the environment; a folder of the repository is shown relative to it."""
    if default is None:
        return "unset"
    if isinstance(default, Path) and default.is_relative_to(PROJECT_ROOT):
        return f"`{default.relative_to(PROJECT_ROOT)}` of the repository"
    text = str(default) if isinstance(default, str | Path) else json.dumps(default)
    return f"`{text}`"


def plain(text: str) -> str:
    """Text with the characters escaped that are special in a Markdown table."""
    return text.replace("<", "&lt;").replace("|", "\\|")


if __name__ == "__main__":
    print(tables(), end="")
