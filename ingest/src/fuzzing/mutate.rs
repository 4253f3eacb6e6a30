//! Changes of inputs that are the same in every run, for a test that has no fuzzer.

use super::{Target, corpus, seeds};

/// Pieces that are put in: what is repaired, and what parsers stumble over.
const PIECES: [&str; 40] = [
    "\"",
    "\\",
    "\\u0000",
    "\\ud83c",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "[]",
    "{}",
    "null",
    "true",
    "NaN",
    "-Infinity",
    "1e400",
    "-1",
    "0.1234567",
    "183.60000000000002",
    "19,90",
    "$19.99",
    "XX",
    "undefined",
    "[object Object]",
    "\u{0}",
    "\u{e9}",
    "\u{661}",
    "%00",
    "%ff",
    "&",
    "=",
    "\n",
    "2026-03-01T11:59:58Z",
    "soon",
    "\u{662}\u{660}\u{662}\u{666}-\u{660}\u{663}-\u{660}\u{661}",
    "repaired",
    "truncated",
    "client_truncated",
    "00000000-0000-0000-0000-000000000000",
];

/// Makes inputs of the seeds and the corpus: some of them whole, most with a few changes.
pub struct Mutator {
    inputs: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    /// Begins; one number gives one sequence, whichever machine it is.
    pub fn new(seed: u64) -> Self {
        let mut inputs = seeds();
        inputs.extend(Target::ALL.into_iter().flat_map(corpus));
        Mutator { inputs, state: seed.wrapping_mul(2).wrapping_add(1) }
    }

    /// Returns a number below another, by xorshift.
    fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        // The high bits, of which none is worse than the others.
        usize::try_from(self.state >> 16).unwrap_or_default() % end.max(1)
    }

    /// Returns the next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let which = self.below(self.inputs.len());
        let mut input = self.inputs[which].clone();
        for _ in 0..self.below(4) {
            // The head is left alone mostly: a request without its key or address has no events.
            let body = input.windows(2).position(|two| two == b"\n\n").map_or(0, |at| at + 2);
            let from = if self.below(8) == 0 { 0 } else { body.min(input.len()) };
            let at = from + self.below(input.len() + 1 - from);
            let end = (at + self.below(6)).min(input.len());
            let piece = match self.below(4) {
                0 => vec![u8::try_from(self.below(256)).unwrap_or_default()],
                1 => {
                    let start = self.below(input.len() + 1);
                    let length = self.below(24).min(input.len() - start);
                    input[start..start + length].to_vec()
                }
                _ => PIECES[self.below(PIECES.len())].as_bytes().to_vec(),
            };
            input.splice(at..end, piece);
        }
        input
    }
}
