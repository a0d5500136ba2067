{# Sample standard deviation from exact numeric moments; null below two values. The subtraction is exact, so no digits are lost. #}
{% macro stddev_of(n, total, squares) -%}
    case when {{ n }} > 1 then sqrt(({{ n }} * {{ squares }} - {{ total }} * {{ total }}) / ({{ n }} * ({{ n }} - 1))) end
{%- endmacro %}

{# numerator ÷ denominator; null if the denominator is 0 or null. #}
{% macro ratio(numerator, denominator) -%}
    ({{ numerator }})::double precision / nullif({{ denominator }}, 0)
{%- endmacro %}
