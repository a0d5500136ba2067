"""What the next `lifecycle sync` would do to a run that was just changed by hand."""

from typing import Any

import psycopg

from experimentation.config.files import ConfigFiles
from experimentation.config.steps import SetStatus
from experimentation.config.sync import apply_difference
from experimentation.runs.lifecycle import runs_of
from foundation.yaml_files import ConfigError


def sync_outlook(connection: psycopg.Connection[Any], files: ConfigFiles, name: str) -> str | None:
    """A sentence if the files would move the newest run of a name to another status, or are refused; None if neither."""
    entry = next((entry for entry in files.experiments if entry.name == name), None)
    runs = runs_of(connection, name)
    if entry is None or not runs or any(run.made_by == "promotion" for run in runs):
        return None
    says = f"{entry.place.file}:{entry.place.line} says {entry.status}"
    if runs[-1].status == "completed":
        return None if entry.status == "completed" else f"{says}, but `lifecycle sync` leaves a completed run as it is."
    only = ConfigFiles((entry,), files.policies, files.layers)
    try:
        # Some rules, such as whether a range is free, show only when the steps are taken; they are taken back.
        with connection.transaction(force_rollback=True):
            # This run does not depend on whether MLflow has the models of new versions.
            found = apply_difference(connection, only, model_stage=lambda name, version: "none", by="lifecycle")
    except ConfigError as error:
        return f"The next `lifecycle sync` refuses the files: {error.problems[0]}"
    status = next((step.status for step in found.steps if isinstance(step, SetStatus)), runs[-1].status)
    if status == runs[-1].status:
        return None
    return f"{says}, so the next `lifecycle sync` makes it {status}: change the file too."
