"""The client installs by itself: an empty environment, `pip install ./client`, and nothing else of the platform."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

from foundation.settings import PROJECT_ROOT

OTHER_ROOMS = sorted(
    set(tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"])
    - {"lifecycle_client"}
)
REPORT = """
import importlib.metadata, importlib.resources, importlib.util, json, re, sys
import lifecycle_client

with lifecycle_client.AssignmentClient("lc_key", sys.argv[1], timeout=20) as client:
    variant = client.variant("user", "u1", "weekly_planner", "control")
    source = client.assign("user", "u1", ["weekly_planner"]).skipped["weekly_planner"].source
print(json.dumps({
    "location": lifecycle_client.__file__,
    "variant": variant,
    "source": source,
    "typed": importlib.resources.files("lifecycle_client").joinpath("py.typed").is_file(),
    "importable": [name for name in sys.argv[2:] if importlib.util.find_spec(name)],
    "requires": sorted(re.match("[a-z]+", line)[0] for line in importlib.metadata.requires("lifecycle-client")),
}))
"""


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, without this checkout on the import path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that contains only the client and its dependencies, not even pip."""
    folder = tmp_path_factory.mktemp("distribution")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    probe = run(*pip, "download", "--quiet", "--no-deps", "msgspec", folder=folder)
    if probe.returncode != 0:
        pytest.skip(f"pip cannot reach a package index: {probe.stderr.strip()[-300:]}")
    # A copy, since building leaves files in the source folder.
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT_ROOT / "client", folder / "client", ignore=ignored)
    installation = run(*pip, "install", "--quiet", "./client", folder=folder)
    assert installation.returncode == 0, installation.stderr
    return python


@pytest.fixture(scope="module")
def report(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program in that environment sees."""
    url = f"http://127.0.0.1:{free_port()}"
    finished = run(python, "-W", "error", "-c", REPORT, url, *OTHER_ROOMS, folder=tmp_path_factory.mktemp("neutral"))
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout))


def test_installed_client_imports_without_the_rest_of_the_platform(python: Path, report: dict[str, Any]) -> None:
    assert Path(report["location"]).is_relative_to(python.parent.parent)
    assert {"foundation", "serving", "orchestration"} <= set(OTHER_ROOMS) and report["importable"] == []


def test_installed_client_requires_only_httpx_and_msgspec(report: dict[str, Any]) -> None:
    assert report["requires"] == ["httpx", "msgspec"]


def test_installed_client_carries_its_type_hints(report: dict[str, Any]) -> None:
    assert report["typed"]


def test_installed_client_answers_with_the_default_when_no_service_listens(report: dict[str, Any]) -> None:
    assert (report["variant"], report["source"]) == ("control", "default")
