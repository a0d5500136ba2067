"""The command `python -m replay`: the same replay as the asset's, from a terminal.

A verdict, whatever it is, ends with exit code 0: a refusal is a result. An impossible replay ends with 1 and one
sentence, a wrong option with 2.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import psycopg
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from foundation.errors import LifecycleError
from foundation.settings import Settings, settings
from product.installed import installed_product
from replay.answers import BATCH_SIZE
from replay.answers import Progress as OnProgress
from replay.evaluate import Connect, ReplayRequest, evaluate
from replay.gate import GateConfig
from replay.report import terminal_table
from replay.rows import SAMPLE_SEED, SAMPLE_SIZE, RowChoice


def parser() -> argparse.ArgumentParser:
    """Every option, each rule of the gate among them."""
    command = argparse.ArgumentParser(
        prog="python -m replay",
        description="Score a registered model version against a baseline on rows that neither was trained on, and judge it by the gate.",
    )
    command.add_argument(
        "--model-name", default=installed_product().model_name, help="registered model (default: %(default)s)"
    )
    command.add_argument("--model-version", type=int, required=True, help="the candidate's version")
    command.add_argument("--dataset", required=True, help="folder or s3:// folder of a dataset version")
    command.add_argument(
        "--baseline-version",
        type=int,
        help="version to beat (default: the one in production, else the newest heuristic planner)",
    )
    command.add_argument(
        "--sample-size", type=int, default=SAMPLE_SIZE, help="rows at most; 0 for every row (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=SAMPLE_SEED, help="seed of the sample (default: %(default)s)")
    command.add_argument(
        "--rows",
        choices=get_args(RowChoice),
        default="unseen",
        help="unseen by both models, or held-out or all, which are refused where a model was trained on them (default: %(default)s)",
    )
    command.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help="rows asked at once; changes no digit (default: %(default)s)"
    )
    command.add_argument(
        "--no-references", action="store_true", help="leave out random, popularity and the other reference planners"
    )
    gate = command.add_argument_group("the gate")
    for name, field in GateConfig.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        description = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            gate.add_argument(flag, action="store_true", help=description)
        else:
            number = int if field.annotation is int else float
            gate.add_argument(
                flag, type=number, default=field.default, help=f"{description} (default: {field.default:g})"
            )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)
    errors = Console(stderr=True, highlight=False)
    try:
        request = _request(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"--{str(part).replace('_', '-')}: " for part in first["loc"])
        errors.print(f"{where}{first['msg'].removeprefix('Value error, ')}", markup=False)
        return 2
    # MLflow's own progress bars and notices would hide the one sentence.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    configured = settings()
    try:
        with _progress(errors) as on_progress:
            replayed = evaluate(
                request,
                _connect(configured),
                tracking_uri=configured.tracking_uri,
                artefact_root=f"{configured.store_root}/mlflow",
                on_progress=on_progress,
            )
    except (LifecycleError, FileNotFoundError) as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        return 1
    except psycopg.OperationalError as error:
        errors.print(
            f"The platform's database cannot be reached ({_one_line(error)}): start it, or set DATABASE_URL.",
            markup=False,
        )
        return 1
    Console(highlight=False).print(terminal_table(replayed.result, replayed.verdict, replayed.done))
    return 0


def _request(options: argparse.Namespace) -> ReplayRequest:
    gate = GateConfig(**{name: getattr(options, name) for name in GateConfig.model_fields})
    return ReplayRequest(
        model_name=options.model_name,
        model_version=options.model_version,
        dataset_uri=options.dataset,
        baseline_version=options.baseline_version,
        sample_size=None if options.sample_size == 0 else options.sample_size,
        seed=options.seed,
        rows=options.rows,
        batch_size=options.batch_size,
        references=not options.no_references,
        gate=gate,
    )


def _connect(configured: Settings) -> Connect:
    return lambda: psycopg.connect(configured.platform_url, connect_timeout=10)


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress | None]:
    """A bar for each planner on a terminal, else nothing."""
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
