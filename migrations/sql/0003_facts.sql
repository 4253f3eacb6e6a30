-- Facts: one row per event, stored exactly once, never changed. No foreign keys: a fact is what was sent.
--
-- Names and meaning follow the seeds. Identity is (project, user, claimed_at, id), all of it from the event's own bytes, so that
-- a retry lands in the same table partition and meets the same unique key; the key begins with the user, so that it finds a
-- user's rows as well. Every column that an index holds is bounded by the collector's rules.
-- The columns are declared once more in `events::fact`, which COPY and queries are made of; a test holds both together.

-- What every fact table has.
CREATE TABLE facts (
    project_id         uuid NOT NULL,
    user_id            uuid NOT NULL,
    claimed_at         timestamptz NOT NULL, -- when the client says it happened; of an untimed event its first receipt
    id                 uuid NOT NULL,
    event_time         timestamptz NOT NULL, -- claimed_at by our clock: what analysis uses, the seeds' own time
    received_at        timestamptz NOT NULL,
    sent_at            timestamptz,
    log_offset         bigint NOT NULL,
    log_id             uuid NOT NULL,
    log_partition      integer NOT NULL,
    untimed            boolean NOT NULL,
    is_bot             boolean NOT NULL,
    external_id        text,
    anonymous_id       text,
    session_identifier text,
    page_url           text,
    referrer           text,
    user_agent         text,
    language_code      text,
    time_zone          text,
    screen_resolution  text,
    viewport_size      text,
    connection_type    text,
    utm_source         text,
    utm_medium         text,
    utm_campaign       text,
    country_code       text,
    region             text,
    city               text,
    device_type        text,
    metadata           jsonb
);

CREATE TABLE impressions (
    LIKE facts,
    experiment_id               uuid,
    variant_id                  uuid,
    time_on_page                integer CHECK (time_on_page >= 0), -- milliseconds
    scroll_depth_percent        integer CHECK (scroll_depth_percent BETWEEN 0 AND 100),
    page_load_time              integer CHECK (page_load_time >= 0), -- milliseconds
    bounce                      boolean,
    is_first_exposure           boolean, -- the client's claim
    user_was_eligible           boolean,
    user_eligibility_status     jsonb,
    user_context                jsonb,
    PRIMARY KEY (project_id, user_id, claimed_at, id)
) PARTITION BY RANGE (claimed_at);

CREATE TABLE conversions (
    LIKE facts,
    experiment_id               uuid,
    variant_id                  uuid,
    campaign_id                 uuid,
    component_id                uuid,
    conversion_type             text NOT NULL,
    conversion_value            numeric(20, 6), -- negative for refunds
    currency                    text CHECK (currency ~ '^[A-Z]{3}$'),
    source                      text,
    medium                      text,
    referrer_source             text,
    time_to_convert             integer CHECK (time_to_convert >= 0), -- seconds, the client's claim as the next five
    is_first_conversion_for_experiment boolean,
    conversion_attribution_source text,
    conversion_window_days      integer CHECK (conversion_window_days >= 0),
    original_exposure_date      timestamptz,
    conversion_eligibility_verified boolean,
    details                     jsonb,
    conversion_context          jsonb,
    PRIMARY KEY (project_id, user_id, claimed_at, id)
) PARTITION BY RANGE (claimed_at);

CREATE TABLE campaign_events (
    LIKE facts,
    campaign_id                 uuid,
    component_id                uuid,
    event_type                  text NOT NULL CHECK (event_type IN (
                                    'view', 'click', 'conversion', 'form_submit', 'email_open', 'email_click', 'refund', 'rebill')),
    revenue                     numeric(20, 6),
    currency                    text CHECK (currency ~ '^[A-Z]{3}$'),
    PRIMARY KEY (project_id, user_id, claimed_at, id)
) PARTITION BY RANGE (claimed_at);

CREATE TABLE engagement_events (
    LIKE facts,
    experiment_id               uuid,
    variant_id                  uuid,
    event_type                  text NOT NULL,
    PRIMARY KEY (project_id, user_id, claimed_at, id)
) PARTITION BY RANGE (claimed_at);

CREATE TABLE identity_events (
    LIKE facts,
    event_type                  text NOT NULL CHECK (event_type IN ('identify', 'alias', 'group')),
    previous_id                 text,
    group_id                    text,
    PRIMARY KEY (project_id, user_id, claimed_at, id)
) PARTITION BY RANGE (claimed_at);

DROP TABLE facts;

-- The tail behind a cut of the log: rows lie in the order of their offsets, so a block range is enough.
CREATE INDEX impressions_by_offset ON impressions USING brin (log_offset) WITH (autosummarize = on);
CREATE INDEX conversions_by_offset ON conversions USING brin (log_offset) WITH (autosummarize = on);
CREATE INDEX campaign_events_by_offset ON campaign_events USING brin (log_offset) WITH (autosummarize = on);
CREATE INDEX engagement_events_by_offset ON engagement_events USING brin (log_offset) WITH (autosummarize = on);
CREATE INDEX identity_events_by_offset ON identity_events USING brin (log_offset) WITH (autosummarize = on);

-- For months that nobody made.
CREATE TABLE impressions_default PARTITION OF impressions DEFAULT;
CREATE TABLE conversions_default PARTITION OF conversions DEFAULT;
CREATE TABLE campaign_events_default PARTITION OF campaign_events DEFAULT;
CREATE TABLE engagement_events_default PARTITION OF engagement_events DEFAULT;
CREATE TABLE identity_events_default PARTITION OF identity_events DEFAULT;
