"""What starts when something happened. Belongs here: noticing, and asking for one run. Does not belong here: the work.

A sensor that ticks twice asks for the same run key, so one run starts.
"""

from collections.abc import Iterator

import dagster as dg
import psycopg

from assets.partitions import MODEL_VERSIONS, model_version_key
from experimentation.settings import settings
from orchestration.jobs import replay_job

# A run that was killed left no result; it is asked for again, but a model that breaks its replay every time is not replayed for ever.
MOST_ATTEMPTS = 3
REPLAYED_MODEL = "planner_model"


@dg.sensor(
    job=replay_job,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A new version of planner_model is replayed and held against the gate, whoever registered it.",
)
def new_model_version(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Ask for one replay run of each registered version that has no replay result yet."""
    waiting = [key for key in _registered_versions() if key not in _settled_versions()]
    if not waiting:
        return dg.SkipReason(f"Every version of {REPLAYED_MODEL} has its replay result.")
    requests, held = [], []
    for key in waiting:
        attempts = _attempts(context.instance, key)
        if attempts is None:
            held.append(f"{key} is being replayed")
        elif attempts >= MOST_ATTEMPTS:
            held.append(f"{key} broke its replay {attempts} times: mend it and launch the job by hand")
        else:
            requests.append(dg.RunRequest(run_key=f"{key}#{attempts + 1}", partition_key=key))
    if not requests:
        return dg.SkipReason("; ".join(held) + ".")
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[
            MODEL_VERSIONS.build_add_request([str(request.partition_key) for request in requests])
        ],
    )


def _registered_versions() -> Iterator[str]:
    from training.registry import candidate_versions

    for version in candidate_versions(settings().tracking_uri, REPLAYED_MODEL):
        yield model_version_key(version.name, version.version)


def _settled_versions() -> set[str]:
    from experimentation.replay_results import settled_model_versions

    with psycopg.connect(settings().platform_url, connect_timeout=10) as connection:
        return {model_version_key(name, int(version)) for name, version in settled_model_versions(connection)}


def _attempts(instance: dg.DagsterInstance, key: str) -> int | None:
    """How many replay runs of this version ended without a result; None while one is under way."""
    runs = instance.get_runs(dg.RunsFilter(job_name=replay_job.name, tags={"dagster/partition": key}))
    return None if any(not run.is_finished for run in runs) else len(runs)
