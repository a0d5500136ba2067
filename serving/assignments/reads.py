"""Reading what is configured: experiments, what a unit has or would get, and the policy version in production. Nothing is changed."""

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
from experimentation.assignments.targeting import Asker
from experimentation.runs.run import UnitType
from serving.assignments.catalogue import CatalogueCache
from serving.assignments.deciding import Assigner, Question
from serving.http.auth import KeyRing
from serving.http.database import Database
from serving.http.errors import not_found, validation_error
from serving.openapi import refusals

Name = Annotated[str, Path(description="The experiment's name.", max_length=255)]
UnitId = Annotated[str, Path(description="The unit's id.", min_length=1, max_length=MAX_UNIT_ID)]


@dataclass(frozen=True)
class VariantView:
    """One variant in walking order. `config` is what a client gets."""

    variant_id: UUID
    name: str
    role: str
    allocation: Decimal
    withdrawn: bool
    config: Mapping[str, Any]


@dataclass(frozen=True)
class LayerView:
    """The buckets of its layer that a run may enrol: from `first` on and before `end`; those below `holdout` get no experiment of it."""

    layer_id: UUID
    holdout: int
    first: int
    end: int


@dataclass(frozen=True)
class RunView:
    """One run of an experiment; `epoch` is the number of the current allocations, 0 before the first."""

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
    """An experiment: the run that answers for its name, and every run there is, the first one first."""

    name: str
    answering: RunView
    runs: list[RunView]


@dataclass(frozen=True)
class Experiments:
    """The run that answers for each name."""

    experiments: list[RunView]


@dataclass(frozen=True)
class StoredView:
    """A unit's row: enrolled once and for ever."""

    variant_id: UUID
    epoch: int
    propensity: Decimal
    assigned_at: datetime


@dataclass(frozen=True)
class UnitView:
    """What a unit is answered now; `stored` is its row, where it has one."""

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
    """The version of a policy that units outside of any trial get, with the config that a variant naming it would be answered."""

    policy: str
    version: int
    policy_version_id: UUID
    status: str
    config: Mapping[str, Any]


def reads_router(keys: KeyRing, database: Database, catalogue: CatalogueCache, assigner: Assigner) -> APIRouter:
    """The routes, for keys with the scope `read` or `admin`; a policy is also told to who may `assign`."""
    router = APIRouter(prefix="/api/v1", responses=refusals("401", "403", "429", "503"))

    async def let_in(request: Request, *scopes: str) -> None:
        await keys.let_in(request.headers.get("authorization", "").encode("latin-1"), *scopes)

    async def runs_of(name: str) -> list[ServedRun]:
        known = await database.retrying(catalogue.current)
        if name not in known.runs:
            raise not_found(f"There is no experiment {name}: `GET /api/v1/experiments` lists them.")
        return sorted((run for run in known.by_id.values() if run.name == name), key=lambda run: run.run)

    @router.get("/experiments", tags=["experiments"], summary="Every experiment (scope `read`)")
    async def experiments(request: Request) -> Experiments:
        await let_in(request, "read", "admin")
        known = await database.retrying(catalogue.current)
        return Experiments([_run(known.runs[name]) for name in sorted(known.runs)])

    @router.get(
        "/experiments/{name}",
        tags=["experiments"],
        summary="One experiment with all its runs (scope `read`)",
        responses=refusals("400", "404"),
    )
    async def experiment(request: Request, name: Name) -> ExperimentView:
        await let_in(request, "read", "admin")
        runs = await runs_of(name)
        answering = (await database.retrying(catalogue.current)).runs[name]
        return ExperimentView(name, _run(answering), [_run(run) for run in runs])

    @router.get(
        "/experiments/{name}/assignments/{unit_id:path}",
        tags=["experiments"],
        summary="What a unit has, or would get, without enrolling it (scope `read`)",
        responses=refusals("400", "404"),
    )
    async def assignment(
        request: Request,
        name: Name,
        unit_id: UnitId,
        unit_type: Annotated[UnitType | None, Query(description="Unset: the experiment's own.")] = None,
        context: Annotated[
            str | None, Query(description="What targeting rules read, as a JSON object; unset: nothing.")
        ] = None,
    ) -> UnitView:
        await let_in(request, "read", "admin")
        if "\0" in unit_id or not _is_utf8(request):
            raise validation_error([FieldError("unit_id", "invalid_unit_id")])
        sent = _object(context)
        await runs_of(name)
        run = (await database.retrying(catalogue.current)).runs[name]
        question = Question(
            unit_type or run.unit_type, unit_id, [name], Asker(unit_type or run.unit_type, sent), enroll=False
        )
        (answer,) = await assigner.answers(question)

        async def find() -> StoredView | None:
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
            stored=await database.retrying(find),
        )

    @router.get(
        "/policies/{name}",
        tags=["policies"],
        summary="The version in production (scope `read` or `assign`)",
        responses=refusals("400", "404"),
    )
    async def policy(
        request: Request, name: Annotated[str, Path(description="The policy's name.", max_length=255)]
    ) -> ProductionView:
        await let_in(request, "read", "admin", "assign")
        if "\0" in name:
            raise not_found("There is no such policy.")

        async def find() -> Mapping[str, Any] | None:
            async with database.acquire() as connection:
                return await find_production_version(connection, name)

        row = await database.retrying(find)
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
    """Whether the path is text: what is not was replaced on the way, so that another unit would be answered."""
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError:
        return False
    return True


def _object(context: str | None) -> dict[str, Any]:
    """The context of a query. Raises ApiError (400)."""
    try:
        sent = {} if context is None else msgspec.json.decode(context)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise validation_error([FieldError("context", "invalid_context")], "The context must be a JSON object.")
    return sent


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
            VariantView(each.id, each.name, each.role, each.allocation, each.withdrawn, each.config)
            for each in run.variants
        ],
    )
