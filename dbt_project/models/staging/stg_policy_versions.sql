select
    versions.id as policy_version_id,
    versions.policy_id,
    policies.name as policy_name,
    versions.version,
    versions.mlflow_model_name as model_name,
    versions.mlflow_model_version as model_version,
    versions.status,
    coalesce(policies.production_version_id = versions.id, false) as is_in_production,
    versions.created_at
from {{ source('exp', 'policy_versions') }} as versions
inner join {{ source('exp', 'policies') }} as policies on policies.id = versions.policy_id
