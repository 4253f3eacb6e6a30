-- Months of the fact tables that leave the database for an archive, and come back from it.

-- How long rows are kept here. One row.
CREATE TABLE retention (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    months_kept integer CHECK (months_kept BETWEEN 2 AND 1200), -- whole months before the present one; null: all
    held_month  date, -- the oldest month that is due and has to stay for now ..
    held_by     text, -- .. and why
    changed_at  timestamptz NOT NULL DEFAULT now()
);
INSERT INTO retention DEFAULT VALUES;

-- Each month that ever began to leave. A step is done when its state is stored, so that whoever finds a state goes on from there:
-- closed: no row is stored in it any more; archived: its files are written and were compared with its rows; detached: no query sees its
-- rows; dropped: they are in the files alone; restoring: they are being read from there; restored: all of them are back.
CREATE TABLE months (
    month      date PRIMARY KEY CHECK (extract(day FROM month) = 1), -- of claimed_at, UTC
    state      text NOT NULL CHECK (state IN ('closed', 'archived', 'detached', 'dropped', 'restoring', 'restored')),
    projects   uuid[] NOT NULL DEFAULT '{}', -- that have rows in it, ascending; known from archived on
    folder     text, -- where its files were written
    problem    text, -- why it does not go on
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- What was archived of a fact table's month; none of one that had no table partition.
CREATE TABLE month_files (
    month      date NOT NULL REFERENCES months (month),
    fact_table text NOT NULL,
    file       text NOT NULL, -- below the folder
    rows       bigint NOT NULL CHECK (rows >= 0),
    bytes      bigint NOT NULL CHECK (bytes > 0),
    sha256     bytea NOT NULL CHECK (octet_length(sha256) = 32), -- of the file
    PRIMARY KEY (month, fact_table)
);

-- Months whose rows no query sees, ascending, each with the projects that have some. It stands beside the retention boundary since readers
-- of earlier schemas know that row.
ALTER TABLE horizon ADD COLUMN months_away jsonb NOT NULL DEFAULT '[]';

CREATE FUNCTION show_months_away() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE horizon SET months_away = (
        SELECT coalesce(jsonb_agg(jsonb_build_object('month', to_char(month, 'YYYY-MM'), 'projects', to_jsonb(projects))
                                  ORDER BY month), '[]')
        FROM months WHERE state IN ('detached', 'dropped', 'restoring'));
    RETURN NULL;
END $$;
CREATE TRIGGER show_months_away AFTER INSERT OR UPDATE OR DELETE ON months FOR EACH STATEMENT EXECUTE FUNCTION show_months_away();
