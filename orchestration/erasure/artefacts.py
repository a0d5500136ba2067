"""A unit in what replays and trainings left: artefacts of MLflow runs, records in the object store, details of replay results.

Weights are no rows: files of models are not looked into, and a model that was trained on the unit stays as it is.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from foundation.object_store import ObjectStore
from orchestration.erasure.contents import UNREADABLE, Contents, Trace, look_into, readable
from orchestration.erasure.findings import ErasureError, Found, Mode, Progress
from training import registry
from training.versions import DatasetVersion

RECORDS = "records"
RUN_TAG, MODEL_TAG = "rows_of_units_erased", "trained_on_erased_units"
"""Set on a run whose artefacts lost rows, and on a model version that was trained on such rows."""

_RESULTS = "SELECT id, details FROM exp.offline_replay_results WHERE details <> '{}' ORDER BY created_at, id"
_RESULT = "UPDATE exp.offline_replay_results SET details = %s WHERE id = %s"


def run_artefacts(tracking_uri: str, trace: Trace, mode: Mode, told: Progress) -> Iterator[Found]:
    """Files of MLflow runs that hold the unit, and the model versions that were trained on it.

    Raises ErasureError for a file that can't be read, and what MLflow raises.
    """
    client = registry.client(tracking_uri)
    runs = list(
        _pages(
            lambda token: client.search_runs(_experiments(client), run_view_type=3, max_results=1000, page_token=token)
        )
    )
    for number, run in enumerate(runs):
        told("MLflow runs", number, len(runs))
        run_id = run.info.run_id
        for path in _files(client, run_id, None):
            with tempfile.TemporaryDirectory(prefix="erasure-") as scratch:
                local = Path(client.download_artifacts(run_id, path, scratch))
                found = _contents(f"{run.info.artifact_uri}/{path}", local.read_bytes(), trace)
                if not found.rows:
                    continue
                yield Found(f"{run.info.artifact_uri}/{path}", found.rows, mode.done_to_files, kept=not mode.datasets)
                if path == registry.TRAINING_ROWS_FILE:
                    yield from _models_of(client, run_id, found.rows, mode)
                if mode.changes_files:
                    local.write_bytes(found.without)
                    client.log_artifact(run_id, str(local), path.rpartition("/")[0] or None)
                    client.set_tag(run_id, RUN_TAG, "true")
    told("MLflow runs", len(runs), len(runs))


def records(store: ObjectStore, trace: Trace, mode: Mode) -> Iterator[Found]:
    """Records of the object store that hold the unit. Raises ErasureError for one that can't be read, StoreError."""
    for key in store.list(RECORDS):
        if not readable(key):
            continue
        found = _contents(store.uri(key), store.read(key), trace)
        if found.rows:
            yield Found(store.uri(key), found.rows, mode.done_to_files, kept=not mode.datasets)
            if mode.changes_files:
                store.write(key, found.without)


def replay_results(connection: psycopg.Connection[Any], trace: Trace, mode: Mode) -> Iterator[Found]:
    """Details of stored replay results that tell of the unit's events, each changed in a transaction of its own."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        results = cursor.execute(_RESULTS).fetchall()
    for result, details in results:
        found = _contents(f"exp.offline_replay_results {result}.json", json.dumps(details).encode(), trace)
        if found.rows:
            yield Found(f"exp.offline_replay_results, {result}", found.rows, mode.done_to_files, kept=not mode.datasets)
            if mode.changes_files:
                connection.execute(_RESULT, (Jsonb(json.loads(found.without)), result))


def name_revision(store: ObjectStore, tracking_uri: str, old_uri: str, revision: DatasetVersion) -> None:
    """Let every record and every model version that names the old folder name the revision. Raises StoreError, and what MLflow raises.

    The digest that a model version carries stays: it says what the model was trained on.
    """
    for key in store.list(RECORDS):
        if key.endswith(".json"):
            record = json.loads(store.read(key))
            if isinstance(record, dict) and record.get("uri") == old_uri:
                store.write(key, json.dumps(revision.to_dict(), indent=2).encode())
    client = registry.client(tracking_uri)
    for version in _pages(lambda token: client.search_model_versions(max_results=1000, page_token=token)):
        if version.tags.get("dataset_uri") == old_uri:
            client.set_model_version_tag(version.name, version.version, "dataset_uri", revision.uri)


def _models_of(client: Any, run_id: str, rows: int, mode: Mode) -> Iterator[Found]:
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        yield Found(
            f"models:/{version.name}/{version.version}",
            rows,
            "trained on it: weights stay, train anew and promote",
            kept=True,
        )
        if mode.changes_files:
            client.set_model_version_tag(version.name, version.version, MODEL_TAG, "true")


def _contents(place: str, data: bytes, trace: Trace) -> Contents:
    try:
        return look_into(place, data, trace)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ErasureError(f"{place} can't be read ({reason}): mend or remove it, and run this again.") from error


def _experiments(client: Any) -> list[str]:
    found = _pages(lambda token: client.search_experiments(view_type=3, max_results=1000, page_token=token))
    return [experiment.experiment_id for experiment in found]


def _files(client: Any, run_id: str, folder: str | None) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _files(client, run_id, item.path)
        elif readable(item.path):
            yield item.path


def _pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return
