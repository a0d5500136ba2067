"""Dagster asset of the promotion stage: a candidate for a tenth of the units."""

from decimal import Decimal
from typing import Any

import dagster as dg
from pydantic import Field

from assets.failures import as_failures
from assets.groups import EXPERIMENTS_TABLE, PRODUCT_TEAM, PROMOTION
from assets.partitions import MODEL_VERSIONS, parse_model_version_key
from assets.resources import MlflowTracking, PlatformDatabase
from experimentation.policies import ensure_version_of_model, production_version
from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.run import CandidateRun, PolicyVersion
from foundation.audit import Change
from product.installed import installed_product
from replay.evaluate import Replayed
from replay.stored_results import link_policy_version

ACTOR = "dagster/candidate_policy"


class CandidateConfig(dg.Config):
    """How a candidate starts."""

    share: float = Field(
        default=0.10, gt=0, le=0.10, description="Share of units in each arm at the start; 0.10 at most."
    )


@dg.asset(
    group_name=PROMOTION,
    kinds={"postgres", "mlflow"},
    owners=[PRODUCT_TEAM],
    partitions_def=MODEL_VERSIONS,
    deps=[EXPERIMENTS_TABLE],
    description=(
        "A policy version pinned to a model version that passed the gate, and a new experiment run that tries it: control is the "
        "version in production, the treatment gets a tenth of the units, and the remainder is served the baseline and not analysed."
    ),
)
def candidate_policy(
    context: dg.AssetExecutionContext,
    config: CandidateConfig,
    replay_metrics: Replayed,
    database: PlatformDatabase,
    mlflow: MlflowTracking,
) -> dg.MaterializeResult[None]:
    """Open the candidate's experiment run, once; a candidate that has to wait for another is shown as waiting."""
    name, number = parse_model_version_key(context.partition_key)
    # In the job the gate stands before this asset; started by hand, the asset checks the verdict itself.
    if not replay_metrics.verdict.passed:
        raise dg.Failure(
            f"{context.partition_key} has not passed its replay gate, so no candidate is made: materialise replay_metrics for it.",
            allow_retries=False,
        )
    with as_failures(), database.connect() as connection:
        production = production_version(connection, installed_product().policy_name)
        change = Change(ACTOR, f"{context.partition_key} passed its replay on {replay_metrics.result.dataset_version}")
        version = ensure_version_of_model(
            connection,
            installed_product().policy_name,
            mlflow_model_name=name,
            mlflow_model_version=number,
            # Both arms get the same params, so that the model is all that differs between them.
            config_defaults=production.config_defaults if production else None,
            description=f"{name} version {number}",
            change=change,
        )
        opened = open_candidate_run(
            connection,
            experiment_name=installed_product().experiment_name,
            policy_version_id=version.id,
            treatment_name=f"candidate_v{version.version}",
            share=Decimal(str(config.share)),
            change=change,
        )
        link_policy_version(connection, name, number, version.id)
    context.log.info(opened.message)
    return dg.MaterializeResult(metadata=_metadata(version, opened, mlflow.model_url(name, number)))


def _metadata(version: PolicyVersion, opened: CandidateRun, model_page: str) -> dict[str, Any]:
    rows = [
        f"| {variant.name} | {variant.role} | {variant.allocation:.0%} | {variant.description or ''} |"
        for variant in opened.run.variants
    ]
    return {
        "policy version": version.label,
        "state": opened.message,
        "experiment": opened.run.label,
        "variants": dg.MetadataValue.md(
            "\n".join(["| variant | role | allocation | what it is |", "|---|---|---:|---|", *rows])
        ),
        "model page": dg.MetadataValue.url(model_page),
    }
