-- What a route refused whose clients read no answers: no SDK sends it again.

-- The table of this name in 0002 was never written to.
DROP TABLE rejected_events;

-- So many of a project and day are kept; all are counted below. The oldest are deleted after 30 days.
CREATE TABLE rejected_events (
    project_id  uuid NOT NULL,
    received_at timestamptz NOT NULL,
    id          uuid NOT NULL, -- a UUIDv7 of the collector
    dialect     text NOT NULL,
    key         text NOT NULL, -- the beginning of the key's digest
    code        text NOT NULL, -- of the first fault
    field       text NOT NULL, -- as the client calls it
    message     text NOT NULL,
    event       text NOT NULL, -- as it was sent, 64 KiB at most
    PRIMARY KEY (project_id, received_at, id)
);

-- By the day of receipt (UTC) and the code. The key holds the log partition, so that writers never meet; readers sum.
CREATE TABLE rejected_counts (
    project_id    uuid NOT NULL,
    day           date NOT NULL,
    code          text NOT NULL,
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    events        bigint NOT NULL,
    PRIMARY KEY (project_id, day, code, log_id, log_partition)
);

-- Bots' conversions, refunds and negative values are no conversions of a user any more: what was derived before is computed again.
INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed)
SELECT project_id, id, false FROM experiments WHERE frozen_at IS NULL
ON CONFLICT DO NOTHING;
