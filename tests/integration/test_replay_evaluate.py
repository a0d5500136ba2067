"""A whole replay on a real database and a real MLflow, with two packaged models: what is stored, tagged and shown."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from replay_registry import BASELINE, FAIR, GOOD, NAME, POOR, SILENT, Place, register_all
from replay_support import dataset_folder, sample_rows

from experimentation.policies import add_version, ensure_policy
from foundation.audit import Change
from foundation.settings import settings
from product.protocol import ALIGNMENT
from replay import model_versions as versions
from replay.command import main
from replay.evaluate import Replayed
from replay.result import OFFLINE
from replay.rows import ReplayError
from replay.stored_results import (
    StoredReplay,
    find_replay,
    replays_of_model,
    save_replay,
    settled_model_versions,
)
from training import registry
from training.errors import TrainingError


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, as MLflow takes seconds for it."""
    folder = tmp_path_factory.mktemp("registered")
    register_all(folder)
    return folder


@pytest.fixture
def place(registered: Path, tmp_path: Path, database_url: str) -> Place:
    return Place(registered, tmp_path, database_url)


def test_a_better_candidate_passes_and_is_recorded_everywhere(place: Place) -> None:
    version = GOOD
    replayed = place.replay(version)
    assert replayed.verdict.passed, replayed.verdict.reasons
    assert replayed.result.rows == 18, "the held-out households' rows, and no other"
    assert replayed.result.selection.seen == {f"{NAME} {version}": 18, f"{NAME} {BASELINE}": 0}

    tags = registry.version_tags(place.tracking_uri, NAME, version)
    assert tags["stage"] == "candidate"
    alias = registry.version_of_alias(place.tracking_uri, NAME, "candidate")
    assert alias is not None and alias.version == version

    with psycopg.connect(place.database_url) as connection:
        stored = find_replay(connection, NAME, version, "2025-01-26", BASELINE)
    assert stored is not None and (stored.status, stored.verdict, stored.is_better_than_baseline) == (
        "completed",
        "passed",
        True,
    )
    assert stored.mlflow_run_id == replayed.mlflow_run_id
    assert stored.scores[OFFLINE] == pytest.approx(replayed.result.scores[OFFLINE].candidate.mean, abs=5e-7)
    assert Replayed.from_dict({**replayed.to_dict()}) == replayed
    assert stored.details["result"] == replayed.result.to_dict()

    (run,) = place.runs()
    assert run.data.tags["evaluation_type"] == "offline_replay"
    assert (run.data.tags["model_name"], run.data.tags["model_version"]) == (NAME, str(version))
    assert (run.data.tags["dataset_version"], run.data.tags["verdict"]) == ("2025-01-26", "passed")
    assert run.data.metrics[ALIGNMENT] == replayed.result.scores[ALIGNMENT].candidate.mean
    client = registry.client(place.tracking_uri)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {
        "scores.csv",
        "scores.svg",
        "report.md",
        "replay.json",
    }
    trained_in = registry.get_model_version(place.tracking_uri, NAME, version).run_id
    assert registry.run_metrics(place.tracking_uri, trained_in)[ALIGNMENT] == run.data.metrics[ALIGNMENT]


def test_candidate_leads_every_reference_planner(place: Place) -> None:
    replayed = place.replay(GOOD)
    references = {reference.name: reference for reference in replayed.result.references}
    assert list(references) == [
        "random",
        "popularity",
        "popularity and offsets",
        "heuristic",
        "untuned base",
        "shuffled prompts",
    ]
    for reference in references.values():
        lead = reference.lead_of_candidate[ALIGNMENT]
        assert lead.low is not None and lead.low > 0, reference.name
        assert (reference.failed, reference.scores[ALIGNMENT].rows) == (0, 18)
    assert replayed.result.references_left_out == ()


def test_a_repeated_replay_gives_the_same_row_to_the_last_digit(place: Place) -> None:
    version = FAIR
    first, second = place.replay(version), place.replay(version, batch_size=7)
    assert first.result == second.result and first.mlflow_run_id == second.mlflow_run_id
    assert len(place.runs()) == 1
    with psycopg.connect(place.database_url) as connection:
        assert len(replays_of_model(connection, NAME, version)) == 1
    history = registry.client(place.tracking_uri).get_metric_history(first.mlflow_run_id, ALIGNMENT)
    assert len(history) == 1


def test_a_refused_candidate_keeps_its_stage_and_its_reasons_are_stored(place: Place) -> None:
    version = POOR
    replayed = place.replay(version, references=False)
    assert replayed.verdict.decision == "refused"
    assert registry.version_tags(place.tracking_uri, NAME, version)["stage"] == "none"
    with psycopg.connect(place.database_url) as connection:
        (stored,) = replays_of_model(connection, NAME, version)
    assert (stored.verdict, stored.is_better_than_baseline) == ("refused", False)
    assert stored.reasons == replayed.verdict.reasons and stored.reasons


def test_a_version_in_production_keeps_its_stage_when_it_passes_again(place: Place) -> None:
    version = GOOD
    registry.set_stage(place.tracking_uri, NAME, version, "production")
    replayed = place.replay(version, baseline_version=BASELINE, references=False)
    assert replayed.verdict.passed
    assert registry.version_tags(place.tracking_uri, NAME, version)["stage"] == "production"


def test_asking_for_rows_that_were_trained_on_is_refused_and_recorded_as_failed(place: Place) -> None:
    version = GOOD
    with pytest.raises(ReplayError, match=r"asks for 36 rows, and training saw 18 of them"):
        place.replay(version, rows="all")
    with psycopg.connect(place.database_url) as connection:
        (stored,) = replays_of_model(connection, NAME, version)
    assert stored.status == "failed" and stored.error_message is not None and "training saw 18" in stored.error_message
    assert place.runs() == []


def test_failed_replay_keeps_the_earlier_result(place: Place) -> None:
    version = GOOD
    place.replay(version, references=False)
    with pytest.raises(ReplayError):
        place.replay(version, rows="all")
    with psycopg.connect(place.database_url) as connection:
        (stored,) = replays_of_model(connection, NAME, version)
    assert (stored.status, stored.verdict) == ("completed", "passed")


def test_defect_is_recorded_as_failed_and_raised_unchanged(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(versions, "load", broken)
    with pytest.raises(RuntimeError, match="boom"):
        place.replay(GOOD)
    with psycopg.connect(place.database_url) as connection:
        (stored,) = replays_of_model(connection, NAME, GOOD)
    assert (stored.status, stored.error_message) == ("failed", "RuntimeError: boom")


def test_replay_killed_before_storing_gives_the_same_result_when_repeated(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def killed_at_the_end(connection: Any, replay: StoredReplay) -> Any:
        calls.append(replay.status)
        if replay.status == "completed":
            raise KeyboardInterrupt
        return save_replay(connection, replay)

    with monkeypatch.context() as patched:
        patched.setattr("replay.evaluate.save_replay", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            place.replay(GOOD, references=False)
    assert calls == ["running", "completed"]
    with psycopg.connect(place.database_url) as connection:
        assert settled_model_versions(connection) == set()
    place.replay(GOOD, references=False)
    with psycopg.connect(place.database_url) as connection:
        (stored,) = replays_of_model(connection, NAME, GOOD)
    assert (stored.status, stored.verdict) == ("completed", "passed")
    assert registry.version_tags(place.tracking_uri, NAME, GOOD)["stage"] == "candidate"
    assert len(place.runs()) == 1


def test_a_trained_model_that_lists_no_rows_cannot_be_replayed(place: Place) -> None:
    with pytest.raises(ReplayError, match="lists no training rows"):
        place.replay(SILENT)


def test_rows_of_the_candidates_policy_are_reported_separately(place: Place) -> None:
    version = GOOD
    with psycopg.connect(place.database_url) as connection:
        ensure_policy(connection, "planner_policy", change=Change("test", "test"))
        pinned = [
            add_version(
                connection,
                "planner_policy",
                mlflow_model_name=NAME,
                mlflow_model_version=model_version,
                change=Change("test", "test"),
            )
            for model_version in (BASELINE, version)
        ]
    rows = sample_rows(households=12, plans=3, held_out=6)
    for number, row in enumerate(rows):
        row["metadata"]["policy_version_id"] = str(pinned[number % 2].id)
    place.dataset = dataset_folder(place.folder / "planner" / "2025-01-27", rows)
    replayed = place.replay(version, references=False)
    assert {group.proposer: group.rows for group in replayed.result.by_proposer} == {"baseline": 9, "candidate": 9}
    assert replayed.verdict.anchored and replayed.result.unanchored_rows == 0
    with psycopg.connect(place.database_url) as connection:
        (stored,) = replays_of_model(connection, NAME, version)
    assert (stored.baseline_version_id, stored.policy_version_id) == (pinned[0].id, pinned[1].id)
    assert stored.anchored


def test_baseline_is_the_production_version_or_else_the_newest_rule_based_version(place: Place) -> None:
    first, second = FAIR, GOOD
    assert versions.default_baseline(place.tracking_uri, NAME, second) == BASELINE
    registry.set_stage(place.tracking_uri, NAME, first, "production")
    assert versions.default_baseline(place.tracking_uri, NAME, second) == first
    with pytest.raises(ReplayError, match="cannot be its own baseline"):
        place.replay(first)


def test_an_unknown_version_is_refused_in_one_sentence(place: Place) -> None:
    with pytest.raises(TrainingError, match="There is no version 99"):
        place.replay(99)


# --- the command ---


@pytest.fixture
def command(place: Place, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    monkeypatch.setenv("DATABASE_URL", place.database_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.tracking_uri)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    settings.cache_clear()
    yield lambda *options: main([str(option) for option in options])


def test_the_command_prints_the_table_and_exits_0(
    place: Place, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    version = GOOD
    assert (
        command(
            "--model-version",
            version,
            "--dataset",
            place.dataset,
            "--sample-size",
            10,
            "--no-references",
            "--kept-share",
            0.5,
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert f"{NAME} {version} against {NAME} {BASELINE} on 10 rows" in shown
    assert "a sample of 18 (seed 42)" in shown
    assert "plan_alignment_score" in shown and "✓" in shown
    assert f"{NAME} {version} was tagged stage=candidate." in shown


def test_the_command_exits_0_when_the_gate_refuses(
    place: Place, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    version = POOR
    assert command("--model-version", version, "--dataset", place.dataset, "--no-references") == 0
    assert "refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model-version", 99), "There is no version 99"),
        (("--model-version", 1, "--baseline-version", 1), "cannot be its own baseline"),
        (("--model-version", 2, "--dataset", "/nowhere"), "There is no dataset at /nowhere"),
        (("--model-version", 2, "--rows", "all"), "training saw 18 of them"),
        (("--model-version", 2, "--sample-size", -1), "sample size must be at least 1"),
        (("--model-version", 2, "--batch-size", 0), "batch size must be at least 1"),
    ],
)
def test_the_command_exits_1_with_one_sentence_when_a_replay_is_impossible(
    place: Place, command: Callable[..., int], capsys: pytest.CaptureFixture[str], options: tuple[Any, ...], words: str
) -> None:
    given = options if "--dataset" in options else (*options, "--dataset", place.dataset)
    assert command(*given) == 1
    message = capsys.readouterr().err.strip()
    assert words in message and "Traceback" not in message and "\n" not in message


def test_an_unreachable_database_is_reported_in_one_sentence(
    place: Place,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    settings.cache_clear()
    version = GOOD
    assert command("--model-version", version, "--dataset", place.dataset) == 1
    assert "database cannot be reached" in capsys.readouterr().err


def test_an_unreachable_mlflow_is_reported_in_one_sentence(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    settings.cache_clear()
    assert command("--model-version", 2, "--dataset", "x") == 1
    message = capsys.readouterr().err
    assert "is not reachable" in message and "nothing was replayed" in message


def test_option_is_refused_when_weights_do_not_sum_to_one(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--model-version", 2, "--dataset", "x", "--weight-alignment", 0.9) == 2
    assert "must sum to 1" in capsys.readouterr().err
