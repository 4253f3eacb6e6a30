-- Derived: pure functions of facts and catalogue, recomputed for the keys that new facts touch.

CREATE TABLE user_experiment_participation (
    project_id               uuid NOT NULL,
    id                       uuid NOT NULL, -- UUIDv5 of the unique key
    user_id                  uuid NOT NULL,
    experiment_id            uuid NOT NULL,
    variant_id               uuid NOT NULL, -- of the first eligible impression
    first_exposure_date      timestamptz NOT NULL, -- its event_time
    first_impression_id      uuid NOT NULL,
    total_impressions        bigint NOT NULL CHECK (total_impressions > 0), -- eligible ones
    variants_seen            uuid[] NOT NULL, -- of eligible ones, sorted
    was_eligible_at_exposure boolean NOT NULL DEFAULT true,
    eligibility_criteria     jsonb NOT NULL DEFAULT '{}',
    has_converted            boolean NOT NULL,
    first_conversion_date    timestamptz CHECK (first_conversion_date >= first_exposure_date),
    conversion_within_window boolean NOT NULL,
    created_at               timestamptz NOT NULL DEFAULT now(),
    updated_at               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, experiment_id, user_id)
) WITH (fillfactor = 70); -- room for a row's next version beside it, so that its index entry stays

CREATE TABLE conversion_attribution (
    project_id                  uuid NOT NULL,
    id                          uuid NOT NULL, -- UUIDv5 of the unique key
    user_id                     uuid NOT NULL,
    conversion_id               uuid NOT NULL,
    conversion_claimed_at       timestamptz NOT NULL,
    conversion_time             timestamptz NOT NULL, -- its event_time
    conversion_type             text NOT NULL,
    experiment_id               uuid NOT NULL,
    variant_id                  uuid NOT NULL,
    attribution_method          text NOT NULL,
    attribution_confidence      numeric(3, 2) NOT NULL CHECK (attribution_confidence BETWEEN 0 AND 1),
    time_to_conversion_hours    integer NOT NULL CHECK (time_to_conversion_hours >= 0),
    conversion_value_attributed numeric(20, 6),
    currency                    text,
    created_at                  timestamptz NOT NULL DEFAULT now(),
    updated_at                  timestamptz NOT NULL DEFAULT now(),
    -- Unique by project, conversion and experiment: a conversion has one user. The user stands here so that one index
    -- serves both the key and the rows of a user in an experiment.
    PRIMARY KEY (project_id, experiment_id, user_id, conversion_id, conversion_claimed_at)
);

-- Sums for lists and dashboards. The key holds the log partition, so that writers never meet; readers sum.
CREATE TABLE daily_rollups (
    project_id    uuid NOT NULL,
    day           date NOT NULL, -- of event_time, UTC
    kind          text NOT NULL,
    event         text NOT NULL, -- the name; 'impression' for impressions
    experiment_id uuid,
    variant_id    uuid,
    campaign_id   uuid,
    component_id  uuid,
    currency      text,
    is_bot        boolean NOT NULL,
    log_id        uuid NOT NULL,
    log_partition integer NOT NULL,
    events        bigint NOT NULL,
    value         numeric NOT NULL,
    UNIQUE NULLS NOT DISTINCT (project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id, currency,
                               is_bot, log_id, log_partition)
);
