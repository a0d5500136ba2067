"""A change of a run in the audit log."""

from typing import Any
from uuid import UUID

import psycopg

from experimentation.runs.run import Run
from experimentation.runs.store import load_run
from foundation.audit import Change, write_audit


def audited(connection: psycopg.Connection[Any], before: Run | None, run_id: UUID, action: str, change: Change) -> Run:
    """The run as it is now, after its audit row is written."""
    after = load_run(connection, run_id)
    write_audit(
        connection,
        change=change,
        action=action,
        subject=after.label,
        before=None if before is None else _picture(before),
        after=_picture(after),
    )
    return after


def _picture(run: Run) -> dict[str, Any]:
    """What the audit log keeps of a run."""
    return {
        "status": run.status,
        "shipped": None if run.shipped is None else run.shipped.name,
        "unit_type": run.unit_type,
        "start_at": None if run.start_at is None else run.start_at.isoformat(),
        "end_at": None if run.end_at is None else run.end_at.isoformat(),
        "targeting": run.targeting,
        "layer": None if run.layer is None else {"name": run.layer.layer, "from": run.layer.first, "to": run.layer.end},
        "overrides": dict(run.overrides),
        "allocations": {variant.name: str(variant.allocation) for variant in run.variants},
        "configs": {variant.name: variant.config for variant in run.variants},
    }
