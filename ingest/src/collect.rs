//! The path of a request, from its bytes to its answer: admit, decode, validate, append, respond.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use eventlog::AppendError;
use events::identity::Dialect;
use events::rules::{self, Door, limits};
use events::{Code, Event, EventId, Micros, Record, Rejection};
use hyper::Request;
use hyper::body::Incoming;
use service::tasks::Panicked;
use service::{Health, Page, Response};
use uuid::Uuid;

use crate::admit::{Admitted, admit, body_fault, too_fast};
use crate::body::{Memory, Reserved};
use crate::bots::{Agent, Agents};
use crate::config::Limits;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::request::{Device, Envelope, Shaped, Text};
use crate::respond::{self, Outcome, Refusal};
use crate::route::Route;

/// Bodies larger than this are read beside the reactor, so that one of them does not make all others wait.
const INLINE_BYTES_MAX: usize = 128 * 1024;

/// What all requests share.
pub(crate) struct App {
    pub(crate) limits: Limits,
    pub(crate) log: Arc<dyn eventlog::Append>,
    pub(crate) clock: Arc<dyn Fn() -> Micros + Send + Sync>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) page: Page,
    pub(crate) health: Arc<Health>,
    pub(crate) memory: Memory,
    pub(crate) agents: Agents,
    /// The last append failed: said once, until one succeeds.
    pub(crate) is_log_failing: AtomicBool,
}

/// Takes the events of one request. A 200 means that every event it calls accepted is durable.
pub(crate) async fn collect(app: &Arc<App>, route: Route, request: Request<Incoming>) -> Response {
    let collected = async {
        let (admitted, body) = admit(app, route, request).await?;
        let is_short = body.bytes.len() <= INLINE_BYTES_MAX;
        let validated = beside(app, is_short, move |app| {
            let (bytes, reserved) = body.into_parts();
            let text = Text::new(&bytes);
            let decoded = decode(app, &admitted, &text)?;
            validate(app, &admitted, &decoded, reserved, bytes.len())
        })
        .await?;
        append(app, validated).await
    };
    respond(app, route.dialect(), collected.await)
}

/// Runs a step that only computes: here if it is short, else on a thread of its own. A panic in it is a bug that costs
/// this request and no other.
pub(crate) async fn beside<T: Send + 'static>(
    app: &Arc<App>,
    is_short: bool,
    step: impl FnOnce(&App) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if is_short {
        return app.health.caught_here(|| step(app)).unwrap_or(Err(Refusal::Bug));
    }
    let done = tokio::task::spawn_blocking({
        let app = Arc::clone(app);
        move || app.health.caught_here(|| step(&app))
    });
    // It is not cancelled, and its panics are caught.
    done.await.unwrap_or(Err(Panicked)).unwrap_or(Err(Refusal::Bug))
}

/// Takes the body apart, so that each event stands alone, and counts them against the key's rate.
fn decode<'a>(app: &App, admitted: &'a Admitted, text: &'a Text<'a>) -> Result<Envelope<'a>, Refusal> {
    let events_max = app.limits.events_max;
    let envelope = match admitted.route {
        Route::Pixel => {
            let device = Device { known: admitted.cookie.as_deref(), fresh: &admitted.fresh_cookie };
            Ok(Envelope::pixel(&admitted.query, text, device))
        }
        Route::Batch => Envelope::segment(text, None, events_max),
        Route::Call(call) => Envelope::segment(text, Some(call), events_max),
        Route::Events | Route::Live | Route::Ready | Route::Metrics => Envelope::native(text, admitted.is_lines, events_max),
    };
    let envelope = envelope.map_err(Refusal::Envelope)?;
    app.metrics.batch_events.record(envelope.len() as f64);
    if let Some(limiter) = &admitted.access.events {
        limiter.take(envelope.len(), Instant::now()).map_err(|wait| {
            app.metrics.deferred.increment(envelope.len() as u64);
            too_fast(app, wait)
        })?;
    }
    Ok(envelope)
}

/// Events that may be appended, and what became of the others.
struct Validated {
    records: Vec<Record>,
    outcome: Outcome,
    received: usize,
    bots: usize,
    /// The first fault of each rejected event.
    codes: Vec<Code>,
    /// Memory of the body and of the records made of it.
    reserved: Reserved,
}

/// Checks every event of the request, before the first one is appended. Records may be larger than the `body_bytes` they
/// are made of, so each is counted too.
fn validate(
    app: &App,
    admitted: &Admitted,
    envelope: &Envelope<'_>,
    reserved: Reserved,
    body_bytes: usize,
) -> Result<Validated, Refusal> {
    let count = envelope.len();
    let mut validated = Validated {
        records: Vec::with_capacity(count),
        outcome: Outcome::default(),
        received: count,
        bots: 0,
        codes: Vec::new(),
        reserved,
    };
    let mut bytes = body_bytes;
    let door = Door {
        project: admitted.access.project,
        unit: admitted.access.unit,
        backfill: admitted.access.backfill,
        horizon: app.keys.snapshot().and_then(|keys| keys.horizon),
        dialect: envelope.dialect(),
        received_at: admitted.received_at,
        sent_at: envelope.sent_at(),
    };
    let header_agent = admitted.user_agent.as_deref().map(|text| app.agents.read(text));
    let mut minter = Minter::new(admitted.received_at);
    let mut seen = HashSet::new();
    for index in 0..count {
        let admitted_event = envelope
            .shape(index, &admitted.access.conversions, limits::EVENT_BYTES_MAX)
            .map_err(|fault| vec![fault])
            .and_then(|mut shaped| {
                identify_agent(app, admitted, header_agent, &mut shaped);
                rule(shaped, &door, minter.id(index))
            })
            .and_then(|event| app.keys.names.admit(event).map_err(|fault| vec![fault]));
        match admitted_event {
            Ok(event) => {
                // Ids that were minted here differ, so only clients' own can repeat.
                if event.id_from_client
                    && count > 1
                    && !seen.insert((event.kind(), event.user_id, event.event_id, event.claimed_at))
                {
                    validated.outcome.duplicate += 1;
                    continue;
                }
                validated.bots += usize::from(event.is_bot);
                let record = Record::encode(&event);
                bytes += record.bytes().len();
                validated.reserved.grow_to(bytes).map_err(|fault| body_fault(app, fault))?;
                validated.records.push(record);
            }
            Err(faults) => {
                validated.codes.extend(faults.first().map(|fault| fault.code));
                validated.outcome.reject(index, &envelope.place(index), faults);
            }
        }
    }
    validated.outcome.accepted = validated.records.len();
    if envelope.needs_cookie() {
        validated.outcome.cookie = Some(admitted.fresh_cookie.clone());
    }
    Ok(validated)
}

/// Applies the rules to what could be read; faults of reading come first, and hide what only follows from them.
fn rule(shaped: Shaped, door: &Door, minted: EventId) -> Result<Event, Vec<Rejection>> {
    let Shaped { draft, sent_at, mut faults, .. } = shaped;
    let door = Door { sent_at: sent_at.or(door.sent_at), ..*door };
    match rules::admit(draft, &door, minted) {
        Ok(event) if faults.is_empty() => Ok(event),
        Ok(_) => Err(faults),
        Err(more) => {
            let has_bad_user =
                faults.iter().any(|fault| matches!(fault.field.as_str(), "anonymous_id" | "userId" | "anonymousId"));
            let follows = |fault: &Rejection, faults: &[Rejection]| {
                (fault.code == Code::MissingUser && has_bad_user)
                    || faults.iter().any(|earlier| names(&earlier.field) == fault.field.as_str())
            };
            let own: Vec<_> = more.into_iter().filter(|fault| !follows(fault, &faults)).collect();
            faults.extend(own);
            Err(faults)
        }
    }
}

/// Returns the rules' own name of a field that was written under another one.
fn names(field: &str) -> &str {
    match field {
        "conversion_type" | "event_type" | "event" => "name",
        "experiment_id" => "experiment",
        "variant_id" => "variant",
        "campaign_id" => "campaign",
        "component_id" => "component",
        field => field,
    }
}

/// Adds what the browser tells of itself and its page, where the event does not.
fn identify_agent(app: &App, admitted: &Admitted, header_agent: Option<Agent>, shaped: &mut Shaped) {
    let context = &mut shaped.draft.context;
    if context.page_url.is_none() {
        context.page_url = admitted.page.clone();
    }
    let agent = match context.user_agent.as_deref() {
        Some(text) => Some(app.agents.read(text)),
        None => {
            context.user_agent = admitted.user_agent.clone();
            header_agent
        }
    };
    let agent = agent.unwrap_or_default();
    shaped.draft.is_bot = shaped.is_bot.unwrap_or(agent.is_bot);
    if context.device_type.is_none() {
        context.device_type = agent.device_type.map(str::to_owned);
    }
}

/// Makes UUIDv7s for events without an id. Those of one request rise in its order.
struct Minter {
    millis: u64,
    random: Option<[u8; 10]>,
}

impl Minter {
    fn new(received_at: Micros) -> Self {
        Minter { millis: (received_at.0 / 1_000).max(0).unsigned_abs(), random: None }
    }

    fn id(&mut self, index: usize) -> EventId {
        // One draw for the request: 62 random bits, and the 12 before them count.
        let mut bytes = *self.random.get_or_insert_with(|| {
            let mut bytes = [0; 10];
            bytes.copy_from_slice(&Uuid::new_v4().as_bytes()[6..]);
            bytes
        });
        [bytes[0], bytes[1]] = (index as u16 & 0x0fff).to_be_bytes();
        EventId(uuid::Builder::from_unix_timestamp_millis(self.millis, &bytes).into_uuid())
    }
}

/// Appends all events at once, waits until they are durable, and counts what became of each.
///
/// If the log does not know whether it took them, the client sends them again: those with ids of their own meet their
/// first copies in deduplication. Those without get new ids, and nothing can tell them from other events; a client that
/// cannot bear to count one twice sends ids.
async fn append(app: &App, validated: Validated) -> Result<Outcome, Refusal> {
    let Validated { records, outcome, received, bots, codes, reserved } = validated;
    if !records.is_empty() {
        let start = Instant::now();
        let appended = tokio::time::timeout(app.limits.append_wait_max, app.log.append(records)).await;
        app.metrics.append_seconds.record(start.elapsed().as_secs_f64());
        let failed = match &appended {
            Ok(Ok(_)) => None,
            Ok(Err(AppendError::Unavailable(reason))) => Some((0, reason.as_str())),
            Ok(Err(AppendError::Unknown(reason))) => Some((1, reason.as_str())),
            Ok(Err(AppendError::Stopped(reason))) => Some((2, reason.as_str())),
            Err(_) => Some((3, "no answer in time")),
        };
        if let Some((kind, reason)) = failed {
            app.metrics.append_failed[kind].increment(1);
            app.metrics.deferred.increment(received as u64);
            if !app.is_log_failing.swap(true, Ordering::Relaxed) {
                tracing::warn!(reason, "the log does not take events; clients are told to send them again");
            }
            return Err(Refusal::Log);
        }
        if app.is_log_failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the log takes events again");
        }
    }
    drop(reserved);
    app.metrics.received.increment(received as u64);
    app.metrics.appended.increment(outcome.accepted as u64);
    app.metrics.duplicate.increment(outcome.duplicate as u64);
    app.metrics.bots.increment(bots as u64);
    codes.into_iter().for_each(|code| app.metrics.reject(code));
    Ok(outcome)
}

/// Answers in the dialect of the request.
fn respond(app: &App, dialect: Dialect, collected: Result<Outcome, Refusal>) -> Response {
    match collected {
        Ok(outcome) => respond::outcome(dialect, &outcome),
        Err(refusal) => respond::refusal(dialect, &refusal, &app.limits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use events::{ConversionDetails, Details, Draft};

    #[test]
    fn minted_ids_rise_within_a_request() {
        let mut minter = Minter::new(Micros(1_772_366_400_000_000));
        let ids: Vec<_> = (0..2_500).map(|index| minter.id(index)).collect();
        assert!(ids.is_sorted() && ids.iter().collect::<HashSet<_>>().len() == ids.len());
        assert!(ids.iter().all(|id| id.0.get_version_num() == 7));
        assert!(ids[0].to_string().starts_with("019ca945-0a00-7000-"), "{}", ids[0]);
        assert_ne!(Minter::new(Micros(0)).id(0), Minter::new(Micros(0)).id(0));
    }

    #[test]
    fn what_follows_from_a_fault_is_not_said() {
        let fault = |field| Rejection::new(Code::WrongType, field, "");
        let draft = || Draft::new(Details::Conversion(ConversionDetails::default()));
        let check = |draft, faults: &[&'static str], expected: &[&str]| {
            let faults = faults.iter().map(|field| fault(*field)).collect();
            let shaped = Shaped { draft, sent_at: None, is_bot: None, faults };
            let door = events::testing::door();
            let found = rule(shaped, &door, events::testing::minted()).expect_err("refused");
            let found: Vec<_> = found.iter().map(|fault| format!("{} {}", fault.code.as_str(), fault.field)).collect();
            assert_eq!(found, expected);
        };
        check(draft(), &[], &["missing_user user_id", "missing_field name"]);
        check(draft(), &["anonymous_id", "conversion_type"], &["wrong_type anonymous_id", "wrong_type conversion_type"]);
        let draft = Draft { user_id: Some("u".to_owned()), value: Some("x".to_owned()), ..draft() };
        check(draft, &["name"], &["wrong_type name", "bad_value value"]);
    }
}
