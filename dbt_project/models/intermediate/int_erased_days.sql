-- Where the numbers change because a unit was erased. Once retention dropped what held a day's events, they can't be recomputed, so they stay.
select
    day as bucket_day,
    erased_at
from {{ ref('stg_erased_days') }}
where to_regclass('exp.' || quote_ident(held_by)) is not null
