"""The examples in docs/client.md and client/README.md run unchanged against the real API, and print what the pages say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from api_support import Api, make_run
from conftest import free_port
from docs_support import snippets

from foundation.settings import PROJECT_ROOT

pytest_plugins = ["api_service"]

EXAMPLES = snippets("docs/client.md", "python")
README_EXAMPLES = snippets("client/README.md", "python")


def run_example(api: Api, code: str, **changed: str) -> list[str]:
    """The lines that the example prints in a process of its own, with `changed` in its environment."""
    environment = {
        **os.environ,
        "LIFECYCLE_API_KEY": str(api.client.headers["authorization"]).partition(" ")[2],
        "ASSIGNMENT_SERVICE_URL": str(api.client.base_url),
        "EVENT_SERVICE_URL": str(api.client.base_url),
        **changed,
    }
    # A busy machine may need longer than the default timeout, and the examples do not show speed.
    patient = (
        "from lifecycle_client import AssignmentClient, AsyncAssignmentClient\n"
        "from lifecycle_client.event_client import EventLogger\n"
        "for kind in (AssignmentClient, AsyncAssignmentClient, EventLogger): kind.__init__.__kwdefaults__['timeout'] = 20.0\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", patient + code],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_page_has_one_example_of_each_kind() -> None:
    assert [("async " in code, "Event" in code) for code in EXAMPLES] == [
        (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip


def test_example_with_threads_prints_the_variant(api: Api) -> None:
    make_run(api.connection, "weekly_planner", variants={"treatment": ("treatment", "1", {"params": {"x": 1}})})
    assert run_example(api, EXAMPLES[0]) == [
        "treatment ['params']",
        "weekly_planner treatment True assigned service",
        "new_home skipped: not_found service",
    ]


def test_example_with_asyncio_prints_the_variant(api: Api) -> None:
    make_run(api.connection, "weekly_planner", variants={"treatment": ("treatment", "1", {"params": {"x": 1}})})
    assert run_example(api, EXAMPLES[1]) == ["treatment treatment", "not_enrolled from service"]
    assert [unit for (unit,) in api.rows("SELECT unit_id FROM exp.assignments")] == ["h0027"]


def test_readme_example_prints_the_variant_and_logs_the_exposure(api: Api, tmp_path: Path) -> None:
    run_id, _ = make_run(api.connection, "weekly_planner", variants={"treatment": ("treatment", "1", {})})
    (example,) = README_EXAMPLES
    assert run_example(api, example, XDG_STATE_HOME=str(tmp_path)) == ["treatment"]
    rows = api.rows("SELECT event_type, unit_id, experiments->0->>'experiment_id' FROM exp.events")
    assert rows == [("exposure", "h0027", str(run_id))]


@pytest.mark.parametrize("away", [True, False])
def test_examples_use_the_default_when_there_is_no_answer(api: Api, away: bool) -> None:
    changed = {"ASSIGNMENT_SERVICE_URL": f"http://127.0.0.1:{free_port()}"} if away else {}
    reason, source = ("unavailable", "default") if away else ("not_found", "service")
    assert run_example(api, EXAMPLES[0], **changed) == [
        "control ['params']",
        f"weekly_planner skipped: {reason} {source}",
        f"new_home skipped: {reason} {source}",
    ]
    assert run_example(api, EXAMPLES[1], **changed) == ["control control", "no answer"]


def test_event_examples_store_their_events(api: Api, tmp_path: Path) -> None:
    run_id, _ = make_run(api.connection, "weekly_planner", variants={"treatment": ("treatment", "1", {})})
    state = {"XDG_STATE_HOME": str(tmp_path)}
    assert run_example(api, EXAMPLES[2], **state) == ["36 True None", "True 2"]
    assert run_example(api, EXAMPLES[3], **state) == ["True 0"]
    rows = api.rows("SELECT event_type, experiments->0->>'experiment_id' FROM exp.events ORDER BY event_type")
    assert rows == [("custom.opened", None), ("exposure", str(run_id)), ("plan_accepted", str(run_id))]


def test_event_examples_keep_events_while_the_service_is_away(api: Api, tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    changed = {"ASSIGNMENT_SERVICE_URL": away, "EVENT_SERVICE_URL": away, "XDG_STATE_HOME": str(tmp_path)}
    # The experiment is unknown, so there is no exposure.
    assert run_example(api, EXAMPLES[2], **changed) == ["36 False None", "False 0"]
    assert run_example(api, EXAMPLES[3], **changed) == ["False 0"]
    (folder,) = (tmp_path / "lifecycle-events").iterdir()
    assert sum(path.read_text().count("\n") for path in folder.iterdir()) == 2
