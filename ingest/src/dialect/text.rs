//! A body as text, with the places where it is not what the client sent.

use std::borrow::Cow;

use events::json::null_not_numbers;
use events::repair::Reason;

/// A body as text. Bytes that are not UTF-8 were replaced, and what contains such a place is damaged.
pub(crate) struct Text<'a> {
    text: Cow<'a, str>,
    /// Where a replacement starts, ascending, and what it replaced.
    replaced: Vec<(usize, Reason)>,
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
                replaced.push((text.len(), Reason::Utf8));
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        Text { text: Cow::Owned(text), replaced }
    }

    /// Returns the text.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the text with null for each `NaN` and `Infinity` outside texts; none if there is nothing of the kind.
    pub(crate) fn null_not_numbers(&self) -> Option<Text<'static>> {
        let (text, nulls) = null_not_numbers(&self.text)?;
        let mut replaced: Vec<_> = nulls.into_iter().map(|place| (place, Reason::NotANumber)).collect();
        if !self.replaced.is_empty() {
            // No replacement character came or went: the n-th of them is the n-th still.
            let moved = |of: &str| of.match_indices(char::REPLACEMENT_CHARACTER).map(|(place, _)| place).collect::<Vec<_>>();
            let (before, after) = (moved(&self.text), moved(&text));
            let place = |(place, reason): &(usize, Reason)| Some((*after.get(before.binary_search(place).ok()?)?, *reason));
            replaced.extend(self.replaced.iter().filter_map(place));
            replaced.sort_by_key(|(place, _)| *place);
        }
        Some(Text { text: Cow::Owned(text), replaced })
    }

    /// Returns what was replaced in a part, which is a slice of this text: each place in the part, and the reason.
    pub(super) fn replaced_in(&self, part: &str) -> &[(usize, Reason)] {
        if self.replaced.is_empty() {
            return &[];
        }
        let start = self.start_of(part);
        let from = self.replaced.partition_point(|(place, _)| *place < start);
        let to = self.replaced.partition_point(|(place, _)| *place < start + part.len());
        &self.replaced[from..to]
    }

    /// Returns where a part, which is a slice of this text, begins in it.
    pub(super) fn start_of(&self, part: &str) -> usize {
        part.as_ptr() as usize - self.text.as_ptr() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_where_it_is() {
        let body = b"\xef\xbb\xbf[\"a\",\"\xff\",\"\xc3\xa9\",\"b\xe2\x82\"]";
        let text = Text::new(body);
        assert_eq!(text.as_str(), "[\"a\",\"\u{fffd}\",\"é\",\"b\u{fffd}\"]");
        let parts: Vec<_> = text.as_str().split(',').map(|part| !text.replaced_in(part).is_empty()).collect();
        assert_eq!(parts, [false, true, false, true]);
        assert_eq!(text.replaced_in(text.as_str()).len(), 2);
        assert!(Text::new(b"{}").replaced_in("{}").is_empty());
        assert!(text.null_not_numbers().is_none());
    }

    #[test]
    fn nulls_and_damage_are_told_apart() {
        let text = Text::new(b"[NaN,\"\xef\xbf\xbd\",-Infinity,\"\xff\",Infinity]");
        let text = text.null_not_numbers().expect("has some");
        assert_eq!(text.as_str(), "[null,\"\u{fffd}\",null,\"\u{fffd}\",null]");
        let reasons: Vec<_> = text.replaced_in(text.as_str()).iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, ["not_a_number", "not_a_number", "utf8", "not_a_number"]);
    }
}
