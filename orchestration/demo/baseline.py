"""The baseline before any training: the heuristic planner as the first model version, in production."""

import io
import warnings
from contextlib import redirect_stderr

import psycopg

from foundation.settings import Settings
from product.installed import current_product
from training.versions import ModelVersion


def register_baseline(settings: Settings) -> ModelVersion:
    """Register the heuristic planner, unless it is registered, and put it into production, unless another version is. Returns it."""
    from training.heuristic import register_heuristic
    from training.registry import set_stage, version_of_alias

    with psycopg.connect(settings.platform_url, connect_timeout=10) as connection:
        product = current_product(connection)
    # MLflow prints to stderr what it registers, and warns about an input example that is redundant next to a signature. Errors still raise.
    with redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore", category=UserWarning):
        version = register_heuristic(
            settings.tracking_uri,
            product,
            model_name=product.model_name,
            planner_class=product.baseline_planner,
            artifact_root=f"{settings.store_root}/mlflow",
        )
    if version_of_alias(settings.tracking_uri, product.model_name, "production") is None:
        set_stage(settings.tracking_uri, product.model_name, version.version, "production")
    return version
