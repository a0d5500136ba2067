select
    id as variant_id,
    experiment_id,
    name as variant_name,
    "position",
    role,
    description,
    allocation,
    config ->> 'policy_version_id' as policy_version_id,
    withdrawn_at,
    created_at
from {{ source('exp', 'variants') }}
