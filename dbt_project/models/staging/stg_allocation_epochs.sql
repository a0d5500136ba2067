-- One row per epoch and variant; the table has one row per epoch with all its allocations.
select
    epochs.experiment_id,
    epochs.epoch,
    allocated.key::uuid as variant_id,
    allocated.value::numeric(5, 4) as allocation,
    epochs.started_at
from {{ source('exp', 'allocation_epochs') }} as epochs
cross join lateral jsonb_each_text(epochs.allocations) as allocated
