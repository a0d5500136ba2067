"""Dagster resources of the assets: the platform's database, the object store and MLflow.

Nothing connects before an asset runs. Tests replace resources through `build_defs(resource_overrides=…)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
from dagster_aws.s3 import S3Resource
from pydantic import PrivateAttr

from foundation.object_store import ObjectStore
from foundation.settings import settings

LINK_SECONDS = 7 * 24 * 3600


class PlatformDatabase(dg.ConfigurableResource[Any]):
    """PostgreSQL with the schemas `exp` and the product's own."""

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in one transaction, which is committed at the end and rolled back on an exception."""
        with psycopg.connect(settings().platform_url, connect_timeout=10) as connection:
            yield connection


class ArtefactStore(dg.ConfigurableResource[Any]):
    """Archives, records and models: a folder, or `s3://bucket/prefix`."""

    s3: dg.ResourceDependency[S3Resource]
    _client: Any = PrivateAttr(default=None)

    def open(self) -> ObjectStore:
        """The store at the root from the settings."""
        return ObjectStore(settings().store_root)

    def link(self, uri: str) -> dg.MetadataValue:
        """Metadata that links to `uri`: a path for a file, a signed link (7 days) for an S3 object."""
        if not uri.startswith("s3://"):
            return dg.MetadataValue.path(uri)
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if self._client is None:
            # Creating a client takes a quarter of a second, and a range of hours needs a thousand links.
            self._client = self.s3.get_client()
        return dg.MetadataValue.url(
            self._client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LINK_SECONDS
            )
        )


class MlflowTracking(dg.ConfigurableResource[Any]):
    """MLflow runs that belong to a Dagster run, and links into the MLflow UI.

    Only this resource uses dagster-mlflow, because it has two flaws: importing it imports MLflow (2 s), and it does not end its MLflow
    run if a step succeeds.
    """

    @contextmanager
    def run(self, context: dg.AssetExecutionContext, experiment: str, name: str) -> Iterator[str]:
        """Start an MLflow run tagged with the Dagster run; yields its id, and ends the run as finished or failed."""
        import mlflow
        from dagster_mlflow.resources import MlFlow

        mlflow.set_tracking_uri(settings().tracking_uri)
        if mlflow.get_experiment_by_name(experiment) is None:
            mlflow.create_experiment(experiment, artifact_location=self.artefact_root())
        MlFlow(
            SimpleNamespace(
                log=context.log,
                run_id=f"{context.run.run_id}/{context.op_handle.name}",
                dagster_run=SimpleNamespace(job_name=name),
                resource_config={"experiment_name": experiment, "mlflow_tracking_uri": settings().tracking_uri},
            )
        )
        try:
            active = mlflow.active_run()
            if active is None:
                raise RuntimeError("dagster-mlflow started no MLflow run.")
            yield str(active.info.run_id)
        except BaseException:
            mlflow.end_run("FAILED")
            raise
        mlflow.end_run()

    @staticmethod
    def artefact_root() -> str:
        """The root for artefacts of new MLflow experiments."""
        return f"{settings().store_root}/mlflow"

    @staticmethod
    def run_url(experiment_id: str, run_id: str) -> str:
        """The address of the run's page in the MLflow UI."""
        return f"{ui_url()}/#/experiments/{experiment_id}/runs/{run_id}"

    @staticmethod
    def model_url(name: str, version: int) -> str:
        """The address of the model version's page in the MLflow UI."""
        return f"{ui_url()}/#/models/{name}/versions/{version}"


def ui_url() -> str:
    """The root of the MLflow UI: the configured tracking server, or else the local one."""
    uri = settings().mlflow_tracking_uri or ""
    return uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{settings().mlflow_port}"
