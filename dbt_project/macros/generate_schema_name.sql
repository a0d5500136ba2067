{# Schemas are called what they are called: `exp` and `analytics`, never `analytics_exp` as dbt would make of them. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
