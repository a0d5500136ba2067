-- An event counts once for each variant that it names, even if it names the variant repeatedly. Two kinds of events never count: plans that
-- were reconstructed from a diary, and events of a unit in a run of which an override ever showed it a variant.
-- References are compared as text: an invalid UUID or an unknown variant means a flagged event, not a failed build.
select
    events.event_id,
    variants.experiment_id,
    variants.variant_id,
    events.event_type,
    events.unit_id,
    events.metrics,
    date_trunc('hour', events.occurred_at, 'UTC') as bucket_hour,
    date_trunc('day', events.occurred_at, 'UTC') as bucket_day,
    events.occurred_at,
    events.stored_at
from {{ ref('stg_events') }} as events
cross join lateral (
    select distinct
        lower(reference ->> 'experiment_id') as experiment_id,
        lower(reference ->> 'variant_id') as variant_id
    from jsonb_array_elements(events.experiments) as reference
) as carried
inner join {{ ref('stg_variants') }} as variants
    on variants.variant_id::text = carried.variant_id
    and variants.experiment_id::text = carried.experiment_id
where not events.is_reconstructed
    and not exists (
        select
        from {{ ref('stg_overridden_units') }} as overridden
        where overridden.experiment_id = variants.experiment_id
            and overridden.unit_id = events.unit_id
    )
