select
    versions.*,
    policies.name as policy_name,
    policies.description as policy_description
from {{ source('exp', 'policy_versions') }} as versions
inner join {{ source('exp', 'policies') }} as policies on policies.id = versions.policy_id
