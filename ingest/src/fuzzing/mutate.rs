//! Changes of inputs that leave most of what they are: values in the place of others, keys that other clients have, elements twice. Bytes at
//! random nearly always break a body's syntax, so that nothing behind it is reached.

use std::ops::Range;

use super::{Target, corpus, seeds};

/// Values that are repaired or refused, and what parsers stumble over.
const VALUES: [&str; 52] = [
    "null",
    "true",
    "[]",
    "{}",
    "[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]",
    "{\"a\":{\"a\":1,\"a\":2}}",
    "{\"repaired\":[1],\"truncated\":{\"a\":{}},\"client_truncated\":0}",
    "\"\"",
    "\" \"",
    "\"\\u0000\"",
    "\"a\\u0000b\"",
    "\"\\ud83c\"",
    "\"\\ud83c\\udf89\"",
    "\"\\\\u0000\"",
    "\"\u{e9}\"",
    "\"NaN\"",
    "NaN",
    "-Infinity",
    "0",
    "-0",
    "-1",
    "1.5",
    "1e400",
    "1e-400",
    "1e15",
    "0x1",
    "9007199254740993",
    "18446744073709551616",
    "183.60000000000002",
    "0.1234567",
    "100000000000000",
    "\"99999999999999.999999\"",
    "\"19,90\"",
    "\"2,000.00\"",
    "\"$19.99\"",
    "\"eur \"",
    "\"XX\"",
    "\"undefined\"",
    "\"[object Object]\"",
    "\"00000000-0000-0000-0000-000000000000\"",
    "\"6ba7b812-9dad-41d1-80b4-00c04fd430c8\"",
    "\"2026-03-01T11:59:58.123456Z\"",
    "\"2026-02-01T00:00:00+14:00\"",
    "\"0001-01-01T00:00:00Z\"",
    "\"9999-12-31T23:59:59Z\"",
    "\"\u{662}\u{660}\u{662}\u{666}-\u{660}\u{663}-\u{660}\u{661}T11:00:00Z\"",
    "\"soon\"",
    "1772366312535",
    "1772366312.5",
    "\"https://shop.example/?utm_source=a&utm_medium=%ff&utm_campaign=%00\"",
    "\"Order Completed\"",
    "\"Experiment Viewed\"",
];
/// Texts are made longer than each limit by these many bytes.
const LONG: [usize; 4] = [129, 513, 2_049, 8_193];
/// Bytes that are put into a text.
const PIECES: [&[u8]; 8] = [b"\\u0000", b"\\ud83c", b"\xff", b"\0", b"\\", b"\xc3\xa9", b"%00", b" "];
/// Bytes of an input; more are not reached by being many.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// Numbers by xorshift: one beginning gives one sequence, whichever machine it is.
pub struct Random(u64);

impl Random {
    /// Begins a sequence.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(2).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Returns a number below another.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or_default() % end.max(1)
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> Option<&'a T> {
        all.get(self.below(all.len())).copied()
    }
}

/// What inputs are changed with: the keys and the values of the seeds.
pub struct Changes {
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

impl Changes {
    /// Takes them out of the seeds.
    #[expect(clippy::new_without_default, reason = "it reads files")]
    pub fn new() -> Self {
        let (mut keys, mut values) = (Vec::new(), VALUES.map(|value| value.as_bytes().to_vec()).to_vec());
        for seed in seeds() {
            let body = &seed[body_of(&seed)..];
            for part in parts(body) {
                let is_key = body[part.end..].trim_ascii_start().starts_with(b":");
                if is_key { &mut keys } else { &mut values }.push(body[part].to_vec());
            }
            for (name, value) in parameters(&seed) {
                keys.push(quoted(&seed[name]));
                values.push(quoted(&seed[value]));
            }
        }
        for list in [&mut keys, &mut values] {
            list.retain(|item| item.len() <= 1_024);
            list.sort();
            list.dedup();
        }
        Changes { keys, values }
    }

    /// Changes one thing of an input.
    pub fn change(&self, input: &mut Vec<u8>, random: &mut Random) {
        let body = body_of(input);
        let found = parts(&input[body..]);
        let parameters = parameters(input);
        if !parameters.is_empty() && (found.is_empty() || random.below(6) == 0) {
            self.change_parameter(input, &parameters, random);
        } else if let Some(part) = found.get(random.below(found.len())) {
            let part = body + part.start..body + part.end;
            let is_key = input[part.end..].trim_ascii_start().starts_with(b":");
            let new = self.instead(&input[part.clone()], is_key, random);
            input.splice(part, new);
        }
        input.truncate(INPUT_BYTES_MAX);
    }

    /// Returns what comes in the place of a value or a key.
    fn instead(&self, old: &[u8], is_key: bool, random: &mut Random) -> Vec<u8> {
        let pool = if is_key { &self.keys } else { &self.values };
        let pooled = |random: &mut Random| pool.get(random.below(pool.len())).cloned().unwrap_or_default();
        match random.below(10) {
            // A second member, or a second element; an event twice, where it was one.
            0 if is_key => {
                [pooled(random), b":".to_vec(), self.instead(b"0", false, random), b",".to_vec(), old.to_vec()].concat()
            }
            0 => [old, b",", old].concat(),
            1 if old.len() >= 2 && old.starts_with(b"\"") => {
                let at = 1 + random.below(old.len() - 1);
                let piece = random.one_of(&PIECES).unwrap_or_default();
                [&old[..at], piece, &old[at..]].concat()
            }
            2 => {
                let bytes = LONG[random.below(LONG.len())];
                [b"\"".to_vec(), vec![b'x'; bytes], b"\"".to_vec()].concat()
            }
            3 if !is_key => [b"[", old, b"]"].concat(),
            4 if !is_key => VALUES[random.below(VALUES.len())].as_bytes().to_vec(),
            5 if !is_key && !old.starts_with(b"\"") => quoted(old),
            _ => pooled(random),
        }
    }

    /// Changes a parameter, or adds one, or takes one out.
    fn change_parameter(&self, input: &mut Vec<u8>, all: &[(Range<usize>, Range<usize>)], random: &mut Random) {
        let (name, value) = all[random.below(all.len())].clone();
        let pooled =
            |list: &[Vec<u8>], random: &mut Random| encoded(list.get(random.below(list.len())).map_or(b"", Vec::as_slice));
        match random.below(6) {
            0 => drop(input.splice(name, pooled(&self.keys, random))),
            1 => {
                let more = [b"&".to_vec(), pooled(&self.keys, random), b"=".to_vec(), pooled(&self.values, random)].concat();
                drop(input.splice(value.end..value.end, more));
            }
            2 => drop(input.splice(
                value.start..value.start,
                random.one_of(&[&b"%00"[..], b"%ff", b"+", b"%"]).unwrap_or_default().to_vec(),
            )),
            3 => drop(input.drain(name.start..value.end)),
            _ => drop(input.splice(value, pooled(&self.values, random))),
        }
    }
}

/// Makes inputs of the seeds and the corpus: some of them whole, most with a few changes.
pub struct Mutator {
    inputs: Vec<Vec<u8>>,
    changes: Changes,
    random: Random,
}

impl Mutator {
    /// Begins a sequence.
    pub fn new(seed: u64) -> Self {
        let mut inputs = seeds();
        inputs.extend(Target::ALL.into_iter().flat_map(corpus));
        Mutator { inputs, changes: Changes::new(), random: Random::new(seed) }
    }

    /// Returns the next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.inputs[self.random.below(self.inputs.len())].clone();
        for _ in 0..self.random.below(4) {
            self.changes.change(&mut input, &mut self.random);
        }
        input
    }
}

/// Returns where the body of an input begins.
fn body_of(input: &[u8]) -> usize {
    input.windows(2).position(|two| two == b"\n\n").map_or(input.len(), |at| at + 2)
}

/// Returns where each text, number and word of a body is, and each object and array; of one that is no JSON whatever looks like it.
fn parts(body: &[u8]) -> Vec<Range<usize>> {
    let (mut found, mut open, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(byte) = body.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'"' => {
                while body.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if body[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(body.len());
                found.push(start..at);
            }
            b'{' | b'[' => open.push(start),
            b'}' | b']' => found.extend(open.pop().map(|start| start..at)),
            byte if byte.is_ascii_alphanumeric() || *byte == b'-' => {
                let is_more = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
                at += body[at..].iter().take_while(|byte| is_more(byte)).count();
                found.push(start..at);
            }
            _ => {}
        }
    }
    found
}

/// Returns where the name and the value of each parameter of the target are.
fn parameters(input: &[u8]) -> Vec<(Range<usize>, Range<usize>)> {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let Some(mut start) = input[..line].iter().position(|byte| *byte == b'?').map(|at| at + 1) else { return Vec::new() };
    let mut found = Vec::new();
    for pair in input[start..line].split(|byte| *byte == b'&') {
        let end = start + pair.len();
        let name_end = pair.iter().position(|byte| *byte == b'=').map_or(end, |at| start + at);
        found.push((start..name_end, (name_end + 1).min(end)..end));
        start = end + 1;
    }
    found
}

fn quoted(text: &[u8]) -> Vec<u8> {
    [b"\"", text, b"\""].concat()
}

/// Writes a value of JSON as that of a parameter.
fn encoded(value: &[u8]) -> Vec<u8> {
    let inner = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    percent_encoding::percent_encode(inner, percent_encoding::NON_ALPHANUMERIC).to_string().into_bytes()
}
