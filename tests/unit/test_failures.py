"""Errors as sentences: ours and those a user can put right; a defect keeps its traceback."""

import psycopg
import pytest

from foundation.errors import LifecycleError
from foundation.settings import Settings
from orchestration.commands.failures import sentence
from training.errors import TrainingError


@pytest.mark.parametrize("error", [LifecycleError("Do this."), TrainingError("Do this.")])
def test_our_own_errors_are_their_sentence(error: Exception) -> None:
    assert sentence(error) == "Do this."


def test_a_database_that_is_away_is_said_with_what_to_do() -> None:
    said = sentence(psycopg.OperationalError("connection refused\nIs the server running?"))
    assert said is not None and said.startswith("PostgreSQL can't be reached (connection refused): `lifecycle status`")


def test_a_setting_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_API_PORT", "eighty")
    with pytest.raises(ValueError) as caught:
        Settings()
    said = sentence(caught.value)
    assert said is not None and said.startswith("LIFECYCLE_API_PORT=eighty can't be used (") and "\n" not in said


def test_a_setting_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_API_RETRY_DELAYS_MS", "[50, soon]")
    with pytest.raises(ValueError) as caught:
        Settings()
    said = sentence(caught.value)
    assert said is not None and "api_retry_delays_ms" in said and "\n" not in said


def test_files_are_named_and_sentences_kept() -> None:
    assert (
        sentence(FileNotFoundError(2, "No such file or directory", "recipes.csv"))
        == "recipes.csv: No such file or directory."
    )
    assert (
        sentence(FileNotFoundError("The embedded PostgreSQL was never started."))
        == "The embedded PostgreSQL was never started."
    )


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), AssertionError("x"), psycopg.ProgrammingError("syntax")]
)
def test_a_defect_has_no_sentence(error: Exception) -> None:
    assert sentence(error) is None
