with

units as (
    select
        variant_id,
        count(*) as assigned_units,
        count(first_exposed_at) as exposed_units
    from {{ ref('int_unit_exposures') }}
    group by variant_id
),

-- Totals come from the daily aggregates, which outlive the events: a rate's `sum` is its numerator and its `count` its denominator.
totals as (
    select
        variant_id,
        sum("count") filter (where metric_name = 'acceptance_rate') as plans_generated,
        sum("sum") filter (where metric_name = 'acceptance_rate') as plans_accepted,
        sum("sum") filter (where metric_name = 'avg_edits_per_plan') as edits,
        sum("sum") filter (where metric_name = 'validator_intervention_rate') as interventions,
        sum("sum") filter (where metric_name = 'cost_per_plan') as cost_usd
    from {{ ref('metric_aggregates') }}
    where bucket_type = 'daily'
    group by variant_id
),

events as (
    select
        variant_id,
        event_type,
        occurred_at,
        case when jsonb_typeof(metrics -> 'latency_ms') = 'number' then (metrics -> 'latency_ms')::double precision end as latency_ms,
        case when jsonb_typeof(metrics -> 'edit_count') = 'number' then (metrics -> 'edit_count')::numeric end as edit_count
    from {{ ref('int_experiment_events') }}
),

observed as (
    select
        variant_id,
        percentile_cont(array[0.5, 0.95, 0.99]) within group (order by latency_ms) as latency,
        count(*) filter (where event_type = 'plan_accepted' and edit_count = 0) as accepted_without_edits,
        count(*) filter (where event_type = 'plan_accepted' and edit_count = 1) as accepted_after_1_edit,
        count(*) filter (where event_type = 'plan_accepted' and edit_count = 2) as accepted_after_2_edits,
        count(*) filter (where event_type = 'plan_accepted' and edit_count >= 3) as accepted_after_3_or_more_edits,
        min(occurred_at) as first_event_at,
        max(occurred_at) as last_event_at
    from events
    group by variant_id
)

select
    variants.variant_id,
    variants.experiment_id,
    experiments.experiment_name,
    experiments.run,
    experiments.status as experiment_status,
    variants.variant_name,
    variants.role,
    variants.allocation,
    coalesce(experiments.shipped_variant_id = variants.variant_id, false) as is_shipped,
    variants.withdrawn_at,
    coalesce(units.assigned_units, 0) as assigned_units,
    coalesce(units.exposed_units, 0) as exposed_units,
    coalesce(totals.plans_generated, 0)::bigint as plans_generated,
    coalesce(totals.plans_accepted, 0)::bigint as plans_accepted,
    {{ ratio('totals.plans_accepted', 'totals.plans_generated') }} as acceptance_rate,
    {{ ratio('totals.edits', 'totals.plans_accepted') }} as avg_edits_per_plan,
    {{ ratio('totals.interventions', 'totals.plans_generated') }} as validator_intervention_rate,
    observed.latency[1] as latency_p50_ms,
    observed.latency[2] as latency_p95_ms,
    observed.latency[3] as latency_p99_ms,
    totals.cost_usd,
    {{ ratio('totals.cost_usd', 'totals.plans_generated') }} as cost_per_plan,
    coalesce(observed.accepted_without_edits, 0) as accepted_without_edits,
    coalesce(observed.accepted_after_1_edit, 0) as accepted_after_1_edit,
    coalesce(observed.accepted_after_2_edits, 0) as accepted_after_2_edits,
    coalesce(observed.accepted_after_3_or_more_edits, 0) as accepted_after_3_or_more_edits,
    observed.first_event_at,
    observed.last_event_at
from {{ ref('stg_variants') }} as variants
inner join {{ ref('stg_experiments') }} as experiments on experiments.experiment_id = variants.experiment_id
left join units on units.variant_id = variants.variant_id
left join totals on totals.variant_id = variants.variant_id
left join observed on observed.variant_id = variants.variant_id
