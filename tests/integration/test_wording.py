"""The wording that users read, fixed by a few snapshots: help texts of the command line, and the problems of a broken configuration.

After a deliberate change: `pytest tests/integration/test_wording.py --snapshot-update`, and read the difference.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from ground_support import config_of
from syrupy.assertion import SnapshotAssertion
from typer.main import get_command
from typer.testing import CliRunner

from foundation.settings import PROJECT_ROOT
from foundation.yaml_files import ConfigError
from orchestration.cli import app

VERBS = sorted(get_command(app).commands)  # type: ignore[attr-defined]  # the app is a group
PASSED_ON = {"replay", "train"}
"""Verbs whose options are those of another module, which runs in a process of its own."""

BROKEN_EXPERIMENTS = """\
experiments:
  - name: cards
    unit_type: houshold
    status: running
    targeting: platform == "ios"
    variants:
      - {name: control, allocation: 0.5, config: {}}
      - {name: with_cards, allocation: 0.6, confg: {}}
  - name: cards
    unit_type: user
    status: draft
    variants: []
"""
BROKEN_POLICIES = """\
policies:
  - name: planner_policy
    versions:
      - {version: 0, model: planner_model, model_version: one}
"""


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in PASSED_ON])
def test_help_of_a_verb_is_as_reviewed(verb: str, snapshot: SnapshotAssertion) -> None:
    result = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert "\n".join(line.rstrip() for line in result.output.splitlines()) == snapshot


@pytest.mark.parametrize("verb", sorted(PASSED_ON))
def test_verb_passes_its_options_on(verb: str) -> None:
    command = [sys.executable, "-m", "orchestration.cli", verb, "--help"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=PROJECT_ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "--model-name" in done.stdout


def test_problems_of_broken_configuration_are_as_reviewed(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of(tmp_path, BROKEN_EXPERIMENTS, BROKEN_POLICIES)
    assert str(raised.value).replace(f"{tmp_path}/", "") == snapshot
