"""The shape of the repository: data folders contain no code, and docs/architecture.md lists every package."""

import re

from foundation.settings import PROJECT_ROOT

ARCHITECTURE = (PROJECT_ROOT / "docs" / "architecture.md").read_text()


def test_datasets_holds_no_python() -> None:
    # An __init__.py there would shadow Hugging Face `datasets`, which transformers looks for.
    assert list((PROJECT_ROOT / "datasets").rglob("*.py")) == []


def test_architecture_page_lists_every_package() -> None:
    rooms = sorted(path.parent for path in PROJECT_ROOT.glob("*/__init__.py") if path.parent.name != "tests")
    packages = [path.parent for room in rooms for path in room.rglob("__init__.py")]
    names = [str(path.relative_to(PROJECT_ROOT)) for path in packages if "versions" not in path.parts]
    assert len(names) > 30
    missing = [name for name in names if f"`{name}/`" not in ARCHITECTURE]
    assert not missing


def test_files_and_folders_of_the_architecture_page_exist() -> None:
    places = re.findall(r"`([\w/]+/[\w./]*)`", ARCHITECTURE)
    assert len(places) > 40
    assert not [place for place in places if not (PROJECT_ROOT / place).exists()]
