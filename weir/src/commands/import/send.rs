//! Sends batches to the collector, each until it is acknowledged. Rows keep their ids, so sending twice stores once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use service::BackOff;
use sha2::{Digest as _, Sha256};

use super::Args;
use super::shape::Dialect;
use super::source::Fault;
use crate::cli::Globals;
use crate::client::Client;
use crate::commands::places::url;

/// How long an answer may take: longer than the collector waits for its log.
const ANSWER_MAX: Duration = Duration::from_secs(75);
/// How long to wait before the first retry, and before a later one at most, unless the collector says.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(200);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// A row on its way.
#[derive(Debug)]
struct Sent {
    row: u64,
    event: Vec<u8>,
    /// The row as its file has it.
    raw: Vec<u8>,
}

/// A row that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) fault: Fault,
    /// The row as its file has it.
    pub(super) raw: Vec<u8>,
}

/// Rows on their way.
#[derive(Debug, Default)]
pub(super) struct Batch {
    events: Vec<Sent>,
    /// Rows that cannot be sent.
    rejected: Vec<(u64, Rejected)>,
    bytes: usize,
    held_bytes: usize,
    last_row: u64,
    /// Bytes of the file up to here, about.
    file_bytes: u64,
}

impl Batch {
    /// Adds a row. `raw`: as the file has it; `file_bytes`: how much of the file was read.
    pub(super) fn add(&mut self, row: u64, raw: Vec<u8>, event: Result<Vec<u8>, Fault>, file_bytes: u64) {
        self.held_bytes += raw.len();
        match event {
            Ok(event) => {
                self.bytes += event.len() + 1;
                self.events.push(Sent { row, event, raw });
            }
            Err(fault) => self.rejected.push((row, Rejected { fault, raw })),
        }
        self.last_row = row;
        self.file_bytes = file_bytes;
    }

    /// Returns the number of rows, those included that are not sent.
    pub(super) fn rows(&self) -> usize {
        self.events.len() + self.rejected.len()
    }

    /// Returns about the bytes of the request.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes of the rows as their file has them.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) accepted: u64,
    /// Duplicates within a request.
    pub(super) duplicate: u64,
    /// By row.
    pub(super) rejected: BTreeMap<u64, Rejected>,
    pub(super) last_row: u64,
    pub(super) file_bytes: u64,
}

/// Where events go.
pub(super) struct Destination {
    client: Client,
    collector: String,
    /// Tells collectors and keys apart without naming the key.
    target: String,
    dialect: Dialect,
    authorization: String,
}

#[derive(Deserialize)]
struct Answer {
    accepted: Option<u64>,
    #[serde(default)]
    duplicate: u64,
    #[serde(default)]
    rejected: Vec<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    index: usize,
    code: String,
    #[serde(default)]
    message: Option<String>,
}

/// Takes off where in its request an event stood, which tells nothing about the file: `events[3].name: ..` becomes `name: ..`.
fn without_place(message: &str) -> &str {
    let rest = ["events[", "batch["].iter().find_map(|list| message.strip_prefix(list));
    let rest = rest.and_then(|rest| rest.trim_start_matches(|digit: char| digit.is_ascii_digit()).strip_prefix(']'));
    rest.and_then(|rest| rest.strip_prefix('.').or_else(|| rest.strip_prefix(": "))).unwrap_or(message)
}

/// The collector's reply to one request.
enum Reply {
    /// Accepted.
    Accepted(Answer),
    /// Too large as a whole.
    TooLarge(String),
    /// Not now, or not known; when to try again if the collector says.
    RetryLater(String, Option<Duration>),
}

impl Destination {
    /// Finds the collector and the key: on the command line, in the environment, or in weir.json.
    /// # Errors
    /// A text that says what was looked for, and where.
    pub(super) fn find(args: &Args, globals: &Globals) -> anyhow::Result<Self> {
        let (collector, key) = (Args::said(&args.collector).map(url), Args::said(&args.key));
        let (collector, key) = match (collector, key) {
            (Some(collector), Some(key)) => (collector, key.to_owned()),
            (collector, key) => {
                let file = globals.folder()?.join("weir.json");
                let found = globals.weir_json()?.with_context(|| {
                    format!(
                        "--collector and WEIR_COLLECTOR, or --key and WEIR_SERVER_KEY, are not given, and {} does not exist; start \
                         everything with `weir up`, name its data folder with --data, or give --collector URL and --key KEY",
                        file.display()
                    )
                })?;
                let own = url(&found.collector);
                match (collector, key) {
                    // A key is a secret between its collector and us.
                    (Some(collector), None) if collector != own => bail!(
                        "--key and WEIR_SERVER_KEY are not given; the key in {} is for {own}, not for {collector}",
                        file.display()
                    ),
                    (collector, key) => (collector.unwrap_or(own), key.map_or(found.server_key, str::to_owned)),
                }
            }
        };
        let target = hex::encode(Sha256::digest(format!("{collector}\n{key}")));
        let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{key}:")));
        let client = Client::new(&collector, None, globals.ca.as_deref())?;
        Ok(Destination { client, collector, target, dialect: args.dialect, authorization })
    }

    /// A destination of a test that sends nothing.
    #[cfg(test)]
    pub(super) fn closed(target: &str) -> Self {
        let client = Client::new("http://127.0.0.1:1", None, None).expect("a URL");
        let (collector, authorization) = ("http://127.0.0.1:1".to_owned(), "Basic x".to_owned());
        Destination { client, collector, target: target.to_owned(), dialect: Dialect::Native, authorization }
    }

    /// Returns the collector's address.
    pub(super) fn collector(&self) -> &str {
        &self.collector
    }

    /// Returns a digest of collector and key.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// Sends a batch until it is accepted. What the collector does not accept for `patience` is a failure.
    /// # Errors
    /// If the collector refuses for good, or is silent for too long. Some of the rows may be stored.
    pub(super) async fn deliver(&self, batch: Batch, patience: Duration) -> anyhow::Result<Delivered> {
        let Batch { events, rejected, last_row, file_bytes, .. } = batch;
        let mut delivered = Delivered { rejected: rejected.into_iter().collect(), last_row, file_bytes, ..Delivered::default() };
        let mut parts = vec![events];
        while let Some(mut events) = parts.pop() {
            if events.is_empty() {
                continue;
            }
            match self.insist(&events, patience).await? {
                Ok(answer) => self.count(events, answer, &mut delivered)?,
                Err(reason) if events.len() == 1 => {
                    let rejected = events
                        .into_iter()
                        .map(|Sent { row, raw, .. }| (row, Rejected { fault: Fault::new("too_large", &reason), raw }));
                    delivered.rejected.extend(rejected);
                }
                Err(_) => {
                    // The first half goes first, since one user's events keep their order.
                    let second = events.split_off(events.len() / 2);
                    parts.push(second);
                    parts.push(events);
                }
            }
        }
        Ok(delivered)
    }

    /// Sends one request until there is an answer; the inner error says that it is too large.
    async fn insist(&self, events: &[Sent], patience: Duration) -> anyhow::Result<Result<Answer, String>> {
        let body = self.body(events);
        let begun = Instant::now();
        let mut back_off = BackOff::new(RETRY_WAIT_MIN, RETRY_WAIT_MAX);
        loop {
            let (reason, asked) = match self.ask(body.clone()).await? {
                Reply::Accepted(answer) => return Ok(Ok(answer)),
                Reply::TooLarge(reason) => return Ok(Err(reason)),
                Reply::RetryLater(reason, asked) => (reason, asked),
            };
            if begun.elapsed() >= patience {
                bail!("{}: no events accepted for {} s: {reason}", self.collector, begun.elapsed().as_secs());
            }
            tracing::warn!(reason, "the collector did not accept a batch; it is sent again");
            let wait = back_off.delay();
            tokio::time::sleep(asked.unwrap_or(wait)).await;
        }
    }

    fn body(&self, events: &[Sent]) -> Bytes {
        let between: &[u8] = if self.dialect == Dialect::Segment { b"," } else { b"\n" };
        let mut body = Vec::with_capacity(events.iter().map(|sent| sent.event.len() + 1).sum::<usize>() + 16);
        if self.dialect == Dialect::Segment {
            body.extend_from_slice(br#"{"batch":["#);
        }
        for (place, Sent { event, .. }) in events.iter().enumerate() {
            if place > 0 {
                body.extend_from_slice(between);
            }
            body.extend_from_slice(event);
        }
        if self.dialect == Dialect::Segment {
            body.extend_from_slice(b"]}");
        }
        body.into()
    }

    async fn ask(&self, body: Bytes) -> anyhow::Result<Reply> {
        let (path, content_type) = match self.dialect {
            Dialect::Segment => ("/v1/batch", "application/json"),
            _ => ("/v1/events", "application/x-ndjson"),
        };
        let posted = self.client.post(path, content_type, &self.authorization, body, ANSWER_MAX).await;
        let answer = match posted {
            Ok(answer) => answer,
            // Whether it was taken is not known, and does not matter.
            Err(error) => return Ok(Reply::RetryLater(format!("{error:#}"), None)),
        };
        let reason = format!("{} {}", answer.status, answer.line());
        match answer.status {
            StatusCode::OK => {
                let taken = serde_json::from_slice(&answer.body);
                Ok(Reply::Accepted(taken.with_context(|| format!("{}: {reason}; is this a collector?", self.collector))?))
            }
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Reply::TooLarge(reason)),
            // Segment's routes have no other status for it.
            StatusCode::BAD_REQUEST if reason.contains("\"body_too_large\"") || reason.contains("\"too_many_events\"") => {
                Ok(Reply::TooLarge(reason))
            }
            StatusCode::UNAUTHORIZED => {
                bail!("{}: {reason}; give a server key with --key or WEIR_SERVER_KEY", self.collector)
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Ok(Reply::RetryLater(reason, answer.retry_after)),
            status if status.is_server_error() => Ok(Reply::RetryLater(reason, answer.retry_after)),
            _ => bail!("{}: {reason}", self.collector),
        }
    }

    /// Adds an answer to what is known; each row has one outcome.
    fn count(&self, mut events: Vec<Sent>, answer: Answer, delivered: &mut Delivered) -> anyhow::Result<()> {
        let sent = events.len() as u64;
        let mut rejected = BTreeMap::new();
        for Refusal { index, code, message } in answer.rejected {
            let Some(Sent { row, raw, .. }) = events.get_mut(index) else {
                bail!("{}: event {index} of {} was rejected; is this a collector?", self.collector, events.len());
            };
            // The first fault of an event is the one that others may follow from.
            // Of a public key's many rejected events the collector explains the first ones only.
            let message = message.as_deref().map_or("the reason is written out for server keys only", without_place);
            rejected
                .entry(*row)
                .or_insert_with(|| Rejected { fault: Fault { code, message: message.to_owned() }, raw: std::mem::take(raw) });
        }
        let left = sent.saturating_sub(rejected.len() as u64 + answer.duplicate);
        let accepted = answer.accepted.unwrap_or(left);
        if accepted + answer.duplicate + rejected.len() as u64 != sent {
            bail!(
                "{}: of {sent} events {accepted} were accepted, {} repeated and {} rejected, which is not all; is this a collector?",
                self.collector,
                answer.duplicate,
                rejected.len()
            );
        }
        delivered.accepted += accepted;
        delivered.duplicate += answer.duplicate;
        delivered.rejected.extend(rejected);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_requests_are_taken_off() {
        let check = |message: &str, expected: &str| assert_eq!(without_place(message), expected);
        check("events[12].name: missing", "name: missing");
        check("batch[0].properties.revenue: found x", "properties.revenue: found x");
        check("events[3]: not an object", "not an object");
        check("events are missing", "events are missing");
        check("name: missing", "name: missing");
    }

    #[test]
    fn each_row_has_one_outcome() {
        let events = || (5..9).map(|row| Sent { row, event: Vec::new(), raw: Vec::new() }).collect::<Vec<_>>();
        let check = |answer: &str, expected: Option<(u64, u64, &[u64])>| {
            let answer = serde_json::from_str(answer).expect("an answer");
            let mut delivered = Delivered::default();
            let counted = Destination::closed("a").count(events(), answer, &mut delivered);
            let rejected: Vec<u64> = delivered.rejected.keys().copied().collect();
            let found = counted.is_ok().then_some((delivered.accepted, delivered.duplicate, rejected.as_slice()));
            assert_eq!(found, expected);
        };
        check(r#"{"accepted":4,"duplicate":0,"rejected":[]}"#, Some((4, 0, &[])));
        let twice = r#"{"index":2,"code":"a","message":"x"},{"index":2,"code":"b","message":"y"}"#;
        check(&format!(r#"{{"accepted":2,"duplicate":1,"rejected":[{twice}]}}"#), Some((2, 1, &[7])));
        check(&format!(r#"{{"success":true,"rejected":[{twice}]}}"#), Some((3, 0, &[7])));
        let short = r#"{"index":2,"code":"a","field":"name"}"#;
        check(&format!(r#"{{"accepted":3,"duplicate":0,"rejected":[{short}]}}"#), Some((3, 0, &[7])));
        check(r#"{"success":true}"#, Some((4, 0, &[])));
        check(r#"{"accepted":3,"duplicate":0,"rejected":[]}"#, None);
        check(r#"{"accepted":3,"rejected":[{"index":4,"code":"a","message":"x"}]}"#, None);
    }
}
