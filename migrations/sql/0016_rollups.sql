-- Rollups of projects, as declared. A version is never changed; its rows are kept in tables of its own, rollup_NUMBER and its like.

CREATE TABLE rollup_definitions (
    project_id uuid NOT NULL REFERENCES projects (id),
    name       text NOT NULL CHECK (name <> ''),
    version    integer NOT NULL CHECK (version > 0),
    definition jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, name, version)
);
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON rollup_definitions FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Those that commits add to.
CREATE TABLE rollups (
    number     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- of its tables
    project_id uuid NOT NULL,
    name       text NOT NULL,
    version    integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    filled_at  timestamptz, -- null: what was stored before it is not in it yet
    UNIQUE (project_id, name, version),
    FOREIGN KEY (project_id, name, version) REFERENCES rollup_definitions (project_id, name, version)
);

-- What was stored before: the records of a log partition below the cut. Those from there on are added by their commits.
CREATE TABLE rollup_fills (
    number        integer NOT NULL REFERENCES rollups (number) ON DELETE CASCADE,
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    next_offset   bigint NOT NULL, -- those below are filled in
    cut           bigint NOT NULL,
    PRIMARY KEY (number, log_id, log_partition)
);
