-- Phases that assign everybody anew, by another salt: a user of an earlier phase stays one of it, and its later exposures count nowhere.

ALTER TABLE experiment_phases ADD COLUMN reassigns boolean NOT NULL DEFAULT false;
ALTER TABLE experiment_phases ADD CHECK (NOT reassigns OR (state = 'assigning' AND started_at IS NOT NULL));
