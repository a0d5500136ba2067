"""The commands `lifecycle demo` and `lifecycle import-history`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from foundation.errors import LifecycleError
from orchestration.commands.console import console

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")


class HistoryFolderError(LifecycleError):
    """The folder of a cooking history does not contain the expected files; the message says what is missing."""


def demo(
    history: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a recipe catalogue and a cooking diary (CSV or Parquet), to use instead of the sample."
        ),
    ] = None,
) -> None:
    """Run the whole graph once, from events to a served variant. Running it again does only what is missing."""
    from foundation.settings import settings
    from orchestration.demo.progress import Progress
    from orchestration.demo.report import show
    from orchestration.demo.scenario import DiaryScenario, SampleScenario, Scenario
    from orchestration.demo.stages import EXPECTED_SECONDS, Demo
    from orchestration.local.environment import QUIET_MLFLOW
    from orchestration.local.services import API, CODE, DAEMON, WEBSERVER
    from orchestration.local.stack import Stack

    out = console()
    os.environ.update(QUIET_MLFLOW)
    scenario: Scenario = (
        SampleScenario(settings()) if history is None else DiaryScenario(settings(), *history_files(history))
    )
    # Schedules stay off here: at five past the hour they would start runs in between those of the demo.
    prepared = scenario.prepare().model_copy(update={"schedules": False})
    out.print(f"The whole graph on {scenario.title}; state in {prepared.home}", highlight=False)
    with Stack(prepared, "lifecycle demo", (CODE, WEBSERVER, DAEMON, API), say=out.print) as stack:
        progress = Progress(out, EXPECTED_SECONDS)
        walk = Demo(stack, scenario, progress)
        try:
            facts = walk.run()
        except Exception:
            out.print("Finished stages are kept: run the same command again to continue from here.")
            raise
        with walk.connect() as connection:
            show(out, stack.settings, connection, walk.dagster, facts, progress.stages)
        walk.close()


def import_history(
    recipes: Annotated[Path, typer.Option(help="Recipe catalogue: CSV or Parquet.")],
    interactions: Annotated[Path, typer.Option(help="Dated cooking records: CSV or Parquet.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="field=column where the guessed column is wrong, such as person=author_id; repeatable."
        ),
    ] = None,
    plan_size: Annotated[int, typer.Option(min=1, max=7, help="Distinct recipes per plan.")] = 5,
    household_size: Annotated[int, typer.Option(min=1, help="People per household.")] = 1,
    max_minutes: Annotated[
        int, typer.Option(min=1, help="Recipes that take longer are rejected as typing errors.")
    ] = 1440,
    rejects: Annotated[
        Path | None, typer.Option(help="File to list rejected rows in; by default in the home folder.")
    ] = None,
) -> None:
    """Import a recipe catalogue and a cooking diary as the product's tables and events. Importing twice stores nothing twice."""
    import psycopg

    from eventlog.partitions import ensure_event_partitions
    from foundation.migrate import migrate
    from foundation.settings import settings
    from orchestration.demo.sample_data import import_history as store
    from orchestration.local.databases import database
    from planner.history import HistoryOptions, read_history, write_rejects

    out = console()
    options = HistoryOptions(_mapping(column or []), plan_size, household_size, max_minutes)
    # Read before anything is started or stored, so that a broken file fails within a second and leaves nothing behind.
    history = read_history(recipes, interactions, options)
    current = settings()
    reject_file = rejects or current.home / "rejects" / f"{interactions.stem}.csv"
    with database(current, "lifecycle import-history"):
        current = settings()
        migrate(current.platform_url)
        write_rejects(history.rejects, reject_file)
        with psycopg.connect(current.platform_url) as connection:
            ensure_event_partitions(connection, current.lineage_start)
            imported = store(connection, history, str(interactions))
    for name, count in history.counts.items():
        out.print(f"{name.replace('_', ' '):<30} {count:>10,}", highlight=False)
    for reason, count in history.rejects_by_reason().items():
        out.print(f"  rejected: {reason:<18} {count:>10,}", highlight=False)
    if history.rejects:
        out.print(f"Rejected rows, by line: {reject_file}", highlight=False)
    out.print("Stored." if imported.new else "Nothing new: these files were imported before.")


def history_files(folder: Path) -> tuple[Path, Path]:
    """The recipe catalogue (the file with `recipe` in its name) and the diary (the other file) in a folder.

    Raises HistoryFolderError unless there is exactly one of each.
    """
    if not folder.is_dir():
        raise HistoryFolderError(
            f"{folder} is not a folder: give one that holds a recipe catalogue and a cooking diary."
        )
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    recipes = [path for path in tables if "recipe" in path.stem.lower()]
    others = [path for path in tables if path not in recipes]
    if len(recipes) != 1 or len(others) != 1:
        names = ", ".join(path.name for path in tables) or "no CSV or Parquet file"
        raise HistoryFolderError(
            f"{folder} should hold one file with 'recipe' in its name and one other file, the diary, but holds {names}: "
            "use `lifecycle import-history` to name the files."
        )
    return recipes[0], others[0]


def _mapping(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise typer.BadParameter(f"'{pair}' is not field=column", param_hint="--map")
    return dict(pair.split("=", 1) for pair in pairs)
