//! The path of a request, from its bytes to its answer: admit, decode, validate, append, respond.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use catalogue::names::Look;
use compact_str::CompactString;
use eventlog::AppendError;
use events::identity::Dialect;
use events::repair::Reason;
use events::rules::{self, RequestContext};
use events::wire::Encoder;
use events::{Code, Event, EventId, JsonObject, Micros, ProjectId, Record, RejectedEvent, Rejection, Repair, unlinked};
use hashbrown::HashSet;
use hyper::Request;
use hyper::body::Body as HttpBody;
use service::fair_queue::{FairQueue, Full};
use service::tasks::Panicked;
use service::{AdminEndpoint, Health, Response, Threads};
use uuid::Uuid;

use crate::address;
use crate::admit::{Admitted, Asked, admit, body_fault, rate_limited, take_bytes};
use crate::body::{BodyFault, Memory, Reserved};
use crate::bots::{Agent, Agents, BotClass};
use crate::config::Limits;
use crate::dialect::detect::detect;
use crate::dialect::{self, Envelope, EnvelopeFault, ParsedEvent, Text};
use crate::geo::Geo;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::privacy::{self, PrivacySignals, Signal};
use crate::refused::Refused;
use crate::respond::{self, ApiError, Outcome, State};
use crate::route::Route;

/// Larger bodies are processed on a blocking thread, in turns, so that they do not hold up other requests.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// So are those with more objects, whatever their size: each event may have to be refused with its reasons.
const INLINE_OBJECTS_MAX: usize = 256;
/// So many times its bytes an event takes of what its key may have stored, if it names what is unknown. It is kept one by one, by name, and is
/// no answer's until an operator makes what it names.
const DEAD_LETTER_COSTS: usize = 10;

/// What all requests share.
pub(crate) struct App {
    pub(crate) limits: Limits,
    pub(crate) log: Arc<dyn eventlog::Append>,
    pub(crate) clock: Arc<dyn Fn() -> Micros + Send + Sync>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admin: AdminEndpoint,
    pub(crate) health: Arc<Health>,
    pub(crate) memory: Memory,
    /// Of bodies whose key is not known yet.
    pub(crate) unauthenticated: Memory,
    /// Of answers that name rejected events.
    pub(crate) answers: Memory,
    /// Turns of projects whose requests need long.
    pub(crate) computing: FairQueue,
    /// Where they compute. They give way to connections.
    pub(crate) threads: Threads,
    pub(crate) agents: Agents,
    pub(crate) refused: Refused,
    pub(crate) privacy_signals: PrivacySignals,
    pub(crate) geo: Arc<Geo>,
    /// The last append failed: logged once, until one succeeds.
    pub(crate) is_log_failing: AtomicBool,
}

/// Takes the events of one request. A 200 means that every event it calls accepted is durable.
pub(crate) async fn collect<B: HttpBody<Data = Bytes> + Unpin>(app: &Arc<App>, route: Route, request: Request<B>) -> Response {
    taken(app, route, request).await.unwrap_or_else(|error| respond::error(Some(route), &error, &app.limits))
}

/// The steps. The second is [`process`], which only computes.
async fn taken<B: HttpBody<Data = Bytes> + Unpin>(
    app: &Arc<App>,
    route: Route,
    request: Request<B>,
) -> Result<Response, ApiError> {
    let (admitted, body) = admit(app, route, request).await?;
    let (project, is_short) = (admitted.access.project, is_short(&body.bytes));
    let step = move |app: &App| {
        let (bytes, reserved) = body.into_parts();
        process(app, admitted, &bytes, reserved)
    };
    let validated = compute(app, project, is_short, step).await?;
    append(app, validated).await
}

/// Takes a body apart and checks each of its events.
pub(crate) fn process(app: &App, mut admitted: Admitted, bytes: &[u8], reserved: Reserved) -> Result<Validated, ApiError> {
    let text = Text::new(bytes);
    if admitted.asked.route == Route::Validate {
        admitted.asked.route = route_of_checked(&admitted.asked.query, &text).map_err(ApiError::Envelope)?;
        admitted.asked.is_dry = true;
    }
    let first = decode(app, &admitted, &text);
    let is_unreadable = match &first {
        Ok(decoded) => decoded.has_unreadable(),
        Err(fault) => matches!(fault, EnvelopeFault::Unreadable(_)),
    };
    // JSON has no number that is none; a body with one is read again without, and its events are told apart.
    let mended = if is_unreadable { text.null_not_numbers() } else { None };
    let (decoded, text) = match &mended {
        Some(mended) => (decode(app, &admitted, mended), mended),
        None => (first, &text),
    };
    let decoded = decoded.map_err(ApiError::Envelope)?;
    let unsettled = Unsettled::new(&app.metrics, if admitted.asked.is_dry { 0 } else { decoded.len() });
    count(app, &admitted, decoded.len())?;
    validate(app, &admitted, decoded.as_ref(), text, reserved, unsettled)
}

/// Returns whether a body is processed in less time than others should wait.
fn is_short(body: &[u8]) -> bool {
    body.len() <= INLINE_BYTES_MAX && memchr::memchr_iter(b'{', body).count() <= INLINE_OBJECTS_MAX
}

/// Runs a step that only computes: inline if it is short, else on a blocking thread when it is the project's turn, and then to its
/// end. A panic in it fails this request and no other.
pub(crate) async fn compute<T: Send + 'static>(
    app: &Arc<App>,
    project: ProjectId,
    is_short: bool,
    step: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if is_short {
        return app.health.caught_here(|| step(app)).unwrap_or(Err(ApiError::Bug));
    }
    let turn = app.computing.acquire(project.0).await.map_err(|Full| {
        app.metrics.over_queue.increment(1);
        ApiError::Body(BodyFault::NoMemory)
    })?;
    let done = app.threads.handle().spawn_blocking({
        let app = Arc::clone(app);
        move || {
            let _turn = turn;
            app.health.caught_here(|| step(&app))
        }
    });
    // It is not cancelled, and its panics are caught.
    done.await.unwrap_or(Err(Panicked)).unwrap_or(Err(ApiError::Bug))
}

/// Returns the route where events that are only to be checked would be sent.
fn route_of_checked(query: &str, text: &Text<'_>) -> Result<Route, EnvelopeFault> {
    let dialect = detect(query, text.as_str()).or_else(|| detect(query, text.null_not_numbers()?.as_str()));
    dialect.map(Route::of_dialect).ok_or_else(|| {
        let names = Dialect::ALL.map(Dialect::as_str).join(", ");
        EnvelopeFault::Unreadable(format!("the body has the shape of no dialect; ?dialect= says which it is: {names}"))
    })
}

/// Splits the body into its events.
pub(crate) fn decode<'a>(app: &App, admitted: &'a Admitted, text: &'a Text<'a>) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
    dialect::of(admitted.asked.route.dialect()).parse(admitted, text, app.limits.events_max)
}

/// Counts events against the rate limit of the key.
fn count(app: &App, admitted: &Admitted, events: usize) -> Result<(), ApiError> {
    app.metrics.batch_events.record(events as f64);
    let Some(limiter) = &admitted.access.events else { return Ok(()) };
    limiter.take(events, Instant::now()).map_err(|wait| rate_limited(&app.metrics.over_rate, wait))
}

/// The events of a request of which it is not known yet what becomes of them. If that never comes to be known, since the request is refused,
/// meets a bug, or its client goes, they count as deferred: the client has to send them again.
struct Unsettled {
    metrics: Arc<Metrics>,
    events: usize,
}

impl Unsettled {
    fn new(metrics: &Arc<Metrics>, events: usize) -> Self {
        Unsettled { metrics: Arc::clone(metrics), events }
    }

    /// So many of them were told apart, and are counted as what they are.
    fn settle(&mut self, events: usize) {
        let settled = events.min(self.events);
        self.events -= settled;
        self.metrics.received.increment(settled as u64);
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.metrics.deferred.increment(self.events as u64);
        self.metrics.received.increment(self.events as u64);
    }
}

/// Events that may be appended, what became of the others, and the answer if the append succeeds.
pub(crate) struct Validated {
    pub(crate) records: Vec<Record>,
    /// Records of the events that were refused, where nobody reads that in the answer.
    pub(crate) refused: Vec<Record>,
    pub(crate) answer: Response,
    unsettled: Unsettled,
    pub(crate) duplicate: usize,
    /// What kind of bot sent each event that one sent.
    pub(crate) bots: Vec<BotClass>,
    /// How the visitor objects, and how many of its events were dropped for that.
    objection: Option<Signal>,
    pub(crate) dropped: usize,
    /// The first fault of each rejected event.
    pub(crate) codes: Vec<Code>,
    /// The reasons of repairs; each once for each event.
    pub(crate) repairs: Vec<Reason>,
    /// What became of each event, where the answer says so of each.
    pub(crate) each: Option<(Asked, Outcome)>,
    /// Memory of the body and of the records made of it.
    pub(crate) reserved: Reserved,
}

impl Validated {
    /// Returns how many events the request has.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn received(&self) -> usize {
        self.unsettled.events
    }

    /// Nothing is appended, and nothing counted.
    fn of_check(answer: Response, reserved: Reserved, unsettled: Unsettled) -> Self {
        Validated {
            records: Vec::new(),
            refused: Vec::new(),
            answer,
            unsettled,
            duplicate: 0,
            bots: Vec::new(),
            objection: None,
            dropped: 0,
            codes: Vec::new(),
            repairs: Vec::new(),
            each: None,
            reserved,
        }
    }
}

/// Checks every event of the request, before the first one is appended, and writes the answer, for which there might be no memory later.
/// Records may be larger than the body that they are made of, and rejections too, so each is counted.
fn validate(
    app: &App,
    admitted: &Admitted,
    envelope: &dyn Envelope,
    text: &Text<'_>,
    mut reserved: Reserved,
    unsettled: Unsettled,
) -> Result<Validated, ApiError> {
    let count = envelope.len();
    let dialect = admitted.asked.route.dialect();
    let mut records = Vec::with_capacity(count);
    let mut refused = Vec::new();
    let mut outcome = Outcome::new(admitted.access.backfill);
    let (mut bots, mut codes, mut repaired) = (Vec::new(), Vec::new(), Vec::new());
    let (is_dry, objection) = (admitted.asked.is_dry, admitted.objection);
    let (mut bytes, mut record_bytes, mut has_new_names) = (text.as_str().len(), 0, false);
    let request = RequestContext {
        project: admitted.access.project,
        unit: admitted.access.unit,
        backfill: admitted.access.backfill,
        horizon: app.keys.snapshot().and_then(|keys| keys.horizon),
        dialect,
        received_at: admitted.received_at,
        sent_at: envelope.sent_at().or(admitted.sent_at),
    };
    let header_agent = admitted.user_agent.as_deref().map(|text| app.agents.read(text));
    let mut ids = IdGenerator::new(admitted.received_at);
    let mut encoder = Encoder::new(count);
    let mut seen = HashSet::with_capacity(if count == 1 { 0 } else { count });
    for index in 0..count {
        let parsed = dialect::read(envelope, text, index, &admitted.access.conversions, dialect.is_strict());
        if objection.is_some() && parsed.as_ref().is_ok_and(privacy::is_identity_alone) {
            outcome.dropped += 1;
            if let Some(id) = envelope.id(index) {
                bytes += outcome.note(id, State::Dropped);
            }
            continue;
        }
        let mut bot = None;
        let admitted_event = parsed
            .map_err(|fault| vec![fault])
            .and_then(|mut parsed| {
                let address = address::take(&mut parsed.draft).or_else(|| parsed.address.take());
                if let Some(origin) = &admitted.origin {
                    app.geo.fill(origin, address.as_deref(), &mut parsed.draft.context);
                }
                bot = identify_agent(app, admitted, header_agent, &mut parsed);
                check_rules(parsed, &request, || ids.next(index), objection, |field| envelope.client_name(index, field))
            })
            .and_then(|(event, repairs)| match app.keys.names.admit(&event, admitted.access.backfill, is_dry) {
                Ok(()) => Ok((event, repairs)),
                Err(fault) => Err(vec![named_as(fault, envelope.client_name(index, "name"))]),
            });
        let state = match admitted_event {
            Ok((event, repairs)) => {
                // Generated ids are unique, so only ids from the client can repeat.
                let is_new = !event.id_from_client
                    || count == 1
                    || seen.insert((event.kind(), event.user_id, event.event_id, event.claimed_at));
                if is_new {
                    bots.extend(bot);
                    let record = encoder.event(&event);
                    let look = app.keys.names.look(&event);
                    has_new_names |= look != Look::Known;
                    record_bytes += record.bytes().len() * if look == Look::Missing { DEAD_LETTER_COSTS } else { 1 };
                    bytes += record.bytes().len();
                    records.push(record);
                    outcome.repaired += usize::from(!repairs.is_empty());
                    let is_first = |at: usize| repairs[..at].iter().all(|earlier| earlier.reason != repairs[at].reason);
                    repaired.extend((0..repairs.len()).filter(|at| is_first(*at)).map(|at| repairs[at].reason));
                    let state = if repairs.is_empty() { State::Accepted } else { State::Repaired };
                    if is_dry {
                        bytes += outcome.tell(index, repairs, |field| envelope.client_name(index, field));
                    }
                    state
                } else {
                    outcome.duplicate += 1;
                    State::Duplicate
                }
            }
            Err(faults) => {
                codes.extend(faults.first().map(|fault| fault.code));
                let state = faults.first().map(|fault| State::Rejected(fault.code, fault.field.clone()));
                if let Some(fault) = faults.first().filter(|_| !dialect.is_strict() && !is_dry) {
                    let event = app.refused.has_room(request.project, request.received_at).then(|| envelope.text(index));
                    // Of a visitor who objects neither the bytes are kept, nor the message, which may quote them.
                    let withheld = Rejection::new(fault.code, fault.field.as_str(), "");
                    let (fault, event) = match objection {
                        None => (fault, event.as_deref().map(address::masked)),
                        Some(_) => (&withheld, event.map(|_| Cow::Borrowed(""))),
                    };
                    let rejected = RejectedEvent::new(
                        ids.next(index),
                        request.project,
                        request.received_at,
                        dialect.as_str(),
                        &admitted.access.name,
                        fault,
                        event.as_deref(),
                    );
                    let record = Record::of_rejected(&rejected);
                    record_bytes += record.bytes().len();
                    bytes += record.bytes().len();
                    refused.push(record);
                }
                bytes += outcome.reject(index, &envelope.place(index), faults);
                state.unwrap_or(State::Accepted)
            }
        };
        if let Some(id) = envelope.id(index) {
            bytes += outcome.note(id, state);
        }
        reserved.grow_to(bytes).map_err(|fault| body_fault(app, fault))?;
    }
    outcome.accepted = records.len();
    if envelope.needs_cookie() && !admitted.fresh_cookie.is_empty() {
        outcome.cookie = Some(admitted.fresh_cookie.clone());
    }
    let reply = match is_dry {
        true => outcome.checked(dialect),
        false => dialect::of(dialect).answer(&admitted.asked, &outcome),
    };
    let answer = respond::outcome(dialect, reply, &outcome, &app.answers).map_err(|fault| body_fault(app, fault))?;
    if is_dry {
        return Ok(Validated::of_check(answer, reserved, unsettled));
    }
    // What is new may have been made since the last reading, or have used up the room for more.
    if has_new_names {
        app.keys.read_soon();
    }
    take_bytes(app, &admitted.access, record_bytes)?;
    let (duplicate, dropped) = (outcome.duplicate, outcome.dropped);
    let each = outcome.tells_each().then(|| (admitted.asked.clone(), outcome));
    Ok(Validated {
        records,
        refused,
        answer,
        unsettled,
        duplicate,
        bots,
        objection,
        dropped,
        codes,
        repairs: repaired,
        each,
        reserved,
    })
}

/// Gives a fault the name that the client has for its field.
fn named_as(mut fault: Rejection, name: Option<Cow<'static, str>>) -> Rejection {
    if let Some(name) = name {
        fault.field = name.into_owned();
    }
    fault
}

/// Applies the rules to a parsed event. Parse errors come first; rejections that only follow from them are left out. `name` says what the
/// client calls a field.
fn check_rules(
    parsed: ParsedEvent,
    request: &RequestContext,
    generated_id: impl FnOnce() -> EventId,
    objection: Option<Signal>,
    name: impl Fn(&str) -> Option<Cow<'static, str>>,
) -> Result<(Box<Event>, Vec<Repair>), Vec<Rejection>> {
    let ParsedEvent { draft, sent_at, is_clock_right, mut faults, .. } = parsed;
    let sent_at = sent_at.or(request.sent_at).filter(|_| !is_clock_right);
    let request = RequestContext { sent_at, ..*request };
    let admitted = match objection {
        None => rules::admit_repaired(draft, &request, generated_id),
        Some(signal) => unlinked::admit(draft, &request, generated_id, signal.as_str()),
    };
    match admitted {
        Ok(admitted) if faults.is_empty() => Ok(admitted),
        Ok(_) => Err(faults),
        Err(more) => {
            let has_bad_user = faults.iter().any(|fault| USER_FIELDS.contains(&fault.field.as_str()));
            let follows = |fault: &Rejection, faults: &[Rejection]| {
                (fault.code == Code::MissingUser && has_bad_user)
                    || faults.iter().any(|earlier| canonical_name(&earlier.field) == fault.field.as_str())
            };
            let own: Vec<_> = more.into_iter().filter(|fault| !follows(fault, &faults)).collect();
            for mut fault in own {
                if fault.code == Code::MissingUser
                    && let (Some(user), Some(device)) = (name("user_id"), name("anonymous_id"))
                {
                    fault.message = format!("found neither {user} nor {device}; at least one is needed");
                }
                let client_name = name(&fault.field);
                faults.push(named_as(fault, client_name));
            }
            Err(faults)
        }
    }
}

/// What dialects call the ids of a user.
const USER_FIELDS: [&str; 6] = ["anonymous_id", "userId", "anonymousId", "distinct_id", "device_id", "user.userID"];

/// Returns the name that the rules use for a field with several names.
fn canonical_name(field: &str) -> &str {
    match field {
        "conversion_type" | "event_type" | "event" => "name",
        "experiment_id" => "experiment",
        "variant_id" => "variant",
        "campaign_id" => "campaign",
        "component_id" => "component",
        "messageId" => "event_id",
        field => field,
    }
}

/// Fills user agent, device, bot flag and page from the headers, where the event does not have them. Returns what kind of bot sent it,
/// which its metadata says then.
fn identify_agent(app: &App, admitted: &Admitted, header_agent: Option<Agent>, parsed: &mut ParsedEvent) -> Option<BotClass> {
    let context = &mut parsed.draft.context;
    if context.page_url.is_none() {
        context.page_url = admitted.page.as_deref().map(CompactString::from);
    }
    let agent = match context.user_agent.as_deref() {
        Some(text) => Some(app.agents.read(text)),
        None => {
            context.user_agent = admitted.user_agent.as_deref().map(CompactString::from);
            header_agent
        }
    };
    let agent = agent.unwrap_or_default();
    if context.device_type.is_none() {
        context.device_type = agent.device_type.map(CompactString::const_new);
    }
    // Who says that it is one, or none, knows better.
    let class = match parsed.is_bot {
        Some(false) => None,
        Some(true) => Some(agent.bot.unwrap_or(BotClass::Declared)),
        None => agent.bot,
    };
    parsed.draft.is_bot = class.is_some();
    if let Some(class) = class {
        // It fails for no object that was checked.
        let properties = parsed.draft.properties.take();
        parsed.draft.properties = JsonObject::annotated(properties, "bot", &class.as_str()).ok();
    }
    class
}

/// Generates UUIDv7s for events without an id, ascending within a request.
struct IdGenerator {
    millis: u64,
    random: Option<[u8; 10]>,
}

impl IdGenerator {
    fn new(received_at: Micros) -> Self {
        IdGenerator { millis: (received_at.0 / 1_000).max(0).unsigned_abs(), random: None }
    }

    fn next(&mut self, index: usize) -> EventId {
        // One random number for the request: 62 random bits, and the 12 bits before them are a counter.
        let mut bytes = *self.random.get_or_insert_with(|| {
            let mut bytes = [0; 10];
            bytes.copy_from_slice(&Uuid::new_v4().as_bytes()[6..]);
            bytes
        });
        [bytes[0], bytes[1]] = (index as u16 & 0x0fff).to_be_bytes();
        EventId(uuid::Builder::from_unix_timestamp_millis(self.millis, &bytes).into_uuid())
    }
}

/// Appends all events at once, waits until they are durable, and counts what became of each. Returns the answer.
///
/// If the log does not know whether it took them, the client sends them again: deduplication removes
/// those with ids of their own. Those without get new ids and would be counted twice; a client that must not count twice
/// sends ids.
async fn append(app: &App, validated: Validated) -> Result<Response, ApiError> {
    let Validated {
        mut records,
        refused,
        answer,
        mut unsettled,
        duplicate,
        bots,
        objection,
        dropped,
        codes,
        repairs,
        each,
        reserved,
    } = validated;
    let appended = records.len();
    records.extend(refused);
    if !records.is_empty() {
        let start = Instant::now();
        let done = tokio::time::timeout(app.limits.append_wait_max, app.log.append(records)).await;
        app.metrics.append_seconds.record(start.elapsed().as_secs_f64());
        let failed = match &done {
            Ok(Ok(_)) => None,
            Ok(Err(AppendError::Unavailable(reason))) => Some((0, reason.as_str())),
            Ok(Err(AppendError::Unknown(reason))) => Some((1, reason.as_str())),
            Ok(Err(AppendError::Stopped(reason))) => Some((2, reason.as_str())),
            Err(_) => Some((3, "no answer in time")),
        };
        if let Some((kind, reason)) = failed {
            app.metrics.append_failed[kind].increment(1);
            if !app.is_log_failing.swap(true, Ordering::Relaxed) {
                tracing::warn!(reason, "the log does not take events; clients are told to send them again");
            }
            let Some((asked, outcome)) = each else { return Err(ApiError::Log) };
            let outcome = outcome.into_retry();
            let dialect = asked.route.dialect();
            let reply = dialect::of(dialect).retry(&asked, &outcome).ok_or(ApiError::Log)?;
            let answer = respond::outcome(dialect, reply, &outcome, &app.answers).map_err(|fault| body_fault(app, fault))?;
            // These do not come again.
            unsettled.settle(codes.len());
            codes.into_iter().for_each(|code| app.metrics.reject(code));
            return Ok(answer);
        }
        if app.is_log_failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the log takes events again");
        }
    }
    drop(reserved);
    unsettled.settle(usize::MAX);
    app.metrics.appended.increment(appended as u64);
    app.metrics.duplicate.increment(duplicate as u64);
    bots.into_iter().for_each(|class| app.metrics.bot(class));
    if let Some(signal) = objection {
        app.metrics.objected(signal, [appended, dropped, codes.len()]);
    }
    codes.into_iter().for_each(|code| app.metrics.reject(code));
    repairs.into_iter().for_each(|reason| app.metrics.repair(reason));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use events::{ConversionDetails, Details, Draft};

    #[test]
    fn generated_ids_rise_within_a_request() {
        let mut ids = IdGenerator::new(Micros(1_772_366_400_000_000));
        let ids: Vec<_> = (0..2_500).map(|index| ids.next(index)).collect();
        assert!(ids.is_sorted() && ids.iter().collect::<HashSet<_>>().len() == ids.len());
        assert!(ids.iter().all(|id| id.0.get_version_num() == 7));
        assert!(ids[0].to_string().starts_with("019ca945-0a00-7000-"), "{}", ids[0]);
        assert_ne!(IdGenerator::new(Micros(0)).next(0), IdGenerator::new(Micros(0)).next(0));
    }

    #[test]
    fn rejections_that_follow_from_a_parse_error_are_left_out() {
        let fault = |field| Rejection::new(Code::WrongType, field, "");
        let draft = || Draft::new(Details::Conversion(ConversionDetails::default()));
        let check = |draft, faults: &[&'static str], expected: &[&str]| {
            let faults = faults.iter().map(|field| fault(*field)).collect();
            let parsed = ParsedEvent { faults, ..ParsedEvent::new(draft) };
            let request = events::testing::request_context();
            let found = check_rules(parsed, &request, events::testing::generated_id, None, |_| None).expect_err("refused");
            let found: Vec<_> = found.iter().map(|fault| format!("{} {}", fault.code.as_str(), fault.field)).collect();
            assert_eq!(found, expected);
        };
        check(draft(), &[], &["missing_user user_id", "missing_field name"]);
        check(draft(), &["anonymous_id", "conversion_type"], &["wrong_type anonymous_id", "wrong_type conversion_type"]);
        let draft = Draft { user_id: Some("u".into()), value: Some("x".into()), ..draft() };
        check(draft, &["name"], &["wrong_type name", "bad_value value"]);
    }
}
