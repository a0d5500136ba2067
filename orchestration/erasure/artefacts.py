"""A unit in the output of trainings and replays: artefacts of MLflow runs, records in the object store, details of replay results.

Model files are not searched: weights are not rows, and a model that was trained on the unit is kept unchanged.
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
"""Set on a run whose artefacts had rows removed, and on a model version that was trained on such rows."""

_RESULTS = "SELECT id, details FROM exp.offline_replay_results WHERE details <> '{}' ORDER BY created_at, id"
_RESULT = "UPDATE exp.offline_replay_results SET details = %s WHERE id = %s"


def run_artefacts(tracking_uri: str, trace: Trace, mode: Mode, on_progress: Progress) -> Iterator[Found]:
    """Files of MLflow runs that contain the unit, and the model versions that were trained on it.

    Raises ErasureError for a file that can't be read, and MLflow's own errors.
    """
    client = registry.client(tracking_uri)
    runs = list(
        _pages(
            lambda token: client.search_runs(_experiments(client), run_view_type=3, max_results=1000, page_token=token)
        )
    )
    for number, run in enumerate(runs):
        on_progress("MLflow runs", number, len(runs))
        run_id = run.info.run_id
        for path in _files(client, run_id, None):
            with tempfile.TemporaryDirectory(prefix="erasure-") as scratch:
                local = Path(client.download_artifacts(run_id, path, scratch))
                contents = _contents(f"{run.info.artifact_uri}/{path}", local.read_bytes(), trace)
                if not contents.rows:
                    continue
                yield Found(
                    f"{run.info.artifact_uri}/{path}", contents.rows, mode.done_to_files, kept=not mode.datasets
                )
                if path == registry.TRAINING_ROWS_FILE:
                    yield from _models_of(client, run_id, contents.rows, mode)
                if mode.changes_files:
                    local.write_bytes(contents.without)
                    client.log_artifact(run_id, str(local), path.rpartition("/")[0] or None)
                    client.set_tag(run_id, RUN_TAG, "true")
    on_progress("MLflow runs", len(runs), len(runs))


def records(store: ObjectStore, trace: Trace, mode: Mode) -> Iterator[Found]:
    """Records in the object store that contain the unit. Raises ErasureError for a record that can't be read, and StoreError."""
    for key in store.list(RECORDS):
        if not readable(key):
            continue
        contents = _contents(store.uri(key), store.read(key), trace)
        if contents.rows:
            yield Found(store.uri(key), contents.rows, mode.done_to_files, kept=not mode.datasets)
            if mode.changes_files:
                store.write(key, contents.without)


def replay_results(connection: psycopg.Connection[Any], trace: Trace, mode: Mode) -> Iterator[Found]:
    """Details of stored replay results that mention the unit's events, each changed in its own transaction."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        results = cursor.execute(_RESULTS).fetchall()
    for result, details in results:
        contents = _contents(f"exp.offline_replay_results {result}.json", json.dumps(details).encode(), trace)
        if contents.rows:
            place = f"exp.offline_replay_results, {result}"
            yield Found(place, contents.rows, mode.done_to_files, kept=not mode.datasets)
            if mode.changes_files:
                connection.execute(_RESULT, (Jsonb(json.loads(contents.without)), result))


def name_revision(store: ObjectStore, tracking_uri: str, old_uri: str, revision: DatasetVersion) -> None:
    """Point every record and model version that names the old folder to the revision. Raises StoreError and MLflow's own errors.

    A model version keeps its digest, which says what the model was trained on.
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
            "trained on it: the weights are kept; retrain and promote",
            kept=True,
        )
        if mode.changes_files:
            client.set_model_version_tag(version.name, version.version, MODEL_TAG, "true")


def _contents(place: str, data: bytes, trace: Trace) -> Contents:
    try:
        return look_into(place, data, trace)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ErasureError(f"{place} can't be read ({reason}): repair or remove it, and run this again.") from error


def _experiments(client: Any) -> list[str]:
    experiments = _pages(lambda token: client.search_experiments(view_type=3, max_results=1000, page_token=token))
    return [experiment.experiment_id for experiment in experiments]


def _files(client: Any, run_id: str, folder: str | None) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _files(client, run_id, item.path)
        elif readable(item.path):
            yield item.path


def _pages(read_page: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = read_page(token)
        yield from page
        token = page.token
        if not token:
            return
