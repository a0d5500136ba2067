-- Acknowledged events that PostgreSQL refused every time they were tried: kept with the error until a person replays or drops them.
CREATE TABLE exp.dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL,
    "timestamp" timestamptz NOT NULL,
    -- The event as JSON in UTF-8. Bytes, since text and jsonb may be what refuses it.
    event bytea NOT NULL,
    error text NOT NULL,
    tries int NOT NULL CHECK (tries >= 1),
    received_at timestamptz NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (event_id, "timestamp")
);

-- The archive reads an hour in slices of time; a block range index costs inserts nothing and finds them where events come in about their order.
CREATE INDEX events_time ON exp.events USING brin ("timestamp") WITH (pages_per_range = 32, autosummarize = on);

-- What the archive holds of each hour of exp.events (and of each month of history, at its first hour), as it was last written and counted.
CREATE TABLE exp.archived_hours (
    hour timestamptz PRIMARY KEY,
    -- Events in PostgreSQL then, and in the file, which also holds what PostgreSQL no longer does.
    database_rows bigint NOT NULL CHECK (database_rows >= 0),
    file_rows bigint NOT NULL CHECK (file_rows >= database_rows),
    -- Sum of both 64-bit halves of the ids (eventlog/archive/counting.py): of the events in PostgreSQL, and of those in the file.
    checksum numeric NOT NULL,
    file_checksum numeric NOT NULL,
    first_event timestamptz,
    last_event timestamptz,
    key text NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    -- Events came since that are not in the file.
    late boolean NOT NULL DEFAULT false,
    archived_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX archived_hours_late ON exp.archived_hours (hour) WHERE late;
-- Up to when events came that were looked at for lateness.
CREATE TABLE exp.archive_watch (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    seen_until timestamptz NOT NULL
);
INSERT INTO exp.archive_watch (seen_until) VALUES (now());

-- Days brought back from the archive: retention leaves them alone until then.
CREATE TABLE exp.restored_days (
    day date PRIMARY KEY,
    rows bigint NOT NULL,
    restored_at timestamptz NOT NULL DEFAULT now(),
    keep_until timestamptz NOT NULL
);

-- Erased units, by a salted hash: what still lies in a spool, a dead letter or a backup of theirs is not stored again.
CREATE TABLE exp.erasure_salt (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    salt bytea NOT NULL DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')
);
INSERT INTO exp.erasure_salt DEFAULT VALUES;
CREATE TABLE exp.erased_units (
    -- sha256 of the salt, then `unit_type:unit_id` in UTF-8.
    unit_hash bytea PRIMARY KEY,
    erased_at timestamptz NOT NULL DEFAULT now(),
    -- What stands for the unit from now on, as long as its erasure is not through: then nothing ties the two together any more.
    pseudonym uuid
);
-- Days of which events were erased: what dbt made of them is made anew, as long as the partition that held them is there.
CREATE TABLE exp.erased_days (
    day timestamptz PRIMARY KEY,
    partition text NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now()
);
