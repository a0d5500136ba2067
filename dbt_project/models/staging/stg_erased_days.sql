select
    day,
    partition as held_by,
    erased_at
from {{ source('exp', 'erased_days') }}
