"""Named jobs: which assets run together, how, and with which limits.

Belongs here: selections and executors. Does not belong here: when they start (schedules.py, sensors.py).
"""

import dagster as dg
from dagster_dbt import build_dbt_asset_selection

from assets.analytics.asset import analytics_models

# One process a run: a multiprocess step costs about 4 s of start-up, an in-process one 0.2 s, and these steps are light.
_IN_PROCESS = dg.in_process_executor

archive_job = dg.define_asset_job(
    "archive_events",
    selection=["raw_events"],
    executor_def=_IN_PROCESS,
    description="Archive an hour of events as Parquet, read it back and count it.",
)
cleaning_job = dg.define_asset_job(
    "clean_events",
    selection=["cleaned_events"],
    executor_def=_IN_PROCESS,
    description="Deduplicate, type and flag a day of archived events.",
)
dataset_job = dg.define_asset_job(
    "build_dataset",
    selection=["planner_dataset"],
    executor_def=_IN_PROCESS,
    description="Build the training dataset of a day, with its checks.",
)
training_job = dg.define_asset_job(
    "train_planner",
    selection=["planner_checkpoint"],
    executor_def=_IN_PROCESS,
    description="Fine-tune a planner on the dataset of a day, in a process of its own, and register it.",
)
replay_job = dg.define_asset_job(
    "replay_and_gate",
    selection=["replay_metrics", "candidate_policy"],
    executor_def=_IN_PROCESS,
    # A refused gate is a result: starting the run again would only score the same rows again.
    tags={"dagster/max_retries": "0"},
    description="Replay a model version, hold it against the gate, and open its experiment run if it passes.",
)
analytics_job = dg.define_asset_job(
    "build_analytics",
    selection=build_dbt_asset_selection([analytics_models]),
    executor_def=_IN_PROCESS,
    description="dbt build: metric aggregates, marts and views, with their tests as checks.",
)

all_jobs = [archive_job, cleaning_job, dataset_job, training_job, replay_job, analytics_job]
