-- The names of events, from here on written with the events themselves; before, they had to be looked for in all daily sums.

ALTER TABLE projects ADD COLUMN takes_event_names boolean NOT NULL DEFAULT true; -- false: events with new names are refused

INSERT INTO event_names (project_id, kind, name)
SELECT DISTINCT r.project_id, r.kind, r.event
FROM daily_rollups r JOIN projects p ON p.id = r.project_id
WHERE r.kind IN ('conversion', 'engagement') AND r.event <> ''
ON CONFLICT DO NOTHING;
