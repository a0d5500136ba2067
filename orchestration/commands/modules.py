"""`lifecycle train` and `lifecycle replay`: run other packages' commands in a separate process, with the platform's addresses."""

import subprocess
import sys

import typer

from foundation.settings import settings
from orchestration.local.databases import database
from orchestration.local.environment import child_environment

# All options, also --help, belong to the other command.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(context: typer.Context) -> None:
    """Fine-tune a planner on a dataset and register it in MLflow. Options: `lifecycle train --help`."""
    # Placed before the user's options, so that those win. Without it, MLflow would store the model in the working directory.
    _run("training.train_planner", context, "--mlflow-artifact-root", f"{settings().store_root}/mlflow")


def replay(context: typer.Context) -> None:
    """Replay a registered model version over held-out rows and judge it by the gate. Options: `lifecycle replay --help`."""
    _run("replay", context)


def _run(module: str, context: typer.Context, *options: str) -> None:
    current = settings()
    command = [sys.executable, "-m", module, *options, *context.args]
    if "--help" in context.args or "-h" in context.args:
        raise typer.Exit(subprocess.call(command))
    with database(current, f"lifecycle {context.info_name}"):
        code = subprocess.run(command, env=child_environment(current), check=False).returncode
    raise typer.Exit(code)
