select
    experiments.*,
    coalesce(counted.variant_count, 0) as variant_count,
    coalesce(counted.total_allocation, 0) as total_allocation
from {{ source('exp', 'experiments') }} as experiments
left join (
    select
        experiment_id,
        count(*) as variant_count,
        sum(allocation) as total_allocation
    from {{ ref('stg_variants') }}
    group by experiment_id
) as counted on counted.experiment_id = experiments.id
where experiments.status = 'active'
