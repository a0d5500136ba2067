"""Every setting of the platform, read from the environment and from `settings.env` in the home folder.

Environment variables win over the file.
"""

import difflib
import os
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent
EMBEDDED_USER = "lifecycle"
PREFIX = "LIFECYCLE_"
# Variables with our prefix that are not settings: those for a person, and those that one of our processes passes to another.
OTHER_VARIABLES = ("LIFECYCLE_DEBUG", "LIFECYCLE_API_KEY")
INTERNAL_VARIABLES = ("LIFECYCLE_START", "LIFECYCLE_DBT_")


class Settings(BaseSettings):
    """Everything a user can set. Field `x` is read from `LIFECYCLE_X`, and from its usual name if it has one."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", populate_by_name=True)

    home: Path = Field(default=PROJECT_ROOT / ".lifecycle", description="Folder for all local state.")
    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="URL of the platform's PostgreSQL; unset: the embedded one.",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias=AliasChoices("MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
        description="MLflow server or database; unset: the database `mlflow` on the platform's server.",
    )
    store: str | None = Field(
        default=None,
        description="Folder or s3://bucket/prefix for archives and artefacts; unset: <home>/store.",
    )
    datasets: str | None = Field(
        default=None,
        description="Folder or s3://bucket/prefix for datasets; unset: datasets/ for the default home, else <store>/datasets.",
    )
    config_dir: Path = Field(
        default=PROJECT_ROOT / "config", description="Folder with experiments.yml and policies.yml."
    )

    product: str = Field(
        default="planner.meal_planner:MealPlanner",
        description="The product that this installation serves, as `package.module:Class`.",
    )

    pg_port: int = Field(default=25432, ge=1, le=65535, description="Port of the embedded PostgreSQL.")
    api_port: int = Field(default=8000, ge=1, le=65535, description="Port of the assignment and event API.")
    dagster_port: int = Field(default=3000, ge=1, le=65535, description="Port of the Dagster UI.")
    mlflow_port: int = Field(default=5000, ge=1, le=65535, description="Port of the MLflow UI.")
    docs_port: int = Field(default=8080, ge=1, le=65535, description="Port of the dbt docs site.")

    first_day: date | None = Field(
        default=None,
        description="First day of the hourly and daily partitions; earlier events are history. Recorded at the first start.",
    )
    retention_days: int = Field(
        default=90,
        ge=1,
        description="Days of events to keep in PostgreSQL; older days are dropped once they are archived.",
    )
    dataset_window_days: int = Field(default=7, ge=1, description="Days of accepted plans in one dataset version.")
    dataset_lookback_days: int = Field(
        default=28, ge=28, description="Days to search back for a household's previous plan."
    )
    dataset_min_rows: int = Field(default=1000, ge=1, description="Minimum number of rows in a dataset version.")
    replay_from: date | None = Field(
        default=None,
        description="Training uses only rows before this day, replay those from it on; unset: split by household.",
    )
    replay_sample_size: int = Field(
        default=1000, ge=1, description="Maximum number of rows that a replay scores, drawn with seed 42."
    )
    replay_allow_unconstrained: bool = Field(
        default=False,
        description="Lets the gate pass a model when no replayed row has a constraint (a diary has none).",
    )
    redis_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="Redis that API processes share for rate limits and stored assignments; unset: each process has its own.",
    )
    api_host: str = Field(default="127.0.0.1", description="Address that the API listens on; 0.0.0.0: all addresses.")
    api_services: Literal["all", "assignments", "events"] = Field(
        default="all", description="What an API process serves: both services, or only one of them."
    )
    assignment_max_age_seconds: int = Field(default=300, ge=0, description="How long clients may cache an assignment.")
    assignment_cache_entries: int = Field(
        default=100_000,
        ge=0,
        description="Maximum number of assignments cached in an API process, about 550 bytes each; 0: none.",
    )
    assignment_cache_seconds: float = Field(default=3600, gt=0, description="How long a cached assignment is valid.")
    experiments_refresh_seconds: float = Field(
        default=0.5,
        ge=0,
        description="Maximum age of the experiments that the API has read; 0: read them for every request.",
    )
    rate_limit_unit_per_minute: int = Field(
        default=100, ge=0, description="Maximum assignment requests a minute for one unit; 0: no limit."
    )
    rate_limit_key_per_minute: int = Field(
        default=10_000, ge=0, description="Maximum requests a minute with one API key; 0: no limit."
    )
    rate_limit_unit_events_per_minute: int = Field(
        default=1_000, ge=0, description="Maximum events a minute of one unit; 0: no limit."
    )
    spool_dir: Path | None = Field(
        default=None, description="Folder where the API spools events while PostgreSQL is away; unset: <home>/spool."
    )
    spool_mb: int = Field(
        default=256,
        ge=0,
        description="Maximum size of the spool in MB; 0: no spool, events get 503 while PostgreSQL is away.",
    )
    event_memory_mb: int = Field(
        default=64,
        ge=16,
        description="Maximum MB of event request bodies in an API process at the same time; further requests get 503.",
    )
    api_log_format: Literal["json", "text"] = Field(
        default="json", description="Format of the API's log: one JSON object a line, or text for people."
    )
    api_access_log: bool = Field(default=False, description="Whether the API logs a line for each request.")
    api_key_cache_seconds: float = Field(
        default=5.0,
        ge=0,
        description="How long the API trusts a key that it has checked; if the API misses its change, a revoked key works this long.",
    )
    api_key_grace_seconds: float = Field(
        default=3600,
        ge=0,
        description="How much longer the API trusts a checked key while PostgreSQL is away, so that it can spool events.",
    )
    api_retry_delays_ms: tuple[int, ...] = Field(
        default=(100, 200, 400),
        description="Waits between the API's attempts to reach the database, in milliseconds; after the last attempt it answers 503.",
    )
    api_pool_size: int = Field(
        default=10, ge=3, description="Maximum number of database connections of one API process, at least 3."
    )
    api_database_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Timeout of one SQL statement of the API."
    )

    schedules: bool = Field(
        default=True, description="Whether schedules and the event sensors are switched on at the start."
    )

    @property
    def embedded(self) -> bool:
        """Whether PostgreSQL is the embedded one."""
        return self.database_url is None

    @property
    def postgres_dir(self) -> Path:
        """Folder of the embedded server: its data, log and password file."""
        return self.home / "postgres"

    @property
    def platform_url(self) -> str:
        """`postgresql://…` of the platform's database, without a driver name.

        Raises FileNotFoundError when the embedded server was never started (its password does not exist yet).
        """
        if self.database_url is not None:
            return self.database_url
        password_file = self.postgres_dir / "password"
        if not password_file.exists():
            raise FileNotFoundError(
                f"The embedded PostgreSQL in {self.home} was never started. Run `lifecycle db start`, or set DATABASE_URL."
            )
        password = quote(password_file.read_text().strip())
        return f"postgresql://{EMBEDDED_USER}:{password}@127.0.0.1:{self.pg_port}/lifecycle"

    def sibling_url(self, database: str) -> str:
        """URL of another database (`dagster`, `mlflow`) on the platform's server."""
        return urlunsplit(urlsplit(self.platform_url)._replace(path=f"/{database}"))

    @property
    def tracking_uri(self) -> str:
        """What MLflow clients are given. The driver is named: SQLAlchemy's default one changed between versions."""
        return self.mlflow_tracking_uri or self.sibling_url("mlflow").replace("postgresql://", "postgresql+psycopg2://")

    @property
    def store_root(self) -> str:
        """Root of the object store, without a trailing slash."""
        return (self.store or str(self.home / "store")).rstrip("/")

    @property
    def spool_root(self) -> Path:
        """Folder of the spools of all API processes of this machine."""
        return self.spool_dir or self.home / "spool"

    @property
    def datasets_root(self) -> str:
        """Root of the built datasets, without a trailing slash."""
        if self.datasets:
            return self.datasets.rstrip("/")
        if self.store is None and self.home == PROJECT_ROOT / ".lifecycle":
            return str(PROJECT_ROOT / "datasets")
        return f"{self.store_root}/datasets"

    @property
    def lineage_start(self) -> date:
        """First day of the partitions: the setting, else nine weeks ago (a fresh installation before its first start)."""
        return self.first_day or (datetime.now(UTC).date() - timedelta(days=63))


def home_folder() -> Path:
    """The home that the environment names."""
    return Path(os.environ.get("LIFECYCLE_HOME", PROJECT_ROOT / ".lifecycle")).resolve()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process. Tests call `settings.cache_clear()` after changing the environment."""
    home = home_folder()
    return Settings(_env_file=home / "settings.env", home=home)  # type: ignore[call-arg]


def variable_names(field: str) -> tuple[str, ...]:
    """The environment variables that a setting is read from: the usual name first where there is one."""
    alias = Settings.model_fields[field].validation_alias
    usual = [str(alias.choices[0])] if isinstance(alias, AliasChoices) else []
    return (*usual, f"{PREFIX}{field.upper()}")


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that has our prefix and is read by nobody, with the name that was likely meant."""
    known = {name for field in Settings.model_fields for name in variable_names(field)} | {*OTHER_VARIABLES}
    # Compared without the prefix, which would make everything look alike.
    by_end = {name.removeprefix(PREFIX): name for name in sorted(known, reverse=True)}
    sentences = []
    for name in sorted(environ):
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known or upper.startswith(INTERNAL_VARIABLES):
            continue
        near = difflib.get_close_matches(upper.removeprefix(PREFIX), by_end, n=1)
        hint = f"Did you mean {by_end[near[0]]}?" if near else "docs/settings.md lists all settings."
        sentences.append(f"Unknown setting {name}. {hint}")
    return sentences


def invalid_settings(error: Exception) -> str:
    """What pydantic says of a value that can't be used, as a sentence."""
    if not isinstance(error, ValidationError):
        said = str(error).strip().splitlines()[0].rstrip(".")
        return f"A setting can't be read ({said}): correct it in the environment or in settings.env."
    told = []
    for item in error.errors():
        place = str(item["loc"][0]) if item["loc"] else ""
        name = variable_names(place.lower())[0] if place.lower() in Settings.model_fields else place
        told.append(
            f"{name}={item['input']} can't be used ({item['msg']}): correct it in the environment or in settings.env."
        )
    return "; ".join(told)
