"""The code location: every asset, check, job, schedule and sensor.

Tests replace resources through `resource_overrides`.
"""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

# Backfill policies and open-ended windows are marked beta, partitioned checks preview; our versions are pinned, and a test pins the graph.
for category in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=category)
from dagster_aws.s3 import S3Resource
from dagster_dbt import DbtCliResource

from assets.analytics import asset as analytics
from assets.datasets import asset as datasets
from assets.events import asset as events
from assets.groups import external_assets
from assets.models import asset as models
from assets.promotion import asset as promotion
from assets.records_io import RecordIOManager
from assets.replay import asset as replay
from assets.resources import ArtefactStore, MlflowTracking, PlatformDatabase
from orchestration.jobs import all_jobs
from orchestration.schedules import all_schedules
from orchestration.sensors import all_sensors


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions; `resource_overrides` replaces resources by key."""
    modules = [events, datasets, models, replay, promotion, analytics]
    store = ArtefactStore(s3=S3Resource())
    resources: dict[str, Any] = {
        "database": PlatformDatabase(),
        "store": store,
        "mlflow": MlflowTracking(),
        "pipes": dg.PipesSubprocessClient(),
        "dbt": DbtCliResource(
            project_dir=str(analytics.DBT_FOLDER),
            profiles_dir=str(analytics.DBT_FOLDER),
            # The dbt of this environment, not the first one on PATH.
            dbt_executable=str(Path(sys.executable).with_name("dbt")),
        ),
        "io_manager": RecordIOManager(store=store),
    }
    return dg.Definitions(
        assets=[*external_assets, *dg.load_assets_from_modules(modules)],
        asset_checks=dg.load_asset_checks_from_modules(modules),
        jobs=all_jobs,
        schedules=all_schedules,
        sensors=all_sensors,
        # One process per run: each step of a multiprocess run takes about 4 s to start, and heavy work runs in its own process anyway.
        executor=dg.in_process_executor,
        resources={**resources, **(resource_overrides or {})},
    )


defs = build_defs()
