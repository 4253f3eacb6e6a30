//! The texts that the schema has for states, kinds and methods, each in one table: SQL, JSON and the command line all read and
//! write them here. A text that is in no table, because a newer version of Weir wrote it, is an error and never a default.

use events::rules::Unit;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

/// A text that is none of those that a column or an argument may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {text:?}; accepted: {}", known.join(", "))]
pub struct UnknownText {
    /// What was found.
    pub text: String,
    /// All texts that this version knows.
    pub known: &'static [&'static str],
}

/// Types of conversions that take something back. They count in values, and where a metric names them; where all conversions
/// are meant they are none, and so are those of a negative value.
pub const REFUND_TYPES: [&str; 2] = ["refund", "rebill"];

/// The columns whose texts are an enum's, with those texts. A test compares them with the checks of the schema.
pub const COLUMNS: &[(&str, &str, &[&str])] = &[
    ("projects", "unit", Unit::TEXTS),
    ("keys", "kind", KeyKind::TEXTS),
    ("experiments", "status", ExperimentStatus::TEXTS),
    ("experiments", "attribution_method", AttributionMethod::TEXTS),
    ("experiment_phases", "state", PhaseState::TEXTS),
    ("metrics", "aggregation", Aggregation::TEXTS),
    ("metrics", "numerator", Amount::TEXTS),
    ("metrics", "denominator", Denominator::TEXTS),
    ("metrics", "direction", Direction::TEXTS),
    ("metrics", "role", Role::TEXTS),
    ("campaigns", "status", CampaignStatus::TEXTS),
    ("campaigns", "type", CampaignType::TEXTS),
    ("campaign_components", "component_type", ComponentType::TEXTS),
    ("dead_letters", "status", DeadLetterStatus::TEXTS),
    ("event_names", "kind", EVENT_NAME_KINDS),
    ("evaluations", "period", Period::TEXTS),
    ("notices", "kind", NoticeKind::TEXTS),
    ("webhooks", "format", WebhookFormat::TEXTS),
    ("deliveries", "status", DeliveryStatus::TEXTS),
    ("event_names", "status", EventNameStatus::TEXTS),
    ("months", "state", MonthState::TEXTS),
];

/// The kinds of events that have names.
const EVENT_NAME_KINDS: &[&str] = &["conversion", "campaign_event", "engagement", "identity"];

/// Defines an enum by its texts.
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$value_doc])* $value,)* }

        impl $name {
            /// All texts, in the order of the values.
            pub const TEXTS: &'static [&'static str] = &[$($text,)*];

            /// Returns the text, as the schema has it.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownText;

            fn from_str(text: &str) -> Result<Self, UnknownText> {
                match text {
                    $($text => Ok($name::$value),)*
                    _ => Err(UnknownText { text: text.to_owned(), known: $name::TEXTS }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.pad(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                <str as Type<Postgres>>::type_info()
            }

            fn compatible(of: &PgTypeInfo) -> bool {
                <str as Type<Postgres>>::compatible(of)
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                <&str as Encode<'_, Postgres>>::encode_by_ref(&self.as_str(), buffer)
            }
        }

        impl Decode<'_, Postgres> for $name {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                Ok(<&str as Decode<'_, Postgres>>::decode(value)?.parse::<$name>()?)
            }
        }
    };
}

text_enum! {
    /// Whether events of a name are taken.
    EventNameStatus {
        /// They are.
        Allowed = "allowed",
        /// They are refused.
        Blocked = "blocked",
    }
}

text_enum! {
    /// What a key is good for.
    KeyKind {
        /// Sends what happens now; may stand in a page.
        Write = "write",
        /// Sends history too; stays on servers.
        Server = "server",
        /// Asks the query service.
        Read = "read",
    }
}

text_enum! {
    /// Where an experiment stands.
    ExperimentStatus {
        /// Not started: no exposure counts.
        Draft = "draft",
        /// Exposures count.
        Running = "running",
        /// Exposures do not count for now.
        Paused = "paused",
        /// Ended: later exposures do not count.
        Completed = "completed",
        /// Ended and put away.
        Archived = "archived",
    }
}

text_enum! {
    /// What an experiment does in a phase.
    PhaseState {
        /// Exposures begin participation.
        Assigning = "assigning",
        /// They do not.
        Paused = "paused",
    }
}

text_enum! {
    /// Which variant a conversion is credited to.
    AttributionMethod {
        /// That of the first eligible impression.
        FirstExposure = "first_exposure",
        /// That of the last eligible impression up to the conversion.
        LastExposure = "last_exposure",
    }
}

text_enum! {
    /// What a metric computes per user.
    Aggregation {
        /// Whether there was a conversion.
        ConversionRate = "conversion_rate",
        /// The sum of values.
        ValuePerUser = "value_per_user",
        /// The number of conversions.
        CountPerUser = "count_per_user",
        /// One sum over all users, divided by another.
        Ratio = "ratio",
        /// A quantile of users' sums.
        Quantile = "quantile",
        /// What a definition of the project says.
        Defined = "defined",
    }
}

text_enum! {
    /// What of a conversion is added up.
    Amount {
        /// Its value.
        Value = "value",
        /// 1.
        Count = "count",
    }
}

text_enum! {
    /// What a ratio is over.
    Denominator {
        /// Conversions.
        Conversions = "conversions",
        /// Eligible impressions of the experiment.
        Impressions = "impressions",
    }
}

text_enum! {
    /// Which way is better.
    Direction {
        /// Up.
        Increase = "increase",
        /// Down.
        Decrease = "decrease",
    }
}

text_enum! {
    /// What a metric decides.
    Role {
        /// Whether the experiment is a success.
        Primary = "primary",
        /// Nothing alone.
        Secondary = "secondary",
        /// Whether harm was done.
        Guardrail = "guardrail",
    }
}

text_enum! {
    /// Where a campaign stands.
    CampaignStatus {
        /// Not started.
        Draft = "draft",
        /// Its components are being made.
        Generating = "generating",
        /// Its components are made.
        Ready = "ready",
        /// Published.
        Launched = "launched",
        /// It runs.
        Active = "active",
        /// It does not run for now.
        Paused = "paused",
        /// Ended.
        Completed = "completed",
        /// Ended and put away.
        Archived = "archived",
    }
}

text_enum! {
    /// What a campaign is made of.
    CampaignType {
        /// One page.
        LandingPage = "landing_page",
        /// Several steps.
        Funnel = "funnel",
        /// Several mails.
        EmailSequence = "email_sequence",
        /// All of it.
        CompleteCampaign = "complete_campaign",
        /// A better part of something that exists.
        ComponentEnhancement = "component_enhancement",
    }
}

text_enum! {
    /// What a component is.
    ComponentType {
        /// A page of its own.
        LandingPage = "landing_page",
        /// A form.
        Form = "form",
        /// A page's head.
        Header = "header",
        /// A page's foot.
        Footer = "footer",
        /// What is seen first.
        HeroSection = "hero_section",
        /// What customers say.
        Testimonials = "testimonials",
        /// A table of prices.
        Pricing = "pricing",
        /// A mail.
        EmailTemplate = "email_template",
        /// What lies above a page.
        Popup = "popup",
        /// A menu.
        Navigation = "navigation",
        /// Anything else.
        Custom = "custom",
    }
}

text_enum! {
    /// What became of a record that could not be applied.
    DeadLetterStatus {
        /// It waits for somebody.
        Open = "open",
        /// The aggregator will append it to the log again.
        Replay = "replay",
        /// It was appended again.
        Replayed = "replayed",
        /// Somebody decided that it is not needed.
        Discarded = "discarded",
    }
}

text_enum! {
    /// How far a month of the fact tables is on its way into the archive or back.
    MonthState {
        /// No row is stored in it any more.
        Closed = "closed",
        /// Its files are written, and were compared with its rows.
        Archived = "archived",
        /// No query sees its rows.
        Detached = "detached",
        /// Its rows are in its files alone.
        Dropped = "dropped",
        /// Its rows are being read from its files.
        Restoring = "restoring",
        /// All its rows are back.
        Restored = "restored",
    }
}

text_enum! {
    /// After what an experiment is evaluated by itself.
    Period {
        /// A day of UTC.
        Day = "day",
        /// An hour.
        Hour = "hour",
    }
}

text_enum! {
    /// What somebody is told.
    NoticeKind {
        /// The verdict of a primary metric became another one, from or to `won` or `lost`.
        VerdictChanged = "verdict_changed",
        /// The numbers advise something else.
        DecisionChanged = "decision_changed",
        /// Harm was shown.
        GuardrailHarmed = "guardrail_harmed",
        /// The experiment was stopped because of it.
        ExperimentStopped = "experiment_stopped",
        /// A condition of the experiment's own began to hold.
        RuleMet = "rule_met",
        /// The variants do not hold the users that they should.
        SampleRatioMismatch = "sample_ratio_mismatch",
        /// All the information that was planned is there.
        PlannedSizeReached = "planned_size_reached",
        /// The experiment has no more events, while the project has.
        ExposureStopped = "exposure_stopped",
        /// The project has no more events.
        NoData = "no_data",
        /// Somebody wants to see whether it arrives.
        Test = "test",
    }
}

text_enum! {
    /// How a notice is written.
    WebhookFormat {
        /// For programs.
        Standard = "standard",
        /// For chats: a member `text` alone.
        Chat = "chat",
    }
}

text_enum! {
    /// What became of a notice on its way to a webhook.
    DeliveryStatus {
        /// It is to be sent.
        Waiting = "waiting",
        /// It has arrived.
        Delivered = "delivered",
        /// It was given up.
        Failed = "failed",
    }
}
