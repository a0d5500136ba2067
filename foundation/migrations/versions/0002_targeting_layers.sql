CREATE TABLE exp.layers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL UNIQUE,
    description text,
    -- The layer's first buckets, whose units get none of its experiments.
    holdout numeric(5, 4) NOT NULL DEFAULT 0 CHECK (holdout BETWEEN 0 AND 1),
    created_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE exp.experiments
    ADD COLUMN targeting text CHECK (targeting <> ''),
    ADD COLUMN layer_id uuid REFERENCES exp.layers,
    -- Buckets of the layer from layer_from on, before layer_to.
    ADD COLUMN layer_from int,
    ADD COLUMN layer_to int,
    -- unit_id → name of the variant that it is shown, for looking at it: never stored, never analysed.
    ADD COLUMN overrides jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(overrides) = 'object'),
    ADD CONSTRAINT experiments_layer_range_check CHECK (
        CASE WHEN layer_id IS NULL THEN layer_from IS NULL AND layer_to IS NULL
             ELSE coalesce(0 <= layer_from AND layer_from < layer_to AND layer_to <= 10000, false) END
    );
CREATE INDEX experiments_layer ON exp.experiments (layer_id);

-- Who was ever shown a variant by an override counts in no analysis of that run, whatever becomes of the override.
CREATE TABLE exp.overridden_units (
    experiment_id uuid NOT NULL REFERENCES exp.experiments ON DELETE CASCADE,
    unit_id text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (experiment_id, unit_id)
);
CREATE FUNCTION exp.note_overridden_units() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO exp.overridden_units (experiment_id, unit_id)
    SELECT NEW.id, unit_id FROM jsonb_object_keys(NEW.overrides) AS unit_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER experiments_note_overridden AFTER INSERT OR UPDATE OF overrides ON exp.experiments
    FOR EACH ROW EXECUTE FUNCTION exp.note_overridden_units();

-- Who could be enrolled changes with the rule, so a new rule opens an epoch.
ALTER TABLE exp.allocation_epochs ADD COLUMN targeting text;

-- After a rotation the key from before works until previous_until.
ALTER TABLE exp.api_keys
    ADD COLUMN previous_salt bytea,
    ADD COLUMN previous_hash bytea,
    ADD COLUMN previous_until timestamptz;

-- Whoever changes what is served, by whatever means, tells every instance of the API at its commit.
CREATE FUNCTION exp.tell_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('exp_changes', TG_TABLE_NAME);
    RETURN NULL;
END $$;
CREATE TRIGGER experiments_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.experiments
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();
CREATE TRIGGER variants_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.variants
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();
CREATE TRIGGER allocation_epochs_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.allocation_epochs
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();
CREATE TRIGGER layers_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.layers
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();
CREATE TRIGGER policies_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.policies
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();
CREATE TRIGGER policy_versions_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.policy_versions
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();
CREATE TRIGGER api_keys_tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON exp.api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION exp.tell_of_change();

-- Every enrolment pays for these. The reference to the run follows from the one to its variant; a variant's rows are found by its run.
ALTER TABLE exp.assignments DROP CONSTRAINT assignments_experiment_id_fkey;
DROP INDEX exp.assignments_variant;
