//! What a valid event is: a pure function from a draft to an event or to all that is wrong with it.

use crate::digits;
use crate::event::{ClaimedTime, Context, Details, Draft, Event, EventId, Kind, ProjectId};
use crate::identity::{self, Dialect};
use crate::json::JsonObject;
use crate::money::{Money, MoneyError};
use crate::rejection::{Code, Rejection};
use crate::repair::{Reason, Repair};
use crate::time::Micros;
use compact_str::CompactString;

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
/// `generated_id` makes a new UUIDv7, for an event to which the client gave no id.
/// # Errors
/// Every fault found, at least one, each with its field.
pub fn admit(draft: Draft, request: &RequestContext, generated_id: impl FnOnce() -> EventId) -> Result<Event, Vec<Rejection>> {
    admit_repaired(Box::new(draft), request, generated_id).map(|(event, _)| *event)
}

/// The same, and returns what was repaired in the event, which its metadata names as well. Both are boxed: each takes a kilobyte, which would be
/// copied from one caller to the next.
/// # Errors
/// Those of [`admit`].
pub fn admit_repaired(
    draft: Box<Draft>,
    request: &RequestContext,
    generated_id: impl FnOnce() -> EventId,
) -> Result<(Box<Event>, Vec<Repair>), Vec<Rejection>> {
    let mut check = Check::new(draft.repairs, request.dialect.is_strict());
    let kind = draft.details.kind();

    let event_id = check.event_id(draft.event_id);
    let session_id = check.session(draft.session_id);
    let name = check.name(draft.name, "name");
    let experiment = check.optional_name(draft.experiment, "experiment");
    let variant = check.optional_name(draft.variant, "variant");
    let campaign = match kind {
        Kind::CampaignEvent => check.name(draft.campaign, "campaign"),
        _ => check.optional_name(draft.campaign, "campaign"),
    };
    let component = check.optional_name(draft.component, "component");
    let user = check.user(draft.user_id, draft.anonymous_id, request);
    let times = check.times(draft.timestamp, request);
    let (value, currency) = check.amount(draft.value, draft.currency);
    let details = check.details(draft.details);
    let (context, truncated) = check.context(draft.context);
    check.required(kind, name.as_deref(), experiment.is_some(), variant.is_some(), campaign.is_some(), component.is_some());

    let metadata = annotated(draft.properties, &truncated, &check.repairs)
        .unwrap_or_else(|error| check.add(Code::InvalidJson, "properties", error.to_string()));
    let (Some(user), Some(times)) = (user, times) else { return Err(check.faults) };
    if !check.faults.is_empty() {
        return Err(check.faults);
    }
    let event = Box::new(Event {
        project_id: request.project,
        event_id: event_id.as_deref().map_or_else(generated_id, |text| identity::event_id(request.dialect, text)),
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
    });
    Ok((event, check.repairs))
}

/// Adds to the metadata what was cut and what was repaired.
fn annotated(
    mut metadata: Option<JsonObject>,
    truncated: &[&'static str],
    repairs: &[Repair],
) -> serde_json::Result<Option<JsonObject>> {
    if !truncated.is_empty() {
        metadata = Some(JsonObject::annotated(metadata, "truncated", &truncated)?);
    }
    if repairs.is_empty() {
        return Ok(metadata);
    }
    // Postgres holds no U+0000, in these copies neither; a client's own key may be in a field's place.
    let kept = |text: &str| text.replace('\0', "\u{fffd}");
    let mut fields: Vec<String> = Vec::new();
    let mut from = serde_json::Map::new();
    for repair in repairs {
        let field = kept(&repair.field);
        if fields.len() < REPAIRS_LISTED_MAX && !fields.contains(&field) {
            if let Some(text) = &repair.from {
                let mut text = kept(&text[..text.floor_char_boundary(limits::CONTEXT_BYTES_MAX)]);
                text.truncate(text.floor_char_boundary(limits::CONTEXT_BYTES_MAX));
                from.insert(field.clone(), text.into());
            }
            fields.push(field);
        }
    }
    metadata = Some(JsonObject::annotated(metadata, "repaired", &fields)?);
    if !from.is_empty() {
        metadata = Some(JsonObject::annotated(metadata, "repaired_from", &from)?);
    }
    Ok(metadata)
}

/// Returns whether a text has the character U+0000. Looks at all of it, since a processor compares many bytes at a time if it may not stop.
fn has_nul(text: &str) -> bool {
    text.bytes().fold(false, |found, byte| found | (byte == 0))
}

/// Fields that one event's metadata names as repaired.
const REPAIRS_LISTED_MAX: usize = 32;

/// What programs write for a missing id, in lower case: such a text is no id, or all who lack one would be one user.
pub const PLACEHOLDER_IDS: [&str; 16] = [
    "undefined",
    "null",
    "(null)",
    "<null>",
    "nil",
    "none",
    "nan",
    "[object object]",
    "true",
    "false",
    "anonymous",
    "guest",
    "distinct_id",
    "distinctid",
    "not_authenticated",
    "unidentified",
];

/// Returns whether a text is one of [`PLACEHOLDER_IDS`], white space alone, or a UUID of zeros or of ones only.
pub fn is_placeholder_id(text: &str) -> bool {
    const LONGEST: usize = 36;
    let trimmed = match text.as_bytes() {
        // Nearly all ids: looking for white space of any script takes longer than all the rest.
        [first, .., last] if first.is_ascii_graphic() && last.is_ascii_graphic() => text,
        _ => text.trim(),
    };
    if trimmed.is_empty() || text.len() > LONGEST {
        return trimmed.is_empty();
    }
    let constant = |digit: u8| {
        let is_constant = text.bytes().all(|byte| byte.eq_ignore_ascii_case(&digit) || byte == b'-');
        is_constant && text.bytes().filter(|byte| *byte != b'-').count() == 32
    };
    PLACEHOLDER_IDS.iter().any(|placeholder| placeholder.eq_ignore_ascii_case(trimmed)) || constant(b'0') || constant(b'f')
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
    external_id: Option<CompactString>,
    anonymous_id: Option<CompactString>,
}

struct Times {
    claimed_at: Micros,
    event_time: Micros,
    untimed: bool,
}

/// What was found wrong with one event so far, and what was repaired.
struct Check {
    faults: Vec<Rejection>,
    repairs: Vec<Repair>,
    is_strict: bool,
    /// Why texts of the event have U+FFFD where the client sent something else: such a text is no name.
    mended: Option<Code>,
}

impl Check {
    fn new(repairs: Vec<Repair>, is_strict: bool) -> Self {
        let mended = repairs.iter().find_map(|repair| match repair.reason {
            Reason::Unicode => Some(Code::BadUnicode),
            Reason::Utf8 => Some(Code::BadUtf8),
            Reason::NulByte => Some(Code::NulByte),
            _ => None,
        });
        Check { faults: Vec::new(), repairs, is_strict, mended }
    }

    fn add<T>(&mut self, code: Code, field: &str, message: impl Into<String>) -> Option<T> {
        self.faults.push(Rejection::new(code, field, message));
        None
    }

    /// Checks a name or an id. It is never truncated or trimmed: then it would name something else.
    fn name(&mut self, text: Option<CompactString>, field: &str) -> Option<CompactString> {
        let text = text?;
        if text.is_empty() {
            return self.add(Code::Empty, field, "empty; leave the field out, or send at least one character");
        }
        if text.len() > limits::NAME_BYTES_MAX {
            let message = format!("{} bytes; at most {} are accepted", text.len(), limits::NAME_BYTES_MAX);
            return self.add(Code::TooLong, field, message);
        }
        if let Some(code) = self.mended.filter(|_| text.contains(char::REPLACEMENT_CHARACTER)) {
            return self.add(code, field, "contains what is no character; in a name or an id it is not replaced");
        }
        self.text(text, field)
    }

    /// The same of a field that may be left out: an empty text is as good as none.
    fn optional_name(&mut self, text: Option<CompactString>, field: &str) -> Option<CompactString> {
        self.name(text.filter(|text| !text.is_empty()), field)
    }

    fn text(&mut self, text: CompactString, field: &str) -> Option<CompactString> {
        if has_nul(&text) {
            return self.add(Code::NulByte, field, "contains the character U+0000, which cannot be stored");
        }
        Some(text)
    }

    /// Leaves out an id that is none.
    fn id(&mut self, text: Option<CompactString>, field: &str) -> Option<CompactString> {
        let text = text.filter(|text| !text.is_empty())?;
        if is_placeholder_id(&text) {
            self.repairs.push(Repair::taken(Reason::PlaceholderId, field, text));
            return None;
        }
        self.name(Some(text), field)
    }

    fn event_id(&mut self, text: Option<CompactString>) -> Option<CompactString> {
        if let Some(zeros) = text.as_ref().filter(|text| !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0' | b'-')))
        {
            self.repairs.push(Repair::taken(Reason::PlaceholderId, "event_id", zeros.clone()));
            return None;
        }
        self.id(text, "event_id")
    }

    /// A session says nothing about what happened, so that one that cannot be stored is no reason to refuse an event that can be repaired.
    fn session(&mut self, text: Option<CompactString>) -> Option<CompactString> {
        let text = text.filter(|text| !text.is_empty())?;
        let is_mended = self.mended.is_some() && text.contains(char::REPLACEMENT_CHARACTER);
        if !self.is_strict && (is_mended || text.len() > limits::NAME_BYTES_MAX || text.contains('\0')) {
            self.repairs.push(Repair::taken(Reason::Detail, "session_id", text));
            return None;
        }
        self.name(Some(text), "session_id")
    }

    fn user(
        &mut self,
        user_id: Option<CompactString>,
        anonymous_id: Option<CompactString>,
        request: &RequestContext,
    ) -> Option<User> {
        let faults_before = self.faults.len();
        let user_id = self.id(user_id, "user_id");
        let anonymous_id = self.id(anonymous_id, "anonymous_id");
        if self.faults.len() > faults_before {
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

    /// Reads when an event happened. On a route that repairs, a text that is no time leaves the event untimed.
    fn claimed_at(&mut self, text: CompactString) -> Option<Option<Micros>> {
        let error = match Micros::parse(&text) {
            Ok(claimed_at) => return Some(Some(claimed_at)),
            Err(error) => error,
        };
        if self.is_strict {
            let shown: String = text.chars().take(64).collect();
            return self.add(Code::BadTimestamp, "timestamp", format!("found {shown:?}; {error}"));
        }
        if text.trim().is_empty() {
            return Some(None);
        }
        if let Some(Ok(claimed_at)) = digits::to_ascii(&text).map(|text| Micros::parse(&text)) {
            self.repairs.push(Repair::new(Reason::Digits, "timestamp"));
            return Some(Some(claimed_at));
        }
        self.repairs.push(Repair::taken(Reason::Timestamp, "timestamp", text));
        Some(None)
    }

    fn times(&mut self, timestamp: ClaimedTime, request: &RequestContext) -> Option<Times> {
        const FIELD: &str = "timestamp";
        let received_at = request.received_at;
        let age_max = if request.backfill { limits::BACKFILL_AGE_MAX } else { limits::AGE_MAX };
        let is_accepted = |time: Micros| (-limits::AHEAD_MAX..=age_max).contains(&(received_at.0 - time.0));
        let (claimed_at, event_time) = match timestamp {
            ClaimedTime::Missing => (None, received_at),
            ClaimedTime::BeforeReceipt(micros) => (None, Micros(received_at.0.saturating_sub(micros))),
            ClaimedTime::Text(text) => match self.claimed_at(text)? {
                Some(claimed_at) => {
                    let corrected = Micros(claimed_at.0 + skew(received_at, request.sent_at, claimed_at));
                    // A clock by which an event that may be would be one that may not be is not the one by which it has its time.
                    let is_corrected = is_accepted(corrected) || !is_accepted(claimed_at);
                    (Some(claimed_at), if is_corrected { corrected } else { claimed_at })
                }
                None => (None, received_at),
            },
        };
        let times = Times { claimed_at: claimed_at.unwrap_or(received_at), event_time, untimed: claimed_at.is_none() };
        let age = received_at.0 - times.event_time.0;
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

    /// Returns a text without white space around it, where that is forgiven; none if nothing is left.
    fn trimmed<'a>(&self, text: &'a str) -> Option<&'a str> {
        Some(if self.is_strict { text } else { text.trim() }).filter(|text| !text.is_empty())
    }

    /// Reads an amount and its currency. On a route that repairs, an amount that cannot be read without guessing is unknown, and so is one
    /// whose currency is.
    fn amount(
        &mut self,
        value: Option<CompactString>,
        currency: Option<CompactString>,
    ) -> (Option<Money>, Option<CompactString>) {
        let is_code = |text: &&str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
        let given = currency.as_deref().and_then(|text| self.trimmed(text));
        let code = given.filter(is_code).map(str::to_ascii_uppercase);
        match (given, code) {
            (Some(text), None) if self.is_strict => {
                let value = self.money(value);
                let shown: String = text.chars().take(16).collect();
                let message = format!("found {shown:?}; a code of three letters such as EUR is accepted");
                (value, self.add(Code::BadCurrency, "currency", message))
            }
            (Some(text), None) => {
                self.repairs.push(Repair::taken(Reason::Currency, "currency", text));
                if let Some(value) = value.filter(|text| self.trimmed(text).is_some()) {
                    self.repairs.push(Repair::taken(Reason::Currency, "value", value));
                }
                (None, None)
            }
            (_, code) => (self.money(value), code.map(CompactString::from)),
        }
    }

    fn money(&mut self, value: Option<CompactString>) -> Option<Money> {
        let text = value?;
        let error = match self.trimmed(&text)?.parse() {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let code = match error {
            MoneyError::NotADecimal if !self.is_strict => {
                self.repairs.push(Repair::taken(Reason::Value, "value", text));
                return None;
            }
            MoneyError::NotADecimal => Code::BadValue,
            MoneyError::TooPrecise => Code::TooPrecise,
            MoneyError::OutOfRange => Code::ValueOutOfRange,
        };
        let shown: String = text.chars().take(64).collect();
        self.add(code, "value", format!("found {shown:?}; {error}"))
    }

    fn details(&mut self, details: Details) -> Details {
        match details {
            Details::Impression(mut impression) => {
                self.whole(&mut impression.time_on_page, "time_on_page", i32::MAX);
                self.whole(&mut impression.scroll_depth_percent, "scroll_depth_percent", 100);
                self.whole(&mut impression.page_load_time, "page_load_time", i32::MAX);
                Details::Impression(impression)
            }
            Details::Conversion(mut conversion) => {
                self.whole(&mut conversion.time_to_convert, "time_to_convert", i32::MAX);
                self.whole(&mut conversion.conversion_window_days, "conversion_window_days", i32::MAX);
                let source = conversion.conversion_attribution_source.take();
                conversion.conversion_attribution_source = self.optional_name(source, "conversion_attribution_source");
                conversion.source = self.optional_name(conversion.source.take(), "source");
                conversion.medium = self.optional_name(conversion.medium.take(), "medium");
                conversion.referrer_source = self.optional_name(conversion.referrer_source.take(), "referrer_source");
                Details::Conversion(conversion)
            }
            Details::Identity(mut identity) => {
                identity.previous_id = self.optional_name(identity.previous_id.take(), "previous_id");
                identity.group_id = self.optional_name(identity.group_id.take(), "group_id");
                Details::Identity(identity)
            }
            other @ (Details::CampaignEvent | Details::Engagement) => other,
        }
    }

    fn whole(&mut self, number: &mut Option<i32>, field: &str, max: i32) {
        let Some(found) = number.filter(|number| !(0..=max).contains(number)) else { return };
        if self.is_strict {
            self.add::<()>(Code::BadValue, field, format!("found {found}; whole numbers from 0 to {max} are accepted"));
        } else {
            self.repairs.push(Repair::taken(Reason::Detail, field, found.to_string()));
            *number = None;
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
            if !self.is_strict && text.contains('\0') {
                text = text.replace('\0', "\u{fffd}").into();
                self.repairs.push(Repair::new(Reason::NulByte, field));
            }
            *value = self.text(text, field);
        }
        (context, truncated)
    }

    fn required(&mut self, kind: Kind, name: Option<&str>, experiment: bool, variant: bool, campaign: bool, component: bool) {
        let mut one_of = |accepted: &[&str]| {
            if let Some(name) = name.filter(|name| !accepted.contains(name)) {
                self.faults.push(Rejection::new(
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
        let refused = |check: &Self, field: &str| check.faults.iter().any(|fault| fault.field == field);
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
mod tests;
