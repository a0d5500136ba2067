"""Parts of the demo without services: the files of a history folder, progress output, and errors of failed runs."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestration.commands.demo import HistoryFolderError, history_files
from orchestration.demo.dagster_client import DagsterClient
from orchestration.demo.progress import Progress


def test_history_files_distinguishes_the_catalogue_from_the_diary(tmp_path: Path) -> None:
    (tmp_path / "recipes.csv").touch()
    (tmp_path / "interactions.parquet").touch()
    (tmp_path / "notes.txt").touch()
    assert history_files(tmp_path) == (tmp_path / "recipes.csv", tmp_path / "interactions.parquet")


@pytest.mark.parametrize("names", [[], ["recipes.csv"], ["recipes.csv", "a.csv", "b.csv"], ["a.csv", "b.csv"]])
def test_ambiguous_folder_is_refused_with_its_path(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(HistoryFolderError, match=str(tmp_path)):
        history_files(tmp_path)


def test_missing_folder_is_refused() -> None:
    with pytest.raises(HistoryFolderError, match="is not a folder"):
        history_files(Path("/nowhere/at/all"))


def test_progress_records_every_stage_with_its_outcome() -> None:
    console = Console(record=True, width=120)
    progress = Progress(console, {"first": 2.0, "second": 8.0})
    with progress.stage("first") as stage:
        stage.outcome = "3 rows"
    with progress.stage("second") as stage:
        stage.skipped = True
    text = console.export_text()
    assert "1/2 first" in text and "3 rows" in text and "· " in text
    assert [stage.name for stage in progress.stages] == ["first", "second"]
    with pytest.raises(ValueError, match="'third' is not one of the stages"), progress.stage("third"):
        pass


class Log(DagsterClient):
    """A client that answers with the given log of a run."""

    def __init__(self, *events: dict[str, Any]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._events = events

    def query(self, text: str, variables: Any = None) -> dict[str, Any]:
        """The log in two pages."""
        second = variables["cursor"] == "more"
        events = self._events[1:] if second else self._events[:1]
        return {"logsForRun": {"events": list(events), "cursor": "more", "hasMore": not second}}


FAILURE = {
    "message": "dagster._core.definitions.events.Failure: No data: load some.\n\nStack",
    "cause": {"message": "x"},
}
ENDED = {"message": "Execution of run for \"__ASSET_JOB\" failed. Steps failed: ['a']."}


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([{"stepKey": "a", "error": FAILURE}, ENDED], "No data: load some."),
        (
            [{"error": {"message": "a step failed", "cause": {"message": "ValueError: 3\nmore"}}}, ENDED],
            "ValueError: 3",
        ),
        ([{"message": "it works", "level": "INFO"}, {"message": "it broke", "level": "ERROR"}], "it broke"),
        ([{"message": "it works", "level": "INFO"}, ENDED], ENDED["message"]),
        ([{}, {}], "the run failed without a message."),
    ],
)
def test_why_failed_returns_the_error_of_the_failed_step(events: list[dict[str, Any]], reason: str) -> None:
    assert Log(*events).why_failed("run") == reason
