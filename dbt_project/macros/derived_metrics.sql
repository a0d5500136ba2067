{# Metrics that metric_aggregates derives itself: an event's own number with such a name is not counted. #}
{% macro derived_metrics() -%}
    {{ return(['acceptance_rate', 'avg_edits_per_plan', 'validator_intervention_rate', 'cost_per_plan',
               'latency_p50', 'latency_p95', 'latency_p99']) }}
{%- endmacro %}

{# The id of an aggregate, which depends only on its key, not on the machine or the time zone. #}
{% macro aggregate_id() -%}
    md5(concat_ws('|', experiment_id, variant_id, metric_name, bucket_type, extract(epoch from bucket_start)::bigint))::uuid
{%- endmacro %}

{# Whether a UTC day is in the requested backfill (vars recompute_from, recompute_to). #}
{% macro in_backfill(column) -%}
    {%- set first, last = var('recompute_from'), var('recompute_to') -%}
    {%- if first is none and last is none -%} false
    {%- else -%} true
        {%- if first is not none %} and {{ column }} >= '{{ first }}'::date::timestamp at time zone 'UTC'{% endif -%}
        {%- if last is not none %} and {{ column }} < ('{{ last }}'::date + 1)::timestamp at time zone 'UTC'{% endif -%}
    {%- endif -%}
{%- endmacro %}
