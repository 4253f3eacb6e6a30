-- How far each project and each experiment is, apart from all others.

-- What of a project was stored from a log partition. Written in the transaction that moves the checkpoint, whose row lock keeps
-- these rows to one writer.
CREATE TABLE project_progress (
    project_id    uuid NOT NULL,
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    records       bigint NOT NULL, -- of the project that were passed
    event_time    timestamptz, -- of the newest event stored, each counted up to its receipt at most
    PRIMARY KEY (project_id, log_id, log_partition)
) WITH (fillfactor = 50); -- room for a row's next version beside it

INSERT INTO project_progress (project_id, log_id, log_partition, records, event_time)
SELECT project_id, log_id, log_partition, count(*), max(least(event_time, received_at))
FROM (SELECT project_id, log_id, log_partition, event_time, received_at FROM impressions
      UNION ALL SELECT project_id, log_id, log_partition, event_time, received_at FROM conversions
      UNION ALL SELECT project_id, log_id, log_partition, event_time, received_at FROM campaign_events
      UNION ALL SELECT project_id, log_id, log_partition, event_time, received_at FROM engagement_events
      UNION ALL SELECT project_id, log_id, log_partition, event_time, received_at FROM identity_events) f
GROUP BY project_id, log_id, log_partition;

ALTER TABLE checkpoints DROP COLUMN event_time;

-- Experiments whose participation and attribution are not up to date: commits leave both alone, until a recomputation has caught up.
CREATE TABLE experiments_behind (
    project_id    uuid NOT NULL,
    experiment_id uuid NOT NULL,
    -- false: no recomputation has begun; a service that could not read the experiment's rules stored facts of it.
    -- true: one has, so commits list the users whose facts they store.
    is_recomputed boolean NOT NULL,
    since         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, experiment_id),
    FOREIGN KEY (project_id, experiment_id) REFERENCES experiments (project_id, id)
);

-- Users with facts stored since the recomputation of an experiment began.
CREATE TABLE users_behind (
    project_id    uuid NOT NULL,
    experiment_id uuid NOT NULL,
    user_id       uuid NOT NULL,
    PRIMARY KEY (project_id, experiment_id, user_id)
);

ALTER TABLE untimed_ids ADD COLUMN content bigint; -- what tells the first event of this id from others; null: it came before

-- Records whose identity is stored with other content, by the day of their receipt (UTC): all are counted here, as dead letters so many
-- are kept. The key holds the log partition, so that writers never meet; readers sum.
CREATE TABLE id_conflicts (
    project_id    uuid NOT NULL,
    day           date NOT NULL,
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    records       bigint NOT NULL,
    PRIMARY KEY (project_id, day, log_id, log_partition)
);
