"""Showing a training while it runs: a progress line on a terminal, log lines, and events to Dagster if it started the process."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from foundation.errors import LifecycleError
from training.versions import BaseModelVersion, ModelVersion

PIPES_VARIABLE = "DAGSTER_PIPES_CONTEXT"
LINES_PER_TASK = 10


class Reporter(Protocol):
    """Where a training reports its progress."""

    def say(self, message: str) -> None:
        """One line of text."""
        ...

    def step(self, task: str, step: int, total: int, loss: float) -> None:
        """Step `step` of `total` is done; `loss` is the latest."""
        ...

    def finished(self, kind: str, record: ModelVersion | BaseModelVersion, metadata: dict[str, Any]) -> None:
        """The result (`model_version` or `base_model`), with metadata for people."""
        ...


class TerminalReporter:
    """A progress bar with loss and time left on a terminal; otherwise ten lines per task."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._lines = _Lines(self.say)
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def say(self, message: str) -> None:
        self._console.print(message, markup=False)

    def step(self, task: str, step: int, total: int, loss: float) -> None:
        if not self._console.is_terminal:
            self._lines.step(task, step, total, loss)
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total, loss=loss, completed=step)
        self._progress.update(self._tasks[task], completed=step, loss=loss)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()

    def finished(self, kind: str, record: ModelVersion | BaseModelVersion, metadata: dict[str, Any]) -> None:
        self.say(f"{kind}: {_title(record)} at {record.uri}")


class PipesReporter:
    """Lines in the Dagster run's log, and the version as materialisation metadata and as a separate message."""

    def __init__(self, pipes: Any) -> None:
        self._pipes = pipes
        self._lines = _Lines(self.say)

    def say(self, message: str) -> None:
        self._pipes.log.info(message)

    def step(self, task: str, step: int, total: int, loss: float) -> None:
        self._lines.step(task, step, total, loss)

    def finished(self, kind: str, record: ModelVersion | BaseModelVersion, metadata: dict[str, Any]) -> None:
        self._pipes.report_custom_message({kind: record.to_dict()})
        self._pipes.report_asset_materialization(
            metadata={**metadata, "model": _title(record), "uri": record.uri}, data_version=_title(record)
        )


def _title(record: ModelVersion | BaseModelVersion) -> str:
    if isinstance(record, ModelVersion):
        return f"{record.name} version {record.version}"
    return f"{record.name} {record.digest[:12]}"


class _Lines:
    """A line at the first and last step and at every tenth of the way, with the time left."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._started: dict[str, tuple[float, int]] = {}

    def step(self, task: str, step: int, total: int, loss: float) -> None:
        now = time.monotonic()
        since, first = self._started.setdefault(task, (now, step))
        every = max(total // LINES_PER_TASK, 1)
        if step in {1, total} or step % every == 0:
            done = step - first
            left = f", {(now - since) / done * (total - step):.0f} s left" if done else ""
            self._say(f"{task}: step {step}/{total}, loss {loss:.4f}{left}")


@contextmanager
def reporter() -> Iterator[Reporter]:
    """The Pipes reporter when Dagster started this process, else the terminal one."""
    if PIPES_VARIABLE in os.environ:
        from dagster_pipes import open_dagster_pipes

        with open_dagster_pipes() as pipes:
            try:
                yield PipesReporter(pipes)
            except LifecycleError as error:
                # Dagster only sees the exit code: the sentence goes into the run's log.
                pipes.log.error(str(error))
                raise
        return
    terminal = TerminalReporter()
    try:
        yield terminal
    finally:
        terminal.close()
