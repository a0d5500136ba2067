{# Every row for which the condition is false. A null is not a failure: not_null checks for missing values. #}
{% test holds(model, condition) %}
    select *
    from {{ model }}
    where not ({{ condition }})
{% endtest %}
