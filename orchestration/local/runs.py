"""Cancels or closes Dagster runs of this home whose processes end with the platform.

Runs as a separate command (`python -m orchestration.local.runs`), because it needs Dagster (0.6 s to import) and the children's
environment.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from orchestration.local.environment import code_socket

# A process that executes runs itself tags them with its home. The run launcher tags all others with its code server.
HOME_TAG = "lifecycle/home"
_LAUNCHER_TAG = ".dagster/grpc_info"
_IN_PROGRESS = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
LOST = "The platform was stopped while this run was in progress, so its process is gone. Nothing it had stored is lost: launch it again."


def cancel_running(instance: DagsterInstance, home: Path | None) -> int:
    """Mark runs in progress as being cancelled, so that their processes, which are stopped next, report a cancellation, not a failure."""
    count = 0
    for run in _in_progress(instance, home):
        if run.status != DagsterRunStatus.CANCELING:
            instance.report_run_canceling(run, message="The platform is being stopped.")
        count += 1
    return count


def close_lost(instance: DagsterInstance, home: Path | None) -> int:
    """Report runs in progress as ended: cancelled if that was requested, else failed. Call this when all their processes have ended."""
    count = 0
    for run in _in_progress(instance, home):
        if run.status == DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message=LOST)
        else:
            instance.report_run_failed(run, message=LOST)
        count += 1
    return count


def _in_progress(instance: DagsterInstance, home: Path | None) -> Iterator[DagsterRun]:
    """Runs in progress of one home; of all homes if `home` is None, for a database that only this home uses."""
    for run in instance.get_runs(RunsFilter(statuses=_IN_PROGRESS)):
        launched_by = json.loads(run.tags.get(_LAUNCHER_TAG, "{}")).get("socket")
        if home is None or launched_by == str(code_socket(home)) or run.tags.get(HOME_TAG) == str(home):
            yield run


def main() -> None:
    """`cancel` or `close`, with `--home FOLDER` if several homes share the database. Prints how many runs were changed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("verb", choices=["cancel", "close"])
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with DagsterInstance.get() as instance:
        act = cancel_running if arguments.verb == "cancel" else close_lost
        print(act(instance, arguments.home))


if __name__ == "__main__":
    main()
