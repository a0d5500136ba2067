"""The gate in Dagster: a refused model version fails its check, gets no candidate and is not tried again; a passed one becomes a candidate.

Real runs of the job on a throw-away Dagster instance, a real registry and a real database. What the gate asks for is tested in
tests/unit/test_replay_gate.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.test_utils import instance_for_test
from replay_registry import BASELINE, FAIR, GOOD, NAME, POOR, SHARES, SILENT, Place, register_all

from assets.partitions import MODEL_VERSIONS, model_version_key
from experimentation.policies import version_of_model
from experimentation.runs.lifecycle import runs_of
from foundation.settings import settings
from orchestration.commands.configuration import apply_configuration
from orchestration.definitions import defs
from orchestration.jobs import replay_job
from orchestration.sensors import MOST_ATTEMPTS, new_model_version
from product.installed import installed_product
from replay.stored_results import StoredReplay, replays_of_model, save_replay


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered")
    register_all(folder)
    return folder


@pytest.fixture
def place(
    registered: Path, tmp_path: Path, home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A registry, a database with the project's own configuration, and the settings that lead to both."""
    gate_place = Place(registered, tmp_path, database_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate_place.tracking_uri)
    settings.cache_clear()
    apply_configuration(settings())
    yield gate_place


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    folder = tmp_path / "dagster"
    folder.mkdir()
    with instance_for_test(temp_dir=str(folder)) as dagster_instance:
        dagster_instance.add_dynamic_partitions(
            str(MODEL_VERSIONS.name), [model_version_key(NAME, version) for version in SHARES]
        )
        yield dagster_instance


def run(instance: dg.DagsterInstance, version: int, baseline: int | None = None) -> dg.ExecuteInProcessResult:
    """The job that the sensor starts, for one version."""
    config: dict[str, Any] = {"references": False, "baseline_version": baseline}
    return defs.resolve_job_def(replay_job.name).execute_in_process(
        instance=instance,
        partition_key=model_version_key(NAME, version),
        raise_on_error=False,
        run_config={"ops": {"replay_metrics": {"config": config}}},
        tags={"dagster/partition": model_version_key(NAME, version)},
    )


def tick(instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    """One look of the sensor."""
    result = new_model_version(dg.build_sensor_context(instance))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def asked_for(instance: dg.DagsterInstance) -> dict[str, str]:
    """Partition → run key of what a look of the sensor asks for."""
    result = tick(instance)
    if isinstance(result, dg.SkipReason):
        return {}
    return {str(request.partition_key): str(request.run_key) for request in result.run_requests or ()}


def test_refused_version_fails_its_check_and_opens_no_candidate_run(place: Place, instance: dg.DagsterInstance) -> None:
    finished = run(instance, POOR)
    (evaluation,) = finished.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed, evaluation.severity) == (
        "acceptance_gate",
        False,
        dg.AssetCheckSeverity.ERROR,
    )
    assert evaluation.description is not None and "refused: plan_alignment_score" in evaluation.description
    assert not finished.success
    assert [event.step_key for event in finished.get_step_success_events()] == ["replay_metrics"]
    with psycopg.connect(place.database_url) as connection:
        assert version_of_model(connection, installed_product().policy_name, NAME, POOR) is None
        (only,) = runs_of(connection, installed_product().experiment_name)
        assert {variant.name: float(variant.allocation) for variant in only.variants} == {"control": 1.0}
        assert [replay.verdict for replay in replays_of_model(connection, NAME, POOR)] == ["refused"]
    assert model_version_key(NAME, POOR) not in asked_for(instance), "a refusal is a result: nothing is tried again"


def test_version_that_passes_becomes_a_candidate_once(place: Place, instance: dg.DagsterInstance) -> None:
    # Against a version that knows nothing, so that leftovers are no matter here.
    for _ in range(2):
        finished = run(instance, GOOD, baseline=POOR)
        assert finished.success, [event.description for event in finished.get_asset_check_evaluations()]
    with psycopg.connect(place.database_url) as connection:
        candidate = version_of_model(connection, installed_product().policy_name, NAME, GOOD)
        assert candidate is not None and candidate.version == 2
        control = version_of_model(connection, installed_product().policy_name, NAME, BASELINE)
        assert control is not None and candidate.config_defaults == control.config_defaults != {}, (
            "both arms get the same params"
        )
        before, opened = runs_of(connection, installed_product().experiment_name)
    assert (before.status, opened.status) == ("completed", "active")
    shares = [(variant.name, variant.role, float(variant.allocation)) for variant in opened.variants]
    assert shares == [("control", "control", 0.1), ("remainder", "remainder", 0.8), ("candidate_v2", "treatment", 0.1)]


def test_candidate_is_requested_again_when_a_version_passed_without_one(
    place: Place, instance: dg.DagsterInstance
) -> None:
    """As after a kill between the replay and the candidate."""
    assert place.replay(GOOD, references=False).verdict.passed
    assert model_version_key(NAME, GOOD) in asked_for(instance)
    assert run(instance, GOOD, baseline=POOR).success
    assert model_version_key(NAME, GOOD) not in asked_for(instance)


def candidate_alone(instance: dg.DagsterInstance, version: int) -> dg.ExecuteInProcessResult:
    """`candidate_policy` started by hand, without the job."""
    return dg.materialize(
        [asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)],
        selection=["candidate_policy"],
        instance=instance,
        partition_key=model_version_key(NAME, version),
        resources=dict(defs.resources or {}),
        raise_on_error=False,
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The error of the only step that failed."""
    (event,) = result.get_step_failure_events()
    error = event.step_failure_data.error
    assert error is not None
    return str(error.to_string())


def test_manual_candidate_run_fails_without_a_replay_record(place: Place, instance: dg.DagsterInstance) -> None:
    message = failure(candidate_alone(instance, FAIR))
    assert "replay_metrics has no record for planner_model@3" in message and "no data is not a pass" in message


def test_manual_candidate_run_fails_when_the_replay_was_refused(place: Place, instance: dg.DagsterInstance) -> None:
    run(instance, POOR)
    assert "planner_model@4 has not passed its replay gate" in failure(candidate_alone(instance, POOR))


def test_a_candidate_is_judged_by_its_own_replay_record_when_a_newer_result_is_stored(
    place: Place, instance: dg.DagsterInstance
) -> None:
    finished = run(instance, GOOD, baseline=POOR)
    (evaluation,) = finished.get_asset_check_evaluations()
    assert finished.success and evaluation.partition == model_version_key(NAME, GOOD)
    with psycopg.connect(place.database_url) as connection:
        save_replay(connection, StoredReplay(NAME, GOOD, "2030-01-01", POOR, "completed", verdict="refused"))
        assert replays_of_model(connection, NAME, GOOD)[0].verdict == "refused"
    assert candidate_alone(instance, GOOD).success


def test_the_sensor_requests_each_registered_version_once(place: Place, instance: dg.DagsterInstance) -> None:
    first = asked_for(instance)
    assert first == {model_version_key(NAME, version): f"{NAME}@{version}#1" for version in SHARES}
    assert asked_for(instance) == first, "two looks ask for the same run key, and Dagster starts a key once"


def test_failing_replay_is_tried_three_times(place: Place, instance: dg.DagsterInstance) -> None:
    key = model_version_key(NAME, SILENT)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        assert asked_for(instance)[key] == f"{key}#{attempt}"
        assert not run(instance, SILENT).success
    for version in (GOOD, FAIR, POOR):
        run(instance, version)
    skipped = tick(instance)
    assert isinstance(skipped, dg.SkipReason)
    assert f"{key} broke its replay {MOST_ATTEMPTS} times" in str(skipped.skip_message)


def test_version_is_not_requested_while_it_is_being_replayed(place: Place, instance: dg.DagsterInstance) -> None:
    key = model_version_key(NAME, GOOD)
    instance.add_run(
        dg.DagsterRun(job_name=replay_job.name, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": key})
    )
    assert key not in asked_for(instance)
