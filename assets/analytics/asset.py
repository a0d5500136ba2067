"""dbt models as assets, dbt tests as asset checks.

`make setup` writes the manifest: parsing the dbt project in every process made runs three times slower.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets

from assets.groups import ANALYTICS, DATA_TEAM
from foundation.settings import PROJECT_ROOT

DBT_FOLDER = PROJECT_ROOT / "dbt_project"
MANIFEST = DBT_FOLDER / "target" / "manifest.json"


class _Translator(DagsterDbtTranslator):
    """Puts every model into one group of the data team. Sources keep `schema/table` keys, which match the graph's external tables."""

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        return spec.replace_attributes(group_name=ANALYTICS, owners=[DATA_TEAM])


def _manifest() -> Path:
    if not MANIFEST.exists():
        raise dg.DagsterInvalidDefinitionError(
            f"{MANIFEST} is missing: run `make setup`, which parses the dbt project once."
        )
    return MANIFEST


@dbt_assets(manifest=_manifest(), dagster_dbt_translator=_Translator(), name="analytics_models", project=None)
def analytics_models(context: dg.AssetExecutionContext, dbt: DbtCliResource) -> Iterator[Any]:
    """Build and test every model, in dbt's order."""
    yield from dbt.cli(["build"], context=context).stream()
