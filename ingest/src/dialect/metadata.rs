//! Everything without a column: gathered into one JSON object, as the client wrote it.

use events::{JsonObject, Rejection};

use super::members::{Member, write_string};

/// Gathers members of several objects into one, text by text.
#[derive(Default)]
pub(super) struct Metadata {
    /// Members without the braces around them.
    text: String,
    /// Keys that were added to those of the object.
    added: Vec<String>,
    is_object: bool,
}

impl Metadata {
    /// Takes all members of an object; `object` is valid JSON.
    pub(super) fn object(&mut self, object: &str) {
        self.is_object = true;
        let inner = object[1..object.len() - 1].trim_matches([' ', '\t', '\r', '\n']);
        if !inner.is_empty() {
            self.comma();
            self.text.push_str(inner);
        }
    }

    /// Adds one member.
    pub(super) fn member(&mut self, member: &Member<'_>) {
        self.key(&member.key);
        member.value.write_to(&mut self.text);
    }

    /// Adds one member whose value is JSON text.
    pub(super) fn json(&mut self, key: &str, json: &str) {
        self.key(key);
        self.text.push_str(json);
    }

    fn key(&mut self, key: &str) {
        self.is_object = true;
        self.comma();
        write_string(key, &mut self.text);
        self.text.push(':');
        self.added.push(key.to_owned());
    }

    fn comma(&mut self) {
        if !self.text.is_empty() {
            self.text.push(',');
        }
    }

    /// Checks the whole against all limits. `field` is what the client calls the object; faults in an added member carry
    /// the member's own name.
    pub(super) fn finish(self, field: &str) -> Result<Option<JsonObject>, Rejection> {
        if !self.is_object {
            return Ok(None);
        }
        JsonObject::parse(format!("{{{}}}", self.text), field).map(Some).map_err(|mut fault| {
            let place = fault.field.strip_prefix(field).and_then(|place| place.strip_prefix('.'));
            let is_added = |place: &str| {
                let own = |key: &String| {
                    place.strip_prefix(key.as_str()).is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b'.' | b'[')))
                };
                self.added.iter().any(own)
            };
            if let Some(place) = place.filter(|place| is_added(place)) {
                fault.field = place.to_owned();
            }
            fault
        })
    }
}
