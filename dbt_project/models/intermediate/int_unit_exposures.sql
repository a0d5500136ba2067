-- A unit is exposed if it was assigned a variant and then had an event with that variant: an `exposure`, or a plan made for it.
-- A unit that an override ever showed a variant does not belong to the run's population.
select
    assignments.experiment_id,
    assignments.variant_id,
    assignments.unit_id,
    assignments.epoch,
    assignments.propensity,
    assignments.assigned_at,
    exposures.first_exposed_at
from {{ ref('stg_assignments') }} as assignments
left join (
    select
        experiment_id,
        variant_id,
        unit_id,
        min(occurred_at) as first_exposed_at
    from {{ ref('int_experiment_events') }}
    where event_type in ('exposure', 'plan_generated')
    group by experiment_id, variant_id, unit_id
) as exposures
    on exposures.experiment_id = assignments.experiment_id
    and exposures.variant_id = assignments.variant_id
    and exposures.unit_id = assignments.unit_id
where not exists (
    select
    from {{ ref('stg_overridden_units') }} as overridden
    where overridden.experiment_id = assignments.experiment_id
        and overridden.unit_id = assignments.unit_id
)
