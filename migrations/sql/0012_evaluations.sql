-- What was known of each experiment when, and who is told of what changed.

CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % says what was known then, and never changes', TG_TABLE_NAME;
END $$;

-- The answer about an experiment at the end of each day of its events, and about its guardrails at the end of an hour.
CREATE TABLE evaluations (
    project_id     uuid NOT NULL,
    experiment_id  uuid NOT NULL,
    period         text NOT NULL CHECK (period IN ('day', 'hour')),
    as_of          timestamptz NOT NULL, -- the last microsecond of the period, which counted as now
    revision       integer NOT NULL CHECK (revision > 0), -- from 2 on: events that came late changed what was found
    status         text NOT NULL,
    decision       text, -- null where nothing can be decided
    health         text NOT NULL,
    exposed_users  bigint NOT NULL,
    settings_hash  text NOT NULL,
    method_version text NOT NULL,
    answer         json NOT NULL, -- as it was given, with how far the log was stored
    changes        json NOT NULL, -- of a later revision: what it says otherwise than the one before
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, experiment_id, period, as_of, revision),
    FOREIGN KEY (project_id, experiment_id) REFERENCES experiments (project_id, id)
);
CREATE TRIGGER refuse_rewriting BEFORE UPDATE OR DELETE ON evaluations FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();

-- How far each project is evaluated: what is stored beyond it may change days that are recorded.
CREATE TABLE evaluation_progress (
    project_id uuid PRIMARY KEY REFERENCES projects (id),
    positions  jsonb NOT NULL -- next offset by log and log partition
);

-- What somebody may want to know at once. Its id follows from what it says, so that nothing is said twice.
CREATE TABLE notices (
    project_id    uuid NOT NULL,
    id            uuid NOT NULL,
    number        bigint GENERATED ALWAYS AS IDENTITY UNIQUE, -- their order
    experiment_id uuid NOT NULL,
    kind          text NOT NULL CHECK (kind IN (
        'verdict_changed', 'decision_changed', 'guardrail_harmed', 'sample_ratio_mismatch', 'planned_size_reached',
        'exposure_stopped', 'no_data', 'test')),
    body          json NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id)
);

-- Where notices are sent.
CREATE TABLE webhooks (
    project_id uuid NOT NULL REFERENCES projects (id),
    id         uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    url        text NOT NULL CHECK (url <> ''),
    format     text NOT NULL CHECK (format IN ('standard', 'chat')),
    secret     bytea NOT NULL CHECK (octet_length(secret) BETWEEN 24 AND 64), -- signs; the receiver has it, too
    kinds      text[] NOT NULL, -- of notices; empty: all
    created_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    PRIMARY KEY (project_id, id)
);

-- Each notice on its way to each webhook. Those of one experiment arrive in their order.
CREATE TABLE deliveries (
    webhook_id    uuid NOT NULL REFERENCES webhooks (id),
    number        bigint NOT NULL REFERENCES notices (number),
    experiment_id uuid NOT NULL,
    status        text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'delivered', 'failed')),
    attempts      integer NOT NULL DEFAULT 0,
    next_at       timestamptz NOT NULL DEFAULT now(),
    error         text, -- of the last attempt
    changed_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (webhook_id, number)
);
CREATE INDEX deliveries_waiting ON deliveries (webhook_id, experiment_id, number) WHERE status = 'waiting';
