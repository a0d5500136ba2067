"""Erasing a unit from dataset versions and from the output of trainings and replays, on a real MLflow."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pyarrow as pa
import pytest
from erasure_support import World
from replay_support import PRODUCT, START, sample_rows

from assets.datasets.build import build_dataset, read_version, versions
from orchestration.erasure import artefacts, datasets
from orchestration.erasure.contents import Trace, look_into, mask
from orchestration.erasure.findings import Unit
from planner.rows import ROW_SCHEMA
from product.protocol import Row, RowWindow
from replay.rows import read_rows
from replay.stored_results import StoredReplay, save_replay
from training import registry
from training.dataset import read_dataset, training_rows_table
from training.versions import DatasetVersion

pytest_plugins = ["erasure_worlds"]

GONE, LONGER = Unit("household", "h07"), Unit("household", "h0")
WINDOW = RowWindow(START, START + timedelta(days=28), 28)


def made_rows() -> list[Row]:
    rows = sample_rows(households=12, plans=3)
    for number, row in enumerate(rows):
        if number % 12 == 11:
            row["input"]["household"]["id"] = LONGER.unit_id
        if number % 12 == 10:
            row["metadata"]["split"] = "validation"
    return rows


ROWS = made_rows()
EVENTS = [row["metadata"]["event_id"] for row in ROWS]
MINE = [row["metadata"]["event_id"] for row in ROWS if row["input"]["household"]["id"] == GONE.unit_id]


@dataclass
class Trained:
    """A world with a dataset version, a model trained on it, and a replay of that."""

    world: World
    version: DatasetVersion
    run_id: str
    before: dict[str, Any] = field(default_factory=dict)

    def artefact(self, name: str) -> bytes:
        client = registry.client(self.world.platform.tracking_uri)
        return Path(client.download_artifacts(self.run_id, name)).read_bytes()


@pytest.fixture
def trained(world: World, tmp_path: Path) -> Trained:
    uri = world.platform.tracking_uri
    version = build_dataset(
        pl.DataFrame(ROWS, schema=ROW_SCHEMA), store=world.platform.datasets, product=PRODUCT, window=WINDOW
    )
    client = registry.client(uri)
    experiment = registry.experiment_id(uri, "more trainings", str(tmp_path / "more"))
    run_id = client.create_run(experiment).info.run_id
    violations = [f"{MINE[0]}: r1 holds nuts, which it excludes", f"{EVENTS[0]}: r2 is too long"]
    result = {"result": {"rows": 36, "failures": [{"event_id": MINE[1], "error": "x"}], "violations": violations}}
    pa.parquet.write_table(training_rows_table(ROWS), tmp_path / registry.TRAINING_ROWS_FILE)
    client.log_artifact(run_id, str(tmp_path / registry.TRAINING_ROWS_FILE))
    client.log_text(run_id, json.dumps(result), "replay/replay.json")
    client.log_text(run_id, "\n".join(["A report.", *violations, "The end."]), "report.md")
    client.log_text(run_id, "h07", "weights.bin")
    client.create_registered_model("planner_model")
    client.create_model_version(
        "planner_model", str(tmp_path), run_id, tags={"dataset_uri": version.uri, "dataset_digest": version.digest}
    )
    world.store.write("records/planner_dataset/2025-02-02.json", json.dumps(version.to_dict()).encode())
    world.store.write("records/replay_metrics/planner_model@1.json", json.dumps(result).encode())
    with psycopg.connect(world.url) as connection:
        save_replay(connection, StoredReplay("planner_model", 1, version.version, 0, "completed", details=result))
    return Trained(world, version, run_id)


def places(trained: Trained, report: Any) -> dict[str, tuple[int, str]]:
    short = {str(trained.world.folder): "", str(trained.artefact): ""}
    findings = {}
    for item in report.found:
        place = item.place.rpartition("/artifacts/")[2]
        for long, name in short.items():
            place = place.replace(long, name)
        findings[place.partition(", ")[0]] = (item.rows, item.done)
    return findings


def test_datasets_and_artefacts_are_listed_and_kept_by_default(trained: Trained) -> None:
    before = trained.world.platform.datasets.list(), trained.artefact("training_rows.parquet")
    report = trained.world.erase(GONE)
    assert not report.left
    kept = "kept: --datasets removes it"
    assert places(trained, report) == {
        "/datasets/planner/2025-02-02": (3, kept),
        "/store/records/replay_metrics/planner_model@1.json": (2, kept),
        "exp.offline_replay_results": (2, kept),
        "training_rows.parquet": (3, kept),
        "replay/replay.json": (2, kept),
        "report.md": (1, kept),
        "models:/planner_model/1": (3, "trained on it: the weights are kept; retrain and promote"),
    }
    assert before == (trained.world.platform.datasets.list(), trained.artefact("training_rows.parquet"))


@pytest.mark.parametrize("dies_in", [None, "name_revision", "remove"])
def test_a_revision_without_the_unit_replaces_the_version(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, dies_in: str | None
) -> None:
    """After an error in the middle, running it again publishes no second revision."""
    world, old = trained.world, trained.version
    before = read_version(world.platform.datasets, "planner", old.version)
    if dies_in is not None:
        with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
            patched.setattr(artefacts if dies_in == "name_revision" else datasets, dies_in, lambda *_: 1 / 0)
            world.erase(GONE, files=True)
    report = world.erase(GONE, files=True)
    assert not report.left

    revision = f"{old.version}-r2"
    assert versions(world.platform.datasets, "planner") == [revision]
    assert all(revision in key for key in world.platform.datasets.list())
    after = read_version(world.platform.datasets, "planner", revision)
    kept = [event_id not in MINE for event_id in EVENTS]
    assert after.rows.equals(before.rows.filter(pl.Series(kept))), "the others' rows, unchanged and in their order"
    assert after.facts == before.facts
    dataset = read_dataset(after.version.uri)
    assert (len(dataset.train), len(dataset.validation), dataset.held_out) == (12, 3, 18)
    assert read_rows(after.version.uri, after.version.digest).table.num_rows == 33
    schema = json.loads(world.platform.datasets.read(f"planner/{revision}/schema.json"))
    assert (schema["version"], schema["revision_of"], schema["erased_rows"]) == (revision, old.version, 3)
    summary = world.platform.datasets.read(f"planner/{revision}/dataset_summary.md").decode()
    for line in (
        "| rows | 33 |",
        "| window | \\[2025-01-06, 2025-02-03), history 28 days back |",
        "A revision of 2025-02-02, which was",
    ):
        assert line in summary

    # Records and model versions now name the revision; the model version keeps the digest that it was trained on.
    assert json.loads(world.store.read("records/planner_dataset/2025-02-02.json")) == after.version.to_dict()
    tags = registry.version_tags(world.platform.tracking_uri, "planner_model", 1)
    assert tags == {"dataset_uri": after.version.uri, "dataset_digest": old.digest, artefacts.MODEL_TAG: "true"}
    # Files lose the unit's rows and nothing else.
    rows = registry.training_rows(world.platform.tracking_uri, "planner_model", 1)
    assert rows is not None
    assert rows.equals(training_rows_table([row for row, stays in zip(ROWS, kept, strict=True) if stays]))
    left = {"result": {"rows": 36, "failures": [], "violations": [f"{EVENTS[0]}: r2 is too long"]}}
    assert json.loads(trained.artefact("replay/replay.json")) == left
    assert json.loads(world.store.read("records/replay_metrics/planner_model@1.json")) == left
    assert world.rows("SELECT details FROM exp.offline_replay_results") == [(left,)]
    assert trained.artefact("report.md").decode().splitlines() == [
        "A report.",
        f"{EVENTS[0]}: r2 is too long",
        "The end.",
    ]
    assert trained.artefact("weights.bin") == b"h07"
    ((audit,),) = world.rows(
        "SELECT after::text FROM exp.audit_log WHERE action = 'unit.erased' ORDER BY id DESC LIMIT 1"
    )
    assert f"replaced by {revision}" in audit and GONE.unit_id not in audit
    assert world.look(GONE).found == []


def test_datasets_do_not_change_when_mlflow_is_unreachable(trained: Trained, free_tcp_port: Callable[[], int]) -> None:
    world = trained.world
    object.__setattr__(world.platform, "tracking_uri", f"http://127.0.0.1:{free_tcp_port()}")
    before = world.platform.datasets.list()
    report = world.erase(GONE, files=True)
    assert list(report.left) == ["datasets, replays and MLflow"]
    assert "is not reachable" in report.left["datasets, replays and MLflow"]
    assert places(trained, report) == {"/datasets/planner/2025-02-02": (3, "kept: MLflow can't be reached")}
    assert world.platform.datasets.list() == before


@pytest.fixture
def free_tcp_port() -> Callable[[], int]:
    from conftest import free_port

    return free_port


@pytest.mark.parametrize(
    ("name", "content", "left"),
    [
        ("a.jsonl", '{"household_id": "h07"}\n{"household_id": "h071"}\n', '{"household_id": "h071"}\n'),
        ("a.csv", "household_id,text\nh07,a\nh0,\"h07\nb\"\n", "household_id,text\nh0,\"h07\nb\"\n"),
        ("a.json", '[{"unit_type": "user", "unit_id": "h07"}]', None),
        ("a.json", '{"a": [{"unit_type": "household", "unit_id": "h07"}, {"household": {"id": ""}}]}', {"a": [{"household": {"id": ""}}]}),
        ("a.json", '{"rows": [{"input": {"household": {"id": "h07"}}}, 3]}', {"rows": [3]}),
        ("a.json", '{"event_id": ["odd"], "household": "h07", "user_id": "h07"}', None),
        ("a.txt", "h07 stands here\n", None),
    ],
)  # fmt: skip
def test_rows_of_the_unit_are_removed_from_files(name: str, content: str, left: Any) -> None:
    contents = look_into(name, content.encode(), Trace(GONE))
    assert contents.rows == (0 if left is None else 1)
    assert (json.loads(contents.without) if isinstance(left, dict) else contents.without.decode()) == (
        content if left is None else left
    )


def test_rows_of_a_table_are_found_at_any_depth() -> None:
    table = pa.table(
        {
            "metadata": [{"unit_id": "h07", "unit_type": kind} for kind in ("household", "user", None)],
            "input": [{"household": {"id": "x"}}, {"household": {"id": "h07"}}, {"household": {"id": "h0"}}],
        }
    )
    assert mask(table, Trace(GONE)).to_pylist() == [True, True, False]
    assert mask(table, Trace(Unit("user", "h07"))).to_pylist() == [False, True, False]
