{#
  The incremental strategy `changes_only`. The model selects the differences from the table: new and changed rows, and each row to delete,
  with a null count. Unchanged rows are not touched and keep their created_at. Runs in one transaction.
#}
{% macro get_incremental_changes_only_sql(arg_dict) %}
    {%- set columns = get_quoted_csv(arg_dict["dest_columns"] | map(attribute="name")) -%}

    delete from {{ arg_dict["target_relation"] }} as old
    using {{ arg_dict["temp_relation"] }} as change
    where old.id = change.id;

    insert into {{ arg_dict["target_relation"] }} ({{ columns }})
    select {{ columns }}
    from {{ arg_dict["temp_relation"] }}
    where "count" is not null
{% endmacro %}
