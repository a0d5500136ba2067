select
    id as assignment_id,
    experiment_id,
    variant_id,
    unit_type,
    unit_id,
    epoch,
    propensity,
    assigned_at
from {{ source('exp', 'assignments') }}
