"""Finding a product's class by its path, and rebuilding a product from the reference data inside a dataset or model."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from foundation.errors import LifecycleError
from product.protocol import Product, Row

TRAVELLING_ROOMS = ("foundation", "product", "training")
"""Rooms whose code is packaged with every model: what its `predict` imports."""


class ProductError(LifecycleError):
    """A product's class cannot be imported or rebuilt."""


@runtime_checkable
class MakesTasters(Protocol):
    """A product that can make up plausible rows from its reference data alone, for pre-training the built-in base model."""

    def synthetic_rows(self, count: int, seed: int) -> list[Row]:
        """`count` rows with `input` and `target`; the same arguments give the same rows."""
        ...


def class_path(product: Product) -> str:
    """`package.module:Class`, as `load_product` takes it."""
    return f"{type(product).__module__}:{type(product).__qualname__}"


def class_named(path: str) -> Any:
    """The class at `package.module:Class`. Raises ProductError if it cannot be imported."""
    module_name, _, class_name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ProductError(
            f"The product class {path!r} cannot be imported ({error}): install its package, or start in a folder that holds it."
        ) from error


def load_product(path: str, reference: Mapping[str, Any]) -> Product:
    """The product of `package.module:Class` with this reference data. Raises ProductError if it cannot be built."""
    product_class = class_named(path)
    try:
        product = product_class.from_reference(dict(reference))
    except (KeyError, TypeError, ValueError) as error:
        raise ProductError(
            f"The product {path} cannot be built from its reference data ({error!r}): build the dataset again."
        ) from error
    if not isinstance(product, Product):
        raise ProductError(f"The class {path} is not a product: product/protocol.py lists what it needs.")
    return product


def code_paths(product: Product) -> list[str]:
    """Folders (or single files) of the code that a packaged model needs: ours, and the product's top-level package."""
    names = {*TRAVELLING_ROOMS, type(product).__module__.partition(".")[0]}
    paths = []
    for name in sorted(names):
        file = Path(inspect.getfile(importlib.import_module(name)))
        paths.append(str(file.parent if file.name == "__init__.py" else file))
    return paths
