-- Users with more raw rows than take part in experiments: one id that many people share, a bot, a mistake.

-- How many a user may have: impressions of a variant that are no bot's and do not say that the user was not eligible, and conversions. One row.
CREATE TABLE user_rows_limit (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    rows_max  bigint NOT NULL DEFAULT 10000 CHECK (rows_max > 0)
);
INSERT INTO user_rows_limit DEFAULT VALUES;

-- Who has more has neither participation nor attribution. Written in the transaction that stores the rows, by the owner of the user's log
-- partition.
CREATE TABLE over_active_users (
    project_id  uuid NOT NULL,
    user_id     uuid NOT NULL,
    rows_max    bigint NOT NULL, -- the limit that was passed
    experiments uuid[] NOT NULL, -- where the user has such an impression; ascending
    since       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, user_id)
);

INSERT INTO over_active_users (project_id, user_id, rows_max, experiments)
SELECT project_id, user_id, 10000, coalesce(array_agg(DISTINCT exposed ORDER BY exposed) FILTER (WHERE exposed IS NOT NULL), '{}')
FROM (SELECT project_id, user_id, experiment_id AS exposed FROM impressions
      WHERE experiment_id IS NOT NULL AND variant_id IS NOT NULL AND user_was_eligible IS NOT FALSE AND NOT is_bot
      UNION ALL SELECT project_id, user_id, NULL FROM conversions) f
GROUP BY project_id, user_id HAVING count(*) > 10000;

-- Their rows of before go.
INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed)
SELECT DISTINCT e.project_id, e.id, false FROM over_active_users o
JOIN experiments e ON e.project_id = o.project_id AND e.id = ANY (o.experiments)
ON CONFLICT DO NOTHING;
