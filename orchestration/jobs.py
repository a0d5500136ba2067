"""Named jobs: which assets run together, and with which limits."""

from typing import Any

import dagster as dg
from dagster_dbt import build_dbt_asset_selection

from assets.analytics.asset import analytics_models

archive_job = dg.define_asset_job(
    "archive_events",
    selection=["raw_events"],
    description="Archive an hour of events as Parquet, read it back and count it.",
)
retention_job = dg.define_asset_job(
    "retire_events",
    selection=["event_retention"],
    description="Drop the days of events from PostgreSQL that are old enough and wholly archived.",
)
cleaning_job = dg.define_asset_job(
    "clean_events",
    selection=["cleaned_events"],
    description="Deduplicate, type and flag a day of archived events.",
)
dataset_job = dg.define_asset_job(
    "build_dataset",
    selection=["planner_dataset"],
    description="Build the training dataset of a day, with its checks.",
)
training_job = dg.define_asset_job(
    "train_planner",
    selection=["planner_checkpoint"],
    description="Fine-tune a planner on the dataset of a day, in a process of its own, and register it.",
)
replay_job = dg.define_asset_job(
    "replay_and_gate",
    selection=["replay_metrics", "candidate_policy"],
    # A refused gate is a result: starting the run again would only score the same rows again.
    tags={"dagster/max_retries": "0"},
    description="Replay a model version, hold it against the gate, and open its experiment run if it passes.",
)
analytics_job = dg.define_asset_job(
    "build_analytics",
    selection=build_dbt_asset_selection([analytics_models]),
    description="dbt build: metric aggregates, marts and views, with their tests as checks.",
)


class SilenceConfig(dg.Config):
    """What the alert tells."""

    since: str


@dg.op
def tell_of_silence(config: SilenceConfig) -> None:
    """Fail, with the sentence for whoever is called by a failed run."""
    raise dg.Failure(
        f"No event came since {config.since}: look whether the API answers (`lifecycle status`) and whether products send.",
        allow_retries=False,
    )


@dg.job(
    name="alert_no_events",
    description="Fails, once for each time that no event came for an hour, so that alerts on failed runs tell of it.",
)
def silence_job() -> None:
    """One op that fails."""
    tell_of_silence()


all_jobs: list[Any] = [
    archive_job,
    retention_job,
    silence_job,
    cleaning_job,
    dataset_job,
    training_job,
    replay_job,
    analytics_job,
]
