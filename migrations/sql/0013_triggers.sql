-- Experiments whose analysis begins with something that users do after they were exposed.

ALTER TABLE experiments ADD COLUMN trigger jsonb; -- kind, events and condition; null: it begins with the exposure
