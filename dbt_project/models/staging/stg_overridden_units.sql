select
    experiment_id,
    unit_id,
    since as overridden_since
from {{ source('exp', 'overridden_units') }}
