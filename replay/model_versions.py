"""What a replay asks the registry about a model version: its training rows, its kind, its baseline, and its tag after a pass."""

from typing import Any

from replay.answers import Predicts
from replay.rows import ReplayError, TrainedOn
from training import registry
from training.examples import PROMPT_FROM


def check_reachable(tracking_uri: str) -> None:
    """Raises TrainingError if MLflow does not answer, before the replay rather than after it."""
    registry.check_reachable(tracking_uri, undone="nothing was replayed")


def trained_on(tracking_uri: str, name: str, version: int) -> TrainedOn:
    """Every row that the version saw in training. Raises TrainingError if it does not exist or its training rows are not recorded."""
    table = registry.training_rows(tracking_uri, name, version)
    label = f"{name} {version}"
    if table is None:
        return TrainedOn(label)
    if not table.num_rows:
        raise ReplayError(f"{label} is a trained model but lists no training rows: it cannot be replayed fairly.")
    times = table["timestamp"].to_pylist()
    return TrainedOn(
        label, frozenset(table["event_id"].to_pylist()), frozenset(table["household_id"].to_pylist()), max(times)
    )


def default_baseline(tracking_uri: str, name: str, candidate: int) -> int:
    """The version in production, else the newest other rule-based version, else the first version.

    Raises ReplayError when there is nothing to compare with.
    """
    production = registry.version_of_alias(tracking_uri, name, "production")
    if production is not None:
        return production.version
    others = [version.version for version in registry.list_versions(tracking_uri, name) if version.version != candidate]
    rules = [
        version
        for version in others
        if registry.version_tags(tracking_uri, name, version).get(registry.KIND_TAG) == registry.RULES
    ]
    if not others:
        raise ReplayError(
            f"{name} has no other version to compare {candidate} with: register the heuristic planner first."
        )
    return max(rules) if rules else min(others)


def load(tracking_uri: str, name: str, version: int) -> Predicts:
    """The version's model, loaded as any user would. Raises TrainingError if it does not exist, ReplayError if it cannot be loaded."""
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = registry.get_model_version(tracking_uri, name, version).uri
    try:
        with registry.fluent(tracking_uri):
            loaded: Any = mlflow.pyfunc.load_model(uri)
    except (ImportError, MlflowException, OSError) as error:
        raise ReplayError(
            f"{uri} cannot be loaded ({' '.join(str(error).split())[:200]}): check its artefacts and the packages it needs."
        ) from error
    model: Predicts = loaded
    return model


def is_fine_tuned(tracking_uri: str, name: str, version: int) -> bool:
    """Whether the version is a fine-tuned language model, which has an untuned base to compare with."""
    return registry.version_tags(tracking_uri, name, version).get(registry.KIND_TAG) == registry.FINE_TUNED


def borrows_prompts(model: Predicts) -> bool:
    """Whether the loaded model can be shown another row's prompt: MLflow drops columns that its signature does not name."""
    schema = getattr(getattr(model, "metadata", None), "get_input_schema", lambda: None)()
    return schema is not None and PROMPT_FROM in schema.input_names()


def dataset_uri(tracking_uri: str, name: str, version: int) -> str | None:
    """Folder of the dataset the version was trained on."""
    return registry.get_model_version(tracking_uri, name, version).dataset_uri


def mark_candidate(tracking_uri: str, name: str, version: int) -> str:
    """Tag a version that passed with `stage=candidate`; returns what was done. A version that already has a stage keeps it."""
    stage = registry.version_tags(tracking_uri, name, version).get(registry.STAGE_TAG, "none")
    if stage == "none":
        registry.set_stage(tracking_uri, name, version, "candidate")
        return f"{name} {version} was tagged stage=candidate."
    return f"{name} {version} keeps its tag stage={stage}."
