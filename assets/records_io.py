"""Passes small records between assets, as JSON files in the object store. A record says where the data is."""

import json
from typing import Any, Protocol

import dagster as dg

from assets.resources import ArtefactStore


class Record(Protocol):
    """A frozen dataclass with `to_dict` and `from_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        ...


class RecordIOManager(dg.ConfigurableIOManager):
    """Stores an asset's record in `records/{asset}/{partition}.json`; a new materialisation overwrites it."""

    store: ArtefactStore

    def handle_output(self, context: dg.OutputContext, obj: Record) -> None:
        """Write the record and add it to the output's metadata."""
        path = self._path(context)
        self.store.open().write(path, json.dumps(obj.to_dict(), indent=2, default=str).encode())
        context.add_output_metadata(
            {"record": dg.MetadataValue.json(json.loads(json.dumps(obj.to_dict(), default=str)))}
        )

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the record of the upstream partition; the input's annotation gives its type.

        Raises dg.Failure if the upstream asset was never materialised.
        """
        store, path = self.store.open(), self._path(context)
        if not store.exists(path):
            partition = f" for {context.asset_partition_key}" if context.has_asset_partitions else ""
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} has no record{partition} ({store.uri(path)}), and no data is not a pass: "
                "materialise the asset first.",
                allow_retries=False,
            )
        return context.dagster_type.typing_type.from_dict(json.loads(store.read(path)))

    @staticmethod
    def _path(context: dg.InputContext | dg.OutputContext) -> str:
        partition = context.asset_partition_key if context.has_asset_partitions else "record"
        return f"records/{'/'.join(context.asset_key.path)}/{partition.replace('/', '_')}.json"
