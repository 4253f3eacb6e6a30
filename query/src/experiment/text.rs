//! Numbers as sentences carry them.

/// Writes a number with three significant digits, and no fraction where it has none.
pub fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = usize::try_from(2 - magnitude).unwrap_or(0).min(12);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Writes a p-value with two significant digits.
pub fn p_text(p: f64) -> String {
    if p >= 0.095 {
        format!("{p:.2}")
    } else if p >= 0.000_95 {
        let decimals = if p >= 0.0095 { 3 } else { 4 };
        format!("{p:.decimals$}")
    } else if p > 0.0 {
        format!("{p:.1e}")
    } else {
        "below 1e-300".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let check = |value: f64, expected: &str| assert_eq!(short(value), expected);
        check(0.0, "0");
        check(11.0, "11");
        check(11.04, "11");
        check(1.444, "1.44");
        check(-0.012_345, "-0.0123");
        check(123_456.7, "123457");
        check(100.0, "100");
        let check = |p: f64, expected: &str| assert_eq!(p_text(p), expected);
        check(0.41, "0.41");
        check(0.0211, "0.021");
        check(0.0011, "0.0011");
        check(2.07e-121, "2.1e-121");
        check(0.0, "below 1e-300");
    }
}
