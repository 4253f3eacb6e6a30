//! What an answer says about the events of its request.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All events but these are durable.
    Accepted { rejected: Vec<Rejected> },
    /// None of the events is stored.
    Refused { trouble: String, may_pass: bool, retry_after: Duration },
    /// Some events may be stored.
    Unknown { trouble: String, retry_after: Duration },
}

/// An event that was rejected in a request that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Rejected {
    pub index: usize,
    pub code: String,
    #[serde(default)]
    pub field: String,
}

#[derive(Deserialize)]
struct Answer {
    accepted: usize,
    duplicate: usize,
    rejected: Vec<Rejected>,
}

#[derive(Deserialize)]
struct Fault {
    error: FaultCode,
}

#[derive(Deserialize)]
struct FaultCode {
    code: String,
}

impl Outcome {
    /// Reads an answer to a request of `events` events, all of them different.
    pub(crate) fn of(status: StatusCode, retry_after: Option<&str>, body: &[u8], events: usize) -> Outcome {
        let retry_after = Duration::from_secs(retry_after.and_then(|text| text.trim().parse().ok()).unwrap_or(0));
        if status == StatusCode::OK {
            return match serde_json::from_slice::<Answer>(body) {
                Ok(answer) if answer.adds_up(events) => Outcome::Accepted { rejected: answer.rejected },
                Ok(Answer { accepted, duplicate, rejected }) => {
                    let trouble =
                        format!("200 wrong counts: {accepted} accepted, {duplicate} duplicate, {} rejected", rejected.len());
                    Outcome::Unknown { trouble, retry_after }
                }
                Err(_) => Outcome::Unknown { trouble: "200 with another body".to_owned(), retry_after },
            };
        }
        let code = serde_json::from_slice::<Fault>(body).map_or_else(|_| "without a code".to_owned(), |fault| fault.error.code);
        let trouble = format!("{} {code}", status.as_u16());
        match status {
            StatusCode::TOO_MANY_REQUESTS => Outcome::Refused { trouble, may_pass: true, retry_after },
            status if status.is_client_error() => Outcome::Refused { trouble, may_pass: false, retry_after },
            _ => Outcome::Unknown { trouble, retry_after },
        }
    }

    /// Returns why the request has to be called failed, if it has.
    pub(crate) fn trouble(&self) -> Option<&str> {
        match self {
            Outcome::Accepted { .. } => None,
            Outcome::Refused { trouble, .. } | Outcome::Unknown { trouble, .. } => Some(trouble),
        }
    }

    /// Returns whether the same request may succeed later.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, Outcome::Refused { may_pass: false, .. })
    }

    /// Returns how long the server asks to wait.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Outcome::Accepted { .. } => Duration::ZERO,
            Outcome::Refused { retry_after, .. } | Outcome::Unknown { retry_after, .. } => *retry_after,
        }
    }

    /// Returns which events were rejected in a request that was taken.
    pub(crate) fn rejected(&self) -> BTreeSet<usize> {
        match self {
            Outcome::Accepted { rejected } => rejected.iter().map(|rejected| rejected.index).collect(),
            _ => BTreeSet::new(),
        }
    }
}

impl Answer {
    /// Each event is accepted or rejected; a rejected one may have several faults.
    fn adds_up(&self, events: usize) -> bool {
        let rejected: BTreeSet<usize> = self.rejected.iter().map(|rejected| rejected.index).collect();
        self.duplicate == 0 && self.accepted + rejected.len() == events && rejected.iter().all(|index| *index < events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let check = |status: u16, body: &str, expected: &str| {
            let outcome = Outcome::of(StatusCode::from_u16(status).expect("a status"), Some("3"), body.as_bytes(), 2);
            let found = match &outcome {
                Outcome::Accepted { rejected } => format!("accepted, but {:?}", outcome.rejected().len().min(rejected.len())),
                Outcome::Refused { trouble, may_pass, .. } => format!("refused {may_pass} {trouble}"),
                Outcome::Unknown { trouble, .. } => format!("unknown {trouble}"),
            };
            assert_eq!(found, expected);
            assert_eq!(outcome.retry_after().as_secs(), if outcome.trouble().is_some() { 3 } else { 0 });
        };
        check(200, r#"{"accepted":2,"duplicate":0,"rejected":[]}"#, "accepted, but 0");
        check(
            200,
            r#"{"accepted":1,"duplicate":0,"rejected":[{"index":1,"code":"c"},{"index":1,"code":"d"}]}"#,
            "accepted, but 1",
        );
        check(
            200,
            r#"{"accepted":1,"duplicate":0,"rejected":[]}"#,
            "unknown 200 wrong counts: 1 accepted, 0 duplicate, 0 rejected",
        );
        check(
            200,
            r#"{"accepted":1,"duplicate":1,"rejected":[]}"#,
            "unknown 200 wrong counts: 1 accepted, 1 duplicate, 0 rejected",
        );
        check(
            200,
            r#"{"accepted":1,"duplicate":0,"rejected":[{"index":2,"code":"c"}]}"#,
            "unknown 200 wrong counts: 1 accepted, 0 duplicate, 1 rejected",
        );
        check(200, "", "unknown 200 with another body");
        check(204, "", "unknown 204 without a code");
        check(400, r#"{"error":{"code":"invalid_json"}}"#, "refused false 400 invalid_json");
        check(429, r#"{"error":{"code":"rate_limited"}}"#, "refused true 429 rate_limited");
        check(503, "<html>", "unknown 503 without a code");
    }
}
