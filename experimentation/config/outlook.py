"""What the next `lifecycle sync` would make of a run that was just changed by hand: found by going through it and taking it back."""

from typing import Any

import psycopg

from experimentation.config.files import ConfigFiles
from experimentation.config.sync import sync
from experimentation.runs.lifecycle import runs_of
from foundation.yaml_files import ConfigError


def sync_outlook(connection: psycopg.Connection[Any], files: ConfigFiles, name: str) -> str | None:
    """What the files do to the newest run of a name that somebody may not expect, as a sentence; None when they leave its status."""
    entry = next((entry for entry in files.experiments if entry.name == name), None)
    runs = runs_of(connection, name)
    if entry is None or not runs or any(run.made_by == "promotion" for run in runs):
        return None
    says = f"{entry.place.file}:{entry.place.line} says {entry.status}"
    if runs[-1].status == "completed":
        return None if entry.status == "completed" else f"{says}, but `lifecycle sync` leaves a completed run as it is."
    with connection.transaction(force_rollback=True):
        try:
            # Whether MLflow has the models of new versions is no question of this run's.
            only = ConfigFiles((entry,), files.policies, files.layers)
            sync(connection, only, model_stage=lambda name, version: "none", by="lifecycle")
        except ConfigError as error:
            return f"The next `lifecycle sync` refuses the files: {error.problems[0]}"
        after = runs_of(connection, name)[-1]
    if after.status == runs[-1].status:
        return None
    return f"{says}, so the next `lifecycle sync` makes it {after.status}: change the file too."
