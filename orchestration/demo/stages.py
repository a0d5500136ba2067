"""The demo's stages in order: what each one starts, and when it has nothing to do.

Each stage checks what exists before it starts anything, so that a killed demo continues where it stopped.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import httpx
import psycopg

from assets.groups import ANALYTICS, BASELINE_MODEL
from assets.partitions import HOUR_KEY, model_version_key
from eventlog.imports.remembered import is_remembered, remember
from foundation.settings import Settings
from orchestration.demo.dagster_client import DagsterClient, DagsterError
from orchestration.demo.progress import Progress, Stage
from orchestration.demo.scenario import DiaryScenario, Scenario
from orchestration.local.stack import Stack
from product.installed import installed_product

EXPECTED_SECONDS = {
    "Recipes, households, events": 6.0,
    "Baseline model, configuration": 12.0,
    "Dagster and the API": 15.0,
    "Events archived and cleaned": 25.0,
    "Training dataset": 8.0,
    "Base model": 20.0,
    "Fine-tuning (LoRA)": 25.0,
    "Replay and gate (by a sensor)": 35.0,
    "Assignments and traffic": 15.0,
    "Analytics (dbt)": 20.0,
}
"""Approximate seconds of each stage in a first run on 2 cores, from which the progress line estimates the time left."""

REPLAY_WAIT_SECONDS = 600
DEMO_KEY = "demo"
DIARY_UNITS = 200
"""For how many of a diary's people the demo requests assignments: enough to see every variant."""


@dataclass
class Facts:
    """Values for the table at the end that are not in the database or MLflow."""

    dataset_day: date
    key: str = ""
    replay_run: str | None = None
    answers: dict[tuple[str, str], int] = field(default_factory=dict)
    example: dict[str, Any] | None = None
    events_sent: int = 0
    notes: list[str] = field(default_factory=list)


class Demo:
    """One run through the stages, on a stack with a running PostgreSQL and migrated schemas."""

    def __init__(self, stack: Stack, scenario: Scenario, progress: Progress) -> None:
        self.stack, self.scenario, self.progress = stack, scenario, progress
        self.settings: Settings = stack.settings
        self.dagster = DagsterClient(f"http://127.0.0.1:{self.settings.dagster_port}")
        self.facts = Facts(scenario.last_day)
        self._base_run: str | None = None

    @property
    def day(self) -> str:
        """The partition of the dataset and of the checkpoint."""
        return self.facts.dataset_day.isoformat()

    def run(self) -> Facts:
        """Run all stages. Raises the error of the stage that failed."""
        steps: dict[str, Callable[[Stage], None]] = {
            "Recipes, households, events": self._load,
            "Baseline model, configuration": self._configure,
            "Dagster and the API": self._serve,
            "Events archived and cleaned": self._archive,
            "Training dataset": self._dataset,
            "Base model": self._base,
            "Fine-tuning (LoRA)": self._train,
            "Replay and gate (by a sensor)": self._replay,
            "Assignments and traffic": self._traffic,
            "Analytics (dbt)": self._analytics,
        }
        for name, step in steps.items():
            with self.progress.stage(name) as stage:
                step(stage)
        return self.facts

    def close(self) -> None:
        """Close the connection to Dagster."""
        self.dagster.close()

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the platform's database; leaving it as a context commits."""
        return psycopg.connect(self.settings.platform_url, connect_timeout=10)

    def _load(self, stage: Stage) -> None:
        from eventlog.partitions import ensure_event_partitions

        with self.connect() as connection:
            ensure_event_partitions(connection, self.settings.lineage_start)
            imported = self.scenario.load(connection)
        stage.skipped = not imported.new
        stage.outcome = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in imported.counts.items() if count
        )
        if not imported.new:
            stage.outcome += " (stored before)"

    def _configure(self, stage: Stage) -> None:
        from orchestration.commands.configuration import apply_configuration
        from orchestration.demo.baseline import register_baseline

        version = register_baseline(self.settings)
        changes = apply_configuration(self.settings)
        stage.skipped = not changes
        stage.outcome = f"{version.name} version {version.version} is the heuristic planner; {len(changes) or 'no'} changes from config/"

    def _serve(self, stage: Stage) -> None:
        self.stack.start()
        self.stack.wait(on_tick=self.progress.note)
        if self.dagster.materialised_at(BASELINE_MODEL.to_user_string()) is None:
            self.dagster.report(
                BASELINE_MODEL.to_user_string(),
                f"models:/{installed_product().model_name}/1, registered before any training.",
            )
        stage.outcome = f"{self.dagster.url} · http://127.0.0.1:{self.settings.api_port}"

    def _archive(self, stage: Stage) -> None:
        start, day = self.settings.lineage_start, self.facts.dataset_day
        last_hour = datetime.combine(day, datetime.min.time()) + timedelta(hours=23)
        hours = (datetime.combine(start, datetime.min.time()).strftime(HOUR_KEY), last_hour.strftime(HOUR_KEY))
        days = (start.isoformat(), self.day)
        running: list[tuple[str, str]] = []
        if not self.dagster.has_range("raw_events", *hours):
            running.append((self.dagster.launch(["raw_events"], partition_range=hours), "archiving events"))
        if self.dagster.materialised_at("cleaned_history") is None:
            running.append((self.dagster.launch(["history_events", "cleaned_history"]), "archiving history"))
        # The base model does not depend on events: it is built meanwhile, and its own stage waits for it.
        if self.dagster.materialised_at("base_model") is None:
            self._base_run = self.dagster.launch(["base_model"])
        for run_id, doing in running:
            self._await(run_id, doing)
        stage.skipped = not running
        if not self.dagster.has_range("cleaned_events", *days):
            self._await(self.dagster.launch(["cleaned_events"], partition_range=days), "cleaning events")
            stage.skipped = False
        stage.outcome = f"{((day - start).days + 1) * 24:,} hours, {(day - start).days + 1} days, and the history"

    def _dataset(self, stage: Stage) -> None:
        stage.skipped = self._unless_done("planner_dataset", "building the dataset", self.day)
        stage.outcome = f"planner/{self.day}"

    def _base(self, stage: Stage) -> None:
        if self._base_run is None:
            stage.skipped = self._unless_done("base_model", "pre-training")
        else:
            self._await(self._base_run, "pre-training")
        metadata = self.dagster.metadata("base_model")
        # Only a base model that was built here has `items`; one that was named in the UI may have no `uri` either.
        stage.outcome = f"built in, for {metadata['items']} recipes" if "items" in metadata else metadata.get("uri", "")

    def _train(self, stage: Stage) -> None:
        from training.registry import latest_version, run_metrics

        stage.skipped = self._unless_done("planner_checkpoint", "fine-tuning", self.day)
        version = latest_version(self.settings.tracking_uri, installed_product().model_name)
        losses = run_metrics(self.settings.tracking_uri, version.run_id)
        stage.outcome = f"{version.name} version {version.version}"
        if {"base_val_loss", "tuned_val_loss"} <= losses.keys():
            stage.outcome += f", validation loss {losses['base_val_loss']:.3f} → {losses['tuned_val_loss']:.3f}"

    def _replay(self, stage: Stage) -> None:
        """Wait for the run that the sensor starts. This stage launches nothing."""
        from replay.stored_results import settled_model_versions
        from training.registry import latest_version

        version = latest_version(self.settings.tracking_uri, installed_product().model_name)
        key = model_version_key(installed_product().model_name, version.version)
        deadline = time.monotonic() + REPLAY_WAIT_SECONDS
        stage.skipped = True
        while True:
            runs = self.dagster.runs({"dagster/partition": key})
            self.facts.replay_run = runs[0]["runId"] if runs else None
            with self.connect() as connection:
                settled = (installed_product().model_name, str(version.version)) in {
                    (name, str(number)) for name, number in settled_model_versions(connection)
                }
            if settled and all(run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in runs):
                break
            if len(runs) >= 3 and all(run["status"] == "FAILURE" for run in runs):
                raise DagsterError(
                    f"The replay of {key} broke {len(runs)} times: {self.dagster.why_failed(runs[0]['runId'])} See "
                    f"{self.dagster.run_url(runs[0]['runId'])}; fix the cause, launch the job replay_and_gate for {key} there, "
                    "and run the demo again."
                )
            if time.monotonic() > deadline:
                raise DagsterError(
                    f"No sensor started a replay of {key} within {REPLAY_WAIT_SECONDS} s: see {self.dagster.url}/overview/sensors and the "
                    f"log {self.settings.home / 'logs' / 'daemon.log'}."
                )
            stage.skipped = False
            self._tick(f"{runs[0]['status'].lower()} {key}" if runs else f"waiting for the sensor to see {key}")
            time.sleep(0.5)
        stage.outcome = key

    def _traffic(self, stage: Stage) -> None:
        from orchestration.demo import traffic as client

        with httpx.Client(
            base_url=f"http://127.0.0.1:{self.settings.api_port}",
            headers={"Authorization": f"Bearer {self._api_key()}"},
            timeout=30,
            trust_env=False,
        ) as http:
            traffic = client.Traffic()
            with self.connect() as connection:
                units = [str(row[0]) for row in connection.execute("SELECT id FROM planner.households ORDER BY id")]
            if isinstance(self.scenario, DiaryScenario):
                units = units[:DIARY_UNITS]
            assigned = client.ask(http, installed_product().experiment_name, "household", units, traffic)
            stage.outcome = f"{len(assigned)} assignments"
            sent = f"traffic/{assigned[0].answer['experiment_id']}"
            with self.connect() as connection:
                world = None if is_remembered(connection, sent) else self.scenario.world
            if world is not None:
                with self.connect() as connection:
                    first = connection.execute(
                        "SELECT min(assigned_at) FROM exp.assignments WHERE experiment_id = %s",
                        (assigned[0].answer["experiment_id"],),
                    ).fetchone()
                assert first is not None
                client.play(http, world, assigned, first[0], self._load_model, traffic, self.progress.note)
                with self.connect() as connection:
                    remember(connection, "traffic", "live traffic of the demo", sent, {"events": traffic.events})
                stage.outcome += f", {traffic.events:,} events"
            else:
                stage.skipped = True
        self.facts.answers, self.facts.example = dict(traffic.answers), traffic.example
        self.facts.events_sent = traffic.events

    def _analytics(self, stage: Stage) -> None:
        models = self.dagster.group(ANALYTICS)
        times = [self.dagster.materialised_at(key) for key in models]
        whole = all(state == "SUCCEEDED" for states in models.values() for state in states)
        # The oldest model counts: a build that was killed or failed did not reach some models or their tests.
        built = min((time for time in times if time is not None), default=None) if whole and None not in times else None
        with self.connect() as connection:
            newest = connection.execute(
                "SELECT extract(epoch FROM greatest((SELECT max(created_at) FROM exp.events), "
                "(SELECT max(assigned_at) FROM exp.assignments), (SELECT max(created_at) FROM exp.offline_replay_results)))"
            ).fetchone()
        if built is not None and newest is not None and newest[0] is not None and float(newest[0]) < built:
            stage.skipped, stage.outcome = True, "nothing new since they were built"
            return
        keys = sorted(models)
        self._materialise(keys, "dbt build")
        stage.outcome = f"{len(keys)} models"

    def _unless_done(self, asset: str, doing: str, partition: str | None = None) -> bool:
        """Materialise the asset unless it is materialised; returns whether there was nothing to do."""
        if self.dagster.materialised_at(asset, partition) is not None:
            return True
        self._materialise([asset], doing, partition=partition)
        return False

    def _materialise(self, assets: list[str], doing: str, *, partition: str | None = None) -> None:
        self._await(self.dagster.launch(assets, partition=partition), doing)

    def _await(self, run_id: str, doing: str) -> None:
        """Wait for a run. Raises DagsterError with the failed step's message."""
        self.dagster.require(run_id, f"{doing} failed".capitalize(), lambda: self._tick(doing))

    def _tick(self, note: str) -> None:
        """Refresh the progress line, and check that all services are alive: a dead one would never finish its work.

        Raises LifecycleError.
        """
        self.progress.note(note)
        self.stack.supervisor.advance()

    def _load_model(self, uri: str) -> Any:
        import mlflow

        mlflow.set_tracking_uri(self.settings.tracking_uri)
        return mlflow.pyfunc.load_model(uri)

    def _api_key(self) -> str:
        """The demo's own key, in a file in the home that only this user can read. If the file is gone, the key is revoked and replaced."""
        from foundation.api_keys import list_api_keys, make_api_key, revoke_api_key

        file = self.settings.home / "demo-api-key"
        if file.exists():
            return file.read_text().strip()
        with self.connect() as connection:
            for key in list_api_keys(connection):
                if key.name.startswith(DEMO_KEY):
                    revoke_api_key(connection, key.name)
            _, plaintext = make_api_key(connection, f"{DEMO_KEY}-{secrets.token_hex(4)}", ["assign", "ingest", "read"])
        scratch = file.with_suffix(".new")
        scratch.touch(mode=0o600)
        scratch.write_text(plaintext)
        scratch.rename(file)
        return plaintext
