//! Rejected events: kept whole, since no SDK sends them again.

use serde::{Deserialize, Serialize};

use crate::event::{EventId, ProjectId};
use crate::rejection::Rejection;
use crate::rules::limits;
use crate::time::Micros;

/// Bytes of a message; it may quote what was found.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// An event that was refused on a route whose clients read no answers. It goes through the log as events do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RejectedEvent {
    /// A UUIDv7 of the collector.
    pub id: EventId,
    /// Whose key was presented.
    pub project_id: ProjectId,
    /// When the request was received.
    pub received_at: Micros,
    /// By which protocol it came.
    pub dialect: String,
    /// The beginning of the key's digest, which tells keys apart without being one.
    pub key: String,
    /// The code of the first fault.
    pub code: String,
    /// The field at fault, as the client calls it.
    pub field: String,
    /// What was found and what is accepted.
    pub message: String,
    /// The event as it was sent, at most [`limits::EVENT_BYTES_MAX`] bytes of it; U+FFFD stands for what was no UTF-8, and for U+0000. None
    /// where the project has as many of the day as are kept: then it is only counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
}

impl RejectedEvent {
    /// Notes a rejection; `event` is the client's text.
    pub fn new(
        id: EventId,
        project_id: ProjectId,
        received_at: Micros,
        dialect: &str,
        key: &str,
        fault: &Rejection,
        event: Option<&str>,
    ) -> Self {
        // Postgres' text holds no U+0000.
        let kept = |text: &str, bytes_max: usize| {
            let mut text = text[..text.floor_char_boundary(bytes_max)].replace('\0', "\u{fffd}");
            text.truncate(text.floor_char_boundary(bytes_max));
            text
        };
        RejectedEvent {
            id,
            project_id,
            received_at,
            dialect: dialect.to_owned(),
            key: key.to_owned(),
            code: fault.code.as_str().to_owned(),
            field: kept(&fault.field, limits::NAME_BYTES_MAX),
            message: kept(&fault.message, MESSAGE_BYTES_MAX),
            event: event.map(|event| kept(event, limits::EVENT_BYTES_MAX)),
        }
    }

    /// Returns whether it is one that [`RejectedEvent::new`] can make, so that Postgres holds it.
    pub(crate) fn is_sound(&self) -> bool {
        let is_text = |text: &str, bytes_max: usize| text.len() <= bytes_max && !text.contains('\0');
        [&self.dialect, &self.key, &self.code, &self.field].iter().all(|text| is_text(text, limits::NAME_BYTES_MAX))
            && is_text(&self.message, MESSAGE_BYTES_MAX)
            && self.event.as_deref().is_none_or(|event| is_text(event, limits::EVENT_BYTES_MAX))
            && (Micros::MIN..=Micros::MAX).contains(&self.received_at)
    }
}
