"""Error messages: our own errors and those that a user can fix have one; a defect keeps its traceback."""

import psycopg
import pytest

from foundation.errors import LifecycleError
from foundation.settings import Settings
from orchestration.commands.failures import sentence
from training.errors import TrainingError


@pytest.mark.parametrize("error", [LifecycleError("Do this."), TrainingError("Do this.")])
def test_our_own_errors_are_shown_unchanged(error: Exception) -> None:
    assert sentence(error) == "Do this."


def test_an_unreachable_database_names_the_commands_that_help() -> None:
    message = sentence(psycopg.OperationalError("connection refused\nIs the server running?"))
    assert message is not None
    assert message.startswith("PostgreSQL can't be reached (connection refused): `lifecycle status`")


def test_message_names_the_invalid_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_API_PORT", "eighty")
    with pytest.raises(ValueError) as caught:
        Settings()
    message = sentence(caught.value)
    assert message is not None and message.startswith("LIFECYCLE_API_PORT=eighty can't be used (")
    assert "\n" not in message


def test_message_names_the_unreadable_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_API_RETRY_DELAYS_MS", "[50, soon]")
    with pytest.raises(ValueError) as caught:
        Settings()
    message = sentence(caught.value)
    assert message is not None and "api_retry_delays_ms" in message and "\n" not in message


def test_an_os_error_names_its_file_or_keeps_its_own_message() -> None:
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
def test_defect_has_no_message(error: Exception) -> None:
    assert sentence(error) is None
