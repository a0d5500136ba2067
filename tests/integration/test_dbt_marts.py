"""The marts and views of the dbt project, its documentation, and failures of its tests, on one filled database."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dbt_support import (
    CONTROL,
    DRAFT,
    OTHER,
    OTHER_RUN,
    PLANNING,
    REMAINDER,
    RUN,
    RUN_OF,
    TREATMENT,
    Warehouse,
    assert_numbers,
    carried,
    counts,
    expected,
    fill,
    new_warehouse,
    odd_events,
    ordinary_events,
)  # fmt: skip
from local_support import unused_ports


@pytest.fixture(scope="module")
def built(
    postgres_server: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Warehouse]:
    with new_warehouse(postgres_server, migrated_template, tmp_path_factory.mktemp("dbt")) as warehouse:
        fill(warehouse.url)
        warehouse.store(ordinary_events() + odd_events())
        warehouse.override(RUN, "qa", "h-8")
        statuses = warehouse.dbt("build")
        assert set(statuses.values()) <= {"success", "pass", "no-op"}, statuses
        yield warehouse


def test_a_first_build_aggregates_all_events(built: Warehouse) -> None:
    assert_numbers(built.aggregates(), expected(built.events, built.overridden))


def test_variant_performance_matches_the_events(built: Warehouse) -> None:
    marts = {str(row["variant_id"]): row for row in built.rows("SELECT * FROM analytics.mart_variant_performance")}
    assert set(marts) == set(RUN_OF)
    for variant in (CONTROL, TREATMENT):
        mine = [
            event for event in built.events
            if carried(variant) in event["experiments"] and counts(event, RUN, built.overridden)
        ]  # fmt: skip
        of = {kind: [event for event in mine if event["event_type"] == kind] for kind in PLANNING}
        generated, accepted = len(of["plan_generated"]), len(of["plan_accepted"])
        row = marts[variant]
        assert (row["plans_generated"], row["plans_accepted"]) == (generated, accepted)
        assert row["acceptance_rate"] == pytest.approx(accepted / generated)
        assert row["avg_edits_per_plan"] == pytest.approx(
            (len(of["edit_applied"]) + len(of["meal_swapped"])) / accepted
        )
        assert row["validator_intervention_rate"] == pytest.approx(len(of["validator_intervention"]) / generated)
        latencies = [event["metrics"]["latency_ms"] for event in mine if "latency_ms" in event["metrics"]]
        percentiles = [row["latency_p50_ms"], row["latency_p95_ms"], row["latency_p99_ms"]]
        assert percentiles == pytest.approx(np.percentile(latencies, [50, 95, 99]))
        cost = math.fsum(event["metrics"].get("cost_usd", 0) for event in mine)
        assert (row["cost_usd"], row["cost_per_plan"]) == pytest.approx((cost, cost / generated))
        edits = [event["metrics"]["edit_count"] for event in of["plan_accepted"] if "edit_count" in event["metrics"]]
        assert row["accepted_without_edits"] == edits.count(0)
        assert row["accepted_after_3_or_more_edits"] == sum(count >= 3 for count in edits)
        assigned = {f"h-{number}" for number in range(70) if (CONTROL if number % 2 else TREATMENT) == variant}
        # An enrolled unit that was overridden later no longer belongs to the run.
        assert row["assigned_units"] == len(assigned - {"h-8"}) == (35 if variant == CONTROL else 34)
        assert row["exposed_units"] == len(assigned & {event["unit_id"] for event in of["plan_generated"]}) > 0
    untouched = marts[REMAINDER]
    assert (untouched["plans_generated"], untouched["acceptance_rate"], untouched["latency_p50_ms"]) == (0, None, None)
    assert marts[OTHER]["is_shipped"]


def test_overview_has_one_row_per_run(built: Warehouse) -> None:
    rows = {str(row["experiment_id"]): row for row in built.rows("SELECT * FROM analytics.mart_experiment_overview")}
    assert set(rows) == {RUN, OTHER_RUN, DRAFT}
    assert rows[RUN]["traffic"] == "remainder 80.00 %, candidate_v2 10.00 %, control 10.00 %"
    assert (rows[RUN]["assigned_units"], rows[RUN]["epoch"], rows[RUN]["variant_count"]) == (69, 1, 3)
    assert rows[OTHER_RUN]["shipped_variant"] == "only"
    assert (rows[DRAFT]["variant_count"], rows[DRAFT]["traffic"], rows[DRAFT]["plans_generated"]) == (0, None, 0)


def test_replays_are_listed_with_verdict_and_policy_version(built: Warehouse) -> None:
    rows = {row["model_version"]: row for row in built.rows("SELECT * FROM analytics.mart_offline_replay")}
    assert (rows["2"]["policy_name"], rows["2"]["policy_version"], rows["2"]["verdict"]) == (
        "planner_policy",
        2,
        "passed",
    )
    assert (rows["3"]["policy_version"], rows["3"]["reasons"]) == (None, "alignment fell; so did edits")
    assert float(rows["2"]["offline_eval_score"]) == 0.31


def test_views_have_the_columns_of_the_specification(built: Warehouse) -> None:
    def columns(relation: str) -> list[str]:
        with built.connect() as connection:
            description = connection.execute(f"SELECT * FROM {relation} LIMIT 0").description
        return [column.name for column in description or []]

    assert columns("exp.metric_aggregates") == [
        "id", "experiment_id", "variant_id", "metric_name", "bucket_type", "bucket_start", "count", "sum", "mean", "min", "max", "stddev",
        "created_at",
    ]  # fmt: skip
    assert columns("exp.v_experiment_metrics") == [
        "experiment_id", "experiment_name", "variant_id", "variant_name", "metric_name", "bucket_type", "bucket_start", "count", "mean",
        "min", "max", "stddev",
    ]  # fmt: skip
    assert columns("exp.v_active_experiments") == [*columns("exp.experiments"), "variant_count", "total_allocation"]
    assert columns("exp.v_policy_versions") == [*columns("exp.policy_versions"), "policy_name", "policy_description"]
    active = built.rows("SELECT name, variant_count, total_allocation FROM exp.v_active_experiments")
    assert active == [{"name": "weekly_planner", "variant_count": 3, "total_allocation": 1}]
    counted = built.rows(
        "SELECT count(*) AS here, (SELECT count(*) FROM exp.metric_aggregates) AS there FROM exp.v_experiment_metrics"
    )
    assert counted[0]["here"] == counted[0]["there"] > 0


def test_every_relation_and_column_is_documented(built: Warehouse) -> None:
    built.invoke("docs", "generate", "--static")
    assert "metric_aggregates" in (built.target / "static_index.html").read_text()
    catalogue = json.loads((built.target / "catalog.json").read_text())["nodes"]
    manifest = json.loads((built.target / "manifest.json").read_text())
    models = {node_id: node for node_id, node in manifest["nodes"].items() if node["resource_type"] == "model"}
    assert {node_id for node_id, node in models.items() if node["config"]["materialized"] != "ephemeral"} == set(
        catalogue
    )
    for node_id, node in models.items():
        assert node["description"], node_id
        described = {name for name, column in node["columns"].items() if column["description"]}
        assert set(catalogue.get(node_id, {"columns": described})["columns"]) == described, node_id
    assert all(exposure["depends_on"]["nodes"] for exposure in manifest["exposures"].values())


def test_descriptions_are_comments_in_the_database(built: Warehouse) -> None:
    rows = built.rows("SELECT obj_description('exp.v_experiment_metrics'::regclass) AS description")
    assert rows[0]["description"].startswith("The aggregates with the names")


def test_dbt_tests_fail_when_the_data_is_wrong(built: Warehouse) -> None:
    aggregates, replay = "UPDATE exp.metric_aggregates SET", "UPDATE analytics.mart_offline_replay SET"
    broken = {
        "daily_is_the_roll_up_of_hourly": f"{aggregates} stddev = stddev * 1.001 WHERE bucket_type = 'daily'",
        "metric_aggregates_mean_is_null_where_nothing_was_counted": f'{aggregates} mean = 0 WHERE "count" = 0',
        "metric_aggregates_rates_and_percentiles_have_no_spread": f"{aggregates} stddev = 0 WHERE metric_name = 'latency_p50'",
        "allocations_sum_to_one": f"UPDATE exp.allocation_epochs SET allocations = allocations - '{REMAINDER}'",
        "mart_variant_performance_shares_and_orders": "UPDATE analytics.mart_variant_performance SET exposed_units = assigned_units + 1",
        "mart_offline_replay_only_what_passed_became_a_policy_version": f"{replay} verdict = 'refused'",
        "mart_offline_replay_scores_lie_between_0_and_1": f"{replay} offline_eval_score = 1.2",
    }
    with built.connect() as connection:
        for statement in broken.values():
            assert connection.execute(statement).rowcount > 0, statement
    statuses = built.dbt("test", "--exclude-resource-type", "unit_test")
    assert {name for name, status in statuses.items() if status == "fail"} == set(broken)


def test_dbt_project_parses_without_a_database(tmp_path: Path) -> None:
    nowhere = Warehouse(f"postgresql://nobody:v3ry-hidden@127.0.0.1:{unused_ports(1)[0]}/nothing", tmp_path)
    nowhere.invoke("parse")
    manifest = (nowhere.target / "manifest.json").read_text()
    assert "v3ry-hidden" not in manifest
