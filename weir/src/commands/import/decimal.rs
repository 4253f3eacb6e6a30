//! Amounts with decimal commas, which `--decimal-comma` has read: never guessed.

/// What may stand between groups of three digits.
const GROUPERS: [char; 5] = ['.', ' ', '\u{a0}', '\u{202f}', '\''];

/// Reads an amount such as `1.234,56` or `19,90`; returns it with a decimal point.
/// # Errors
/// What was found, and what is accepted: `1.234` is 1234 to one and 1.234 to another.
pub(super) fn with_point(text: &str) -> Result<String, String> {
    let accepted = "with --decimal-comma an amount such as 19,90 or 1.234,56 is accepted";
    let trimmed = text.trim();
    let (sign, rest) = match trimmed.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let (whole, fraction) = match rest.split_once(',') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (rest, None),
    };
    let refused = || Err(format!("found {text:?}; {accepted}"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if fraction.is_some_and(|fraction| !is_digits(fraction)) {
        return refused();
    }
    let digits = if is_digits(whole) {
        whole.to_owned()
    } else {
        let Some(grouper) = whole.chars().find(|letter| !letter.is_ascii_digit()).filter(|found| GROUPERS.contains(found)) else {
            return refused();
        };
        let groups: Vec<&str> = whole.split(grouper).collect();
        let (first, others) = (groups.first().copied().unwrap_or_default(), groups.get(1..).unwrap_or_default());
        let is_grouped = is_digits(first) && first.len() <= 3 && others.iter().all(|group| is_digits(group) && group.len() == 3);
        if !is_grouped || (first.starts_with('0')) {
            return refused();
        }
        if grouper == '.' && fraction.is_none() && others.len() == 1 {
            return Err(format!("found {text:?}, which may be {} or {whole}; {accepted}", groups.concat()));
        }
        groups.concat()
    };
    Ok(match fraction {
        Some(fraction) => format!("{sign}{digits}.{fraction}"),
        None => format!("{sign}{digits}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_become_points_and_nothing_is_guessed() {
        let check = |text: &str, expected: &str| assert_eq!(with_point(text).as_deref(), Ok(expected), "{text}");
        check("19,90", "19.90");
        check("1.234,56", "1234.56");
        check("-1.234.567,8", "-1234567.8");
        check("1.234.567", "1234567");
        check(" 7 ", "7");
        check("1234,5", "1234.5");
        check("0,5", "0.5");
        check("1 234,56", "1234.56");
        check("1\u{202f}234", "1234");
        check("1,234", "1.234");
        for refused in [
            "1.234",
            "19.90",
            "1,234.56",
            "1.23,4",
            "1.2345,6",
            "1234.567,8",
            "0.123,4",
            ",5",
            "5,",
            "1,2,3",
            "1.234 567,8",
            "€5",
            "5 €",
            "",
            "-",
            "abc",
            "1e3",
            "--1",
            "1..234,5",
        ] {
            let error = with_point(refused).expect_err(refused);
            assert!(error.contains(&format!("{refused:?}")) && error.contains("1.234,56 is accepted"), "{error}");
        }
        assert!(with_point("1.234").expect_err("either").contains("may be 1234 or 1.234"));
    }
}
