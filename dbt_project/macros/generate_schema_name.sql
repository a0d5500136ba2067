{# Use schema names unchanged: `exp` and `analytics`, not `analytics_exp`, which is dbt's default. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
