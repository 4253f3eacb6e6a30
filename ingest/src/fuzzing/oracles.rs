//! What must hold of whatever comes of a request.

use std::collections::HashSet;

use bytes::Bytes;
use events::repair::Reason;
use events::rules::limits;
use events::wire::{self, Entry};
use events::{Details, Event, Micros, Record};
use http_body_util::BodyExt as _;
use hyper::header::CONTENT_TYPE;
use serde_json::Value;
use service::{Response, Scope};

use super::door::{Door, RECEIVED_AT};
use super::request::Input;
use super::{Passed, metadata};
use crate::admit::{Admitted, admit};
use crate::answer::answer;
use crate::body::Reserved;
use crate::collect::{Validated, decode, process};
use crate::dialect::Text;
use crate::respond::{self, ApiError};
use crate::route::Route;

/// The device of every browser that has none, so that two runs give the same events.
const FRESH: &str = "6ba7b812-9dad-41d1-80b4-00c04fd430c8";
/// So many events of one request are tried one by one.
const TRIED_ALONE_MAX: usize = 8;
/// What an answer's status may be.
const STATUSES: [u16; 13] = [200, 202, 204, 304, 400, 401, 404, 405, 413, 414, 415, 429, 503];

/// Looks at the answer to a whole request, whichever address it goes to.
pub(super) fn whole(door: &Door, input: &Input) {
    door.forget();
    let response = door.runtime.block_on(answer(std::sync::Arc::clone(&door.app), Scope::All, input.request()));
    is_sound(door, response);
    door.drop_appended();
    nothing_is_held(door);
}

/// Looks at the events of a request, and at each of them alone.
pub(super) fn events(door: &Door, route: Route, input: &Input) -> Passed {
    door.forget();
    let (admitted, bytes, reserved) = match door.runtime.block_on(admit(&door.app, route, input.request())) {
        Ok((mut admitted, body)) => {
            if !admitted.fresh_cookie.is_empty() {
                admitted.fresh_cookie = FRESH.to_owned();
            }
            let (bytes, reserved) = body.into_parts();
            (admitted, bytes, reserved)
        }
        Err(error) => {
            refused(door, route, &error);
            return Passed::default();
        }
    };
    let Some(all) = pass(door, &admitted, &bytes, reserved) else { return Passed::default() };
    for record in &all.records {
        check_event(record);
    }
    for record in &all.refused {
        check_rejected(record);
    }
    if route.dialect().is_strict() {
        let allowed = [Reason::NotANumber, Reason::PlaceholderId];
        assert!(all.repairs.iter().all(|reason| allowed.contains(reason)), "{:?} on a strict route", all.repairs);
    }
    are_independent(door, &admitted, &bytes, &all);
    all
}

/// Takes the events of an admitted request as far as the log, and looks at the counts and at the answer. None if it is refused as a whole.
fn pass(door: &Door, admitted: &Admitted, bytes: &[u8], reserved: Reserved) -> Option<Passed> {
    door.forget();
    let route = admitted.asked.route;
    let validated = match process(&door.app, admitted.clone(), bytes, reserved) {
        Ok(validated) => validated,
        Err(error) => {
            refused(door, route, &error);
            return None;
        }
    };
    let is_strict = route.dialect().is_strict();
    let kept = if is_strict { 0 } else { validated.codes.len() };
    assert_eq!(validated.refused.len(), kept, "rejected events that are kept");
    let told = validated.records.len() + validated.duplicate + validated.codes.len() + validated.dropped;
    assert_eq!(told, validated.received(), "each event is accepted, a duplicate, rejected or dropped");
    assert!(validated.bots.len() <= validated.records.len());
    let accepted = validated.answer.headers().get("x-events-accepted").and_then(|value| value.to_str().ok());
    let acknowledged = validated.records.len() + validated.duplicate;
    assert!(accepted.is_none_or(|text| text.parse() == Ok(acknowledged)), "{accepted:?} of {acknowledged}");
    is_sound(door, validated.answer);
    let Validated { records, refused, codes, repairs, dropped, reserved, .. } = validated;
    drop(reserved);
    nothing_is_held(door);
    Some(Passed { records, refused, codes, repairs, dropped })
}

fn refused(door: &Door, route: Route, error: &ApiError) {
    assert!(!matches!(error, ApiError::Bug | ApiError::Log), "{error:?}");
    is_sound(door, respond::error(Some(route), error, &door.app.limits));
    nothing_is_held(door);
}

/// An answer has a status that clients know, and the content that its type says.
fn is_sound(door: &Door, response: Response) {
    let status = response.status().as_u16();
    assert!(STATUSES.contains(&status), "{response:?}");
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = door.runtime.block_on(response.into_body().collect()).expect("a whole body").to_bytes();
    match content_type.as_str() {
        "application/json" => {
            let read = serde_json::from_slice::<Value>(&body);
            assert!(read.is_ok(), "{status} {}", String::from_utf8_lossy(&body));
        }
        "image/gif" => assert_eq!(body.len(), 43),
        _ => {}
    }
}

/// All memory for bodies and answers is given back.
fn nothing_is_held(door: &Door) {
    let held = [&door.app.memory, &door.app.unauthenticated, &door.app.answers].map(crate::body::Memory::used);
    assert_eq!(held, [0; 3], "bytes of bodies, of bodies without a key, of answers");
}

/// A record is read as the event that it was written of, and every text of it is one that Postgres holds.
fn check_event(record: &Record) {
    let text = std::str::from_utf8(record.bytes()).expect("JSON is UTF-8");
    let Ok(Entry::Event(event)) = wire::read(record.bytes()) else { panic!("no event: {text}") };
    assert_eq!(Record::encode(&event), *record, "written again");
    assert_eq!(record.key(), event.user_id);
    has_no_nul(&serde_json::from_str(text).expect("JSON"), text);
    check_texts(&mut event.clone(), text);
    check_times(&event, text);
    check_objects(&event);
    let is_code = |code: &str| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    assert!(event.currency.as_deref().is_none_or(is_code), "{text}");
    assert!(event.value.is_none_or(|value| value.millionths().abs() < 10_i128.pow(20)), "{text}");
}

fn check_texts(event: &mut Event, text: &str) {
    let names = [
        &event.external_id,
        &event.anonymous_id,
        &event.session_id,
        &event.name,
        &event.experiment,
        &event.variant,
        &event.campaign,
        &event.component,
    ];
    let is_name = |name: &str| !name.is_empty() && name.len() <= limits::NAME_BYTES_MAX;
    assert!(names.into_iter().flatten().all(|name| is_name(name)), "{text}");
    for (field, value) in event.context.fields_mut() {
        let max = if matches!(field, "page_url" | "referrer") { limits::URL_BYTES_MAX } else { limits::CONTEXT_BYTES_MAX };
        assert!(value.as_ref().is_none_or(|value| !value.is_empty() && value.len() <= max), "{field}: {text}");
    }
}

fn check_times(event: &Event, text: &str) {
    let back = if event.from_server_key { limits::BACKFILL_AGE_MAX } else { limits::AGE_MAX };
    let accepted = RECEIVED_AT.0 - back..=RECEIVED_AT.0 + limits::AHEAD_MAX;
    assert!(accepted.contains(&event.event_time.0), "{text}");
    assert_eq!(event.received_at, RECEIVED_AT);
    let times = [Some(event.claimed_at), event.sent_at];
    assert!(times.into_iter().flatten().all(|time| (Micros::MIN..=Micros::MAX).contains(&time)), "{text}");
    assert!(!event.untimed || event.claimed_at == RECEIVED_AT, "{text}");
}

fn check_objects(event: &Event) {
    if let Some(metadata) = &event.metadata {
        metadata::check_annotated(metadata.get());
    }
    let (own, numbers) = match &event.details {
        Details::Impression(impression) => (
            [&impression.user_eligibility_status, &impression.user_context],
            [impression.time_on_page, impression.scroll_depth_percent, impression.page_load_time],
        ),
        Details::Conversion(conversion) => (
            [&conversion.details, &conversion.conversion_context],
            [conversion.time_to_convert, conversion.conversion_window_days, None],
        ),
        Details::CampaignEvent | Details::Engagement | Details::Identity(_) => return,
    };
    own.into_iter().flatten().for_each(|object| metadata::check_own(object.get()));
    assert!(numbers.into_iter().flatten().all(|number| number >= 0), "{numbers:?}");
}

fn has_no_nul(value: &Value, text: &str) {
    match value {
        Value::String(found) => assert!(!found.contains('\0'), "{text}"),
        Value::Array(elements) => elements.iter().for_each(|element| has_no_nul(element, text)),
        Value::Object(members) => members.iter().for_each(|(key, value)| {
            assert!(!key.contains('\0'), "{text}");
            has_no_nul(value, text);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The record of a rejected event is read as what it was written of.
fn check_rejected(record: &Record) {
    let text = String::from_utf8_lossy(record.bytes());
    let Ok(Entry::Rejected(rejected)) = wire::read(record.bytes()) else { panic!("no rejected event: {text}") };
    assert_eq!(Record::of_rejected(&rejected), *record, "written again");
    assert!(!rejected.code.is_empty(), "{text}");
    // Of a visitor who objects nothing is kept but code and field.
    assert!(rejected.event.is_some_and(|event| event.is_empty() || !rejected.message.is_empty()), "{text}");
}

/// Each event of a request has the fate that it has alone, but for a repetition; and a second time it has the same.
fn are_independent(door: &Door, admitted: &Admitted, bytes: &Bytes, all: &Passed) {
    let Some(alone) = requests_of_one(door, admitted, bytes) else {
        let again = pass(door, admitted, bytes, door.app.memory.reserve()).expect("accepted before");
        assert_eq!(fates(&again.records), fates(&all.records), "the second time");
        assert_eq!((fates(&again.refused), &again.codes), (fates(&all.refused), &all.codes), "the second time");
        return;
    };
    let mut together = Passed::default();
    for (admitted, body) in &alone {
        let shown = || String::from_utf8_lossy(body).into_owned();
        let one = pass(door, admitted, body, door.app.memory.reserve());
        let one = one.unwrap_or_else(|| panic!("refused as a whole: {}", shown()));
        assert_eq!(one.records.len() + one.codes.len() + one.dropped, 1, "{}", shown());
        together.records.extend(one.records);
        together.refused.extend(one.refused);
        together.codes.extend(one.codes);
    }
    if alone.len() > 1 {
        let mut seen = HashSet::new();
        together.records.retain(|record| match wire::decode(record.bytes()) {
            Ok(event) if event.id_from_client => seen.insert((event.kind(), event.user_id, event.event_id, event.claimed_at)),
            _ => true,
        });
    }
    assert_eq!(fates(&together.records), fates(&all.records), "alone, and among others");
    assert_eq!(fates(&together.refused), fates(&all.refused), "alone, and among others");
    assert_eq!(together.codes, all.codes, "alone, and among others");
}

/// Returns the same request once for each event, without the other events. None where they cannot be taken apart: no body has them, or not
/// each byte of it is as it was sent.
fn requests_of_one(door: &Door, admitted: &Admitted, bytes: &Bytes) -> Option<Vec<(Admitted, Vec<u8>)>> {
    std::str::from_utf8(bytes).ok()?;
    let text = Text::new(bytes);
    let envelope = decode(&door.app, admitted, &text).ok()?;
    if !(1..=TRIED_ALONE_MAX).contains(&envelope.len()) {
        return None;
    }
    let whole = text.as_str();
    let place = |part: &str| {
        let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
        (start + part.len() <= whole.len()).then_some(start..start + part.len())
    };
    let places: Option<Vec<_>> = (0..envelope.len()).map(|index| place(envelope.raw(index)?)).collect();
    let places = places?;
    let (before, after) = (whole.get(..places.first()?.start)?, whole.get(places.last()?.end..)?);
    // Of several lines the one that is left must not be read as an envelope.
    let are_lines = places.len() > 1 && before.trim().is_empty() && after.trim().is_empty();
    if are_lines && places.iter().any(|place| whole[place.clone()].starts_with('[')) {
        return None;
    }
    // Statsig's clients give no ids: those of equal events follow from their order.
    let mut seen = HashSet::new();
    if admitted.asked.route == Route::Statsig && places.iter().any(|place| !seen.insert(&whole[place.clone()])) {
        return None;
    }
    let one = |place: std::ops::Range<usize>| {
        let admitted = Admitted { is_lines: admitted.is_lines || are_lines, ..admitted.clone() };
        (admitted, [before, &whole[place], after].concat().into_bytes())
    };
    Some(places.into_iter().map(one).collect())
}

/// Returns records without what is new in each run: ids of ours.
fn fates(records: &[Record]) -> Vec<Value> {
    let fate = |record: &Record| {
        let mut value: Value = serde_json::from_slice(record.bytes()).expect("JSON");
        if value["event"]["id_from_client"] != true {
            value["event"]["event_id"] = Value::Null;
            // The user of an event that nobody is to be known by follows from its id.
            if value["event"]["metadata"]["privacy"].is_string() {
                value["event"]["user_id"] = Value::Null;
            }
        }
        if value["rejected"].is_object() {
            value["rejected"]["id"] = Value::Null;
        }
        value
    };
    records.iter().map(fate).collect()
}
