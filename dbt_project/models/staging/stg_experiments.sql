select
    id as experiment_id,
    name as experiment_name,
    run,
    description,
    status,
    unit_type,
    made_by,
    shipped_variant_id,
    start_at,
    end_at,
    created_at,
    updated_at
from {{ source('exp', 'experiments') }}
