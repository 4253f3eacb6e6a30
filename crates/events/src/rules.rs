//! What a valid event is: a pure function from a draft to an event or to all that is wrong with it.

use crate::event::{ClaimedTime, Context, Details, Draft, Event, EventId, Kind, ProjectId};
use crate::identity::{self, Dialect};
use crate::json::JsonObject;
use crate::money::{Money, MoneyError};
use crate::rejection::{Code, Rejection};
use crate::time::Micros;

/// Each limit with its unit and its reason.
pub mod limits {
    use crate::time::Micros;

    /// Bytes of one event as the client wrote it: half of what brokers take by default is left for everything else.
    pub const EVENT_BYTES_MAX: usize = 64 * 1024;
    /// Bytes of a name or an id. Postgres refuses index rows over 2,704 bytes; two names share one.
    pub const NAME_BYTES_MAX: usize = 512;
    /// Bytes of a context text; longer ones are cut, since half a user agent still tells the browser.
    pub const CONTEXT_BYTES_MAX: usize = 512;
    /// Bytes of a page's address and of its referrer: click ids and campaign parameters make them long.
    pub const URL_BYTES_MAX: usize = 2_048;
    /// Levels of nesting of `properties`, itself included. Parsers in use stop between 32 and 128.
    pub const DEPTH_MAX: usize = 16;
    /// Keys in `properties`, those of nested objects included.
    pub const KEYS_MAX: usize = 256;
    /// Elements of one array.
    pub const ARRAY_LENGTH_MAX: usize = 256;
    /// Bytes of a key.
    pub const KEY_BYTES_MAX: usize = 128;
    /// Bytes of one text in `properties`.
    pub const STRING_BYTES_MAX: usize = 8 * 1024;
    /// Characters of one number: Postgres' numeric takes 131,072 digits, readers do not.
    pub const NUMBER_BYTES_MAX: usize = 64;
    /// How far back an event may lie, in microseconds: table partitions of a month are kept open for it.
    pub const AGE_MAX: i64 = 30 * Micros::DAY;
    /// How far back with a server key, in microseconds: 10 years.
    pub const BACKFILL_AGE_MAX: i64 = 3_653 * Micros::DAY;
    /// How far ahead, in microseconds: clocks are wrong.
    pub const AHEAD_MAX: i64 = Micros::HOUR;
    /// A difference of clocks below this is transit, not skew, and moves nothing, in microseconds.
    pub const SKEW_MIN: i64 = 5 * 60 * Micros::SECOND;
}

/// The types of a campaign event.
pub const CAMPAIGN_EVENT_TYPES: [&str; 8] =
    ["view", "click", "conversion", "form_submit", "email_open", "email_click", "refund", "rebill"];
/// The names of an identity event.
pub const IDENTITY_NAMES: [&str; 3] = ["identify", "alias", "group"];

/// Which id is the unit of a project's experiments, where a client gives both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// The user id, else the anonymous id.
    #[default]
    User,
    /// The anonymous id, else the user id: so exposures before a login and conversions after it belong to the same unit.
    Device,
}

impl Unit {
    /// The texts of all units, as the schema has them.
    pub const TEXTS: &'static [&'static str] = &["user", "device"];

    /// Returns the text, as the schema has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::User => "user",
            Unit::Device => "device",
        }
    }

    /// Returns the unit of a text; none if it is another text, which must not be taken for a default.
    pub fn of_text(text: &str) -> Option<Self> {
        [Unit::User, Unit::Device].into_iter().find(|unit| unit.as_str() == text)
    }
}

/// What is known of a request: the same for all its events.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext {
    /// Whose key was presented.
    pub project: ProjectId,
    /// That project's unit.
    pub unit: Unit,
    /// Whether it is a server key: these may send history.
    pub backfill: bool,
    /// The retention boundary: the end of the newest month that was detached. Nothing before it can be stored.
    pub horizon: Option<Micros>,
    /// The protocol.
    pub dialect: Dialect,
    /// When the request was received.
    pub received_at: Micros,
    /// When the client says that it sent the request.
    pub sent_at: Option<Micros>,
}

/// Checks a draft against every rule and fixes its identity, times and texts.
/// `generated_id` is a new UUIDv7, used when the client gave no id.
/// # Errors
/// Every fault found, at least one, each with its field.
pub fn admit(draft: Draft, request: &RequestContext, generated_id: EventId) -> Result<Event, Vec<Rejection>> {
    let mut faults = Faults::default();
    let kind = draft.details.kind();

    let event_id = faults.name(draft.event_id, "event_id");
    let session_id = faults.name(draft.session_id, "session_id");
    let name = faults.name(draft.name, "name");
    let experiment = faults.name(draft.experiment, "experiment");
    let variant = faults.name(draft.variant, "variant");
    let campaign = faults.name(draft.campaign, "campaign");
    let component = faults.name(draft.component, "component");
    let user = faults.user(draft.user_id, draft.anonymous_id, request);
    let times = faults.times(&draft.timestamp, request);
    let value = faults.money(draft.value.as_deref());
    let currency = faults.currency(draft.currency);
    let details = faults.details(draft.details);
    let (context, truncated) = faults.context(draft.context);
    faults.required(kind, name.as_deref(), experiment.is_some(), variant.is_some(), campaign.is_some(), component.is_some());

    let metadata = if truncated.is_empty() {
        draft.properties
    } else {
        match JsonObject::annotated(draft.properties, "truncated", &truncated) {
            Ok(metadata) => Some(metadata),
            Err(error) => faults.add(Code::InvalidJson, "properties", error.to_string()),
        }
    };
    let (Some(user), Some(times)) = (user, times) else { return Err(faults.0) };
    if !faults.0.is_empty() {
        return Err(faults.0);
    }
    Ok(Event {
        project_id: request.project,
        event_id: event_id.as_deref().map_or(generated_id, |text| identity::event_id(request.dialect, text)),
        id_from_client: event_id.is_some(),
        user_id: user.id,
        external_id: user.external_id,
        anonymous_id: user.anonymous_id,
        claimed_at: times.claimed_at,
        event_time: times.event_time,
        sent_at: request.sent_at,
        received_at: request.received_at,
        untimed: times.untimed,
        from_server_key: request.backfill,
        is_bot: draft.is_bot,
        session_id,
        name,
        experiment,
        variant,
        campaign,
        component,
        value,
        currency,
        context,
        details,
        metadata,
    })
}

/// Returns what to add to a client's clock to get ours: `received_at - sent_at`, rounded to 5 minutes so that transit
/// never reorders one device's events; 0 under 5 minutes, and without `sent_at`.
///
/// 0 as well where `sent_at` lies before `claimed_at`, the event's own time: nothing is sent before it happened, so that
/// `sent_at` was kept from an older request or set by hand, and says nothing about the clock.
pub fn skew(received_at: Micros, sent_at: Option<Micros>, claimed_at: Micros) -> i64 {
    let Some(sent_at) = sent_at.filter(|sent_at| *sent_at >= claimed_at) else { return 0 };
    let difference = received_at.0 - sent_at.0;
    if difference.abs() < limits::SKEW_MIN {
        return 0;
    }
    let half = limits::SKEW_MIN / 2;
    (difference + half * difference.signum()) / limits::SKEW_MIN * limits::SKEW_MIN
}

struct User {
    id: crate::event::UserId,
    external_id: Option<String>,
    anonymous_id: Option<String>,
}

struct Times {
    claimed_at: Micros,
    event_time: Micros,
    untimed: bool,
}

#[derive(Default)]
struct Faults(Vec<Rejection>);

impl Faults {
    fn add<T>(&mut self, code: Code, field: &str, message: impl Into<String>) -> Option<T> {
        self.0.push(Rejection::new(code, field, message));
        None
    }

    /// Checks a name or an id. It is never truncated or trimmed: then it would name something else.
    fn name(&mut self, text: Option<String>, field: &str) -> Option<String> {
        let text = text?;
        if text.is_empty() {
            return self.add(Code::Empty, field, "empty; leave the field out, or send at least one character");
        }
        if text.len() > limits::NAME_BYTES_MAX {
            let message = format!("{} bytes; at most {} are accepted", text.len(), limits::NAME_BYTES_MAX);
            return self.add(Code::TooLong, field, message);
        }
        self.text(text, field)
    }

    fn text(&mut self, text: String, field: &str) -> Option<String> {
        if text.contains('\0') {
            return self.add(Code::NulByte, field, "contains the character U+0000, which cannot be stored");
        }
        Some(text)
    }

    fn user(&mut self, user_id: Option<String>, anonymous_id: Option<String>, request: &RequestContext) -> Option<User> {
        let faults_before = self.0.len();
        // Many SDKs send an empty text where there is no user.
        let user_id = self.name(user_id.filter(|text| !text.is_empty()), "user_id");
        let anonymous_id = self.name(anonymous_id.filter(|text| !text.is_empty()), "anonymous_id");
        if self.0.len() > faults_before {
            return None;
        }
        let (unit, other) = match (request.unit, user_id, anonymous_id) {
            (_, None, None) => {
                let message = "found neither user_id nor anonymous_id; at least one is needed";
                return self.add(Code::MissingUser, "user_id", message);
            }
            (_, None, Some(anonymous)) => (anonymous.clone(), Some(anonymous)),
            (_, Some(user), None) => (user, None),
            (Unit::User, Some(user), Some(anonymous)) => (user, Some(anonymous)),
            (Unit::Device, Some(user), Some(anonymous)) => (anonymous, Some(user)),
        };
        let id = identity::user_id(request.project, &unit);
        let differs = unit != id.to_string();
        Some(User { id, external_id: differs.then_some(unit), anonymous_id: other })
    }

    fn times(&mut self, timestamp: &ClaimedTime, request: &RequestContext) -> Option<Times> {
        const FIELD: &str = "timestamp";
        let received_at = request.received_at;
        let times = match timestamp {
            ClaimedTime::Missing => Times { claimed_at: received_at, event_time: received_at, untimed: true },
            ClaimedTime::BeforeReceipt(micros) => {
                Times { claimed_at: received_at, event_time: Micros(received_at.0.saturating_sub(*micros)), untimed: true }
            }
            ClaimedTime::Text(text) => match Micros::parse(text) {
                Ok(claimed_at) => {
                    let skew = skew(received_at, request.sent_at, claimed_at);
                    Times { claimed_at, event_time: Micros(claimed_at.0 + skew), untimed: false }
                }
                Err(error) => {
                    let shown: String = text.chars().take(64).collect();
                    return self.add(Code::BadTimestamp, FIELD, format!("found {shown:?}; {error}"));
                }
            },
        };
        let age = received_at.0 - times.event_time.0;
        let age_max = if request.backfill { limits::BACKFILL_AGE_MAX } else { limits::AGE_MAX };
        if age > age_max {
            let hint = if request.backfill { "" } else { ", or 10 years with a server key" };
            let message = format!(
                "{} is {} before the event was received; at most {} are accepted{hint}",
                times.event_time,
                duration(age),
                duration(age_max)
            );
            return self.add(Code::TimestampOutOfRange, FIELD, message);
        }
        if -age > limits::AHEAD_MAX {
            let message =
                format!("{} is {} after the event was received; at most 1 hour is accepted", times.event_time, duration(-age));
            return self.add(Code::TimestampOutOfRange, FIELD, message);
        }
        if let Some(horizon) = request.horizon.filter(|horizon| times.claimed_at < *horizon) {
            let message =
                format!("{} is before {horizon}, the retention boundary; older events are no longer stored", times.claimed_at);
            return self.add(Code::BeforeHorizon, FIELD, message);
        }
        Some(times)
    }

    fn money(&mut self, value: Option<&str>) -> Option<Money> {
        let text = value?;
        text.parse().map_or_else(
            |error: MoneyError| {
                let code = match error {
                    MoneyError::NotADecimal => Code::BadValue,
                    MoneyError::TooPrecise => Code::TooPrecise,
                    MoneyError::OutOfRange => Code::ValueOutOfRange,
                };
                let shown: String = text.chars().take(64).collect();
                self.add(code, "value", format!("found {shown:?}; {error}"))
            },
            Some,
        )
    }

    fn currency(&mut self, currency: Option<String>) -> Option<String> {
        let text = currency?;
        if text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Some(text.to_ascii_uppercase());
        }
        let shown: String = text.chars().take(16).collect();
        self.add(Code::BadCurrency, "currency", format!("found {shown:?}; a code of three letters such as EUR is accepted"))
    }

    fn details(&mut self, details: Details) -> Details {
        match details {
            Details::Impression(impression) => {
                self.whole(impression.time_on_page, "time_on_page", i32::MAX);
                self.whole(impression.scroll_depth_percent, "scroll_depth_percent", 100);
                self.whole(impression.page_load_time, "page_load_time", i32::MAX);
                Details::Impression(impression)
            }
            Details::Conversion(mut conversion) => {
                self.whole(conversion.time_to_convert, "time_to_convert", i32::MAX);
                self.whole(conversion.conversion_window_days, "conversion_window_days", i32::MAX);
                let source = conversion.conversion_attribution_source.take();
                conversion.conversion_attribution_source = self.name(source, "conversion_attribution_source");
                conversion.source = self.name(conversion.source.take(), "source");
                conversion.medium = self.name(conversion.medium.take(), "medium");
                conversion.referrer_source = self.name(conversion.referrer_source.take(), "referrer_source");
                Details::Conversion(conversion)
            }
            Details::Identity(mut identity) => {
                identity.previous_id = self.name(identity.previous_id.take(), "previous_id");
                identity.group_id = self.name(identity.group_id.take(), "group_id");
                Details::Identity(identity)
            }
            other @ (Details::CampaignEvent | Details::Engagement) => other,
        }
    }

    fn whole(&mut self, number: Option<i32>, field: &str, max: i32) {
        if let Some(number) = number.filter(|number| !(0..=max).contains(number)) {
            self.add::<()>(Code::BadValue, field, format!("found {number}; whole numbers from 0 to {max} are accepted"));
        }
    }

    /// Cuts each text at a character boundary, and returns the names of those that were cut.
    fn context(&mut self, mut context: Context) -> (Context, Vec<&'static str>) {
        let mut truncated = Vec::new();
        for (field, value) in context.fields_mut() {
            let Some(mut text) = value.take().filter(|text| !text.is_empty()) else { continue };
            let bytes_max = match field {
                "page_url" | "referrer" => limits::URL_BYTES_MAX,
                _ => limits::CONTEXT_BYTES_MAX,
            };
            if text.len() > bytes_max {
                text.truncate(text.floor_char_boundary(bytes_max));
                truncated.push(field);
            }
            *value = self.text(text, field);
        }
        (context, truncated)
    }

    fn required(&mut self, kind: Kind, name: Option<&str>, experiment: bool, variant: bool, campaign: bool, component: bool) {
        let mut one_of = |accepted: &[&str]| {
            if let Some(name) = name.filter(|name| !accepted.contains(name)) {
                self.0.push(Rejection::new(
                    Code::BadValue,
                    "name",
                    format!("found {name:?}; one of {} is accepted", accepted.join(", ")),
                ));
            }
        };
        match kind {
            Kind::CampaignEvent => one_of(&CAMPAIGN_EVENT_TYPES),
            Kind::Identity => one_of(&IDENTITY_NAMES),
            Kind::Impression | Kind::Conversion | Kind::Engagement => {}
        }
        // A name that was refused above is not missing too.
        let refused = |faults: &Self, field: &str| faults.0.iter().any(|fault| fault.field == field);
        if kind != Kind::Impression && name.is_none() && !refused(self, "name") {
            self.add::<()>(Code::MissingField, "name", missing_name(kind));
        }
        if kind == Kind::CampaignEvent && !campaign && !refused(self, "campaign") {
            self.add::<()>(Code::MissingField, "campaign", "a campaign event needs the name or id of its campaign");
        }
        if variant && !experiment && !refused(self, "experiment") {
            self.add::<()>(Code::MissingField, "experiment", "a variant is given without its experiment");
        }
        if kind == Kind::Impression && experiment && !variant && !refused(self, "variant") {
            self.add::<()>(Code::MissingField, "variant", "an impression of an experiment needs the variant that was shown");
        }
        if component && !campaign && kind != Kind::CampaignEvent && !refused(self, "campaign") {
            self.add::<()>(Code::MissingField, "campaign", "a component is given without its campaign");
        }
    }
}

/// Returns the message for an event without a name.
fn missing_name(kind: Kind) -> String {
    match kind {
        Kind::Impression => "an impression needs a name".to_owned(),
        Kind::Conversion => "a conversion needs a name, such as \"purchase\"".to_owned(),
        Kind::CampaignEvent => format!("a campaign event needs a name: one of {}", CAMPAIGN_EVENT_TYPES.join(", ")),
        Kind::Engagement => "an engagement event needs a name, such as \"quiz_finished\"".to_owned(),
        Kind::Identity => format!("an identity event needs a name: one of {}", IDENTITY_NAMES.join(", ")),
    }
}

/// Says a duration in its largest unit, rounded down: enough for a person to see what is wrong.
fn duration(micros: i64) -> String {
    let units = [("year", 365 * Micros::DAY), ("day", Micros::DAY), ("hour", Micros::HOUR), ("minute", 60 * Micros::SECOND)];
    let (name, unit) =
        units.into_iter().find(|(_, unit)| micros >= 2 * unit || micros == *unit).unwrap_or(("second", Micros::SECOND));
    let count = micros / unit;
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ConversionDetails, ImpressionDetails};
    use crate::testing::{generated_id, request_context};
    use proptest::prelude::*;

    fn conversion() -> Draft {
        Draft {
            name: Some("purchase".into()),
            user_id: Some("alice".into()),
            timestamp: ClaimedTime::Text("2026-03-01T12:00:00Z".into()),
            ..Draft::new(Details::Conversion(ConversionDetails::default()))
        }
    }

    fn impression() -> Draft {
        Draft { user_id: Some("alice".into()), ..Draft::new(Details::Impression(ImpressionDetails::default())) }
    }

    /// The codes and fields of all faults of a draft, none if it is admitted.
    fn faults(draft: Draft, request: &RequestContext) -> Vec<(Code, String)> {
        match admit(draft, request, generated_id()) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.into_iter().map(|fault| (fault.code, fault.field)).collect(),
        }
    }

    fn refused(draft: Draft, expected: &[(Code, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(code, field)| (*code, (*field).to_owned())).collect();
        assert_eq!(faults(draft, &request_context()), expected);
    }

    #[test]
    fn each_rule_names_its_field() {
        refused(conversion(), &[]);
        refused(Draft { user_id: None, ..conversion() }, &[(Code::MissingUser, "user_id")]);
        refused(Draft { user_id: Some(String::new()), ..conversion() }, &[(Code::MissingUser, "user_id")]);
        refused(Draft { user_id: Some("a\0".into()), ..conversion() }, &[(Code::NulByte, "user_id")]);
        refused(Draft { event_id: Some(String::new()), ..conversion() }, &[(Code::Empty, "event_id")]);
        refused(Draft { name: Some("x".repeat(512)), ..conversion() }, &[]);
        refused(Draft { name: Some("x".repeat(513)), ..conversion() }, &[(Code::TooLong, "name")]);
        refused(Draft { name: None, ..conversion() }, &[(Code::MissingField, "name")]);
        refused(Draft { value: Some("1.0000001".into()), ..conversion() }, &[(Code::TooPrecise, "value")]);
        refused(Draft { value: Some("free".into()), ..conversion() }, &[(Code::BadValue, "value")]);
        refused(Draft { value: Some("1e15".into()), ..conversion() }, &[(Code::ValueOutOfRange, "value")]);
        refused(Draft { currency: Some("Euro".into()), ..conversion() }, &[(Code::BadCurrency, "currency")]);
        refused(Draft { variant: Some("b".into()), ..conversion() }, &[(Code::MissingField, "experiment")]);
        refused(Draft { experiment: Some("e".into()), ..impression() }, &[(Code::MissingField, "variant")]);
        let campaign_event = Draft { user_id: Some("alice".into()), ..Draft::new(Details::CampaignEvent) };
        refused(
            Draft { name: Some("stare".into()), ..campaign_event },
            &[(Code::BadValue, "name"), (Code::MissingField, "campaign")],
        );
        let depth = |percent| {
            let details = ImpressionDetails { scroll_depth_percent: Some(percent), ..Default::default() };
            Draft { details: Details::Impression(details), ..impression() }
        };
        refused(depth(100), &[]);
        refused(depth(101), &[(Code::BadValue, "scroll_depth_percent")]);
        refused(depth(-1), &[(Code::BadValue, "scroll_depth_percent")]);
        let page = Context { page_url: Some("/a\0b".into()), ..Default::default() };
        refused(Draft { context: page, ..impression() }, &[(Code::NulByte, "page_url")]);
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let draft = Draft { user_id: None, name: None, value: Some("x".into()), ..conversion() };
        refused(draft, &[(Code::MissingUser, "user_id"), (Code::BadValue, "value"), (Code::MissingField, "name")]);
    }

    /// `request_context()` receives at 2026-03-01T12:00:00Z.
    #[test]
    fn times_at_the_edges_of_what_is_accepted() {
        let check = |text: &str, backfill: bool, sent_at: Option<&str>, expected: Result<&str, Code>| {
            let sent_at = sent_at.map(|text| Micros::parse(text).expect("a constant"));
            let request = RequestContext { backfill, sent_at, ..request_context() };
            let draft = Draft { timestamp: ClaimedTime::Text(text.into()), ..conversion() };
            let found = admit(draft, &request, generated_id()).map_err(|faults| faults[0].code);
            assert_eq!(found.map(|event| event.event_time.to_string()), expected.map(str::to_owned), "{text}");
        };
        check("2026-01-30T12:00:00Z", false, None, Ok("2026-01-30T12:00:00Z"));
        check("2026-01-30T11:59:59.999999Z", false, None, Err(Code::TimestampOutOfRange));
        check("2026-01-30T11:59:59.999999Z", true, None, Ok("2026-01-30T11:59:59.999999Z"));
        check("2016-01-01T00:00:00Z", true, None, Err(Code::TimestampOutOfRange));
        check("2026-03-01T13:00:00Z", false, None, Ok("2026-03-01T13:00:00Z"));
        check("2026-03-01T13:00:00.000001Z", false, None, Err(Code::TimestampOutOfRange));
        check("yesterday", false, None, Err(Code::BadTimestamp));
        // A clock that is two hours and a minute ahead; `sent_at` shows it.
        check("2026-03-01T14:00:00Z", false, Some("2026-03-01T14:01:00Z"), Ok("2026-03-01T12:00:00Z"));
        // 4 minutes are transit.
        check("2026-03-01T11:00:00Z", false, Some("2026-03-01T11:56:00Z"), Ok("2026-03-01T11:00:00Z"));
        // Sent before it happened: not a wrong clock, so the time is not corrected, however far back.
        for sent_at in ["2026-02-15T12:00:00Z", "2026-03-01T11:30:00Z", "2026-03-01T11:59:59.999999Z", "0001-01-01T00:00:00Z"] {
            check("2026-03-01T12:00:00Z", false, Some(sent_at), Ok("2026-03-01T12:00:00Z"));
        }
        // Sent at the same time: a clock that is 14 days behind; `sent_at` shows it.
        check("2026-02-15T12:00:00Z", false, Some("2026-02-15T12:00:00Z"), Ok("2026-03-01T12:00:00Z"));
        // A clock that is ahead does not make an event acceptable that its own request does not cover.
        check("2026-03-01T14:02:00Z", false, Some("2026-03-01T14:01:00Z"), Err(Code::TimestampOutOfRange));
    }

    #[test]
    fn messages_say_what_was_found_and_what_is_accepted() {
        let draft = Draft { timestamp: ClaimedTime::Text("2031-01-01T00:00:00Z".into()), ..conversion() };
        let faults = admit(draft, &request_context(), generated_id()).expect_err("refused");
        assert_eq!(faults[0].message, "2031-01-01T00:00:00Z is 4 years after the event was received; at most 1 hour is accepted");
    }

    #[test]
    fn nothing_before_the_retention_boundary_is_accepted() {
        let horizon = Some(Micros::parse("2026-02-01T00:00:00Z").expect("a constant"));
        let check = |text: &str, expected: &[(Code, String)]| {
            let draft = Draft { timestamp: ClaimedTime::Text(text.into()), ..conversion() };
            assert_eq!(faults(draft, &RequestContext { horizon, backfill: true, ..request_context() }), expected);
        };
        check("2026-02-01T00:00:00Z", &[]);
        check("2026-01-31T23:59:59Z", &[(Code::BeforeHorizon, "timestamp".into())]);
    }

    #[test]
    fn missing_and_relative_times_are_untimed() {
        let at = |timestamp| {
            let event = admit(Draft { timestamp, ..conversion() }, &request_context(), generated_id()).expect("admitted");
            assert_eq!((event.claimed_at, event.untimed), (request_context().received_at, true));
            event.event_time.to_string()
        };
        assert_eq!(at(ClaimedTime::Missing), "2026-03-01T12:00:00Z");
        assert_eq!(at(ClaimedTime::BeforeReceipt(90 * Micros::SECOND)), "2026-03-01T11:58:30Z");
    }

    #[test]
    fn the_unit_decides_between_user_and_device() {
        let check = |unit, user: Option<&str>, anonymous: Option<&str>, expected: (&str, Option<&str>, Option<&str>)| {
            let draft = Draft { user_id: user.map(Into::into), anonymous_id: anonymous.map(Into::into), ..conversion() };
            let request = RequestContext { unit, ..request_context() };
            let event = admit(draft, &request, generated_id()).expect("admitted");
            let (of, external_id, anonymous_id) = expected;
            assert_eq!(event.user_id, identity::user_id(request.project, of));
            assert_eq!((event.external_id.as_deref(), event.anonymous_id.as_deref()), (external_id, anonymous_id));
        };
        let uuid = "6ba7b812-9dad-11d1-80b4-00c04fd430c8";
        check(Unit::User, Some("u"), Some("a"), ("u", Some("u"), Some("a")));
        check(Unit::Device, Some("u"), Some("a"), ("a", Some("a"), Some("u")));
        check(Unit::User, None, Some("a"), ("a", Some("a"), Some("a")));
        check(Unit::Device, Some("u"), None, ("u", Some("u"), None));
        check(Unit::User, Some(uuid), None, (uuid, None, None));
        check(Unit::User, Some(&uuid.to_uppercase()), None, (uuid, Some(&uuid.to_uppercase()), None));
    }

    #[test]
    fn long_context_is_cut_at_a_character_and_listed() {
        let context = Context {
            page_url: Some("é".repeat(1_025)),
            referrer: Some("r".repeat(2_048)),
            city: Some("é".repeat(300)),
            country: Some("DE".into()),
            ..Default::default()
        };
        let event = admit(Draft { context, ..conversion() }, &request_context(), generated_id()).expect("admitted");
        assert_eq!(event.context.page_url.as_deref(), Some("é".repeat(1_024).as_str()));
        assert_eq!(event.context.referrer.as_deref(), Some("r".repeat(2_048).as_str()));
        assert_eq!(event.context.city.as_deref(), Some("é".repeat(256).as_str()));
        assert_eq!(event.context.country.as_deref(), Some("DE"));
        assert_eq!(event.metadata.expect("lists the cut fields").get(), r#"{"truncated":["page_url","city"]}"#);
    }

    /// Metadata that ends with several braces, and a client's own property of the annotation's name.
    #[test]
    fn cutting_the_context_leaves_the_properties_whole() {
        let properties = r#"{"truncated":"mine","library":{"name":"x","more":{"version":"1"}}}"#;
        let context = Context { user_agent: Some("x".repeat(600)), ..Default::default() };
        let properties = Some(JsonObject::parse(properties.to_owned(), "properties").expect("valid"));
        let event = admit(Draft { context, properties, ..conversion() }, &request_context(), generated_id()).expect("admitted");
        let expected = r#"{"client_truncated":"mine","library":{"name":"x","more":{"version":"1"}},"truncated":["user_agent"]}"#;
        assert_eq!(event.metadata.expect("kept").get(), expected);
    }

    proptest! {
        /// Of two events of one device in one request the earlier stays the earlier, whatever its clock says.
        #[test]
        fn skew_keeps_the_order(
            received in 0i64..4_000_000_000_000_000,
            sent in 0i64..4_000_000_000_000_000,
            before in 0i64..4_000_000_000_000_000,
        ) {
            let found = skew(Micros(received), Some(Micros(sent)), Micros(sent - before));
            prop_assert_eq!(found % limits::SKEW_MIN, 0);
            prop_assert!((received - sent - found).abs() < limits::SKEW_MIN);
            prop_assert_eq!(skew(Micros(received), Some(Micros(sent)), Micros(sent + before + 1)), 0);
        }
    }
}
