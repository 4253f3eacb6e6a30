//! Requests as clients send them: each dialect splits a body into its events and parses them into drafts.

mod field;
mod members;
mod metadata;
mod native;
mod pixel;
pub(crate) mod query;
mod segment;

use std::borrow::Cow;

use events::identity::Dialect;
use events::{Code, Draft, Micros, Rejection};

pub(crate) use pixel::{COOKIE, Device};
pub(crate) use segment::{Call, write_key};

/// Why a body as a whole cannot be read. None of its events is stored.
#[derive(Debug)]
pub(crate) enum EnvelopeFault {
    /// The events cannot be found in it; the text says where parsing failed, and what is accepted.
    Unreadable(String),
    /// So many events.
    TooManyEvents(usize),
}

/// An event that could be read, field by field.
#[derive(Debug)]
pub(crate) struct ParsedEvent {
    /// What was read; fields at fault are left out.
    pub(crate) draft: Draft,
    /// The event's own `sent_at`, which takes precedence over the envelope's.
    pub(crate) sent_at: Option<Micros>,
    /// Whether the client says that it is a bot.
    pub(crate) is_bot: Option<bool>,
    /// Rejections of single fields.
    pub(crate) faults: Vec<Rejection>,
}

/// A body as text. Bytes that are not UTF-8 were replaced, and what contains such a place is damaged.
pub(crate) struct Text<'a> {
    text: Cow<'a, str>,
    /// Where a replacement starts, ascending.
    replaced: Vec<usize>,
}

impl<'a> Text<'a> {
    /// Reads a body; a byte order mark at its start is skipped.
    pub(crate) fn new(body: &'a [u8]) -> Self {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        if let Ok(text) = std::str::from_utf8(body) {
            return Text { text: Cow::Borrowed(text), replaced: Vec::new() };
        }
        let mut text = String::with_capacity(body.len() + 16);
        let mut replaced = Vec::new();
        for chunk in body.utf8_chunks() {
            text.push_str(chunk.valid());
            if !chunk.invalid().is_empty() {
                replaced.push(text.len());
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        Text { text: Cow::Owned(text), replaced }
    }

    /// Returns the text.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether a part, which is a slice of this text, contains a replacement.
    fn is_damaged(&self, part: &str) -> bool {
        if self.replaced.is_empty() {
            return false;
        }
        let start = part.as_ptr() as usize - self.text.as_ptr() as usize;
        let next = self.replaced.partition_point(|place| *place < start);
        self.replaced.get(next).is_some_and(|place| *place < start + part.len())
    }
}

/// The events of one request, in the request's order, each still as it was written.
pub(crate) enum Envelope<'a> {
    /// Of `/v1/events`.
    Native(&'a Text<'a>, native::Batch<'a>),
    /// Of Segment's routes.
    Segment(&'a Text<'a>, segment::Batch<'a>),
    /// Of the pixel, which has one.
    Pixel(pixel::Hit<'a>),
}

impl<'a> Envelope<'a> {
    /// Takes a native body apart; `lines` says that its content type promises one event per line.
    pub(crate) fn native(body: &'a Text<'a>, lines: bool, events_max: usize) -> Result<Self, EnvelopeFault> {
        native::batch(body.as_str(), lines, events_max).map(|batch| Envelope::Native(body, batch))
    }

    /// Takes a body of Segment's apart; a `call` is one event, without it the body is a batch.
    pub(crate) fn segment(body: &'a Text<'a>, call: Option<Call>, events_max: usize) -> Result<Self, EnvelopeFault> {
        segment::batch(body.as_str(), call, events_max).map(|batch| Envelope::Segment(body, batch))
    }

    /// Takes the pixel's parameters: those of the query, then those of a form.
    pub(crate) fn pixel(query: &'a str, form: &'a Text<'a>, device: Device<'a>) -> Self {
        Envelope::Pixel(pixel::hit(query, form.as_str(), device))
    }

    /// Returns whether the answer must give the browser a cookie, so that its next event is the same device's.
    pub(crate) fn needs_cookie(&self) -> bool {
        matches!(self, Envelope::Pixel(hit) if hit.needs_cookie())
    }

    /// Returns the number of events.
    pub(crate) fn len(&self) -> usize {
        match self {
            Envelope::Native(_, batch) => batch.events.len(),
            Envelope::Segment(_, batch) => batch.items.len(),
            Envelope::Pixel(_) => 1,
        }
    }

    /// Returns when the client says that it sent the request.
    pub(crate) fn sent_at(&self) -> Option<Micros> {
        match self {
            Envelope::Native(_, batch) => batch.sent_at,
            Envelope::Segment(_, batch) => batch.sent_at,
            Envelope::Pixel(_) => None,
        }
    }

    /// Returns the place of an event in the body, for messages: `events[3]`.
    pub(crate) fn place(&self, index: usize) -> String {
        match self {
            Envelope::Native(..) => format!("events[{index}]"),
            Envelope::Segment(_, batch) => batch.place(index),
            Envelope::Pixel(_) => String::new(),
        }
    }

    /// Parses the event at an index below [`Envelope::len`].
    /// `conversions` are the names of tracks that the project counts as conversions.
    /// # Errors
    /// What keeps the event from being read at all.
    pub(crate) fn parse(&self, index: usize, conversions: &[String], bytes_max: usize) -> Result<ParsedEvent, Rejection> {
        let whole = |text: &Text<'_>, part: &str| {
            if part.len() > bytes_max {
                let message = format!("{} bytes; at most {bytes_max} are accepted", part.len());
                return Err(Rejection::new(Code::EventTooLarge, "", message));
            }
            if text.is_damaged(part) {
                return Err(Rejection::new(Code::BadUtf8, "", "contains bytes that are not UTF-8"));
            }
            Ok(())
        };
        match self {
            Envelope::Native(text, batch) => match &batch.events[index] {
                Ok(raw) => whole(text, raw.get()).and_then(|()| native::parse(raw)),
                Err((line, fault)) => Err(whole(text, line).err().unwrap_or_else(|| fault.clone())),
            },
            Envelope::Segment(text, batch) => {
                let raw = batch.items[index];
                whole(text, raw.get()).and_then(|()| segment::parse(batch, raw, conversions))
            }
            Envelope::Pixel(hit) => hit.parse(),
        }
    }

    /// Returns the dialect.
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Envelope::Native(..) => Dialect::Native,
            Envelope::Segment(..) => Dialect::Segment,
            Envelope::Pixel(_) => Dialect::Pixel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bodies that are nearly right: real ones with pieces cut out, doubled or replaced.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let whole = prop_oneof![
            Just(
                r#"{"events":[{"type":"conversion","name":"n","user_id":"u","value":"1.5","properties":{"a":[1,{"b":null}]}}]}"#
            ),
            Just(
                r#"{"batch":[{"type":"track","event":"Order Completed","userId":7,"properties":{"revenue":1e2,"a":"\u00e9"},"context":{"page":{"url":"x"},"screen":{"width":1,"height":2}}}],"sentAt":"2026-03-01T12:00:00Z"}"#
            ),
            Just("{\"type\":\"impression\",\"user_id\":\"u\"}\n{\"type\":\"identity\",\"name\":\"group\"}\n"),
        ];
        let change = (any::<prop::sample::Index>(), 0usize..8, prop::collection::vec(any::<u8>(), 0..4));
        (whole, prop::collection::vec(change, 0..4)).prop_map(|(whole, changes)| {
            let mut bytes = whole.as_bytes().to_vec();
            for (at, length, new) in changes {
                let at = at.index(bytes.len() + 1);
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, new);
            }
            bytes
        })
    }

    proptest! {
        /// No body panics, and whatever is read as metadata is an object that keeps all limits.
        #[test]
        fn no_body_panics(body in nearly()) {
            let text = Text::new(&body);
            let form = Text::new(b"");
            let device = Device { known: None, fresh: "fresh" };
            let envelopes = [
                Envelope::native(&text, false, 5),
                Envelope::native(&text, true, 5),
                Envelope::segment(&text, None, 5),
                Envelope::segment(&text, Some(Call::Track), 5),
                Ok(Envelope::pixel(text.as_str(), &form, device)),
            ];
            for envelope in envelopes.into_iter().flatten() {
                for index in 0..envelope.len() {
                    let parsed = envelope.parse(index, &[], 1_000);
                    if let Some(metadata) = parsed.ok().and_then(|parsed| parsed.draft.properties) {
                        prop_assert!(events::JsonObject::parse(metadata.to_string(), "").is_ok());
                    }
                }
            }
            let _ = write_key(text.as_str());
        }
    }

    #[test]
    fn damage_is_where_it_is() {
        let body = b"\xef\xbb\xbf[\"a\",\"\xff\",\"\xc3\xa9\",\"b\xe2\x82\"]";
        let text = Text::new(body);
        assert_eq!(text.as_str(), "[\"a\",\"\u{fffd}\",\"é\",\"b\u{fffd}\"]");
        let parts: Vec<_> = text.as_str().split(',').map(|part| text.is_damaged(part)).collect();
        assert_eq!(parts, [false, true, false, true]);
        assert!(text.is_damaged(text.as_str()));
        assert!(!Text::new(b"{}").is_damaged("{}"));
    }
}
