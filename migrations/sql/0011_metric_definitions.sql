-- Metrics over any event, defined once for a project. A version is never changed: what experiments refer to goes on meaning the same.

CREATE TABLE metric_definitions (
    project_id uuid NOT NULL REFERENCES projects (id),
    name       text NOT NULL CHECK (name <> ''),
    version    integer NOT NULL CHECK (version > 0),
    definition jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, name, version)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % version % is referred to by experiments and never changes; define the next version instead',
        TG_TABLE_NAME, OLD.name, OLD.version;
END $$;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON metric_definitions FOR EACH ROW EXECUTE FUNCTION refuse_change();

ALTER TABLE metrics DROP CONSTRAINT metrics_aggregation_check;
ALTER TABLE metrics ADD CONSTRAINT metrics_aggregation_check CHECK (aggregation IN (
    'conversion_rate', 'value_per_user', 'count_per_user', 'ratio', 'quantile', 'defined'));
ALTER TABLE metrics ADD COLUMN definition text;
ALTER TABLE metrics ADD COLUMN definition_version integer;
ALTER TABLE metrics ADD FOREIGN KEY (project_id, definition, definition_version)
    REFERENCES metric_definitions (project_id, name, version);
ALTER TABLE metrics ADD CONSTRAINT metrics_defined_check
    CHECK ((aggregation = 'defined') = (definition IS NOT NULL AND definition_version IS NOT NULL));
