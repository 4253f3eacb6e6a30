//! The native dialect: `{"events":[..]}`, a bare array, one event, or a line per event.

use events::{Code, ConversionDetails, Details, Draft, IdentityDetails, ImpressionDetails, Kind, Micros, Rejection};
use hyper::header::RETRY_AFTER;
use serde_json::value::RawValue;

use super::field::{FIELDS, Field};
use super::members::{Member, Value, cut, members};
use super::metadata::Metadata;
use super::query::parameter;
use super::{Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, body};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::Route;

/// Our own dialect. Its clients read their answers, so that it repairs next to nothing.
pub(super) struct Native;

impl Dialect for Native {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        (path == "/v1/events").then_some(Route::Events)
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        KeyInHead::settled(head.bearer().or_else(|| head.basic()).or_else(|| head.parameter("key")))
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        let mut batch = batch(text.as_str(), request.is_lines, events_max)?;
        batch.tells_each = tells_each(&request.asked);
        Ok(Box::new(batch))
    }

    fn answer(&self, _asked: &Asked, outcome: &Outcome) -> Reply {
        outcome.counts()
    }

    fn retry(&self, asked: &Asked, outcome: &Outcome) -> Option<Reply> {
        tells_each(asked).then(|| outcome.counts().with(RETRY_AFTER, "1"))
    }

    fn error(&self, _route: Route, code: &str, message: &str) -> Reply {
        Reply::json(&serde_json::json!({ "error": { "code": code, "message": message } }))
    }
}

/// Returns whether the client asks what became of each event.
fn tells_each(asked: &Asked) -> bool {
    parameter(&asked.query, "results").as_deref() == Some("true")
}

/// What a body contains, each event still as it was written.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    /// In the body's order; a line that is not JSON has its rejection already.
    pub(super) events: Vec<Result<&'a RawValue, (&'a str, Rejection)>>,
    pub(super) sent_at: Option<Micros>,
    tells_each: bool,
}

impl<'a> Batch<'a> {
    fn new(events: Vec<&'a RawValue>, sent_at: Option<Micros>) -> Self {
        Batch { events: events.into_iter().map(Ok).collect(), sent_at, tells_each: false }
    }
}

impl Envelope for Batch<'_> {
    fn len(&self) -> usize {
        self.events.len()
    }

    fn sent_at(&self) -> Option<Micros> {
        self.sent_at
    }

    fn place(&self, index: usize) -> String {
        format!("events[{index}]")
    }

    fn raw(&self, index: usize) -> Option<&str> {
        Some(match &self.events[index] {
            Ok(raw) => raw.get(),
            Err((line, _)) => line,
        })
    }

    fn id(&self, index: usize) -> Option<String> {
        self.tells_each.then(|| index.to_string())
    }

    fn has_unreadable(&self) -> bool {
        self.events.iter().any(Result::is_err)
    }

    fn parse(&self, index: usize, mended: Option<&RawValue>, _conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        match (mended, &self.events[index]) {
            (Some(raw), _) => parse(raw),
            (None, Ok(raw)) => parse(raw),
            (None, Err((_, fault))) => Err(fault.clone()),
        }
    }
}

/// Splits a body into its events. `lines`: the content type promises one event per line; several lines are recognised without it.
/// # Errors
/// [`EnvelopeFault`] if the events cannot be found, or if there are more than `events_max`.
pub(super) fn batch(text: &str, lines: bool, events_max: usize) -> Result<Batch<'_>, EnvelopeFault> {
    let start = text.trim_ascii_start();
    match start.as_bytes().first() {
        None => Err(EnvelopeFault::Unreadable("the body is empty; {\"events\":[..]} is accepted".to_owned())),
        Some(b'{') if !lines => match body::object(start, &["events"], ["sent_at"], events_max) {
            Ok(body::Object { events: Some(events), members: [sent_at] }) => Ok(Batch::new(events, time_of_sending(sent_at)?)),
            Ok(_) => Ok(Batch::new(vec![body::one(start)?], None)),
            Err(EnvelopeFault::Unreadable(_)) if is_first_of_lines(start) => by_lines(start, events_max),
            Err(fault) => Err(fault),
        },
        Some(b'[') => Ok(Batch::new(body::array(start, events_max)?, None)),
        Some(b'{') => by_lines(start, events_max),
        Some(_) if lines => by_lines(start, events_max),
        Some(_) => {
            Err(EnvelopeFault::Unreadable("the body is not JSON; {\"events\":[..]} or one event per line is accepted".to_owned()))
        }
    }
}

fn time_of_sending(raw: Option<&RawValue>) -> Result<Option<Micros>, EnvelopeFault> {
    let value = raw.map(Value::Json).filter(|value| !value.is_absent());
    let sent_at = value.map(|value| value.time("sent_at")).transpose();
    sent_at.map_err(|fault| EnvelopeFault::Unreadable(format!("{}: {}", fault.field, fault.message)))
}

/// Returns whether the first line alone is an object and others follow.
fn is_first_of_lines(text: &str) -> bool {
    text.split_once('\n').is_some_and(|(first, rest)| {
        !rest.trim_ascii().is_empty() && serde_json::from_str::<&RawValue>(first).is_ok_and(|raw| raw.get().starts_with('{'))
    })
}

fn by_lines(text: &str, events_max: usize) -> Result<Batch<'_>, EnvelopeFault> {
    let lines = || text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty());
    let count = lines().count();
    if count > events_max {
        return Err(EnvelopeFault::TooManyEvents(count));
    }
    let event = |line| {
        serde_json::from_str::<&RawValue>(line).map_err(|error| {
            let text = error.to_string();
            let reason = text.split(" at line ").next().unwrap_or_default();
            let message = format!("not valid JSON at column {} of its line: {reason}", error.column());
            (line, Rejection::new(Code::InvalidJson, "", message))
        })
    };
    Ok(Batch { events: lines().map(event).collect(), sent_at: None, tells_each: false })
}

/// Reads one event.
/// # Errors
/// What keeps it from being read at all; faults of single fields are in [`ParsedEvent::faults`].
pub(super) fn parse(raw: &RawValue) -> Result<ParsedEvent, Rejection> {
    parse_members(&members(raw)?)
}

/// Reads one event from its members, or from the parameters that stand for them.
pub(super) fn parse_members(members: &[Member<'_>]) -> Result<ParsedEvent, Rejection> {
    let kind = kind(members)?;
    let details = match kind {
        Kind::Impression => Details::Impression(ImpressionDetails::default()),
        Kind::Conversion => Details::Conversion(ConversionDetails::default()),
        Kind::CampaignEvent => Details::CampaignEvent,
        Kind::Engagement => Details::Engagement,
        Kind::Identity => Details::Identity(IdentityDetails::default()),
    };
    let mut parsed = ParsedEvent::new(Draft::new(details));
    let mut taken: [Option<&str>; FIELDS] = [None; FIELDS];
    let mut properties = None;
    let mut rest: Vec<&Member<'_>> = Vec::new();
    for member in members {
        let key = member.key.as_ref();
        let field = Field::of(key).filter(|field| field.is_carried_by(kind)).or(match (key, kind) {
            ("revenue", Kind::CampaignEvent) => Some(Field::Value),
            _ => None,
        });
        let Some(field) = field else {
            rest.push(member);
            continue;
        };
        match taken[field as usize] {
            Some(other) if other == key => {
                let message = "the key occurs twice in the event; once is accepted";
                parsed.faults.push(Rejection::new(Code::DuplicateKey, key, message));
            }
            // Another name of a field that has its value already: it goes to the metadata.
            Some(_) => rest.push(member),
            None => {
                if key == "metadata" && !is_object(&member.value) {
                    rest.push(member);
                    continue;
                }
                taken[field as usize] = Some(key);
                if member.value.is_absent() {
                    continue;
                }
                if field == Field::Properties {
                    properties = Some(member);
                } else if let Err(fault) = fill(&mut parsed, field, member) {
                    parsed.faults.push(fault);
                }
            }
        }
    }
    match metadata(properties, &rest) {
        Ok(metadata) => parsed.draft.properties = metadata,
        Err(fault) => parsed.faults.push(fault),
    }
    Ok(parsed)
}

fn is_object(value: &Value<'_>) -> bool {
    match value {
        Value::Json(raw) => raw.get().starts_with('{'),
        Value::Parameter(text) => text.starts_with('{'),
    }
}

fn kind(members: &[Member<'_>]) -> Result<Kind, Rejection> {
    let accepted = || Kind::ALL.map(Kind::as_str).join(", ");
    let Some(member) = members.iter().find(|member| member.key == "type" && !member.value.is_absent()) else {
        return Err(Rejection::new(Code::UnknownType, "type", format!("missing; one of {} is accepted", accepted())));
    };
    let text = member.value.text("type")?;
    Kind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let message = format!("found {:?}; one of {} is accepted", cut(&text), accepted());
        Rejection::new(Code::UnknownType, "type", message)
    })
}

fn metadata(properties: Option<&Member<'_>>, rest: &[&Member<'_>]) -> Result<Option<events::JsonObject>, Rejection> {
    let name = properties.map_or("properties", |member| member.key.as_ref());
    let properties = properties.map(|member| member.value.object(name)).transpose()?;
    if rest.is_empty() {
        return Ok(properties);
    }
    let mut metadata = Metadata::default();
    if let Some(properties) = &properties {
        metadata.object(properties.get());
    }
    for member in rest {
        metadata.member(member);
    }
    metadata.finish(name)
}

/// Reads a value into its field of the draft.
fn fill(parsed: &mut ParsedEvent, field: Field, member: &Member<'_>) -> Result<(), Rejection> {
    let key = member.key.as_ref();
    let value = &member.value;
    let text = || value.text(key).map(Some);
    let draft = &mut parsed.draft;
    let context = &mut draft.context;
    match field {
        // `type` is read first, `properties` last.
        Field::Type | Field::Properties => {}
        Field::EventId => draft.event_id = text()?,
        Field::UserId => draft.user_id = text()?,
        Field::AnonymousId => draft.anonymous_id = text()?,
        Field::Timestamp => draft.timestamp = value.claimed_time(key)?,
        Field::SentAt => parsed.sent_at = Some(value.time(key)?),
        Field::IsBot => parsed.is_bot = Some(value.boolean(key)?),
        Field::SessionId => draft.session_id = text()?,
        Field::Name => draft.name = text()?,
        Field::Experiment => draft.experiment = text()?,
        Field::Variant => draft.variant = text()?,
        Field::Campaign => draft.campaign = text()?,
        Field::Component => draft.component = text()?,
        Field::Value => draft.value = Some(value.decimal(key)?),
        Field::Currency => draft.currency = text()?,
        Field::PageUrl => context.page_url = text()?,
        Field::Referrer => context.referrer = text()?,
        Field::UserAgent => context.user_agent = text()?,
        Field::Language => context.language = text()?,
        Field::TimeZone => context.time_zone = text()?,
        Field::Screen => context.screen = text()?,
        Field::Viewport => context.viewport = text()?,
        Field::Connection => context.connection = text()?,
        Field::UtmSource => context.utm_source = text()?,
        Field::UtmMedium => context.utm_medium = text()?,
        Field::UtmCampaign => context.utm_campaign = text()?,
        Field::Country => context.country = text()?,
        Field::Region => context.region = text()?,
        Field::City => context.city = text()?,
        Field::DeviceType => context.device_type = text()?,
        _ => return fill_details(&mut draft.details, field, value, key),
    }
    Ok(())
}

/// Reads a value into what only events of one kind carry.
fn fill_details(details: &mut Details, field: Field, value: &Value<'_>, key: &str) -> Result<(), Rejection> {
    let text = || value.text(key).map(Some);
    let whole = || value.whole(key).map(Some);
    let boolean = || value.boolean(key).map(Some);
    let object = || value.object(key).map(Some);
    match details {
        Details::Impression(impression) => match field {
            Field::TimeOnPage => impression.time_on_page = whole()?,
            Field::ScrollDepthPercent => impression.scroll_depth_percent = whole()?,
            Field::PageLoadTime => impression.page_load_time = whole()?,
            Field::Bounce => impression.bounce = boolean()?,
            Field::IsFirstExposure => impression.is_first_exposure = boolean()?,
            Field::UserWasEligible => impression.user_was_eligible = boolean()?,
            Field::UserEligibilityStatus => impression.user_eligibility_status = object()?,
            Field::UserContext => impression.user_context = object()?,
            _ => {}
        },
        Details::Conversion(conversion) => match field {
            Field::TimeToConvert => conversion.time_to_convert = whole()?,
            Field::IsFirstConversion => conversion.is_first_conversion_for_experiment = boolean()?,
            Field::AttributionSource => conversion.conversion_attribution_source = text()?,
            Field::ConversionWindowDays => conversion.conversion_window_days = whole()?,
            Field::OriginalExposureDate => conversion.original_exposure_date = Some(value.time(key)?),
            Field::EligibilityVerified => conversion.conversion_eligibility_verified = boolean()?,
            Field::Source => conversion.source = text()?,
            Field::Medium => conversion.medium = text()?,
            Field::ReferrerSource => conversion.referrer_source = text()?,
            Field::Details => conversion.details = object()?,
            Field::ConversionContext => conversion.conversion_context = object()?,
            _ => {}
        },
        Details::Identity(identity) => match field {
            Field::PreviousId => identity.previous_id = text()?,
            Field::GroupId => identity.group_id = text()?,
            _ => {}
        },
        Details::CampaignEvent | Details::Engagement => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of events found in a body, or the fault's beginning.
    fn check(body: &str, expected: Result<usize, &str>) {
        match (batch(body, false, 3), expected) {
            (Ok(batch), Ok(count)) => assert_eq!(batch.events.len(), count, "{body}"),
            (Err(EnvelopeFault::Unreadable(text)), Err(expected)) => assert!(text.starts_with(expected), "{body}: {text}"),
            (Err(EnvelopeFault::TooManyEvents(count)), Err(expected)) => assert_eq!(count.to_string(), expected),
            (found, expected) => panic!("{body}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn bodies_are_taken_apart() {
        check(r#"{"events":[]}"#, Ok(0));
        check(r#" {"sent_at":null,"x":{"events":[1]},"events":[1,{},"a"]} "#, Ok(3));
        check(r#"{"events":[1,2,3,4]}"#, Err("4"));
        check("[{},{}]", Ok(2));
        check("[1,2,3,4,5]", Err("5"));
        check(r#"{"type":"impression"}"#, Ok(1));
        check("{\"a\":1}\n\n {\"b\":2}\r\n", Ok(2));
        check("{\"a\":1}\n{\"b\":\n{}", Ok(3));
        check("{}\n{}\n{}\n{}", Err("4"));
        check("", Err("the body is empty"));
        check("hello", Err("the body is not JSON"));
        check(r#"{"events":{}}"#, Err("the body is not valid JSON: invalid type: map, expected an array of events at line 1"));
        check(r#"{"events":[],"events":[]}"#, Err("the body is not valid JSON: `events` occurs twice"));
        check(r#"{"events":[{]}"#, Err("the body is not valid JSON: "));
        check(r#"{"events":[],"sent_at":1}"#, Err("sent_at: found the number 1; "));
        check(r#"{"events":[],"sent_at":"now"}"#, Err("sent_at: found \"now\"; "));
    }

    #[test]
    fn nesting_costs_no_stack() {
        let body = format!("{{\"events\":[{}1{}]}}", "[".repeat(100_000), "]".repeat(100_000));
        check(&body, Ok(1));
        check(&"[".repeat(100_000), Err("the body is not valid JSON: "));
        let deep = format!("{{\"type\":\"impression\",\"x\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let batch = batch(&deep, false, 3).expect("valid JSON");
        let parsed = parse(batch.events[0].as_ref().expect("valid JSON")).expect("an object");
        assert_eq!(parsed.faults[0].code, Code::TooDeep);
    }

    #[test]
    fn what_has_no_column_stays_in_the_metadata() {
        let check = |event: &str, expected: &str| {
            let raw = serde_json::from_str(event).expect("a constant");
            let parsed = parse(raw).expect("an object");
            let found = match parsed.faults.first() {
                Some(fault) => format!("{} {}", fault.code.as_str(), fault.field),
                None => parsed.draft.properties.map_or(String::new(), |metadata| metadata.to_string()),
            };
            assert_eq!(found, expected, "{event}");
        };
        check(r#"{"type":"impression","user_id":null}"#, "");
        check(r#"{"type":"impression","properties":{ "a" : 1 }}"#, r#"{ "a" : 1 }"#);
        check(r#"{"type":"impression","x":1,"properties":{"a":1},"name":"n"}"#, r#"{"a":1,"x":1,"name":"n"}"#);
        check(r#"{"type":"impression","x\n":null,"properties":{}}"#, r#"{"x\n":null}"#);
        check(r#"{"type":"impression","project_id":"p","ip":"::1"}"#, r#"{"project_id":"p","ip":"::1"}"#);
        check(r#"{"type":"impression","country":"DE","country_code":"FR"}"#, r#"{"country_code":"FR"}"#);
        check(r#"{"type":"engagement","value":18446744073709551616.0}"#, r#"{"value":18446744073709551616.0}"#);
        check(r#"{"type":"impression","x":1,"properties":{"x":1}}"#, "duplicate_key x");
        check(r#"{"type":"impression","x":[{"y":"\u0000"}]}"#, "nul_byte x[0].y");
        check(r#"{"type":"impression","properties":{"y":"\u0000"},"x":1}"#, "nul_byte properties.y");
        check(r#"{"type":"impression","user_id":"a","user_id":"b"}"#, "duplicate_key user_id");
        check(r#"{"type":"impression","properties":[]}"#, "wrong_type properties");
    }

    #[test]
    fn each_type_is_named_when_it_is_wrong() {
        let check = |member: &str, expected: &str| {
            let event = format!(r#"{{"type":"conversion","name":"x",{member}}}"#);
            let parsed = parse(serde_json::from_str(&event).expect("a constant")).expect("an object");
            let found: Vec<_> = parsed.faults.iter().map(|fault| fault.to_string()).collect();
            assert_eq!(found, [expected], "{member}");
        };
        check(r#""user_id":7"#, "user_id: found the number 7; a string is accepted (wrong_type)");
        check(
            r#""timestamp":1772366400"#,
            "timestamp: found the number 1772366400; ISO 8601 in a string, such as \"2026-03-01T12:30:00.25Z\", is accepted (wrong_type)",
        );
        check(r#""value":{}"#, "value: found an object; a number, or a string such as \"19.90\", is accepted (wrong_type)");
        check(r#""is_bot":"yes""#, "is_bot: found a string; true or false is accepted (wrong_type)");
        check(r#""time_to_convert":1.5"#, "time_to_convert: found 1.5; whole numbers up to 2147483647 are accepted (bad_value)");
        check(r#""details":"x""#, "details: found a string; an object is accepted (wrong_type)");
        check(r#""country":"\ud800""#, "country: a \\u escape is half of a surrogate pair (bad_unicode)");
    }

    #[test]
    fn values_keep_their_digits() {
        let check = |value: &str, expected: &str| {
            let event = format!(r#"{{"type":"conversion","name":"x","value":{value}}}"#);
            let parsed = parse(serde_json::from_str(&event).expect("a constant")).expect("an object");
            assert_eq!(parsed.draft.value.as_deref(), Some(expected));
        };
        check("0.1000000000000000055511151231257827", "1.00000000000000e-1");
        check("\"0.1000000000000000055511151231257827\"", "0.1000000000000000055511151231257827");
        check("-1e2", "-1e2");
        check("\"19.90\"", "19.90");
    }
}
