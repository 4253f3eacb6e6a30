//! What a row says, whatever file and format it stands in: the ids of rows that have none follow from it.
//!
//! Two rows are equal if their fields are: the order of columns, quoting, a byte-order mark, ends of lines, the file's name, its
//! compression and its format do not count. A number is its value (`19.90` is `19.9`, as text too, since CSV has nothing else),
//! a time its instant; what is empty or null is not there. Ids and names are compared letter by letter: `1.0` is not `1`.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use anyhow::bail;
use events::Micros;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// Rows without ids that are told apart in one file. Each takes 10 to 21 bytes of memory, half of that more while the
/// table grows, and 20 to 39 bytes more if it is repeated.
const DISTINCT_ROWS_MAX: usize = 100_000_000;
/// Objects within objects that are compared member by member; deeper ones as they are written.
const DEPTH_MAX: usize = 32;

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// Letter by letter.
    Exactly,
    /// Numbers by value, texts letter by letter.
    ByNumbers,
    /// Numbers by value, texts that are numbers or objects too.
    ByValue,
    /// Times by instant.
    ByTime,
}

/// A digest of what a row says.
pub(super) type Content = [u8; 16];

/// Returns the digest of a row's fields: names, values in JSON, and how they are compared. Their order does not count.
pub(super) fn content<'a>(fields: impl Iterator<Item = (&'a str, &'a str, Compared)>) -> Content {
    let mut parts: Vec<Vec<u8>> = fields.filter_map(|(name, json, compared)| member(name, json, compared, 0)).collect();
    parts.sort_unstable();
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let digest: [u8; 32] = hash.finalize().into();
    let mut content = Content::default();
    content.copy_from_slice(&digest[..16]);
    content
}

/// Writes a member; none if it says nothing.
fn member(name: &str, json: &str, compared: Compared, depth: usize) -> Option<Vec<u8>> {
    if matches!(json.trim(), "null" | "\"\"") {
        return None;
    }
    let mut out = Vec::with_capacity(name.len() + json.len() + 16);
    text(&mut out, name);
    value(&mut out, json.trim(), compared, depth);
    Some(out)
}

/// Writes a text so that no other sequence of values has the same bytes.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b't');
    out.extend_from_slice(&(text.len() as u64).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn value(out: &mut Vec<u8>, json: &str, compared: Compared, depth: usize) {
    match json.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(json) {
            Ok(inner) => scalar(out, &inner, compared, depth, true),
            // Half a pair of surrogates, which no text of ours can hold.
            Err(_) => text(out, json),
        },
        Some(b'{') if depth < DEPTH_MAX => match super::source::cells(json) {
            Some(cells) => {
                let member = |(name, cell): &(String, super::source::Cell)| match cell {
                    super::source::Cell::Json(json) | super::source::Cell::Text(json) => member(name, json, compared, depth + 1),
                };
                let mut parts: Vec<Vec<u8>> = cells.iter().filter_map(member).collect();
                parts.sort_unstable();
                sequence(out, b'o', &parts);
            }
            None => text(out, json),
        },
        Some(b'[') if depth < DEPTH_MAX => match serde_json::from_str::<Vec<&RawValue>>(json) {
            Ok(elements) => {
                let element = |element: &&RawValue| {
                    let mut out = Vec::new();
                    value(&mut out, element.get(), compared, depth + 1);
                    out
                };
                let parts: Vec<Vec<u8>> = elements.iter().map(element).collect();
                sequence(out, b'a', &parts);
            }
            Err(_) => text(out, json),
        },
        _ => scalar(out, json, compared, depth, false),
    }
}

fn sequence(out: &mut Vec<u8>, sign: u8, parts: &[Vec<u8>]) {
    out.push(sign);
    out.extend_from_slice(&(parts.len() as u64).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn scalar(out: &mut Vec<u8>, written: &str, compared: Compared, depth: usize, is_text: bool) {
    let by_value = match compared {
        Compared::Exactly => false,
        Compared::ByNumbers => !is_text,
        Compared::ByValue | Compared::ByTime => true,
    };
    if compared == Compared::ByTime
        && let Ok(time) = Micros::parse(written)
    {
        return text(out, &time.0.to_string());
    }
    if !by_value {
        return text(out, written);
    }
    if let Some(number) = number(written) {
        return text(out, &number);
    }
    let is_nested = written.starts_with(['{', '[']) && serde_json::from_str::<&RawValue>(written).is_ok();
    if is_nested && depth < DEPTH_MAX { value(out, written, compared, depth + 1) } else { text(out, written) }
}

/// Returns one way of writing a number, whatever zeros and exponent it is written with; none if the text is no JSON number.
fn number(text: &str) -> Option<String> {
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (rest, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || (whole.len() > 1 && whole.starts_with('0')) {
        return None;
    }
    let digits = [whole, fraction].concat();
    let kept = digits.trim_end_matches('0');
    let power = exponent.checked_sub(fraction.len() as i64)?.checked_add((digits.len() - kept.len()) as i64)?;
    let kept = kept.trim_start_matches('0');
    Some(if kept.is_empty() { "0".to_owned() } else { format!("{sign}{kept}e{power}") })
}

/// Counts equal rows of a file.
///
/// 64 bits of a row's digest stand for it. Should two of a hundred million rows agree in them, which happens to one file in several
/// thousand, the later one has a number as if it repeated the other; its id is still its own.
#[derive(Default)]
pub(super) struct Repeats {
    once: HashSet<u64, BuildHasherDefault<Itself>>,
    /// How often the others were met.
    again: HashMap<u64, u64, BuildHasherDefault<Itself>>,
}

impl Repeats {
    /// Returns how many equal rows came before this one.
    /// # Errors
    /// If the file has too many different rows.
    pub(super) fn number(&mut self, content: &Content) -> anyhow::Result<u64> {
        self.number_within(content, DISTINCT_ROWS_MAX)
    }

    fn number_within(&mut self, content: &Content, rows_max: usize) -> anyhow::Result<u64> {
        let (first, _) = content.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let key = u64::from_be_bytes(*first);
        if self.once.contains(&key) {
            let times = self.again.entry(key).or_insert(0);
            *times += 1;
            return Ok(*times);
        }
        if self.once.len() >= rows_max {
            bail!(
                "more than {rows_max} different rows have no id, and no more can be told from their repetitions in memory; give the rows \
                 an event_id, or split the file so that equal rows stay together"
            );
        }
        self.once.insert(key);
        Ok(0)
    }
}

/// The hash of a number that is part of a digest: itself.
#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> Content {
        let compared = |name: &str| match name {
            "user_id" => Compared::Exactly,
            "timestamp" => Compared::ByTime,
            "n" => Compared::ByNumbers,
            _ => Compared::ByValue,
        };
        content(fields.iter().map(|(name, json)| (*name, *json, compared(name))))
    }

    #[test]
    fn rows_that_say_the_same_are_equal() {
        let same = |one: &[(&str, &str)], other: &[(&str, &str)]| assert_eq!(of(one), of(other), "{one:?} {other:?}");
        same(&[("a", "1"), ("b", "2")], &[("b", "2"), ("a", "1")]);
        same(&[("a", "\"1\"")], &[("a", "1")]);
        same(&[("value", "\"19.90\"")], &[("value", "1.99e1")]);
        same(&[("value", "0")], &[("value", "-0.00e7")]);
        same(&[("a", "true")], &[("a", "\"true\"")]);
        same(&[("a", "\"\""), ("b", "null")], &[]);
        same(&[("a", "\"\\u00e4\"")], &[("a", "\"ä\"")]);
        same(&[("p", "{\"x\": [1.0, {\"z\":null, \"y\": 2}]}")], &[("p", "\"{\\\"x\\\":[1,{\\\"y\\\":2}]}\"")]);
        same(&[("timestamp", "\"2026-03-01T12:00:00.500Z\"")], &[("timestamp", "\"2026-03-01 13:00:00.5+01\"")]);
        same(&[("n", "1.0")], &[("n", "1")]);
    }

    #[test]
    fn rows_that_say_something_else_are_not() {
        let differ = |one: &[(&str, &str)], other: &[(&str, &str)]| assert_ne!(of(one), of(other), "{one:?} {other:?}");
        differ(&[("a", "1")], &[("b", "1")]);
        differ(&[("a", "1")], &[("a", "1"), ("b", "1")]);
        differ(&[("value", "\"19.9\"")], &[("value", "\"19,9\"")]);
        differ(&[("a", "\"x\"")], &[("a", "\"X\"")]);
        differ(&[("a", "\"007\"")], &[("a", "\"7\"")]);
        differ(&[("user_id", "\"1.0\"")], &[("user_id", "\"1\"")]);
        differ(&[("n", "\"1.0\"")], &[("n", "\"1\"")]);
        differ(&[("a", "[1,2]")], &[("a", "[2,1]")]);
        differ(&[("a", "[[1],2]")], &[("a", "[[1,2]]")]);
        differ(&[("a", "{\"b\":1}")], &[("a", "[\"b\",1]")]);
        differ(&[("ab", "\"c\"")], &[("a", "\"bc\"")]);
        differ(&[("timestamp", "\"2026-03-01T12:00:00Z\"")], &[("timestamp", "\"2026-03-01T12:00:01Z\"")]);
    }

    #[test]
    fn numbers_have_one_way_of_being_written() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(number(text).as_deref(), expected, "{text}");
        check("100", Some("1e2"));
        check("1e2", Some("1e2"));
        check("0.010", Some("1e-2"));
        check("-1.50E+1", Some("-15e0"));
        check("0.0", Some("0"));
        check("12345678901234567890.5", Some("123456789012345678905e-1"));
        for other in ["", "-", "01", "1.", ".5", "+1", "1e", "1e99999999999999999999", "0x1", "1 ", "NaN"] {
            check(other, None);
        }
    }

    #[test]
    fn equal_rows_are_counted_up_to_a_limit() {
        let mut repeats = Repeats::default();
        let (a, b, c) = (of(&[("a", "1")]), of(&[("a", "2")]), of(&[("a", "3")]));
        let numbers = [a, b, a, a, b].map(|row| repeats.number_within(&row, 2).expect("room"));
        assert_eq!(numbers, [0, 0, 1, 2, 1]);
        let error = repeats.number_within(&c, 2).expect_err("no room").to_string();
        assert!(error.contains("more than 2 different rows have no id"), "{error}");
        assert_eq!(repeats.number_within(&a, 2).expect("a repetition needs no room"), 3);
    }
}
