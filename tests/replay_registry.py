"""A registry with packaged models for replays: the heuristic planner and candidates that know a share of the answers."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psycopg
import pyarrow.parquet as pq
from mlflow.pyfunc.model import PythonModel
from replay_support import PRODUCT, RuleModel, dataset_folder, first_legal, sample_rows, telling

from product.protocol import Row
from replay.evaluate import Replayed, ReplayRequest, evaluate
from replay.gate import GateConfig
from training import registry
from training.dataset import training_rows_table
from training.heuristic import register_heuristic
from training.pyfunc import signature

NAME = "planner_model"
ROWS = sample_rows(households=12, plans=3, held_out=6)


class Told(PythonModel):  # type: ignore[misc]  # mlflow is not followed (pyproject.toml)
    """A candidate that knows `share` of each accepted plan, and nothing when its adapter is off. For tests alone."""

    def __init__(self, rows: list[Row], share: float) -> None:
        self.rows, self.share = rows, share

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Plans by rule."""
        knows = (params or {}).get("adapter", True)
        rule = telling(self.rows, self.share)

        def told(row_input: Any) -> Any:
            # Another household's prompt: it knows nothing about this one.
            return first_legal(row_input, 9) if isinstance(row_input.get("prompt_from"), dict) else rule(row_input)

        return RuleModel(told if knows else first_legal).predict(model_input)


SHARES = {2: 0.8, 3: 0.6, 4: 0.0, 5: 0.8}
"""Registered candidates by version, and what they know. Version 1 is the heuristic planner; version 5 does not say what it saw."""
GOOD, FAIR, POOR, SILENT = SHARES
BASELINE = 1


def register_all(folder: Path) -> None:
    """Fill a folder with an MLflow database, its artefacts and a dataset."""
    uri, artefacts = f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artefacts")
    dataset = dataset_folder(folder / "planner" / "2025-01-26", ROWS)
    baseline = register_heuristic(
        uri, PRODUCT, model_name=NAME, planner_class=PRODUCT.baseline_planner, artifact_root=artefacts
    )
    assert baseline.version == BASELINE
    experiment = registry.experiment_id(uri, registry.TRAINING_EXPERIMENT, artefacts)
    for version, share in SHARES.items():
        taught = [row for row in ROWS if row["metadata"]["split"] != "replay" and version != SILENT]
        with registry.fluent(uri), mlflow.start_run(experiment_id=experiment) as run:
            seen = folder / registry.TRAINING_ROWS_FILE
            pq.write_table(training_rows_table(taught), seen)
            mlflow.log_artifact(str(seen))
            logged = mlflow.pyfunc.log_model(
                name=NAME, python_model=Told(ROWS, share), signature=signature(), pip_requirements=["mlflow"]
            )
        tags = {registry.KIND_TAG: registry.FINE_TUNED, "dataset_uri": dataset}
        assert registry.register(uri, logged.model_uri, NAME, run.info.run_id, tags).version == version


class Place:
    """A registry and a database of this test's own, on the artefacts and the dataset of all."""

    def __init__(self, registered: Path, folder: Path, database_url: str) -> None:
        shutil.copy(registered / "mlflow.db", folder / "mlflow.db")
        self.tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.artefacts = str(folder / "artefacts")
        self.database_url = database_url
        self.dataset = str(registered / "planner" / "2025-01-26")
        self.folder = folder

    def replay(self, version: int, **options: Any) -> Replayed:
        """The whole of it. These candidates know nothing of pantries, so leftovers are not held against them."""
        return evaluate(
            ReplayRequest(NAME, version, self.dataset, gate=GateConfig(kept_share=0.5), **options),
            lambda: psycopg.connect(self.database_url),
            tracking_uri=self.tracking_uri,
            artefact_root=self.artefacts,
        )

    def runs(self) -> Any:
        """Every replay run in MLflow."""
        client = registry.client(self.tracking_uri)
        experiment = client.get_experiment_by_name(registry.REPLAY_EXPERIMENT)
        return client.search_runs([experiment.experiment_id]) if experiment else []
