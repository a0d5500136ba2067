{# Sample standard deviation from exact numeric moments; null below two values. The difference is exact: no digits are lost. #}
{% macro stddev_of(n, total, squares) -%}
    case when {{ n }} > 1 then sqrt(({{ n }} * {{ squares }} - {{ total }} * {{ total }}) / ({{ n }} * ({{ n }} - 1))) end
{%- endmacro %}

{# numerator ÷ denominator, and null where there is nothing to divide by. #}
{% macro ratio(numerator, denominator) -%}
    ({{ numerator }})::double precision / nullif({{ denominator }}, 0)
{%- endmacro %}
