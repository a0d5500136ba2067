"""The product that this installation serves: the class that the setting `LIFECYCLE_PRODUCT` names."""

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import polars as pl

from foundation.settings import settings
from product.loading import class_named
from product.protocol import DatasetRows, Product, RowWindow

if TYPE_CHECKING:  # a packaged model needs no database driver
    import psycopg


class InstalledProduct(Product, Protocol):
    """What the class of an installed product needs beyond the protocol: its names, its tables, and its rows with their split."""

    model_name: ClassVar[str]
    """Registered model, such as `planner_model`."""
    policy_name: ClassVar[str]
    """Policy whose versions serve that model, such as `planner_policy`."""
    experiment_name: ClassVar[str]
    """Experiment that tries candidates, such as `weekly_planner`."""
    baseline_planner: ClassVar[str]
    """`package.module:Class` of the planner that is registered before any training."""

    @classmethod
    def nullable_fields(cls) -> frozenset[str]:
        """Dotted paths of row fields that may be null."""
        ...

    @classmethod
    def domain_tables(cls, connection: "psycopg.Connection[Any]") -> dict[str, pl.DataFrame]:
        """The product's own tables by name, as `Product.rows` takes them."""
        ...

    @classmethod
    def from_tables(cls, tables: Mapping[str, pl.DataFrame]) -> Self:
        """The product with the reference data that these tables hold."""
        ...

    @classmethod
    def dataset_rows(
        cls, events: pl.DataFrame, domain: Mapping[str, pl.DataFrame], window: RowWindow, replay_from: date | None
    ) -> DatasetRows:
        """Point-in-time rows with their split, and what was left out. With `replay_from`, rows from that day on are held out."""
        ...


def installed_product() -> type[InstalledProduct]:
    """The class that `LIFECYCLE_PRODUCT` names. Raises ProductError if it cannot be imported."""
    product: type[InstalledProduct] = class_named(settings().product)
    return product


def current_product(connection: "psycopg.Connection[Any]") -> InstalledProduct:
    """The installed product with the reference data that the database holds now."""
    product = installed_product()
    return product.from_tables(product.domain_tables(connection))
