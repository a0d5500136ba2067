"""The table at the end of the demo. It is read from the database, MLflow and Dagster, so a repeated demo prints the same table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import psycopg
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table

from assets.groups import ANALYTICS
from eventlog.imports.remembered import all_remembered
from experimentation.policies import version_of_model
from experimentation.runs.lifecycle import runs_of
from foundation.settings import Settings
from orchestration.demo.dagster_client import DagsterClient
from orchestration.demo.progress import Stage
from orchestration.demo.stages import Facts
from product.installed import installed_product
from replay.gate import Verdict
from replay.report import terminal_table
from replay.result import ReplayResult
from replay.stored_results import StoredReplay, replays_of_model


def show(
    console: Console,
    settings: Settings,
    connection: psycopg.Connection[Any],
    dagster: DagsterClient,
    facts: Facts,
    stages: Sequence[Stage],
) -> None:
    """Print the replay, the summary table and the addresses of the UIs."""
    from training.registry import latest_version

    model = latest_version(settings.tracking_uri, installed_product().model_name)
    replays = replays_of_model(connection, installed_product().model_name, model.version)
    console.print()
    if replays:
        console.print(_replay(replays[0]))
    console.print(_summary(settings, connection, dagster, facts, replays, stages))
    console.print(_addresses(settings))


def _replay(stored: StoredReplay) -> Any:
    return terminal_table(
        ReplayResult.from_dict(stored.details["result"]), Verdict.from_dict(stored.details["verdict"])
    )


def _summary(
    settings: Settings,
    connection: psycopg.Connection[Any],
    dagster: DagsterClient,
    facts: Facts,
    replays: Sequence[StoredReplay],
    stages: Sequence[Stage],
) -> Table:
    table = Table(title="Results", show_header=False, title_justify="left", pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for imported in all_remembered(connection):
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in imported.counts.items() if count)
        table.add_row("rows in", f"{imported.source}: {counts}")
    table.add_row("dataset version", _dataset(dagster, facts))
    table.add_row("losses", _losses(settings))
    table.add_row("gate", _gate(replays))
    table.add_row("policy version", _policy_version(connection, replays))
    for line in _experiment(connection):
        table.add_row("experiment", line)
    table.add_row("dbt", _dbt(dagster))
    table.add_row("one answer", _answer(facts))
    if facts.answers:
        counts = ", ".join(
            f"{count} {variant} ({reason})" for (variant, reason), count in sorted(facts.answers.items())
        )
        table.add_row("all answers", counts)
    total = sum(stage.seconds for stage in stages)
    table.add_row(
        "seconds", f"{total:.0f} in all: " + ", ".join(f"{stage.name} {stage.seconds:.0f}" for stage in stages)
    )
    return table


def _dataset(dagster: DagsterClient, facts: Facts) -> str:
    metadata = dagster.metadata("planner_dataset", facts.dataset_day.isoformat())
    rows = metadata.get("dagster/row_count", "unknown")
    return f"{metadata.get('version', facts.dataset_day.isoformat())}: {rows} rows ({metadata.get('split', 'split unknown')})"


def _losses(settings: Settings) -> str:
    from training.registry import latest_version, run_metrics

    version = latest_version(settings.tracking_uri, installed_product().model_name)
    metrics = run_metrics(settings.tracking_uri, version.run_id)
    names = {"train": "train_loss", "validation": "val_loss", "validation of the untuned base": "base_val_loss"}
    return ", ".join(
        f"{name} {metrics[key]:.4f}" if key in metrics else f"{name} unknown" for name, key in names.items()
    )


def _gate(replays: Sequence[StoredReplay]) -> str:
    if not replays or replays[0].verdict is None:
        return "not evaluated: no replay is stored"
    latest = replays[0]
    anchored = " (anchored: see the reasons)" if latest.anchored else ""
    return (
        f"{(latest.verdict or '').replace('_', ' ')}{anchored}; offline score {latest.scores.get('offline_eval_score')}"
    )


def _policy_version(connection: psycopg.Connection[Any], replays: Sequence[StoredReplay]) -> str:
    if replays:
        version = version_of_model(
            connection, installed_product().policy_name, replays[0].mlflow_model_name, replays[0].mlflow_model_version
        )
        if version is not None:
            return f"{version.label} → models:/{version.mlflow_model_name}/{version.mlflow_model_version}, {version.status}"
    if replays and replays[0].verdict == "passed":
        return "none yet, although the model passed: run the demo again, or launch replay_and_gate in the Dagster UI"
    return "none: the model did not pass, so the version in production is still served"


def _experiment(connection: psycopg.Connection[Any]) -> list[str]:
    lines = []
    for run in runs_of(connection, installed_product().experiment_name):
        shares = ", ".join(f"{variant.name} {variant.allocation:.0%}" for variant in run.variants)
        shipped = f", {run.shipped.name} shipped" if run.shipped else ""
        lines.append(f"{run.label}: {run.status}{shipped} · {shares}")
    return lines


def _dbt(dagster: DagsterClient) -> str:
    models = dagster.group(ANALYTICS)
    tests = Counter(state for states in models.values() for state in states)
    results = ", ".join(f"{count} {state.lower().replace('_', ' ')}" for state, count in sorted(tests.items()))
    return f"{len(models)} models built; tests: {results or 'none'}"


def _answer(facts: Facts) -> str:
    if facts.example is None:
        return "no assignment was requested"
    answer = facts.example
    model = answer["config"].get("mlflow_model_uri", "no model")
    return f"{answer['unit_id']} → {answer['variant_name']} ({answer['reason']}, run {answer['run']}) → {model}"


def _addresses(settings: Settings) -> Panel:
    places = {
        "Dagster, the lineage": f"http://127.0.0.1:{settings.dagster_port}/asset-groups",
        "MLflow, the model": f"http://127.0.0.1:{settings.mlflow_port}/#/models/{installed_product().model_name}",
        "API": f"http://127.0.0.1:{settings.api_port}/docs",
        "dbt docs": f"http://127.0.0.1:{settings.docs_port}",
    }
    table = Table(show_header=False, box=None)
    for name, url in places.items():
        table.add_row(name, url)
    return Panel(Group(table), title="`make up` serves these", title_align="left", expand=False)
