//! Jitsu's dialect: Segment's calls at addresses of its own, with an answer of its own.

use hyper::header::SET_COOKIE;

use super::image::{Image, hit};
use super::query::parameter;
use super::segment::{self, Accepted, Call};
use super::{Content, Dialect, Envelope, EnvelopeFault, Head, KeyInHead, Reply, Text};
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
        // An event of the client's own name is a track.
        let call = |call: &str| {
            let is_name = !call.is_empty() && !call.contains('/');
            is_name.then(|| Call::of_path(call).unwrap_or(Call::Track))
        };
        if let Some(name) = path.strip_prefix("/api/px/") {
            return call(name).map(Route::JitsuImage);
        }
        let name = path.strip_prefix("/api/s/")?;
        call(name.strip_prefix("s2s/").unwrap_or(name)).map(Route::JitsuCall)
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        let in_query = || segment::image::key(head).map(without_secret);
        KeyInHead::or_body(head.write_key().or_else(|| head.basic()).or_else(|| head.bearer()).or_else(in_query))
    }

    fn key_in_body(&self, beginning: &str) -> Option<String> {
        segment::write_key(beginning).map(without_secret)
    }

    fn cookie(&self) -> Option<&'static str> {
        Some(COOKIE)
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        if let Route::JitsuImage(call) = request.asked.route {
            let hit = hit(&request.asked.query, text.as_str(), request.device());
            let has_cookie = has_cookie(&request.asked.query);
            return Ok(Box::new(Image { hit, reader: segment::image::Parameters { call, has_cookie } }));
        }
        Ok(Box::new(segment::batch(text.as_str(), Accepted::of(request), events_max)?))
    }

    fn answer(&self, asked: &Asked, outcome: &Outcome) -> Reply {
        if !matches!(asked.route, Route::JitsuImage(_)) {
            return outcome.success("ok");
        }
        let reply = Reply::new(Content::Image);
        match outcome.cookie.as_deref().filter(|_| outcome.accepted > 0) {
            Some(id) => reply.with(SET_COOKIE, &format!("{COOKIE}={id}; Max-Age=31536000; Path=/; Secure; SameSite=None")),
            None => reply,
        }
    }

    fn error(&self, route: Route, code: &str, message: &str) -> Reply {
        if matches!(route, Route::JitsuImage(_)) { Reply::new(Content::Image) } else { Reply::error(code, message) }
    }
}

/// The cookie of the anonymous id, as Jitsu's own clients keep it, too.
const COOKIE: &str = "__eventn_id";

/// Returns whether an image is to be that of the browser's cookie, and to set it.
fn has_cookie(query: &str) -> bool {
    matches!(parameter(query, "process_headers").as_deref(), Some("true" | "1" | "yes"))
}

/// A secret may follow the key.
fn without_secret(mut key: String) -> String {
    key.truncate(key.find(':').unwrap_or(key.len()));
    key
}
