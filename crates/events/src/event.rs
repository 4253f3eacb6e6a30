//! What an event is.

use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::json::JsonObject;
use crate::money::Money;
use crate::repair::Repair;
use crate::time::Micros;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(out)
            }
        }
    };
}

id!(
    /// Whose event it is. Taken from the key or token of the request, never from the event.
    ProjectId
);
id!(
    /// The event's own id: the client's, or a UUIDv7 of the collector.
    EventId
);
id!(
    /// The unit that experiments randomise.
    UserId
);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A user was shown something; with an experiment and a variant it is an exposure.
    Impression,
    /// A user did what a metric counts.
    Conversion,
    /// A user met a campaign: saw, clicked, opened.
    CampaignEvent,
    /// Anything else that a user did.
    Engagement,
    /// A user was named, linked or grouped.
    Identity,
}

impl Kind {
    /// All kinds, in the order of their fact tables' names in the documents.
    pub const ALL: [Kind; 5] = [Kind::Impression, Kind::Conversion, Kind::CampaignEvent, Kind::Engagement, Kind::Identity];

    /// Returns the kind's name in requests, records and the SQL table `events`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Impression => "impression",
            Kind::Conversion => "conversion",
            Kind::CampaignEvent => "campaign_event",
            Kind::Engagement => "engagement",
            Kind::Identity => "identity",
        }
    }
}

/// When and where a user was, as far as the client tells. In an [`Event`] addresses of pages have at most 2,048 bytes, all other
/// texts 512.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // The names say it, and they are the API's.
pub struct Context {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_url: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referrer: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub screen: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub viewport: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utm_source: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utm_medium: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utm_campaign: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub city: Option<CompactString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_type: Option<CompactString>,
}

impl Context {
    /// Returns every field with its API name, in the order of the columns.
    pub fn fields_mut(&mut self) -> [(&'static str, &mut Option<CompactString>); 15] {
        [
            ("page_url", &mut self.page_url),
            ("referrer", &mut self.referrer),
            ("user_agent", &mut self.user_agent),
            ("language", &mut self.language),
            ("time_zone", &mut self.time_zone),
            ("screen", &mut self.screen),
            ("viewport", &mut self.viewport),
            ("connection", &mut self.connection),
            ("utm_source", &mut self.utm_source),
            ("utm_medium", &mut self.utm_medium),
            ("utm_campaign", &mut self.utm_campaign),
            ("country", &mut self.country),
            ("region", &mut self.region),
            ("city", &mut self.city),
            ("device_type", &mut self.device_type),
        ]
    }
}

/// What only events of one kind carry: the seeds' own columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Details {
    /// Of an impression.
    Impression(ImpressionDetails),
    /// Of a conversion.
    Conversion(ConversionDetails),
    /// A campaign event has nothing of its own.
    CampaignEvent,
    /// An engagement has nothing of its own.
    Engagement,
    /// Of an identity event.
    Identity(IdentityDetails),
}

impl Details {
    /// Returns the kind that these details belong to.
    pub fn kind(&self) -> Kind {
        match self {
            Details::Impression(_) => Kind::Impression,
            Details::Conversion(_) => Kind::Conversion,
            Details::CampaignEvent => Kind::CampaignEvent,
            Details::Engagement => Kind::Engagement,
            Details::Identity(_) => Kind::Identity,
        }
    }
}

/// What only an impression carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImpressionDetails {
    /// Milliseconds, 0 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_on_page: Option<i32>,
    /// 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scroll_depth_percent: Option<i32>,
    /// Milliseconds, 0 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_load_time: Option<i32>,
    /// Whether the user left without doing anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bounce: Option<bool>,
    /// What the client believes; participation is computed from the impressions themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_first_exposure: Option<bool>,
    /// False takes the impression out of participation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_was_eligible: Option<bool>,
    /// Why the user was eligible or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_eligibility_status: Option<JsonObject>,
    /// What the client knows of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_context: Option<JsonObject>,
}

/// What only a conversion carries. The claims about exposure and windows are kept as the client made them;
/// attribution is computed from the events themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConversionDetails {
    /// Seconds, 0 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_convert: Option<i32>,
    /// The client's claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_first_conversion_for_experiment: Option<bool>,
    /// The client's claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion_attribution_source: Option<CompactString>,
    /// The client's claim, 0 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion_window_days: Option<i32>,
    /// The client's claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_exposure_date: Option<Micros>,
    /// The client's claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion_eligibility_verified: Option<bool>,
    /// Where the traffic came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<CompactString>,
    /// By which medium.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub medium: Option<CompactString>,
    /// Who referred the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referrer_source: Option<CompactString>,
    /// What was bought, signed, finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<JsonObject>,
    /// In which situation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion_context: Option<JsonObject>,
}

/// What only an identity event carries; its name is `identify`, `alias` or `group`, its traits are the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentityDetails {
    /// The id that the user had before, of an alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_id: Option<CompactString>,
    /// The group that the user belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<CompactString>,
}

/// When the client says that it happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClaimedTime {
    /// Nothing: the first receipt is taken, and the event is marked `untimed`.
    #[default]
    Missing,
    /// An absolute time, to be parsed by [`Micros::parse`].
    Text(CompactString),
    /// Microseconds before receipt. It depends on when the event was received, so it counts as `untimed` too.
    BeforeReceipt(i64),
}

/// An event as a client's dialect delivers it: typed, but not yet checked. [`crate::rules::admit`] makes an [`Event`] of it.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The client's id of the event.
    pub event_id: Option<CompactString>,
    /// The client's id of the logged-in user.
    pub user_id: Option<CompactString>,
    /// The client's id of the device or browser.
    pub anonymous_id: Option<CompactString>,
    /// When it happened.
    pub timestamp: ClaimedTime,
    /// Whether the client, or its user agent, is a bot.
    pub is_bot: bool,
    /// The session, as the client counts them.
    pub session_id: Option<CompactString>,
    /// What it is called; for campaign events its type.
    pub name: Option<CompactString>,
    /// Name or id.
    pub experiment: Option<CompactString>,
    /// Name or id.
    pub variant: Option<CompactString>,
    /// Name or id.
    pub campaign: Option<CompactString>,
    /// Name or id.
    pub component: Option<CompactString>,
    /// A decimal, as the client wrote it.
    pub value: Option<CompactString>,
    /// ISO 4217.
    pub currency: Option<CompactString>,
    /// Page, device, place.
    pub context: Context,
    /// The kind, and what only it carries.
    pub details: Details,
    /// All the rest: a JSON object.
    pub properties: Option<JsonObject>,
    /// What was mended while the event was read.
    pub repairs: Vec<Repair>,
}

impl Draft {
    /// Makes an empty draft of a kind.
    pub fn new(details: Details) -> Self {
        Draft {
            event_id: None,
            user_id: None,
            anonymous_id: None,
            timestamp: ClaimedTime::Missing,
            is_bot: false,
            session_id: None,
            name: None,
            experiment: None,
            variant: None,
            campaign: None,
            component: None,
            value: None,
            currency: None,
            context: Context::default(),
            details,
            properties: None,
            repairs: Vec::new(),
        }
    }
}

/// An event that obeys every rule. Its identity, times and texts are fixed: a retry of the client, a spool and a
/// replay carry the same ones.
///
/// Only [`crate::rules::admit`] and [`crate::wire::decode`] make one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Whose it is.
    pub project_id: ProjectId,
    /// Its id; with project, kind, user and `claimed_at` its identity.
    pub event_id: EventId,
    /// Whether the client gave the id. An untimed event with a client's id is recognised by its user and the id alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub id_from_client: bool,
    /// The unit.
    pub user_id: UserId,
    /// The text that `user_id` was made of, where it differs from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<CompactString>,
    /// The other id of the client, or its anonymous id where that is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_id: Option<CompactString>,
    /// When the client says it happened; the first receipt if it does not say. Identity and table partition use it.
    pub claimed_at: Micros,
    /// When it happened by our clock: `claimed_at` and the client's skew. Analysis uses it.
    pub event_time: Micros,
    /// When the client says it sent the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Micros>,
    /// When the collector first received it.
    pub received_at: Micros,
    /// Whether `claimed_at` is our receipt, not the client's word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untimed: bool,
    /// Whether a server key sent it, which has a share of its own of the names that events may bring.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_server_key: bool,
    /// Whether a bot sent it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_bot: bool,
    /// The session, as the client counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<CompactString>,
    /// What it is called. Impressions have no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<CompactString>,
    /// Name or id, to be resolved against the catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<CompactString>,
    /// Name or id; only with an experiment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<CompactString>,
    /// Name or id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign: Option<CompactString>,
    /// Name or id; only with a campaign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<CompactString>,
    /// What it was worth; negative for refunds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Money>,
    /// ISO 4217, upper case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<CompactString>,
    /// Page, device, place.
    #[serde(default)]
    pub context: Context,
    /// The kind, and what only it carries.
    pub details: Details,
    /// All the rest; under `truncated` the fields that were cut, under `repaired` those that were mended, and under `repaired_from` what the
    /// client sent in their place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<JsonObject>,
}

impl Event {
    /// Returns what happened.
    pub fn kind(&self) -> Kind {
        self.details.kind()
    }

    /// Returns whether it must pass `untimed_ids` before its fact table: a retry would carry another `claimed_at`.
    pub fn is_known_by_id_alone(&self) -> bool {
        self.untimed && self.id_from_client
    }
}
