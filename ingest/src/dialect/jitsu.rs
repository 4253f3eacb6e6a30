//! Jitsu's dialect: Segment's calls at addresses of its own, with an answer of its own.

use super::segment::{self, Call};
use super::{Dialect, Envelope, EnvelopeFault, Head, KeyInHead, Reply, Text};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::Route;

/// The dialect of Jitsu's SDKs.
pub(super) struct Jitsu;

impl Dialect for Jitsu {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        if path == "/b" || path == "/api/s/batch" || path == "/api/s/s2s/batch" {
            return Some(Route::JitsuBatch);
        }
        let call = path.strip_prefix("/api/s/")?;
        let call = call.strip_prefix("s2s/").unwrap_or(call);
        // An event of the client's own name is a track.
        (!call.is_empty() && !call.contains('/')).then(|| Route::JitsuCall(Call::of_path(call).unwrap_or(Call::Track)))
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        let in_query = || head.parameter("writekey").or_else(|| head.parameter("writeKey"));
        KeyInHead::or_body(head.write_key().or_else(|| head.basic()).or_else(|| head.bearer()).or_else(in_query))
    }

    fn key_in_body(&self, beginning: &str) -> Option<String> {
        // As in the header, a secret may follow it.
        segment::write_key(beginning).and_then(|key| Some(key.split(':').next()?.to_owned()))
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        Ok(Box::new(segment::batch(text.as_str(), request.asked.route.call(), events_max)?))
    }

    fn answer(&self, _asked: &Asked, outcome: &Outcome) -> Reply {
        outcome.success("ok")
    }
}
