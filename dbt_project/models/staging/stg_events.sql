select
    id as event_id,
    event_type,
    unit_type,
    unit_id,
    context ->> 'policy_version_id' as policy_version_id,
    context ->> 'workflow_type' as workflow_type,
    context ->> 'mode' as mode,
    payload ->> 'plan_id' as plan_id,
    -- A malformed row must not fail the build: values of the wrong shape are treated as empty.
    case when jsonb_typeof(experiments) = 'array' then experiments else '[]' end as experiments,
    case when jsonb_typeof(metrics) = 'object' then metrics else '{}' end as metrics,
    coalesce(payload @> '{"reconstructed": true}', false) as is_reconstructed,
    flags,
    "timestamp" as occurred_at,
    created_at as stored_at
from {{ source('exp', 'events') }}
