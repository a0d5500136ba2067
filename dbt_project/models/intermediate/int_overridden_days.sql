-- Days whose aggregates change when a unit is overridden: its earlier events no longer count.
select
    date_trunc('day', events.occurred_at, 'UTC') as bucket_day,
    max(overridden.overridden_since) as overridden_since
from {{ ref('stg_events') }} as events
inner join {{ ref('stg_overridden_units') }} as overridden on overridden.unit_id = events.unit_id
group by date_trunc('day', events.occurred_at, 'UTC')
