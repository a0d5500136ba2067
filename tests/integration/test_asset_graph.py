"""The lineage graph as a file: a change of keys, groups, dependencies or checks shows in review."""

import os
from pathlib import Path
from typing import Any

import yaml

SNAPSHOT = Path(__file__).with_name("asset_graph.yml")


def graph() -> dict[str, Any]:
    """Every asset with its group, dependencies, checks and whether it is partitioned, and what starts runs."""
    from orchestration.definitions import defs

    asset_graph = defs.resolve_asset_graph()
    assets = {}
    for key in sorted(asset_graph.get_all_asset_keys(), key=lambda key: key.to_user_string()):
        node = asset_graph.get(key)
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "depends_on": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": type(node.partitions_def).__name__ if node.partitions_def else None,
            "checks": sorted(check.name for check in node.check_keys),
        }
    repository = defs.get_repository_def()
    return {
        "assets": assets,
        "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
        "schedules": sorted(schedule.name for schedule in repository.schedule_defs),
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
    }


def test_asset_graph_matches_the_reviewed_file() -> None:
    now = yaml.safe_dump(graph(), sort_keys=True, width=120)
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(now)
    assert now == SNAPSHOT.read_text(), (
        "The lineage changed. If that is meant: UPDATE_SNAPSHOT=1 pytest tests/integration/test_asset_graph.py"
    )


def test_every_asset_has_a_description_owner_group_and_kind() -> None:
    from orchestration.definitions import defs

    asset_graph = defs.resolve_asset_graph()
    for key in asset_graph.get_all_asset_keys():
        node = asset_graph.get(key)
        name = key.to_user_string()
        assert node.description, f"{name} has no description"
        assert node.owners, f"{name} has no owner"
        assert node.group_name not in (None, "default"), f"{name} has no group"
        assert node.kinds, f"{name} has no kind"
