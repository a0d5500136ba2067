"""Registering the heuristic planner as a model version, so that there is a baseline before any training. Needs no torch."""

import hashlib
import json
import tempfile
from pathlib import Path

from product.loading import class_path
from product.protocol import Product
from training import registry
from training.versions import ModelVersion


def register_heuristic(
    tracking_uri: str,
    product: Product,
    *,
    model_name: str,
    planner_class: str,
    artifact_root: str | None = None,
) -> ModelVersion:
    """The version of this planner for this product, registered now if it is missing.

    On an empty registry it becomes version 1. `planner_class` is a class without arguments with `plan(product, row_input, rng)`.
    Raises TrainingError if MLflow does not answer.
    """
    registry.check_reachable(tracking_uri)
    reference = json.dumps(product.reference(), sort_keys=True, default=str)
    fingerprint = hashlib.sha256(f"{planner_class}\n{class_path(product)}\n{reference}".encode()).hexdigest()
    existing = registry.find_by_fingerprint(tracking_uri, model_name, fingerprint)
    if existing is not None:
        return existing

    import mlflow

    from training.pyfunc import ARTIFACT, RULES, RULES_PACKAGES, log_package, signature, write_settings

    experiment = registry.experiment_id(tracking_uri, registry.BASELINE_EXPERIMENT, artifact_root)
    tags = {"task": product.name, "planner": planner_class}
    with tempfile.TemporaryDirectory(prefix="planner-package-") as scratch, registry.fluent(tracking_uri):
        package = Path(scratch) / ARTIFACT
        write_settings(package, class_path(product), product.reference(), {"kind": RULES, "planner": planner_class})
        with mlflow.start_run(experiment_id=experiment, run_name=f"{model_name} {planner_class}", tags=tags) as run:
            model_uri = log_package(package, model_name, product, signature(language_model=False), RULES_PACKAGES)
    return registry.register(
        tracking_uri,
        model_uri,
        model_name,
        run.info.run_id,
        {**tags, registry.KIND_TAG: registry.RULES, registry.FINGERPRINT_TAG: fingerprint},
    )
