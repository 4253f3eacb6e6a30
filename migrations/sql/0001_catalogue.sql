-- Who sends and reads, and what may be measured. Small tables; all of them are read far more often than written.

CREATE TABLE projects (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name              text NOT NULL UNIQUE CHECK (name <> ''),
    unit              text NOT NULL DEFAULT 'user' CHECK (unit IN ('user', 'device')),
    conversion_events text[] NOT NULL DEFAULT '{}',
    auto_register     boolean NOT NULL DEFAULT false,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- Write keys, server keys and read tokens. The text itself is shown once and never stored.
CREATE TABLE keys (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id          uuid NOT NULL REFERENCES projects (id),
    kind                text NOT NULL CHECK (kind IN ('write', 'server', 'read')),
    name                text NOT NULL DEFAULT '',
    digest              bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32), -- SHA-256 of the text
    prefix              text NOT NULL, -- its first characters, to tell keys apart in a list
    requests_per_second integer CHECK (requests_per_second > 0),
    events_per_second   integer CHECK (events_per_second > 0),
    created_at          timestamptz NOT NULL DEFAULT now(),
    expires_at          timestamptz,
    revoked_at          timestamptz
);

-- Raised with every change of a project's catalogue, under pg_advisory_xact_lock of the project's key.
-- An aggregator that resolved names against an older version resolves again before it commits.
CREATE TABLE catalogue_versions (
    project_id uuid PRIMARY KEY REFERENCES projects (id),
    version    bigint NOT NULL DEFAULT 0
);

CREATE TABLE experiments (
    project_id                uuid NOT NULL REFERENCES projects (id),
    id                        uuid NOT NULL DEFAULT gen_random_uuid(),
    name                      text NOT NULL CHECK (name <> ''),
    description               text,
    status                    text NOT NULL DEFAULT 'draft'
                              CHECK (status IN ('draft', 'running', 'paused', 'completed', 'archived')),
    is_active                 boolean NOT NULL GENERATED ALWAYS AS (status = 'running') STORED,
    started_at                timestamptz,
    ended_at                  timestamptz,
    target_sample_size        integer CHECK (target_sample_size > 0), -- users, over all variants
    confidence_level          numeric(3, 2) NOT NULL DEFAULT 0.95 CHECK (confidence_level BETWEEN 0.80 AND 0.99),
    minimum_detectable_effect numeric(5, 4) NOT NULL DEFAULT 0.05 CHECK (minimum_detectable_effect > 0), -- relative
    conversion_window_days    integer NOT NULL DEFAULT 30 CHECK (conversion_window_days BETWEEN 0 AND 3650),
    attribution_method        text NOT NULL DEFAULT 'first_exposure'
                              CHECK (attribution_method IN ('first_exposure', 'last_exposure')),
    currency                  text CHECK (currency ~ '^[A-Z]{3}$'), -- null: the only one seen
    frozen_at                 timestamptz, -- since when its rows may be in detached months
    auto_registered           boolean NOT NULL DEFAULT false,
    created_at                timestamptz NOT NULL DEFAULT now(),
    updated_at                timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id),
    UNIQUE (project_id, name)
);

CREATE TABLE variants (
    project_id    uuid NOT NULL,
    experiment_id uuid NOT NULL,
    id            uuid NOT NULL DEFAULT gen_random_uuid(),
    name          text NOT NULL CHECK (name <> ''),
    description   text,
    is_control    boolean NOT NULL DEFAULT false,
    weight        numeric(12, 6) CHECK (weight >= 0), -- null: unknown, equal shares are assumed
    config_json   jsonb,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, experiment_id, id),
    UNIQUE (project_id, experiment_id, name),
    FOREIGN KEY (project_id, experiment_id) REFERENCES experiments (project_id, id)
);
CREATE UNIQUE INDEX variants_one_control ON variants (project_id, experiment_id) WHERE is_control;

-- When an experiment assigned users, by event time, half open; the phases of one experiment follow each other.
CREATE TABLE experiment_phases (
    project_id    uuid NOT NULL,
    experiment_id uuid NOT NULL,
    phase         integer NOT NULL CHECK (phase > 0),
    state         text NOT NULL CHECK (state IN ('assigning', 'paused')),
    started_at    timestamptz, -- null: from the beginning
    ended_at      timestamptz CHECK (ended_at >= started_at), -- null: it lasts
    PRIMARY KEY (project_id, experiment_id, phase),
    FOREIGN KEY (project_id, experiment_id) REFERENCES experiments (project_id, id)
);

-- The weights in force in a phase.
CREATE TABLE phase_weights (
    project_id    uuid NOT NULL,
    experiment_id uuid NOT NULL,
    phase         integer NOT NULL,
    variant_id    uuid NOT NULL,
    weight        numeric(12, 6) CHECK (weight >= 0), -- null: unknown, equal shares are assumed
    PRIMARY KEY (project_id, experiment_id, phase, variant_id),
    FOREIGN KEY (project_id, experiment_id, phase) REFERENCES experiment_phases (project_id, experiment_id, phase),
    FOREIGN KEY (project_id, experiment_id, variant_id) REFERENCES variants (project_id, experiment_id, id)
);

-- What counts in an experiment, where its defaults do not fit.
CREATE TABLE metrics (
    project_id      uuid NOT NULL,
    experiment_id   uuid NOT NULL,
    id              uuid NOT NULL DEFAULT gen_random_uuid(),
    name            text NOT NULL CHECK (name <> ''),
    conversion_type text, -- null: any conversion
    aggregation     text NOT NULL CHECK (aggregation IN (
                        'conversion_rate', 'value_per_user', 'count_per_user', 'ratio', 'quantile')),
    numerator       text NOT NULL DEFAULT 'value' CHECK (numerator IN ('value', 'count')), -- of a ratio or quantile
    denominator     text CHECK (denominator IN ('conversions', 'impressions')), -- of a ratio
    denominator_type text, -- conversions of this name; null: of the numerator's
    quantile        numeric(4, 3) CHECK (quantile > 0 AND quantile < 1), -- of users' sums
    direction       text NOT NULL DEFAULT 'increase' CHECK (direction IN ('increase', 'decrease')),
    role            text NOT NULL DEFAULT 'secondary' CHECK (role IN ('primary', 'secondary', 'guardrail')),
    margin          numeric(5, 4) CHECK (margin >= 0), -- relative, of a guardrail
    window_days     integer CHECK (window_days BETWEEN 0 AND 3650), -- null: the experiment's
    cap             numeric(20, 6), -- of one user's sum
    cap_percentile  numeric(7, 4) CHECK (cap_percentile > 0 AND cap_percentile <= 100), -- of sums that are not 0; 100: never
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, experiment_id, id),
    UNIQUE (project_id, experiment_id, name),
    FOREIGN KEY (project_id, experiment_id) REFERENCES experiments (project_id, id),
    CHECK ((aggregation = 'ratio') = (denominator IS NOT NULL)),
    CHECK ((aggregation = 'quantile') = (quantile IS NOT NULL)),
    CHECK (denominator_type IS NULL OR denominator = 'conversions')
);

CREATE TABLE campaigns (
    project_id               uuid NOT NULL REFERENCES projects (id),
    id                       uuid NOT NULL DEFAULT gen_random_uuid(),
    name                     text NOT NULL CHECK (name <> ''),
    description              text,
    status                   text NOT NULL DEFAULT 'draft' CHECK (status IN (
                                 'draft', 'generating', 'ready', 'launched', 'active', 'paused', 'completed', 'archived')),
    type                     text CHECK (type IN (
                                 'landing_page', 'funnel', 'email_sequence', 'complete_campaign', 'component_enhancement')),
    owner_id                 uuid, -- the seeds' user_id
    product_id               uuid,
    funnel_type              text,
    affiliate_link           text,
    tracking_id              text,
    settings                 jsonb,
    platform_source          text,
    platform_source_id       text,
    target_audience          text,
    business_type            text,
    goals                    jsonb,
    brand_guidelines         text,
    performance_requirements jsonb,
    launched_at              timestamptz,
    auto_registered          boolean NOT NULL DEFAULT false,
    created_at               timestamptz NOT NULL DEFAULT now(),
    updated_at               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id),
    UNIQUE (project_id, name),
    UNIQUE (project_id, tracking_id)
);

CREATE TABLE campaign_components (
    project_id             uuid NOT NULL,
    campaign_id            uuid NOT NULL,
    id                     uuid NOT NULL DEFAULT gen_random_uuid(),
    name                   text NOT NULL CHECK (name <> ''),
    component_type         text NOT NULL DEFAULT 'custom' CHECK (component_type IN (
                               'landing_page', 'form', 'header', 'footer', 'hero_section', 'testimonials', 'pricing',
                               'email_template', 'popup', 'navigation', 'custom')),
    code                   text,
    props                  jsonb,
    css_styles             text,
    preview_url            text,
    export_formats         jsonb,
    engagement_score       numeric(5, 2),
    ai_generation_metadata jsonb,
    version                integer NOT NULL DEFAULT 1,
    parent_component_id    uuid,
    sort_order             integer NOT NULL DEFAULT 0,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, campaign_id, id),
    UNIQUE (project_id, campaign_id, name),
    FOREIGN KEY (project_id, campaign_id) REFERENCES campaigns (project_id, id)
);

-- The names that a project's events have had, and those that it refuses.
CREATE TABLE event_names (
    project_id    uuid NOT NULL REFERENCES projects (id),
    kind          text NOT NULL CHECK (kind IN ('conversion', 'campaign_event', 'engagement', 'identity')),
    name          text NOT NULL CHECK (name <> ''),
    status        text NOT NULL DEFAULT 'allowed' CHECK (status IN ('allowed', 'blocked')),
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, kind, name)
);

-- A name or an id, once used, is never given to anything else: stored rows refer to it for ever.
CREATE FUNCTION refuse_reuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION '% % is referred to by stored rows; archive it instead of deleting it', TG_TABLE_NAME, OLD.name;
    ELSIF (OLD.project_id, OLD.id, OLD.name) IS DISTINCT FROM (NEW.project_id, NEW.id, NEW.name) THEN
        RAISE EXCEPTION '% % keeps its name and id for ever; make a new one instead', TG_TABLE_NAME, OLD.name;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_reuse BEFORE UPDATE OR DELETE ON experiments FOR EACH ROW EXECUTE FUNCTION refuse_reuse();
CREATE TRIGGER refuse_reuse BEFORE UPDATE OR DELETE ON variants FOR EACH ROW EXECUTE FUNCTION refuse_reuse();
CREATE TRIGGER refuse_reuse BEFORE UPDATE OR DELETE ON campaigns FOR EACH ROW EXECUTE FUNCTION refuse_reuse();
CREATE TRIGGER refuse_reuse BEFORE UPDATE OR DELETE ON campaign_components FOR EACH ROW EXECUTE FUNCTION refuse_reuse();

-- Who changed what. Written in the transaction of the change.
CREATE TABLE audit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    actor      text NOT NULL, -- the operating system's user and the database role
    project_id uuid,
    action     text NOT NULL,
    subject    text NOT NULL,
    details    jsonb NOT NULL DEFAULT '{}'
);
