-- How an experiment decides, what follows of what it shows, and whom it leaves out.

ALTER TABLE experiments ADD COLUMN policy jsonb; -- by which rules it decides, what harm does, conditions to tell of; null: the usual one

-- Own staff: users for whose first exposure this holds take part in no answer about an experiment.
ALTER TABLE projects ADD COLUMN internal text; -- a condition in SQL on one event; null: there are none

ALTER TABLE notices DROP CONSTRAINT notices_kind_check;
ALTER TABLE notices ADD CONSTRAINT notices_kind_check CHECK (kind IN (
    'verdict_changed', 'decision_changed', 'guardrail_harmed', 'experiment_stopped', 'rule_met', 'sample_ratio_mismatch',
    'planned_size_reached', 'exposure_stopped', 'no_data', 'test'));
