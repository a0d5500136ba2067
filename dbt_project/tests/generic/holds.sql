{# Every row for which the condition is false. A null is no failure: what is missing is what not_null is for. #}
{% test holds(model, condition) %}
    select *
    from {{ model }}
    where not ({{ condition }})
{% endtest %}
