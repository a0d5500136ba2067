"""Dagster asset of the dataset stage: one immutable dataset version a day, with its checks."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import polars as pl
from pydantic import Field

from assets.datasets.build import SUMMARY_FILE, build_dataset, version_before
from assets.datasets.checks import CHECKS, CheckResult, run_checks
from assets.events.asset import cleaned_events, cleaned_history
from assets.failures import as_failures
from assets.groups import DATASETS, ML_TEAM, PRODUCT_TABLES
from assets.partitions import DAILY, dataset_window, window_mapping
from assets.resources import ArtefactStore, MlflowTracking, PlatformDatabase
from eventlog.archive.cleaning import read_cleaned
from foundation.object_store import ObjectStore
from foundation.settings import settings
from product.installed import installed_product
from product.protocol import RowWindow
from training.registry import DATASET_EXPERIMENT
from training.versions import DatasetVersion


class DatasetConfig(dg.Config):
    """How a dataset version is published."""

    revision: bool = Field(
        default=False,
        description="Publish as -r2, -r3, … if a version of the same day has other rows; a version itself never changes.",
    )


@dg.asset(
    name="planner_dataset",
    group_name=DATASETS,
    kinds={"polars", "parquet"},
    owners=[ML_TEAM],
    partitions_def=DAILY,
    deps=[
        dg.AssetDep(cleaned_events, partition_mapping=window_mapping(settings().dataset_window_days)),
        cleaned_history,
        PRODUCT_TABLES,
    ],
    check_specs=[
        dg.AssetCheckSpec(name, asset="planner_dataset", description=says, blocking=severity == "ERROR")
        for name, (severity, says) in CHECKS.items()
    ],
    description=(
        "Every plan accepted in the window that ends with the day, joined with what was known when it was made (pantry, constraints, "
        "plans before), with the edits that followed: training.parquet, schema.json and a summary. A version never changes."
    ),
)
def planner_dataset(
    context: dg.AssetExecutionContext,
    config: DatasetConfig,
    database: PlatformDatabase,
    store: ArtefactStore,
    mlflow: MlflowTracking,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[DatasetVersion]]:
    """Build the version of this day, run its checks, log it to MLflow."""
    current, archive, datasets = settings(), store.open(), ObjectStore(settings().datasets_root)
    installed = installed_product()
    start, end = dataset_window(context.partition_key, current.dataset_window_days)
    window = RowWindow(start, end, current.dataset_lookback_days)
    with as_failures():
        with database.connect() as connection:
            domain = installed.domain_tables(connection)
        product = installed.from_tables(domain)
        earliest = (start - timedelta(days=window.lookback_days)).date()
        first_day = current.lineage_start
        events = read_cleaned(archive, max(earliest, first_day), end.date(), history=earliest < first_day)
        built = installed.dataset_rows(events, domain, window, current.replay_from)
        before = version_before(datasets, product.name, (end - timedelta(days=1)).date())
        checks = run_checks(
            built.frame,
            product=product,
            window=window,
            least_rows=current.dataset_min_rows,
            households=domain["households"]["id"].to_list(),
            events=events,
            published=before.fields if before else None,
            before=before.rows if before else None,
            by_time=current.replay_from is not None,
            nullable=installed.nullable_fields(),
        )
    for check in checks:
        yield _check(check)
    _require(checks)
    with as_failures():
        version = build_dataset(
            built.frame,
            store=datasets,
            product=product,
            window=window,
            checks=checks,
            excluded=built.excluded,
            nullable=installed.nullable_fields(),
            revision=config.revision,
        )
    page = _log(mlflow, context, version, datasets, built.frame)
    splits = Counter(built.frame.select(pl.col("metadata").struct.field("split"))["split"].to_list())
    summary = datasets.read(f"{version.name}/{version.version}/{SUMMARY_FILE}").decode()
    yield dg.MaterializeResult(
        value=version,
        data_version=dg.DataVersion(version.digest),
        metadata={
            "dagster/row_count": version.rows,
            "version": f"{version.name}/{version.version}",
            "split": ", ".join(f"{count:,} {name}" for name, count in sorted(splits.items())),
            "left out": dg.MetadataValue.json(dict(built.excluded)),
            "digest": version.digest,
            "folder": store.link(version.uri),
            "summary": dg.MetadataValue.md(summary),
            "MLflow run": dg.MetadataValue.url(page),
        },
    )


def _require(checks: list[CheckResult]) -> None:
    """Raise dg.Failure if a check failed: a version never changes, so a broken one would stay."""
    broken = [check.sentence for check in checks if not check.passed and check.severity == "ERROR"]
    if broken:
        raise dg.Failure(f"The dataset is not published: {' '.join(broken)}", allow_retries=False)


def _check(result: CheckResult) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.ERROR if result.severity == "ERROR" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=result.name,
        passed=result.passed,
        severity=severity,
        description=result.sentence,
        metadata={"numbers": dg.MetadataValue.json(result.metadata)},
    )


def _log(
    tracking: MlflowTracking,
    context: dg.AssetExecutionContext,
    version: DatasetVersion,
    datasets: ObjectStore,
    rows: pl.DataFrame,
) -> str:
    """Log one MLflow run per version: the dataset as an input with its digest, its rows, its schema and summary. Returns the run's page."""
    with tracking.run(context, DATASET_EXPERIMENT, f"{version.name}/{version.version}") as run_id:
        import mlflow
        from mlflow.data.polars_dataset import from_polars

        # MLflow takes digests of at most 36 characters; the full one is a tag.
        source = from_polars(
            rows.select("metadata").unnest("metadata"),
            source=version.uri,
            name=version.name,
            digest=version.digest[:36],
        )
        mlflow.log_input(source, context="training")
        mlflow.set_tags({"dataset_version": version.version, "dataset_digest": version.digest, "task": version.name})
        mlflow.log_metric("rows", version.rows)
        for name in ("schema.json", SUMMARY_FILE):
            mlflow.log_text(datasets.read(f"{version.name}/{version.version}/{name}").decode(), name)
        return tracking.run_url(mlflow.get_run(run_id).info.experiment_id, run_id)
