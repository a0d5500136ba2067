"""Named jobs: which assets run together, and how often a failed run is retried."""

from typing import Any

import dagster as dg
from dagster_dbt import build_dbt_asset_selection

from assets.analytics.asset import analytics_models

archive_job = dg.define_asset_job(
    "archive_events",
    selection=["raw_events"],
    description="Archive an hour of events as Parquet, then read it back and count the rows.",
)
retention_job = dg.define_asset_job(
    "retire_events",
    selection=["event_retention"],
    description="Drop days of events from PostgreSQL that are old enough and completely archived.",
)
cleaning_job = dg.define_asset_job(
    "clean_events",
    selection=["cleaned_events"],
    description="Deduplicate, type and flag a day of archived events.",
)
dataset_job = dg.define_asset_job(
    "build_dataset",
    selection=["planner_dataset"],
    description="Build and check the training dataset of a day.",
)
training_job = dg.define_asset_job(
    "train_planner",
    selection=["planner_checkpoint"],
    description="Fine-tune a planner on the dataset of a day, in a separate process, and register it.",
)
replay_job = dg.define_asset_job(
    "replay_and_gate",
    selection=["replay_metrics", "candidate_policy"],
    # A model that fails the gate is a result: a retry would only score the same rows again.
    tags={"dagster/max_retries": "0"},
    description="Replay a model version, judge it by the gate, and create its experiment run if it passes.",
)
analytics_job = dg.define_asset_job(
    "build_analytics",
    selection=build_dbt_asset_selection([analytics_models]),
    description="dbt build: metric aggregates, marts and views; dbt tests run as asset checks.",
)


class SilenceConfig(dg.Config):
    """Since when no event arrived, as text for the alert."""

    since: str


@dg.op
def tell_of_silence(config: SilenceConfig) -> None:
    """Fail with a message for the person who gets the alert."""
    raise dg.Failure(
        f"No event came since {config.since}: check that the API answers (`lifecycle status`) and that products send events.",
        allow_retries=False,
    )


@dg.job(
    name="alert_no_events",
    description="Fails once each time that no event came for an hour, so that alerts on failed runs report it.",
)
def silence_job() -> None:
    """A single op, which fails."""
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
