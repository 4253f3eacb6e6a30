-- Exposures that are other events than impressions, defined once for a project. A version is never changed: what experiments refer to
-- goes on meaning the same.

CREATE TABLE exposure_definitions (
    project_id uuid NOT NULL REFERENCES projects (id),
    name       text NOT NULL CHECK (name <> ''),
    version    integer NOT NULL CHECK (version > 0),
    definition jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, name, version)
);
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON exposure_definitions FOR EACH ROW EXECUTE FUNCTION refuse_change();

ALTER TABLE experiments ADD COLUMN exposure text; -- null: users are exposed by impressions that name experiment and variant
ALTER TABLE experiments ADD COLUMN exposure_version integer;
ALTER TABLE experiments ADD FOREIGN KEY (project_id, exposure, exposure_version)
    REFERENCES exposure_definitions (project_id, name, version);
ALTER TABLE experiments ADD CONSTRAINT experiments_exposure_check CHECK ((exposure IS NULL) = (exposure_version IS NULL));
