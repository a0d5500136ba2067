"""Groups and owners of the graph, and external assets: the tables that other programs write."""

import dagster as dg

EVENTS, DATASETS, MODELS, REPLAY, PROMOTION, ANALYTICS = (
    "events",
    "datasets",
    "models",
    "replay",
    "promotion",
    "analytics",
)
DATA_TEAM, ML_TEAM, PRODUCT_TEAM = "team:data", "team:ml", "team:product"

EVENTS_TABLE = dg.AssetKey(["exp", "events"])
ASSIGNMENTS_TABLE = dg.AssetKey(["exp", "assignments"])
EXPERIMENTS_TABLE = dg.AssetKey(["exp", "experiments"])
PRODUCT_TABLES = dg.AssetKey(["planner", "domain_tables"])
BASELINE_MODEL = dg.AssetKey("baseline_model")

external_assets: list[dg.AssetSpec] = [
    dg.AssetSpec(
        EVENTS_TABLE,
        description="Every accepted event, in daily partitions. The event service and imports write it.",
        group_name=EVENTS,
        kinds={"postgres", "fastapi"},
        owners=[DATA_TEAM],
    ),
    dg.AssetSpec(
        ASSIGNMENTS_TABLE,
        description="The variant of each unit, which never changes. The assignment service writes it.",
        group_name=EVENTS,
        kinds={"postgres", "fastapi"},
        owners=[PRODUCT_TEAM],
    ),
    dg.AssetSpec(
        EXPERIMENTS_TABLE,
        description="Experiments, their runs, variants and allocation epochs: from `config/experiments.yml` and from promotion.",
        group_name=PROMOTION,
        kinds={"postgres", "yaml"},
        owners=[PRODUCT_TEAM],
    ),
    *(
        dg.AssetSpec(
            dg.AssetKey(["exp", name]),
            description=description,
            group_name=PROMOTION,
            kinds={"postgres"},
            owners=[PRODUCT_TEAM],
        )
        for name, description in {
            "variants": "The arms of each run, with their allocations and configurations.",
            "allocation_epochs": "Periods of constant allocations of each run.",
            "overridden_units": "Units that were ever shown a variant of a run by an override: no analysis of the run counts them.",
            "erased_days": "Days with erased events: dbt rebuilds their aggregates.",
            "policies": "Policies by name, with their version in production.",
            "policy_versions": "Versions of policies, each pinned to one model version. `candidate_policy` adds to them.",
            "offline_replay_results": "The result of every replay. `replay_metrics` writes it.",
        }.items()
    ),
    dg.AssetSpec(
        PRODUCT_TABLES,
        description="The product's own tables (schema `planner`): recipes, households, constraints, pantry snapshots.",
        group_name=DATASETS,
        kinds={"postgres"},
        owners=[PRODUCT_TEAM],
    ),
    dg.AssetSpec(
        BASELINE_MODEL,
        description="The heuristic planner, registered as the first model version, which the first candidate is compared with.",
        group_name=MODELS,
        kinds={"mlflow", "python"},
        owners=[ML_TEAM],
    ),
]
