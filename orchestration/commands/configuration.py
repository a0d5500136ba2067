"""`lifecycle sync`: the database as config/*.yml say."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from foundation.settings import Settings, settings
from orchestration.commands.access import bring_up_to_date, by_hand
from orchestration.commands.console import say
from orchestration.local.databases import database

if TYPE_CHECKING:
    from experimentation.config.difference import ModelStage
    from experimentation.config.sync import SyncReport


def sync(
    check: Annotated[
        bool, typer.Option("--check", help="Only show what would change; exit code 1 when something would.")
    ] = False,
) -> None:
    """Apply config/experiments.yml and policies.yml to the database, all of it or nothing."""
    current = settings()
    with database(current, "lifecycle sync"):
        bring_up_to_date(current, reads=check)
        report = synchronise(current, check=check)
    for line in report.lines():
        say(line)
    if check and report.changes:
        raise typer.Exit(1)


def apply_configuration(current: Settings) -> tuple[str, ...]:
    """Apply the files to a migrated database that runs; the changes, a line each. Raises ConfigError."""
    return synchronise(current).changes


def synchronise(current: Settings, *, check: bool = False) -> "SyncReport":
    """Apply the files, or with `check` only see what they would change. Raises ConfigError with every broken rule."""
    import psycopg

    from experimentation.config.files import read_config
    from experimentation.config.sync import sync as apply

    files = read_config(current.config_dir)
    with psycopg.connect(current.platform_url, connect_timeout=10) as connection:
        return apply(connection, files, model_stage=model_stage(current), by=by_hand("lifecycle sync"), check=check)


def model_stage(current: Settings) -> "ModelStage":
    """What tells the stage of a registered model version, asking MLflow only when it is called."""

    def stage(name: str, version: int) -> str | None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        from training.registry import STAGE_TAG

        # The first question makes MLflow's tables, and MLflow tells of each of them.
        for talker in ("mlflow", "alembic"):
            logging.getLogger(talker).setLevel(logging.WARNING)
        try:
            found = MlflowClient(tracking_uri=current.tracking_uri).get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(found.tags.get(STAGE_TAG, "none"))

    return stage
