"""The Python of docs/client.md runs as it stands against the real API, and prints what the page says of it."""

import os
import subprocess
import sys

import pytest
from api_support import Api, make_run
from conftest import free_port
from docs_support import snippets

from experimentation.settings import PROJECT_ROOT

pytest_plugins = ["api_service"]

EXAMPLES = snippets("docs/client.md", "python")


def run_example(api: Api, code: str, **changed: str) -> list[str]:
    """The lines that it prints in a process of its own, with `changed` in its environment."""
    environment = {
        **os.environ,
        "LIFECYCLE_API_KEY": str(api.client.headers["authorization"]).partition(" ")[2],
        "ASSIGNMENT_SERVICE_URL": str(api.client.base_url),
        **changed,
    }
    # A loaded machine may take longer than the default; what is shown is not how fast it is.
    patient = (
        "from serving.client import AssignmentClient, AsyncAssignmentClient\n"
        "for kind in (AssignmentClient, AsyncAssignmentClient): kind.__init__.__kwdefaults__['timeout'] = 20.0\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", patient + code],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_there_is_one_example_of_each_kind() -> None:
    assert [("async " in code) for code in EXAMPLES] == [False, True]


def test_the_example_with_threads(api: Api) -> None:
    make_run(api.connection, "weekly_planner", variants={"treatment": ("treatment", "1", {"params": {"x": 1}})})
    assert run_example(api, EXAMPLES[0]) == [
        "treatment ['params']",
        "weekly_planner treatment True assigned service",
        "new_home skipped: not_found service",
        "1 for the event",
    ]


def test_the_example_with_asyncio(api: Api) -> None:
    make_run(api.connection, "weekly_planner", variants={"treatment": ("treatment", "1", {"params": {"x": 1}})})
    assert run_example(api, EXAMPLES[1]) == ["treatment treatment", "not_enrolled from service"]
    assert [unit for (unit,) in api.rows("SELECT unit_id FROM exp.assignments")] == ["h0027"]


@pytest.mark.parametrize("away", [True, False])
def test_the_examples_go_on_where_there_is_no_answer(api: Api, away: bool) -> None:
    changed = {"ASSIGNMENT_SERVICE_URL": f"http://127.0.0.1:{free_port()}"} if away else {}
    reason, source = ("unavailable", "default") if away else ("not_found", "service")
    assert run_example(api, EXAMPLES[0], **changed) == [
        "control ['params']",
        f"weekly_planner skipped: {reason} {source}",
        f"new_home skipped: {reason} {source}",
        "0 for the event",
    ]
    assert run_example(api, EXAMPLES[1], **changed) == ["control control", "no answer"]
