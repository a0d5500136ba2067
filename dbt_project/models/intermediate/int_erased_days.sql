-- Days whose aggregates change because a unit was erased. Once retention has dropped the day's partition, its aggregates can't be rebuilt
-- and stay as they are.
select
    day as bucket_day,
    erased_at
from {{ ref('stg_erased_days') }}
where to_regclass('exp.' || quote_ident(held_by)) is not null
