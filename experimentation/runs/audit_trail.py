"""Changes of runs in the audit log."""

from typing import Any
from uuid import UUID

import psycopg

from experimentation.runs.run import Run
from experimentation.runs.store import load_run
from foundation.audit import Change, write_audit


def audit_run_change(
    connection: psycopg.Connection[Any], before: Run | None, run_id: UUID, action: str, change: Change
) -> Run:
    """Write an audit row for a change of a run; returns the run as it is now."""
    after = load_run(connection, run_id)
    write_audit(
        connection,
        change=change,
        action=action,
        subject=after.label,
        before=None if before is None else _audited_fields(before),
        after=_audited_fields(after),
    )
    return after


def _audited_fields(run: Run) -> dict[str, Any]:
    """The fields of a run that the audit log keeps."""
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
