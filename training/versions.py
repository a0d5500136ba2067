"""The small frozen records that stages hand each other: which dataset, which model version. And the columns in which a version answers."""

from dataclasses import asdict, dataclass
from typing import Any, Self

MEALS, TOKENS, ERROR = OUTPUT_COLUMNS = ("meals", "tokens_generated", "error")
"""Columns of a model version's answer."""


class _Record:
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return values

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**fields)


@dataclass(frozen=True)
class DatasetVersion(_Record):
    """One immutable dataset: `name`/`version` (a date, or date-rN), its folder, the SHA-256 of its rows, its row count."""

    name: str
    version: str
    uri: str
    digest: str
    rows: int


@dataclass(frozen=True)
class BaseModelVersion(_Record):
    """The open-weights model to start from: a folder, `s3://` folder or hub id, and what it is."""

    name: str
    uri: str
    digest: str


@dataclass(frozen=True)
class ModelVersion(_Record):
    """One registered model version: `models:/{name}/{version}`, the run that made it, the dataset it was trained on."""

    name: str
    version: int
    uri: str
    run_id: str
    dataset_uri: str | None = None
    dataset_digest: str | None = None
