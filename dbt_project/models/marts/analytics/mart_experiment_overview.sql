with

variants as (
    select
        experiment_id,
        count(*) as variant_count,
        sum(allocation) as total_allocation,
        string_agg(variant_name || ' ' || round(allocation * 100, 2) || ' %', ', ' order by allocation desc, variant_name) as traffic,
        sum(assigned_units) as assigned_units,
        sum(exposed_units) as exposed_units,
        sum(plans_generated) as plans_generated,
        sum(plans_accepted) as plans_accepted,
        max(variant_name) filter (where is_shipped) as shipped_variant,
        max(last_event_at) as last_event_at
    from {{ ref('mart_variant_performance') }}
    group by experiment_id
),

epochs as (
    select
        experiment_id,
        max(epoch) as epoch,
        max(started_at) as epoch_started_at
    from {{ ref('stg_allocation_epochs') }}
    group by experiment_id
)

select
    experiments.experiment_id,
    experiments.experiment_name,
    experiments.run,
    experiments.status,
    experiments.unit_type,
    experiments.made_by,
    experiments.start_at,
    experiments.end_at,
    coalesce(variants.variant_count, 0) as variant_count,
    coalesce(variants.total_allocation, 0) as total_allocation,
    variants.traffic,
    variants.shipped_variant,
    epochs.epoch,
    epochs.epoch_started_at,
    coalesce(variants.assigned_units, 0)::bigint as assigned_units,
    coalesce(variants.exposed_units, 0)::bigint as exposed_units,
    coalesce(variants.plans_generated, 0)::bigint as plans_generated,
    coalesce(variants.plans_accepted, 0)::bigint as plans_accepted,
    variants.last_event_at
from {{ ref('stg_experiments') }} as experiments
left join variants on variants.experiment_id = experiments.experiment_id
left join epochs on epochs.experiment_id = experiments.experiment_id
