"""The heuristic planner as a model version: registered once as version 1, without torch, with the same answers as the planner."""

import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from conftest import free_port
from training_support import rows_of, small_product

from planner.meal_planner import MealPlanner
from planner.planners import HeuristicPlanner
from training import registry
from training.errors import TrainingError
from training.heuristic import register_heuristic
from training.versions import ModelVersion

PRODUCT = small_product()


def registered(uri: str, product: MealPlanner = PRODUCT, **options: str) -> ModelVersion:
    """The heuristic planner's version for a product."""
    return register_heuristic(
        uri, product, model_name=product.model_name, planner_class=product.baseline_planner, **options
    )


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_heuristic_is_registered_once_as_version_1(uri: str, tmp_path: Path) -> None:
    first = registered(uri, artifact_root=str(tmp_path / "artefacts"))
    assert (first.name, first.version, first.uri) == ("planner_model", 1, "models:/planner_model/1")
    assert registered(uri, artifact_root=str(tmp_path / "artefacts")) == first
    assert registry.list_versions(uri, "planner_model") == [first]
    assert list((tmp_path / "artefacts").iterdir())
    # It was trained on nothing: nobody need hold rows back for it, and no replay judges it as a candidate.
    assert registry.training_rows(uri, "planner_model", 1) is None
    assert registry.candidate_versions(uri, "planner_model") == []
    assert registry.version_tags(uri, "planner_model", 1)["stage"] == "none"


def test_heuristic_gets_a_new_version_when_the_catalogue_changes(uri: str, tmp_path: Path) -> None:
    registered(uri, artifact_root=str(tmp_path))
    assert registered(uri, small_product(20), artifact_root=str(tmp_path)).version == 2


def test_heuristic_version_answers_like_the_planner_and_only_a_broken_row_fails(uri: str, tmp_path: Path) -> None:
    version = registered(uri, artifact_root=str(tmp_path))
    inputs = [row["input"] for row in rows_of(PRODUCT, 12)]
    frame = pd.DataFrame(
        {name: pd.Series([row_input[name] for row_input in inputs], dtype=object) for name in inputs[0]}
    )
    frame.at[4, "constraints"] = 7
    with registry.fluent(uri):
        answers = mlflow.pyfunc.load_model(version.uri).predict(frame)
    assert list(answers.columns) == ["meals", "tokens_generated", "error"]
    for number, (row_input, meals) in enumerate(zip(inputs, answers["meals"], strict=True)):
        if number == 4:
            assert meals == [] and answers["error"][number]
            continue
        assert answers["error"][number] is None and answers["tokens_generated"][number] == 0
        expected = PRODUCT.plan(row_input, HeuristicPlanner().plan(PRODUCT, row_input))
        assert {"meals": meals} == expected


def test_registering_and_answering_needs_no_torch(uri: str, tmp_path: Path) -> None:
    code = f"""
import sys, mlflow, pandas as pd
from planner.meal_planner import MealPlanner
from training.heuristic import register_heuristic
product = MealPlanner()
version = register_heuristic(
    {uri!r}, product, model_name=product.model_name, planner_class=product.baseline_planner, artifact_root={str(tmp_path)!r}
)
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model(version.uri)
row = MealPlanner().synthetic_rows(1, 1)[0]["input"]
assert model.predict(pd.DataFrame([row]))["error"].tolist() == [None]
print(sorted({{"torch", "transformers", "peft"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unreachable_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not reachable"):
        registered(f"http://127.0.0.1:{free_port()}")
