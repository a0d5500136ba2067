{{
    config(meta={
        'dagster': {'ref': {'name': 'mart_experiment_overview'}},
        'description': 'The allocations of every started run sum to exactly 1, now and in each of its epochs.',
    })
}}
-- Checks every run that is or was served, now and in each of its epochs: otherwise some units would fall through to the last variant.
-- An epoch's variants are keys of a jsonb object, without a foreign key: the share of an unknown variant does not count.
select
    experiment_id,
    null::int as epoch,
    total_allocation
from {{ ref('mart_experiment_overview') }}
where status <> 'draft' and total_allocation <> 1

union all

select
    epochs.experiment_id,
    epochs.epoch,
    sum(allocated.value::numeric) filter (where variants.id is not null) as total_allocation
from {{ source('exp', 'allocation_epochs') }} as epochs
cross join lateral jsonb_each_text(epochs.allocations) as allocated
left join {{ source('exp', 'variants') }} as variants
    on variants.id::text = allocated.key and variants.experiment_id = epochs.experiment_id
group by epochs.experiment_id, epochs.epoch
having sum(allocated.value::numeric) filter (where variants.id is not null) is distinct from 1
