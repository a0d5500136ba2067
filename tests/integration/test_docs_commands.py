"""Runs every `lifecycle` command in a code block of the docs as it is written, and sends every request body.

The commands run in a folder that contains the files named in the docs. tests/unit/test_docs.py checks `make` targets; tests/end_to_end
runs `lifecycle demo` and `up`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from api_support import Api, make_run
from demo_support import LIFECYCLE
from docs_support import PAGES, commands, page_id, snippets
from training_support import dataset_folder, rows_of, small_base, small_product

from foundation.settings import PROJECT_ROOT

pytest_plugins = ["api_service"]

IN_END_TO_END = {"demo", "up"}
RECIPES = "id,name,minutes,tags,ingredients\n" + "".join(
    f"{number},dish {number},{10 + number},\"['vegan']\",\"['salt', 'rice']\"\n" for number in range(1, 10)
)
DIARY = "user_id,recipe_id,date,rating\n" + "".join(f"ann,{number},2005-03-0{number},4\n" for number in range(1, 7))
IMPORTS = "docs/importing-events.md"
# The first rows of the real files, which are not part of the project.
COOKIE_CATS = (
    "userid,version,sum_game_rounds,retention_1,retention_7\n116,gate_30,3,False,False\n377,gate_40,165,True,False\n"
)
ADSMART = (
    "auction_id,experiment,date,hour,device_make,platform_os,browser,yes,no\n"
    "0008ef63-77a7-448b-bd1e-075f42c55e39,exposed,2020-07-10,8,Generic Smartphone,6,Chrome Mobile,0,0\n"
    "00187412-2932-4542-a8ef-3633901d98d9,control,2020-07-03,15,Generic Smartphone,6,Facebook,0,1\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes.csv").write_text(RECIPES)
    (folder / "diary.csv").write_text(DIARY)
    (folder / "cookie_cats.csv").write_text(COOKIE_CATS)
    (folder / "adsmart.csv").write_text(ADSMART)
    (folder / "visits.jsonl").write_text("".join(snippets(IMPORTS, "jsonl")))
    (folder / "visits.yml").write_text("".join(snippets(IMPORTS, "yaml")))
    (folder / "docs").symlink_to(PROJECT_ROOT / "docs")
    (folder / "training").symlink_to(PROJECT_ROOT / "training")
    product = small_product()
    dataset_folder(folder / "datasets" / "planner" / "2026-01-05", rows_of(product), product)
    small_base(folder / "models" / "my-base", product)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_of_a_page_run_in_their_order(page: str, folder: Path, home: Path, database_url: str) -> None:
    environment = {**os.environ, "DATABASE_URL": database_url, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for command in commands():
        if (command.page, command.program, command.in_block) != (page, "lifecycle", True):
            continue
        if command.arguments[0] in IN_END_TO_END:
            continue
        result = subprocess.run(
            [str(LIFECYCLE), *command.arguments],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, f"`{command}` in {page} exits with {result.returncode}: {result.stderr}"
    assert not (folder / "mlruns").exists(), "a model was stored in the working directory instead of the store"


def test_request_bodies_of_the_api_page_are_accepted(api: Api) -> None:
    make_run(api.connection, "weekly_planner")
    bodies = [json.loads(text) for text in snippets("docs/api.md", "json")]
    assert [sorted(body) for body in bodies] == [
        ["context", "requested_experiments", "unit_id", "unit_type"],
        ["context", "event_id", "event_type", "experiments", "metrics", "payload", "timestamp", "unit_id", "unit_type"],
    ]
    assignment, event = bodies
    answer = api.client.post("/api/v1/assignments", json=assignment)
    assert answer.status_code == 200 and len(answer.json()["assignments"]) == 1
    stored = api.client.post("/api/v1/events", json=event)
    assert stored.json() == {"event_id": event["event_id"], "status": "accepted"}
