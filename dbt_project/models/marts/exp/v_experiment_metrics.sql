select
    aggregates.experiment_id,
    experiments.experiment_name,
    aggregates.variant_id,
    variants.variant_name,
    aggregates.metric_name,
    aggregates.bucket_type,
    aggregates.bucket_start,
    aggregates."count",
    aggregates.mean,
    aggregates."min",
    aggregates."max",
    aggregates.stddev
from {{ ref('metric_aggregates') }} as aggregates
inner join {{ ref('stg_experiments') }} as experiments on experiments.experiment_id = aggregates.experiment_id
inner join {{ ref('stg_variants') }} as variants on variants.variant_id = aggregates.variant_id
