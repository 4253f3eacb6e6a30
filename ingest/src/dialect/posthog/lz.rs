//! LZ-string in base64, by which older browsers' clients compressed: LZ78 over UTF-16 units, codes of growing width.
//! Source: pieroxy/lz-string, `compressToBase64`.

use crate::dialect::EnvelopeFault;

/// Decompresses a text into UTF-8 of at most so many bytes.
/// # Errors
/// `Unreadable` if it is no LZ-string, `TooLarge`.
pub(super) fn decompress(text: &str, bytes_max: usize) -> Result<Vec<u8>, EnvelopeFault> {
    let invalid = || EnvelopeFault::Unreadable("the body is not valid LZ-string in base64".to_owned());
    let mut bits = Bits { text: text.trim_ascii().trim_end_matches('=').as_bytes(), at: 0, left: 0 };
    // The first three codes are commands; each other one stands for a sequence: an earlier one and a unit more.
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut out: Vec<u16> = Vec::new();
    let mut last = None;
    let mut width = 2;
    loop {
        // There are as many codes as commands and sequences, and one more that this one may make; the first code is a command.
        let code = bits.read(width).ok_or_else(invalid)? as usize;
        let (index, unit) = match code {
            0 => (sequences.len(), Some(bits.read(8).ok_or_else(invalid)? as u16)),
            1 => (sequences.len(), Some(bits.read(16).ok_or_else(invalid)? as u16)),
            2 => break,
            code => (code - 3, None),
        };
        if let Some(unit) = unit {
            sequences.push(Sequence { before: None, unit, first: unit, length: 1 });
        }
        if let Some(last) = last {
            let last_sequence: Sequence = *sequences.get(last).ok_or_else(invalid)?;
            let first = match sequences.get(index) {
                Some(sequence) => sequence.first,
                None if index == sequences.len() => last_sequence.first,
                None => return Err(invalid()),
            };
            sequences.push(Sequence {
                before: Some(last),
                unit: first,
                first: last_sequence.first,
                length: last_sequence.length + 1,
            });
        }
        let length = sequences.get(index).ok_or_else(invalid)?.length;
        if (out.len() + length) > bytes_max {
            return Err(EnvelopeFault::TooLarge);
        }
        let start = out.len();
        out.resize(start + length, 0);
        let mut at = Some(index);
        for place in out[start..].iter_mut().rev() {
            let Some(sequence) = at.and_then(|at| sequences.get(at)) else { return Err(invalid()) };
            *place = sequence.unit;
            at = sequence.before;
        }
        last = Some(index);
        // The width in which the compressor writes the next code: it counts a unit of its own as one sequence ahead.
        width = usize::BITS - (sequences.len() + 3).leading_zeros();
    }
    let text = String::from_utf16_lossy(&out);
    if text.len() > bytes_max { Err(EnvelopeFault::TooLarge) } else { Ok(text.into_bytes()) }
}

#[derive(Clone, Copy)]
struct Sequence {
    before: Option<usize>,
    unit: u16,
    first: u16,
    length: usize,
}

/// Reads numbers of some bits, the lowest first, from digits of six bits, the highest first.
struct Bits<'a> {
    text: &'a [u8],
    at: usize,
    /// Bits of the digit at hand that are not read yet.
    left: u32,
}

impl Bits<'_> {
    fn read(&mut self, count: u32) -> Option<u32> {
        let mut number = 0;
        for bit in 0..count {
            if self.left == 0 {
                self.left = 6;
                self.at += 1;
            }
            let digit = match self.text.get(self.at - 1)? {
                letter @ b'A'..=b'Z' => letter - b'A',
                letter @ b'a'..=b'z' => letter - b'a' + 26,
                letter @ b'0'..=b'9' => letter - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            self.left -= 1;
            number |= u32::from(digit >> self.left & 1) << bit;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that lz-string 1.5.0 compressed.
    #[test]
    fn what_the_library_compressed_is_decompressed() {
        let check = |text: &str, expected: &str| {
            let found = decompress(text, 10_000).expect("valid");
            assert_eq!(String::from_utf8(found).expect("UTF-8"), expected, "{text}");
        };
        check("Q===", "");
        check("IZA=", "a");
        check("N4IghiBcCMC+Q===", r#"{"a":1}"#);
        check("IY1/kA==", &"a".repeat(20));
        check("N4IgpgbmB2AuIC4QEvA8G4SP2QBpxTo3GeAXyA==", "{\"event\":\"é🎉\",\"event\":\"event\"}");
        let letters: String = (0..300u32).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
        let long = "IYIwpgVgjgXg1gDwLYBMDuAnA9gOyxtFJBOGKCMEUSWRVTXfQ408y66eZdbPAokmQpVwnOj0b8WQ9qNrcGfZoLYiaXeryYDWwjvM2Tlu2evGLt01fo0SlOmWrEKtUlXrm2Lbk04N2gA=";
        check(long, &letters);
        for text in ["", "N4Ig", "AAAA", "!"] {
            assert!(matches!(decompress(text, 100), Err(EnvelopeFault::Unreadable(_))), "{text}");
        }
        assert!(matches!(decompress("IY1/kA==", 19), Err(EnvelopeFault::TooLarge)));
    }
}
