"""Read-only routes: experiments, the variant that a unit has or would get, and a policy's version in production."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query, Request

from eventlog.validation import MAX_UNIT_ID, FieldError
from experimentation.assignments.rules import ServedRun, complete_config
from experimentation.assignments.store import find_assignment, find_production_version
from experimentation.assignments.targeting import TargetingInput
from experimentation.runs.run import UnitType
from serving.assignments.assigner import Assigner, Question
from serving.assignments.experiments_cache import ExperimentsCache
from serving.http.auth import KeyRing
from serving.http.database import Database
from serving.http.errors import not_found, validation_error
from serving.openapi import error_responses

Name = Annotated[str, Path(description="The experiment's name.", max_length=255)]
UnitId = Annotated[str, Path(description="The unit's id.", min_length=1, max_length=MAX_UNIT_ID)]


@dataclass(frozen=True)
class VariantView:
    """One variant. `config` is what a client gets."""

    variant_id: UUID
    name: str
    role: str
    allocation: Decimal
    withdrawn: bool
    config: Mapping[str, Any]


@dataclass(frozen=True)
class LayerView:
    """The buckets of the layer that a run may enrol: `first` ≤ bucket < `end`. Buckets below `holdout` get no experiment of the layer."""

    layer_id: UUID
    holdout: int
    first: int
    end: int


@dataclass(frozen=True)
class RunView:
    """One run of an experiment, its variants in the order of bucketing. `epoch` counts changes of allocations; 0 before the first."""

    experiment_id: UUID
    name: str
    run: int
    status: str
    unit_type: str
    epoch: int
    start_at: datetime | None
    end_at: datetime | None
    shipped_variant_id: UUID | None
    targeting: str | None
    layer: LayerView | None
    overrides: Mapping[str, str]
    variants: list[VariantView]


@dataclass(frozen=True)
class ExperimentView:
    """An experiment: the run that answers for its name, and all runs, oldest first."""

    name: str
    answering: RunView
    runs: list[RunView]


@dataclass(frozen=True)
class Experiments:
    """The run that answers for each name."""

    experiments: list[RunView]


@dataclass(frozen=True)
class StoredView:
    """A unit's stored row. It never changes."""

    variant_id: UUID
    epoch: int
    propensity: Decimal
    assigned_at: datetime


@dataclass(frozen=True)
class UnitView:
    """The answer that a unit gets now. `stored` is its row, or null if it has none."""

    experiment_name: str
    experiment_id: UUID
    run: int
    unit_id: str
    reason: str
    enrolled: bool
    variant_name: str | None
    config: Mapping[str, Any] | None
    stored: StoredView | None


@dataclass(frozen=True)
class ProductionView:
    """The version of a policy that units outside any experiment get, with the config of a variant that names it."""

    policy: str
    version: int
    policy_version_id: UUID
    status: str
    config: Mapping[str, Any]


def read_router(
    keys: KeyRing, database: Database, experiments_cache: ExperimentsCache, assigner: Assigner
) -> APIRouter:
    """The routes, for keys with the scope `read` or `admin`. A key with `assign` can read policies too."""
    router = APIRouter(prefix="/api/v1", responses=error_responses("401", "403", "429", "503"))

    async def authorize(request: Request, *scopes: str) -> None:
        await keys.authorize(request.headers.get("authorization", "").encode("latin-1"), *scopes)

    async def runs_of(name: str) -> list[ServedRun]:
        served = await database.retrying(experiments_cache.current)
        if name not in served.runs:
            raise not_found(f"There is no experiment {name}. `GET /api/v1/experiments` lists them.")
        return sorted((run for run in served.by_id.values() if run.name == name), key=lambda run: run.run)

    @router.get("/experiments", tags=["experiments"], summary="Every experiment (scope `read`)")
    async def experiments(request: Request) -> Experiments:
        await authorize(request, "read", "admin")
        served = await database.retrying(experiments_cache.current)
        return Experiments([_run(served.runs[name]) for name in sorted(served.runs)])

    @router.get(
        "/experiments/{name}",
        tags=["experiments"],
        summary="One experiment with all its runs (scope `read`)",
        responses=error_responses("400", "404"),
    )
    async def experiment(request: Request, name: Name) -> ExperimentView:
        await authorize(request, "read", "admin")
        runs = await runs_of(name)
        answering = (await database.retrying(experiments_cache.current)).runs[name]
        return ExperimentView(name, _run(answering), [_run(run) for run in runs])

    @router.get(
        "/experiments/{name}/assignments/{unit_id:path}",
        tags=["experiments"],
        summary="The variant that a unit has or would get, without enrolling it (scope `read`)",
        responses=error_responses("400", "404"),
    )
    async def assignment(
        request: Request,
        name: Name,
        unit_id: UnitId,
        unit_type: Annotated[
            UnitType | None, Query(description="The unit's type. Default: the experiment's unit type.")
        ] = None,
        context: Annotated[
            str | None, Query(description="The context for targeting rules, as a JSON object. Default: empty.")
        ] = None,
    ) -> UnitView:
        await authorize(request, "read", "admin")
        if "\0" in unit_id or not _is_utf8(request):
            raise validation_error([FieldError("unit_id", "invalid_unit_id")])
        targeting_context = _context_object(context)
        await runs_of(name)
        run = (await database.retrying(experiments_cache.current)).runs[name]
        question = Question(
            unit_type or run.unit_type,
            unit_id,
            [name],
            TargetingInput(unit_type or run.unit_type, targeting_context),
            enroll=False,
        )
        (answer,) = await assigner.answers(question)

        async def find_row() -> StoredView | None:
            async with database.acquire() as connection:
                row = await find_assignment(connection, run.id, unit_id)
            return None if row is None else StoredView(**row)

        variant = answer.decision.variant
        return UnitView(
            experiment_name=name,
            experiment_id=run.id,
            run=run.run,
            unit_id=unit_id,
            reason=answer.decision.reason,
            enrolled=answer.decision.enrolled,
            variant_name=None if variant is None else variant.name,
            config=None if variant is None else variant.config,
            stored=await database.retrying(find_row),
        )

    @router.get(
        "/policies/{name}",
        tags=["policies"],
        summary="The version in production (scope `read` or `assign`)",
        responses=error_responses("400", "404"),
    )
    async def policy(
        request: Request, name: Annotated[str, Path(description="The policy's name.", max_length=255)]
    ) -> ProductionView:
        await authorize(request, "read", "admin", "assign")
        if "\0" in name:
            raise not_found("There is no such policy.")

        async def find_version() -> Mapping[str, Any] | None:
            async with database.acquire() as connection:
                return await find_production_version(connection, name)

        row = await database.retrying(find_version)
        if row is None:
            raise not_found(f"There is no policy {name} with a version in production.")
        config = complete_config(
            {"policy_version_id": str(row["id"])},
            row["config_defaults"],
            row["mlflow_model_name"],
            row["mlflow_model_version"],
        )
        return ProductionView(name, row["version"], row["id"], row["status"], config)

    return router


def _is_utf8(request: Request) -> bool:
    """Whether the path is valid UTF-8. Invalid bytes were replaced on decoding, so the id would be that of another unit."""
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError:
        return False
    return True


def _context_object(context: str | None) -> dict[str, Any]:
    """The query's context, decoded. Raises ApiError (400)."""
    try:
        decoded = {} if context is None else msgspec.json.decode(context)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise validation_error([FieldError("context", "invalid_context")], "The context must be a JSON object.")
    return decoded


def _run(run: ServedRun) -> RunView:
    layer = run.layer
    return RunView(
        experiment_id=run.id,
        name=run.name,
        run=run.run,
        status=run.status,
        unit_type=run.unit_type,
        epoch=run.epoch,
        start_at=run.start_at,
        end_at=run.end_at,
        shipped_variant_id=run.shipped_variant_id,
        targeting=None if run.targeting is None else run.targeting.rule,
        layer=None if layer is None else LayerView(layer.id, layer.holdout, layer.first, layer.end),
        overrides=run.overrides,
        variants=[
            VariantView(variant.id, variant.name, variant.role, variant.allocation, variant.withdrawn, variant.config)
            for variant in run.variants
        ],
    )
