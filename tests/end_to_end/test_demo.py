"""The demo as a user sees it: killed and run again, repeated, and inspected in the UIs afterwards."""

import os
import re
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from demo_support import Installation, new_installation, wait_for

Demo = tuple[Installation, str]
"""A finished demo, and the output of its last run."""

STATE = {
    "events by type": "SELECT event_type, count(*) FROM exp.events GROUP BY 1 ORDER BY 1",
    "event ids": "SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM exp.events",
    "assignments": "SELECT unit_id, variant_id FROM exp.assignments ORDER BY unit_id",
    "runs": "SELECT name, run, status, shipped_variant_id FROM exp.experiments ORDER BY name, run",
    "policy versions": "SELECT version, mlflow_model_version, status FROM exp.policy_versions ORDER BY version",
    "replays": "SELECT id, verdict, offline_eval_score, created_at FROM exp.offline_replay_results ORDER BY id",
    "aggregates": "SELECT id, count, sum, created_at FROM exp.metric_aggregates ORDER BY id",
    "audit rows": "SELECT count(*) FROM exp.audit_log",
}


@pytest.fixture(scope="module")
def interrupted_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that was killed in the middle and run again to its end. It takes minutes, so all tests share it."""
    installation = new_installation(tmp_path_factory.mktemp("demo"))
    process, output = installation.start("demo")
    try:
        # The base model is the stage after the dataset: the kill happens during its run, with all services up.
        wait_for(
            lambda: "Training dataset" in output.read_text() and "Base model" not in output.read_text(), process, output
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = installation.run("demo")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield installation, done.stdout
    finally:
        installation.run("down", seconds=120)


def test_killed_demo_ends_with_the_same_table_when_rerun(interrupted_demo: Demo) -> None:
    installation, printed = interrupted_demo
    for line in (
        "rows in",
        "dataset version",
        "losses",
        "gate",
        "policy version",
        "experiment",
        "dbt",
        "one answer",
        "seconds",
    ):
        assert line in printed, f"the table has no line '{line}'"
    assert re.search(r"gate\W+(passed|refused|not evaluated)", printed)
    versions = installation.query("SELECT count(DISTINCT mlflow_model_version) FROM exp.offline_replay_results")
    assert versions == [(1,)], "exactly one version is trained and replayed, also after a kill"


def test_served_variants_follow_the_verdict_of_the_gate(interrupted_demo: Demo) -> None:
    installation, _ = interrupted_demo
    verdict = installation.query("SELECT verdict FROM exp.offline_replay_results")[0][0]
    variants = dict(
        installation.query(
            "SELECT v.name, v.allocation::float FROM exp.experiments e JOIN exp.variants v ON v.experiment_id = e.id "
            "WHERE e.name = 'weekly_planner' AND e.status = 'active'"
        )
    )
    served = dict(
        installation.query(
            "SELECT v.name, count(*) FROM exp.assignments a JOIN exp.variants v ON v.id = a.variant_id "
            "JOIN exp.experiments e ON e.id = a.experiment_id WHERE e.name = 'weekly_planner' GROUP BY 1"
        )
    )
    versions = installation.query("SELECT count(*) FROM exp.policy_versions")[0][0]
    if verdict == "passed":
        assert variants == {"control": 0.1, "remainder": 0.8, "candidate_v2": 0.1}
        assert set(served) == {"control", "candidate_v2"} and versions == 2
        assert all(20 <= count <= 65 for count in served.values()), served
    else:
        assert variants == {"control": 1.0} and served == {"control": 400} and versions == 1


def test_demo_changes_nothing_when_run_a_third_time(interrupted_demo: Demo) -> None:
    installation, _ = interrupted_demo
    before = {name: installation.query(statement) for name, statement in STATE.items()}
    done = installation.run("demo")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {name: installation.query(statement) for name, statement in STATE.items()} == before


def test_uis_answer_and_show_the_run_of_the_sensor(interrupted_demo: Demo) -> None:
    installation, _ = interrupted_demo
    began = time.time()
    process, output = installation.start("up")
    try:
        pages = {
            "DAGSTER": "/asset-groups",
            "MLFLOW": "/",
            "API": "/readyz",
            "DOCS": "/",
        }
        wait_for(
            lambda: all(_answers(installation.url(name) + path) for name, path in pages.items()), process, output, 180
        )
        query = "{ runsOrError { ... on Runs { results { jobName status creationTime tags { key value } } } } }"
        runs = httpx.post(installation.url("DAGSTER") + "/graphql", json={"query": query}, trust_env=False).json()
        results = runs["data"]["runsOrError"]["results"]
        sensed = [run for run in results if {"key": "dagster/sensor_name", "value": "new_model_version"} in run["tags"]]
        # If the gate refuses, its check fails, and the run with it. There may be a killed attempt besides the finished one.
        verdict = installation.query("SELECT verdict FROM exp.offline_replay_results")[0][0]
        ended = "SUCCESS" if verdict == "passed" else "FAILURE"
        assert [run["jobName"] for run in sensed if run["status"] == ended] == ["replay_and_gate"]
        # Newer runs may be in progress: a sensor requests hours with late events whenever an hour is over.
        before = [run for run in results if run["creationTime"] < began]
        assert before and not [run for run in before if run["status"] in ("STARTED", "STARTING", "QUEUED")], (
            "a killed run is shown as running"
        )
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
