//! Walks JSON text token by token, without recursion: says where a byte is, and mends what a parser or Postgres refuses.

use std::fmt::Write as _;
use std::ops::Range;

use crate::repair::Reason;

/// Bytes of one key in a place, and of a place.
const SHOWN_KEY_BYTES_MAX: usize = 64;
const SHOWN_BYTES_MAX: usize = 256;
/// Places that are told of one text; the rest is mended as well.
const PLACES_MAX: usize = 64;

/// What encloses a token.
enum Frame<'a> {
    Object { key: &'a str, is_key_next: bool },
    Array(usize),
}

/// Calls `visit` for each text, number and word with its range and what encloses it, keys included. `text` is valid JSON.
fn walk<'a>(text: &'a str, mut visit: impl FnMut(Range<usize>, &[Frame<'a>])) {
    let bytes = text.as_bytes();
    let mut frames: Vec<Frame<'a>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'{' => frames.push(Frame::Object { key: "", is_key_next: true }),
            b'[' => frames.push(Frame::Array(0)),
            b'}' | b']' => drop(frames.pop()),
            b',' => match frames.last_mut() {
                Some(Frame::Object { is_key_next, .. }) => *is_key_next = true,
                Some(Frame::Array(index)) => *index += 1,
                None => {}
            },
            b'"' => {
                at = end_of_text(bytes, at);
                if let Some(Frame::Object { key, is_key_next }) = frames.last_mut()
                    && *is_key_next
                {
                    *key = &text[start + 1..at - 1];
                    *is_key_next = false;
                }
                visit(start..at, &frames);
                continue;
            }
            b':' => {}
            byte if byte.is_ascii_whitespace() => {}
            _ => {
                let is_word = |byte: &u8| !matches!(byte, b',' | b']' | b'}') && !byte.is_ascii_whitespace();
                at += bytes[at..].iter().take_while(|byte| is_word(byte)).count();
                visit(start..at, &frames);
                continue;
            }
        }
        at += 1;
    }
}

/// Returns where the text that begins at a quotation mark ends: after its closing one.
fn end_of_text(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn place(frames: &[Frame<'_>]) -> String {
    let mut place = String::new();
    for frame in frames {
        if place.len() > SHOWN_BYTES_MAX {
            break;
        }
        match frame {
            Frame::Object { key, .. } => {
                if !place.is_empty() {
                    place.push('.');
                }
                let decoded: Option<String> =
                    key.contains('\\').then(|| serde_json::from_str(&format!("\"{key}\"")).ok()).flatten();
                let key = decoded.as_deref().unwrap_or(key);
                place.push_str(&key[..key.floor_char_boundary(SHOWN_KEY_BYTES_MAX)]);
            }
            Frame::Array(index) => {
                // Writing to a String fails for nothing.
                let _ = write!(place, "[{index}]");
            }
        }
    }
    place
}

/// Returns the place, such as `properties.cart[3].price`, of each token that holds one of the offsets, with the number of the first
/// offset in it. `text` is valid JSON; `offsets` ascend. The first 64 places are told.
pub fn places(text: &str, offsets: &[usize]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut next = 0;
    walk(text, |range, frames| {
        let from = next + offsets[next..].partition_point(|offset| *offset < range.start);
        next = from + offsets[from..].partition_point(|offset| *offset < range.end);
        if from < next && found.len() < PLACES_MAX {
            found.push((from, place(frames)));
        }
    });
    found
}

/// Replaces each half of a surrogate pair and each U+0000 in texts and keys by U+FFFD. Returns the new text with the place and
/// the reason of each repair, the first 64; none if there is nothing to mend. `text` is valid JSON.
pub fn mend_texts(text: &str) -> Option<(String, Vec<(String, Reason)>)> {
    if !text.contains("\\u") {
        return None;
    }
    let (mut mended, mut copied, mut repairs) = (String::new(), 0, Vec::new());
    walk(text, |range, frames| {
        if let Some((new, reason)) = mend_text(&text[range.clone()]) {
            mended.push_str(&text[copied..range.start]);
            mended.push_str(&new);
            copied = range.end;
            if repairs.len() < PLACES_MAX {
                repairs.push((place(frames), reason));
            }
        }
    });
    (!repairs.is_empty()).then(|| {
        mended.push_str(&text[copied..]);
        (mended, repairs)
    })
}

/// Mends one text in its quotation marks.
fn mend_text(text: &str) -> Option<(String, Reason)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let bytes = text.as_bytes();
    let (mut mended, mut copied, mut reason, mut at) = (String::new(), 0, None, 0);
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        let (length, fault) = match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => (12, None),
            Some(0xd800..=0xdfff) => (6, Some(Reason::Unicode)),
            Some(0) => (6, Some(Reason::NulByte)),
            Some(_) => (6, None),
            None => (2, None),
        };
        if fault.is_some() {
            mended.push_str(&text[copied..at]);
            mended.push_str("\\ufffd");
            copied = at + length;
            reason = reason.or(fault);
        }
        at += length;
    }
    reason.map(|reason| {
        mended.push_str(&text[copied..]);
        (mended, reason)
    })
}

/// What programs write for want of a JSON value, in lower case: Python, C and those who print by it, JavaScript. A number may have a sign.
const NOT_NUMBERS: [&str; 4] = ["nan", "infinity", "inf", "undefined"];

/// Returns the length of one of [`NOT_NUMBERS`] at the beginning of a text, if a value could end after it.
fn not_a_number(bytes: &[u8]) -> Option<usize> {
    let sign = usize::from(matches!(bytes.first(), Some(b'-' | b'+')));
    let is_at =
        |word: &&&str| bytes.get(sign..sign + word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word.as_bytes()));
    let length = sign + NOT_NUMBERS.iter().find(is_at)?.len();
    matches!(bytes.get(length), None | Some(b',' | b']' | b'}' | b' ' | b'\t'..=b'\r')).then_some(length)
}

/// Writes null for `NaN`, `Infinity`, `inf` and `undefined` outside texts. Returns the new text and where each null begins, ascending; none if there
/// is nothing of the kind. The text need not be valid.
pub fn null_not_numbers(text: &str) -> Option<(String, Vec<usize>)> {
    let bytes = text.as_bytes();
    let (mut out, mut copied, mut nulls) = (String::new(), 0, Vec::new());
    let (mut at, mut before) = (0, b',');
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                // A text ends with its line at the latest, so that a broken line spoils no other one.
                let line = bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length);
                at = end_of_text(&bytes[..line], at);
                before = b'"';
                continue;
            }
            b'N' | b'n' | b'I' | b'i' | b'U' | b'u' | b'-' | b'+' if matches!(before, b':' | b'[' | b',') => {
                if let Some(length) = not_a_number(&bytes[at..]) {
                    out.push_str(&text[copied..at]);
                    nulls.push(out.len());
                    out.push_str("null");
                    at += length;
                    copied = at;
                    before = b'l';
                    continue;
                }
                before = bytes[at];
            }
            byte if byte.is_ascii_whitespace() => {}
            byte => before = byte,
        }
        at += 1;
    }
    (!nulls.is_empty()).then(|| {
        out.push_str(&text[copied..]);
        (out, nulls)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_of_pairs_are_replaced_where_they_stand() {
        let check = |text: &str, expected: Option<(&str, &[&str])>| {
            let found = mend_texts(text);
            let found = found.as_ref().map(|(text, repairs)| {
                (text.as_str(), repairs.iter().map(|(place, reason)| format!("{place} {}", reason.as_str())).collect::<Vec<_>>())
            });
            let expected = expected.map(|(text, places)| (text, places.iter().map(|place| (*place).to_owned()).collect()));
            assert_eq!(found, expected, "{text}");
        };
        check(r#"{"a":"\ud83c\udf89 \u00e9 \\ud83c"}"#, None);
        check(r#"{"a":"x \ud83c"}"#, Some((r#"{"a":"x \ufffd"}"#, &["a unicode"])));
        check(r#"{"a":"\udf89\ud83c"}"#, Some((r#"{"a":"\ufffd\ufffd"}"#, &["a unicode"])));
        check(r#"{"a":"\ud83c\ud83c\udf89"}"#, Some((r#"{"a":"\ufffd\ud83c\udf89"}"#, &["a unicode"])));
        check(r#"{"a":"\ud83c\n\u0000"}"#, Some((r#"{"a":"\ufffd\n\ufffd"}"#, &["a unicode"])));
        check(
            r#"{"a":[1,{"b":{}, "c" : ["\u0000", "\uD800"]}],"d\ud800":2}"#,
            Some((
                r#"{"a":[1,{"b":{}, "c" : ["\ufffd", "\ufffd"]}],"d\ufffd":2}"#,
                &["a[1].c[0] nul_byte", "a[1].c[1] unicode", r"d\ud800 unicode"],
            )),
        );
    }

    #[test]
    fn not_numbers_are_read_as_null() {
        let check = |text: &str, expected: Option<(&str, &[&str])>| {
            let found = null_not_numbers(text);
            let found = found.as_ref().map(|(text, nulls)| (text.as_str(), places(text, nulls)));
            let expected =
                expected.map(|(text, places)| (text, places.iter().map(|place| (*place).to_owned()).enumerate().collect()));
            assert_eq!(found, expected, "{text}");
        };
        check(r#"{"a":"NaN","b":"x, Infinity","c":["\"",1]}"#, None);
        check(r#"{"a":NaNa,"b":-1,"c":Infinit,"d":null,"e":+,"f":undefined_}"#, None);
        check(
            r#"{"a":[nan,-nan,inf,+INF],"b":undefined}"#,
            Some((r#"{"a":[null,null,null,null],"b":null}"#, &["a[0]", "a[1]", "a[2]", "a[3]", "b"])),
        );
        check(r#"{"a":NaN}"#, Some((r#"{"a":null}"#, &["a"])));
        check(
            r#"{"a":[-Infinity, Infinity ,{"b": NaN}],"c":"\\\"NaN"}"#,
            Some((r#"{"a":[null, null ,{"b": null}],"c":"\\\"NaN"}"#, &["a[0]", "a[1]", "a[2].b"])),
        );
        // A text that does not end spoils no other line.
        let broken = null_not_numbers("{\"a\":\"\n{\"b\":NaN}\n").map(|(text, _)| text);
        assert_eq!(broken.as_deref(), Some("{\"a\":\"\n{\"b\":null}\n"));
    }

    proptest! {
        /// Whatever the text, it is mended without a panic, and what is valid stays valid.
        #[test]
        fn any_text_is_mended(text in r#"[{}\[\]:,"\\ud8a0NaInfity\- é\n]{0,40}"#) {
            if let Some((mended, nulls)) = null_not_numbers(&text) {
                prop_assert!(nulls.iter().all(|at| mended[*at..].starts_with("null")));
            }
            if serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() {
                let mended = mend_texts(&text).map_or(text, |(mended, _)| mended);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&mended).is_ok(), "{}", mended);
                let _ = places(&mended, &[0, 3, 7]);
            }
        }
    }
}
