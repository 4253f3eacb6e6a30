-- How far the logs are stored, and who may store.

-- Each log that was ever used. Its number of log partitions is part of what it is.
CREATE TABLE logs (
    log_id         uuid PRIMARY KEY,
    log_partitions integer NOT NULL CHECK (log_partitions > 0 AND 64 % log_partitions = 0),
    first_used_at  timestamptz NOT NULL DEFAULT now(),
    last_used_at   timestamptz NOT NULL DEFAULT now() -- the newest one is the present one
);

-- The next offset to read. Moved only by the owner of the lease, in the transaction that stores the rows before it.
CREATE TABLE checkpoints (
    log_id        uuid NOT NULL REFERENCES logs (log_id),
    log_partition integer NOT NULL CHECK (log_partition >= 0),
    next_offset   bigint NOT NULL DEFAULT 0 CHECK (next_offset >= 0),
    last_crc      bigint, -- CRC-32C of the record before next_offset; null before the first one
    epoch         bigint NOT NULL DEFAULT 0,
    event_time    timestamptz, -- the newest one stored from here
    change_seq    bigint NOT NULL DEFAULT 0, -- raised by every transaction that writes participation or attribution
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (log_id, log_partition)
);

-- Who stores a log partition. Never the checkpoint's row: a heartbeat must not wait for a transaction.
CREATE TABLE leases (
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    owner         uuid, -- a worker's own id; null when it was given back
    epoch         bigint NOT NULL DEFAULT 0,
    counter       bigint NOT NULL DEFAULT 0, -- the heartbeat
    writer_pid    integer, -- the backend of the owner's writing connection ..
    writer_start  timestamptz, -- .. and its backend_start, since pids are used again
    PRIMARY KEY (log_id, log_partition),
    FOREIGN KEY (log_id, log_partition) REFERENCES checkpoints (log_id, log_partition)
);

-- The processes that share a log's partitions, so that each takes no more than its share. Rows of the dead are removed by the
-- living.
CREATE TABLE aggregators (
    log_id  uuid NOT NULL REFERENCES logs (log_id),
    owner   uuid NOT NULL,
    counter bigint NOT NULL DEFAULT 0, -- the heartbeat
    PRIMARY KEY (log_id, owner)
);

-- Entered the log and could not be applied. Nothing of it is lost.
CREATE TABLE dead_letters (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id    uuid, -- null where not even that could be read
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    log_offset    bigint NOT NULL,
    code          text NOT NULL,
    subject       text, -- the unknown name, where there is one
    reason        text NOT NULL,
    sqlstate      text,
    bytes         bytea NOT NULL, -- as in the log
    status        text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replay', 'replayed', 'discarded')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (log_id, log_partition, log_offset)
);
CREATE INDEX dead_letters_replay ON dead_letters (created_at) WHERE status = 'replay';
CREATE INDEX dead_letters_open ON dead_letters (project_id, code, subject) WHERE status = 'open';

-- Events whose time is our receipt: a client's retry carries another one, so that user and id alone decide.
CREATE TABLE untimed_ids (
    project_id uuid NOT NULL,
    kind       smallint NOT NULL,
    user_id    uuid NOT NULL,
    event_id   uuid NOT NULL,
    PRIMARY KEY (project_id, kind, user_id, event_id)
);

-- Never entered a fact table, since a rule was broken where no client would send it again. It came through the log like all else.
CREATE TABLE rejected_events (
    project_id    uuid NOT NULL,
    received_at   timestamptz NOT NULL,
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    log_offset    bigint NOT NULL,
    key_id        uuid NOT NULL, -- the key that it came with
    dialect       text NOT NULL,
    code          text NOT NULL,
    field         text NOT NULL,
    reason        text NOT NULL,
    bytes         bytea NOT NULL CHECK (octet_length(bytes) <= 65536), -- as the client wrote them
    PRIMARY KEY (project_id, received_at, log_id, log_partition, log_offset)
);

-- End of the newest month that was ever detached. Rows before it are in segments only, and no new ones are taken.
CREATE TABLE horizon (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    until     timestamptz
);
INSERT INTO horizon DEFAULT VALUES;
