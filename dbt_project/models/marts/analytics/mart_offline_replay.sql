select
    replays.replay_id,
    replays.model_name,
    replays.model_version,
    replays.baseline_model_version,
    replays.dataset_version,
    replays.status,
    replays.verdict,
    replays.is_better_than_baseline,
    replays.is_anchored,
    replays.plan_alignment_score,
    replays.constraint_respect_score,
    replays.edit_distance_score,
    replays.diversity_score,
    replays.leftovers_score,
    replays.offline_eval_score,
    (
        select string_agg(reason, '; ' order by reasons.number)
        from jsonb_array_elements_text(replays.reasons) with ordinality as reasons (reason, number)
    ) as reasons,
    replays.error_message,
    replays.mlflow_run_id,
    replays.policy_version_id,
    versions.policy_name,
    versions.version as policy_version,
    versions.status as policy_version_status,
    coalesce(versions.is_in_production, false) as is_in_production,
    row_number() over (
        partition by replays.model_name, replays.model_version
        order by replays.created_at desc, replays.replay_id
    ) = 1 as is_latest,
    replays.created_at
from {{ ref('stg_offline_replay_results') }} as replays
left join {{ ref('stg_policy_versions') }} as versions on versions.policy_version_id = replays.policy_version_id
