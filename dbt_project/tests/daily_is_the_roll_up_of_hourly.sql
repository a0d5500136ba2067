{{
    config(meta={
        'dagster': {'ref': {'name': 'metric_aggregates'}},
        'description': 'Counts, sums, extremes and spread of each day are those of its hours, merged.',
    })
}}
-- Compares moments merged from the stored hourly rows (Chan et al.) with the stored daily row. Hours are kept for a shorter time than days,
-- so days without hours are left out. Rates merge like sums; percentiles do not merge.
with

hourly as (
    select
        *,
        date_trunc('day', bucket_start, 'UTC') as bucket_day
    from {{ ref('metric_aggregates') }}
    where bucket_type = 'hourly' and metric_name not in ('latency_p50', 'latency_p95', 'latency_p99')
),

merged as (
    select
        hourly.experiment_id,
        hourly.variant_id,
        hourly.metric_name,
        hourly.bucket_day,
        sum(hourly."count") as "count",
        sum(hourly."sum") as "sum",
        min(hourly."min") as "min",
        max(hourly."max") as "max",
        -- Squared deviations from the day's mean: within each hour, and of the hours' means.
        sum(coalesce(hourly.stddev, 0) ^ 2 * (hourly."count" - 1) + hourly."count" * (hourly.mean - daily.mean) ^ 2) as deviations
    from hourly
    inner join {{ ref('metric_aggregates') }} as daily
        on daily.experiment_id = hourly.experiment_id
        and daily.variant_id = hourly.variant_id
        and daily.metric_name = hourly.metric_name
        and daily.bucket_type = 'daily'
        and daily.bucket_start = hourly.bucket_day
    group by hourly.experiment_id, hourly.variant_id, hourly.metric_name, hourly.bucket_day
)

select
    merged.*,
    daily."count" as daily_count,
    daily."sum" as daily_sum,
    daily.stddev as daily_stddev
from {{ ref('metric_aggregates') }} as daily
inner join merged
    on merged.experiment_id = daily.experiment_id
    and merged.variant_id = daily.variant_id
    and merged.metric_name = daily.metric_name
    and merged.bucket_day = daily.bucket_start
where daily.bucket_type = 'daily'
    and (
        merged."count" <> daily."count"
        or merged."min" is distinct from daily."min"
        or merged."max" is distinct from daily."max"
        -- Doubles are equal up to rounding.
        or abs(merged."sum" - daily."sum") > 1e-9 * greatest(abs(daily."min"), abs(daily."max"), abs(daily."sum")) * daily."count"
        or abs(sqrt(merged.deviations / nullif(daily."count" - 1, 0)) - daily.stddev)
            > 1e-6 * greatest(abs(daily."min"), abs(daily."max"))
    )
