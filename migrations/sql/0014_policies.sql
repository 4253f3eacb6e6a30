-- How an experiment decides, and what follows of what it shows.

ALTER TABLE experiments ADD COLUMN policy jsonb; -- by which rules it decides, what harm does, conditions to tell of; null: the usual one

ALTER TABLE notices DROP CONSTRAINT notices_kind_check;
ALTER TABLE notices ADD CONSTRAINT notices_kind_check CHECK (kind IN (
    'verdict_changed', 'decision_changed', 'guardrail_harmed', 'experiment_stopped', 'rule_met', 'sample_ratio_mismatch',
    'planned_size_reached', 'exposure_stopped', 'no_data', 'test'));
