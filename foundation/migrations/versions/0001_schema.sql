CREATE SCHEMA IF NOT EXISTS exp;
CREATE SCHEMA IF NOT EXISTS planner;

CREATE FUNCTION exp.touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TABLE exp.policies (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL UNIQUE,
    description text,
    production_version_id uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE exp.policy_versions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    policy_id uuid NOT NULL REFERENCES exp.policies,
    version int NOT NULL CHECK (version >= 1),
    description text,
    mlflow_model_name varchar(255) NOT NULL,
    mlflow_model_version varchar(50) NOT NULL,
    config_defaults jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'deprecated', 'archived')),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (policy_id, version),
    UNIQUE (id, policy_id)
);
ALTER TABLE exp.policies ADD CONSTRAINT policies_production_version_fkey
    FOREIGN KEY (production_version_id, id) REFERENCES exp.policy_versions (id, policy_id);

CREATE TABLE exp.experiments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    run int NOT NULL DEFAULT 1 CHECK (run >= 1),
    description text,
    status text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'active', 'paused', 'completed')),
    unit_type text NOT NULL CHECK (unit_type IN ('user', 'household', 'session')),
    made_by text NOT NULL DEFAULT 'file' CHECK (made_by IN ('file', 'promotion')),
    -- Whose versions the variants name; null for a plain feature flag.
    policy_id uuid REFERENCES exp.policies,
    shipped_variant_id uuid,
    start_at timestamptz,
    end_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, run),
    CHECK (end_at IS NULL OR start_at IS NULL OR end_at > start_at)
);
CREATE INDEX experiments_status ON exp.experiments (status);
CREATE INDEX experiments_policy ON exp.experiments (policy_id);
-- At most one run of a name is not completed.
CREATE UNIQUE INDEX experiments_one_open_run ON exp.experiments (name) WHERE status <> 'completed';
CREATE TRIGGER experiments_touch BEFORE UPDATE ON exp.experiments
    FOR EACH ROW EXECUTE FUNCTION exp.touch_updated_at();

CREATE TABLE exp.variants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    experiment_id uuid NOT NULL REFERENCES exp.experiments ON DELETE CASCADE,
    name varchar(255) NOT NULL,
    position int NOT NULL CHECK (position >= 0),
    role text NOT NULL CHECK (role IN ('control', 'treatment', 'remainder')),
    description text,
    allocation numeric(5, 4) NOT NULL CHECK (allocation BETWEEN 0 AND 1),
    config jsonb NOT NULL DEFAULT '{}',
    withdrawn_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (experiment_id, name),
    UNIQUE (experiment_id, position),
    UNIQUE (id, experiment_id)
);
ALTER TABLE exp.experiments ADD CONSTRAINT experiments_shipped_variant_fkey
    FOREIGN KEY (shipped_variant_id, id) REFERENCES exp.variants (id, experiment_id);

CREATE TABLE exp.allocation_epochs (
    experiment_id uuid NOT NULL REFERENCES exp.experiments ON DELETE CASCADE,
    epoch int NOT NULL CHECK (epoch >= 1),
    started_at timestamptz NOT NULL DEFAULT now(),
    allocations jsonb NOT NULL,
    PRIMARY KEY (experiment_id, epoch)
);

CREATE TABLE exp.assignments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    experiment_id uuid NOT NULL REFERENCES exp.experiments,
    unit_type text NOT NULL CHECK (unit_type IN ('user', 'household', 'session')),
    unit_id varchar(255) NOT NULL CHECK (unit_id <> ''),
    variant_id uuid NOT NULL,
    epoch int NOT NULL,
    propensity numeric(5, 4) NOT NULL CHECK (propensity > 0 AND propensity <= 1),
    assigned_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (experiment_id, unit_id),
    FOREIGN KEY (variant_id, experiment_id) REFERENCES exp.variants (id, experiment_id),
    FOREIGN KEY (experiment_id, epoch) REFERENCES exp.allocation_epochs (experiment_id, epoch)
);
CREATE INDEX assignments_unit ON exp.assignments (unit_type, unit_id);
CREATE INDEX assignments_variant ON exp.assignments (variant_id);

CREATE FUNCTION exp.refuse_delete_of_assigned() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM exp.assignments WHERE experiment_id = OLD.id) THEN
        RAISE EXCEPTION 'Experiment % run % has assignments and is not deleted: complete it instead.', OLD.name, OLD.run
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER experiments_keep_assigned BEFORE DELETE ON exp.experiments
    FOR EACH ROW EXECUTE FUNCTION exp.refuse_delete_of_assigned();

-- Days are partitions, made ahead by partitions.py: a migration cannot know the installation's first day.
CREATE TABLE exp.events (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    event_type varchar(100) NOT NULL,
    unit_type text NOT NULL CHECK (unit_type IN ('user', 'household', 'session')),
    unit_id varchar(255) NOT NULL,
    experiments jsonb NOT NULL DEFAULT '[]',
    context jsonb NOT NULL DEFAULT '{}',
    metrics jsonb NOT NULL DEFAULT '{}',
    payload jsonb,
    flags text[] NOT NULL DEFAULT '{}',
    "timestamp" timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, "timestamp")
) PARTITION BY RANGE ("timestamp");
CREATE INDEX events_type_time ON exp.events (event_type, "timestamp");
CREATE INDEX events_unit ON exp.events (unit_type, unit_id, "timestamp");
CREATE INDEX events_created ON exp.events (created_at);
CREATE INDEX events_experiments ON exp.events USING gin (experiments jsonb_path_ops);

CREATE TABLE exp.offline_replay_results (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    policy_version_id uuid REFERENCES exp.policy_versions,
    mlflow_model_name varchar(255) NOT NULL,
    mlflow_model_version varchar(50) NOT NULL,
    dataset_version varchar(255) NOT NULL,
    mlflow_run_id varchar(64),
    plan_alignment_score numeric(10, 6),
    constraint_respect_score numeric(10, 6),
    edit_distance_score numeric(10, 6),
    diversity_score numeric(10, 6),
    leftovers_score numeric(10, 6),
    offline_eval_score numeric(10, 6),
    baseline_version_id uuid REFERENCES exp.policy_versions,
    baseline_model_version varchar(50) NOT NULL,
    is_better_than_baseline boolean,
    verdict text CHECK (verdict IN ('passed', 'refused', 'not_evaluated')),
    anchored boolean,
    reasons jsonb NOT NULL DEFAULT '[]',
    details jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'failed')),
    error_message text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (mlflow_model_name, mlflow_model_version, dataset_version, baseline_model_version)
);
CREATE INDEX replay_results_policy_version ON exp.offline_replay_results (policy_version_id);
CREATE INDEX replay_results_dataset ON exp.offline_replay_results (dataset_version);

CREATE TABLE exp.audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    before jsonb,
    after jsonb,
    reason text NOT NULL
);
CREATE INDEX audit_log_subject ON exp.audit_log (subject, at);
CREATE FUNCTION exp.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'exp.audit_log is append only: write a new row that corrects the old one.';
END $$;
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON exp.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION exp.refuse_change();

CREATE TABLE exp.api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL UNIQUE,
    salt bytea NOT NULL,
    hash bytea NOT NULL,
    scopes text[] NOT NULL CHECK (scopes <@ ARRAY['assign', 'ingest', 'admin', 'read']),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);

CREATE TABLE exp.imports (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind text NOT NULL,
    source text NOT NULL,
    digest text NOT NULL UNIQUE,
    counts jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE planner.recipes (
    id text PRIMARY KEY,
    title text NOT NULL,
    ingredients text[] NOT NULL DEFAULT '{}',
    prep_minutes int CHECK (prep_minutes >= 0),
    dietary_tags text[] NOT NULL DEFAULT '{}',
    servings int NOT NULL DEFAULT 1 CHECK (servings >= 1),
    cost numeric(8, 2) CHECK (cost >= 0),
    submitted date
);
CREATE TABLE planner.households (
    id text PRIMARY KEY,
    size int NOT NULL DEFAULT 1 CHECK (size >= 1),
    preferences text[] NOT NULL DEFAULT '{}',
    restrictions text[] NOT NULL DEFAULT '{}',
    region text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE planner.household_constraints (
    household_id text NOT NULL REFERENCES planner.households,
    valid_from timestamptz NOT NULL,
    budget numeric CHECK (budget >= 0),
    max_prep_time int CHECK (max_prep_time > 0),
    excluded_ingredients text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (household_id, valid_from)
);
CREATE TABLE planner.pantry_snapshots (
    household_id text NOT NULL REFERENCES planner.households,
    snapshot_time timestamptz NOT NULL,
    items jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (household_id, snapshot_time)
);
