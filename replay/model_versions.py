"""What a replay asks the registry about a model version: what it saw, what it is, whom it must beat, and the tag after a pass."""

from typing import Any

from replay.answers import Predicts
from replay.rows import ReplayError, TrainedOn
from training import registry
from training.examples import PROMPT_FROM


def check_reachable(tracking_uri: str) -> None:
    """Raises TrainingError when MLflow does not answer: better before the replay than after it."""
    registry.check_reachable(tracking_uri, undone="nothing was replayed")


def trained_on(tracking_uri: str, name: str, version: int) -> TrainedOn:
    """Every row that the version saw in training. Raises TrainingError when it does not exist or does not say what it was trained on."""
    table = registry.training_rows(tracking_uri, name, version)
    label = f"{name} {version}"
    if table is None:
        return TrainedOn(label)
    if not table.num_rows:
        raise ReplayError(
            f"{label} is a trained model and lists no row that it was trained on: it cannot be replayed fairly."
        )
    times = table["timestamp"].to_pylist()
    return TrainedOn(
        label, frozenset(table["event_id"].to_pylist()), frozenset(table["household_id"].to_pylist()), max(times)
    )


def default_baseline(tracking_uri: str, name: str, candidate: int) -> int:
    """The version in production, else the newest planner of rules beside the candidate, else the first version.

    Raises ReplayError when there is nothing to compare with.
    """
    production = registry.version_of_alias(tracking_uri, name, "production")
    if production is not None:
        return production.version
    others = [one.version for one in registry.list_versions(tracking_uri, name) if one.version != candidate]
    rules = [
        one for one in others if registry.version_tags(tracking_uri, name, one).get(registry.KIND_TAG) == registry.RULES
    ]
    if not others:
        raise ReplayError(
            f"{name} has no version beside {candidate} to compare with: register the heuristic planner first."
        )
    return max(rules) if rules else min(others)


def load(tracking_uri: str, name: str, version: int) -> Predicts:
    """The version's model, as anybody would load it. Raises TrainingError when it does not exist, ReplayError when it cannot be loaded."""
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = registry.get_model_version(tracking_uri, name, version).uri
    try:
        with registry.fluent(tracking_uri):
            loaded: Any = mlflow.pyfunc.load_model(uri)
    except (ImportError, MlflowException, OSError) as error:
        raise ReplayError(
            f"{uri} cannot be loaded ({' '.join(str(error).split())[:200]}): check its artefacts and the packages that it needs."
        ) from error
    model: Predicts = loaded
    return model


def is_fine_tuned(tracking_uri: str, name: str, version: int) -> bool:
    """Whether it is a fine-tuned language model, which has an untuned base to compare with."""
    return registry.version_tags(tracking_uri, name, version).get(registry.KIND_TAG) == registry.FINE_TUNED


def borrows_prompts(model: Predicts) -> bool:
    """Whether the loaded model can be shown another row's prompt: MLflow drops columns that its signature does not name."""
    schema = getattr(getattr(model, "metadata", None), "get_input_schema", lambda: None)()
    return schema is not None and PROMPT_FROM in schema.input_names()


def dataset_uri(tracking_uri: str, name: str, version: int) -> str | None:
    """Folder of the dataset that it was trained on."""
    return registry.get_model_version(tracking_uri, name, version).dataset_uri


def mark_candidate(tracking_uri: str, name: str, version: int) -> str:
    """Tag a version that passed `stage=candidate`, and say what was done. A version that is further already stays where it is."""
    stage = registry.version_tags(tracking_uri, name, version).get(registry.STAGE_TAG, "none")
    if stage == "none":
        registry.set_stage(tracking_uri, name, version, "candidate")
        return f"{name} {version} was tagged stage=candidate."
    return f"{name} {version} keeps its tag stage={stage}."
