{{
    config(
        materialized='incremental',
        incremental_strategy='changes_only',
        on_schema_change='fail',
        full_refresh=false,
        indexes=[
            {'columns': ['experiment_id', 'variant_id', 'metric_name', 'bucket_type', 'bucket_start'], 'unique': true},
            {'columns': ['bucket_type', 'bucket_start']},
        ],
        pre_hook="select pg_advisory_xact_lock(hashtext('exp.metric_aggregates'))",
    )
}}
{#- Referenced outside the condition, so that dbt always knows these dependencies. -#}
{%- set overridden_days, erased_days = ref('int_overridden_days'), ref('int_erased_days') -%}
{#-
  Sums are exact (numeric) until the last step, so that neither the order of rows nor the roll-up from hours to days changes a digit.
  Numbers are extracted from the events' JSON once.
-#}

with

{% if is_incremental() %}
-- Whole days are rebuilt, chosen by when their events were stored: a late event changes its hour, its day and the day's percentiles.
changed_days as materialized (
    select distinct bucket_day
    from {{ ref('int_experiment_events') }}
    where stored_at > (select coalesce(max(created_at), '-infinity') from {{ this }}) - interval '{{ var("stored_overlap") }}'

    union

    -- Earlier events of overridden units no longer count.
    select bucket_day
    from {{ overridden_days }}
    where overridden_since > (select coalesce(max(created_at), '-infinity') from {{ this }}) - interval '{{ var("stored_overlap") }}'

    union

    -- Events of erased units no longer count.
    select bucket_day
    from {{ erased_days }}
    where erased_at > (select coalesce(max(created_at), '-infinity') from {{ this }}) - interval '{{ var("stored_overlap") }}'

    {% if in_backfill('occurred_at') != 'false' %}
    union

    select distinct bucket_day
    from {{ ref('int_experiment_events') }}
    where {{ in_backfill('occurred_at') }}

    union

    -- Days without any events left.
    select distinct date_trunc('day', bucket_start, 'UTC')
    from {{ this }}
    where {{ in_backfill('bucket_start') }}
    {% endif %}
),
{% endif %}

events as materialized (
    select
        experiment_id,
        variant_id,
        bucket_hour,
        event_type,
        metrics
    from {{ ref('int_experiment_events') }}
    {% if is_incremental() %}
    where bucket_day in (select bucket_day from changed_days)
        -- The same condition as bounds, so that PostgreSQL skips the partitions of other days.
        and occurred_at >= (select min(bucket_day) from changed_days)
        and occurred_at < (select max(bucket_day) from changed_days) + interval '24 hours'
    {% endif %}
),

numbers as materialized (
    select
        events.experiment_id,
        events.variant_id,
        events.bucket_hour,
        metric.key as metric_name,
        number.value
    from events
    cross join lateral jsonb_each(events.metrics) as metric
    cross join lateral (
        select case when jsonb_typeof(metric.value) = 'number' then metric.value::numeric end as value
    ) as number
    -- Sums of numbers within these bounds fit a double.
    where events.metrics <> '{}'
        and (number.value = 0 or abs(number.value) between 1e-100 and 1e100)
        and length(metric.key) between 1 and 100
        and metric.key not in ('{{ derived_metrics() | join("', '") }}')
),

hourly_moments as (
    select
        experiment_id,
        variant_id,
        bucket_hour,
        metric_name,
        count(*) as n,
        sum(value) as total,
        sum(value * value) as squares,
        min(value) as least,
        max(value) as most
    from numbers
    group by experiment_id, variant_id, bucket_hour, metric_name
),

moments as (
    select
        experiment_id, variant_id, metric_name, 'hourly' as bucket_type, bucket_hour as bucket_start,
        n, total, squares, least, most
    from hourly_moments

    union all

    select
        experiment_id, variant_id, metric_name, 'daily', date_trunc('day', bucket_hour, 'UTC'),
        sum(n), sum(total), sum(squares), min(least), max(most)
    from hourly_moments
    group by experiment_id, variant_id, metric_name, date_trunc('day', bucket_hour, 'UTC')
),

tallies as (
    select
        experiment_id,
        variant_id,
        bucket_hour,
        count(*) filter (where event_type = 'plan_generated') as generated,
        count(*) filter (where event_type = 'plan_accepted') as accepted,
        count(*) filter (where event_type in ('edit_applied', 'meal_swapped')) as edits,
        count(*) filter (where event_type = 'validator_intervention') as interventions,
        null::numeric as cost
    from events
    where event_type in ('plan_generated', 'plan_accepted', 'edit_applied', 'meal_swapped', 'validator_intervention')
    group by experiment_id, variant_id, bucket_hour

    union all

    select experiment_id, variant_id, bucket_hour, 0, 0, 0, 0, total
    from hourly_moments
    where metric_name = 'cost_usd'
),

bucket_tallies as (
    select
        tallies.experiment_id,
        tallies.variant_id,
        bucket.bucket_type,
        bucket.bucket_start,
        sum(generated) as generated,
        sum(accepted) as accepted,
        sum(edits) as edits,
        sum(interventions) as interventions,
        sum(cost) as cost
    from tallies
    cross join lateral (
        values ('hourly', bucket_hour), ('daily', date_trunc('day', bucket_hour, 'UTC'))
    ) as bucket (bucket_type, bucket_start)
    group by tallies.experiment_id, tallies.variant_id, bucket.bucket_type, bucket.bucket_start
),

latencies as (
    select
        numbers.experiment_id,
        numbers.variant_id,
        bucket.bucket_type,
        bucket.bucket_start,
        count(*) as n,
        percentile_cont(array[0.5, 0.95, 0.99]) within group (order by numbers.value::double precision) as at
    from numbers
    cross join lateral (
        values ('hourly', bucket_hour), ('daily', date_trunc('day', bucket_hour, 'UTC'))
    ) as bucket (bucket_type, bucket_start)
    where numbers.metric_name = 'latency_ms'
    group by numbers.experiment_id, numbers.variant_id, bucket.bucket_type, bucket.bucket_start
),

measured as (
    select
        experiment_id, variant_id, metric_name, bucket_type, bucket_start,
        n as "count",
        total as "sum",
        total / n as mean,
        least as "min",
        most as "max",
        {{ stddev_of('n', 'total', 'squares') }} as stddev
    from moments

    union all

    select
        experiment_id, variant_id, ratio.metric_name, bucket_type, bucket_start,
        ratio.denominator, ratio.numerator, ratio.numerator / nullif(ratio.denominator, 0), null, null, null
    from bucket_tallies
    cross join lateral (
        values
        ('acceptance_rate', accepted, generated),
        ('avg_edits_per_plan', edits, accepted),
        ('validator_intervention_rate', interventions, generated),
        ('cost_per_plan', cost, generated)
    ) as ratio (metric_name, numerator, denominator)

    union all

    select
        experiment_id, variant_id, percentile.metric_name, bucket_type, bucket_start,
        n, null, percentile.value, null, null, null
    from latencies
    cross join lateral (
        values ('latency_p50', at[1]), ('latency_p95', at[2]), ('latency_p99', at[3])
    ) as percentile (metric_name, value)
),

fresh as (
    select
        {{ aggregate_id() }} as id,
        experiment_id,
        variant_id,
        metric_name::varchar(100) as metric_name,
        bucket_type::varchar(10) as bucket_type,
        bucket_start,
        "count"::bigint as "count",
        "sum"::double precision as "sum",
        mean::double precision as mean,
        "min"::double precision as "min",
        "max"::double precision as "max",
        stddev::double precision as stddev,
        now() as created_at
    from measured
)

{% if is_incremental() %}
-- Only what differs from the table (macros/incremental_changes_only.sql) …
select fresh.*
from fresh
left join {{ this }} as old on old.id = fresh.id
where old.id is null
    or (old."count", old."sum", old.mean, old."min", old."max", old.stddev)
    is distinct from (fresh."count", fresh."sum", fresh.mean, fresh."min", fresh."max", fresh.stddev)

union all

-- … and rows that the events of their day no longer have: a null count removes them.
select
    old.id, old.experiment_id, old.variant_id, old.metric_name, old.bucket_type, old.bucket_start,
    null, null, null, null, null, null, old.created_at
from {{ this }} as old
where date_trunc('day', old.bucket_start, 'UTC') in (select bucket_day from changed_days)
    and not exists (select from fresh where fresh.id = old.id)
{% else %}
select * from fresh
{% endif %}
