//! Decimal digits of all scripts.

/// The zeros of all decimal digits beside ASCII's; the nine that follow each are its script's 1 to 9.
/// Source: Unicode 14.0, general category Nd.
const ZEROS: [u32; 65] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20, 0x1040,
    0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0,
    0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650,
    0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec,
    0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Marks of the direction of writing, which formatters of right-to-left languages set around numbers and dates.
/// Source: Unicode 14.0, property Bidi_Control.
const DIRECTIONS: [char; 12] = [
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}',
    '\u{2068}', '\u{2069}',
];

/// Returns a text with its decimal digits of other scripts in ASCII, and without marks of direction; none if it has neither.
pub fn to_ascii(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let mut found = false;
    let digit = |letter: char| {
        let code = u32::from(letter);
        let zero = ZEROS[..ZEROS.partition_point(|zero| *zero <= code)].last()?;
        char::from_digit(code - zero, 10).filter(|_| code - zero < 10)
    };
    let mut ascii = String::with_capacity(text.len());
    for letter in text.chars() {
        let new = if DIRECTIONS.contains(&letter) { None } else { Some(digit(letter).unwrap_or(letter)) };
        found |= new != Some(letter);
        ascii.extend(new);
    }
    found.then_some(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_every_script_are_read() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(to_ascii(text).as_deref(), expected, "{text}");
        check("2026-11-25", None);
        check("é½²x", None);
        check("٢٠٢٦-١١-٢٥T١٩:٠٥:٣٧.٢١٤Z", Some("2026-11-25T19:05:37.214Z"));
        check("۲۰۲۶", Some("2026"));
        check("२०२६", Some("2026"));
        check("２０２６/", Some("2026/"));
        check("𝟐𝟘𝟮", Some("202"));
        check("\u{200f}٢٥\u{61c}/2", Some("25/2"));
        check("\u{2066}7\u{2069}é", Some("7é"));
        assert!(ZEROS.is_sorted());
        for zero in ZEROS {
            for value in 0..10 {
                let letter = char::from_u32(zero + value).expect("a character");
                assert!(letter.is_numeric(), "{letter}");
                assert_eq!(to_ascii(&letter.to_string()), char::from_digit(value, 10).map(String::from));
            }
        }
    }
}
