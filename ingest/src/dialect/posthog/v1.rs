//! What is new in PostHog's v1: required headers, options, and an outcome for each event.

use events::{Code, Micros, Rejection};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::dialect::item::Item;
use crate::dialect::members::{Value, found};
use crate::dialect::{Head, Reply};
use crate::respond::{EventResult, Outcome, State};

/// Checks the headers that every request has to have; those that are missing are listed together.
pub(super) fn check(head: &Head<'_>) -> Result<(), String> {
    const REQUIRED: [&str; 6] =
        ["PostHog-Sdk-Info", "PostHog-Attempt", "PostHog-Request-Id", "PostHog-Request-Timestamp", "Content-Type", "User-Agent"];
    let missing: Vec<_> = REQUIRED.into_iter().filter(|name| head.header(&name.to_ascii_lowercase()).is_none()).collect();
    if !missing.is_empty() {
        return Err(format!("the headers {} are missing", missing.join(", ")));
    }
    let value = |name: &str| head.header(name).unwrap_or_default();
    if !value("posthog-attempt").parse::<u32>().is_ok_and(|attempt| attempt > 0) {
        return Err(format!("PostHog-Attempt: found {:?}; a whole number from 1 on is accepted", value("posthog-attempt")));
    }
    if uuid::Uuid::try_parse(value("posthog-request-id")).is_err() {
        return Err(format!("PostHog-Request-Id: found {:?}; a UUID is accepted", value("posthog-request-id")));
    }
    if let Err(error) = Micros::parse(value("posthog-request-timestamp")) {
        return Err(format!("PostHog-Request-Timestamp: found {:?}; {error}", value("posthog-request-timestamp")));
    }
    Ok(())
}

const FLAGS: [&str; 3] = ["cookieless_mode", "disable_skew_correction", "process_person_profile"];

/// Checks an event's `options`; one that is of another type drops this event and no other.
pub(super) fn check_options(item: &Item<'_>) -> Result<(), Rejection> {
    let Some(raw) = item.raw("options") else { return Ok(()) };
    let options = match Item::new(raw) {
        Ok(options) => options,
        Err(_) => {
            let message = format!("found {}; an object is accepted", found(raw));
            return Err(Rejection::new(Code::WrongType, "options", message));
        }
    };
    for flag in FLAGS {
        if let Some(value) = options.get(flag) {
            value.boolean(&format!("options.{flag}"))?;
        }
    }
    if let Some(value) = options.get("product_tour_id") {
        value.text("options.product_tour_id")?;
    }
    Ok(())
}

/// Returns whether the client says that its clock needs no correction.
pub(super) fn is_clock_right(item: &Item<'_>) -> bool {
    let options = item.raw("options").and_then(|raw| Item::new(raw).ok());
    let flag = options.as_ref().and_then(|options| options.get("disable_skew_correction"));
    matches!(flag, Some(Value::Json(raw)) if raw.get() == "true")
}

/// Answers with what became of each event, by its uuid, in the request's order.
pub(super) fn answer(outcome: &Outcome) -> Reply {
    struct Results<'a>(&'a Outcome);

    impl Serialize for Results<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            let mut told = std::collections::HashSet::new();
            for (id, state) in self.0.states() {
                if told.insert(id) {
                    map.serialize_entry(id, &result(state))?;
                }
            }
            map.end()
        }
    }

    #[derive(serde::Serialize)]
    struct Answer<'a> {
        results: Results<'a>,
    }

    Reply::json(&Answer { results: Results(outcome) })
}

fn result(state: &State) -> EventResult {
    match state {
        State::Rejected(Code::EventTooLarge, _) => state.result_as("event_too_big"),
        State::Rejected(Code::MissingField, field) if field == "event" => state.result_as("missing_event_name"),
        State::Rejected(_, field) if field.starts_with("options") => state.result_as("invalid_options"),
        state => state.result(),
    }
}
