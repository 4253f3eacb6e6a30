//! How numbers, names and tables look on a terminal.

use std::borrow::Cow;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

/// What stands where an answer holds nothing.
pub(super) const NOTHING: &str = "-";

/// Returns whether a terminal acts on a character instead of showing it: control characters, and those that turn the
/// direction of writing. Names come from clients, and a client may be anybody.
pub(super) fn is_obeyed(found: char) -> bool {
    let turns = matches!(found, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    found.is_control() || turns || matches!(found, '\u{2028}' | '\u{2029}')
}

/// Escapes what a terminal would act on, line breaks included.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().flat_map(|found| {
        let escape = if is_obeyed(found) { found.escape_default().collect::<String>() } else { found.to_string() };
        escape.chars().collect::<Vec<_>>()
    });
    Cow::Owned(escaped.collect())
}

/// Which side a column keeps to.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Left,
    Right,
}

/// Lays out rows below their titles, two spaces between columns; every line ends with a line break.
/// Cells are escaped here. Columns without any content are left out.
pub(super) fn table(columns: &[(&str, Side)], rows: &[Vec<String>]) -> String {
    let is_used = |index: usize| rows.iter().any(|row| row.get(index).is_some_and(|cell| !cell.is_empty()));
    let used: Vec<usize> = (0..columns.len()).filter(|index| rows.is_empty() || is_used(*index)).collect();
    let columns: Vec<_> = used.iter().map(|index| columns[*index]).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| used.iter().map(|index| row.get(*index).cloned().unwrap_or_default()).collect()).collect();
    full_table(&columns, &rows)
}

/// Does the same with every column.
pub(super) fn full_table(columns: &[(&str, Side)], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|(title, _)| *title));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell).into_owned()));
    }
    for (index, (_, side)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match side {
                Side::Left => CellAlignment::Left,
                Side::Right => CellAlignment::Right,
            });
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What a text is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A terminal.
    Terminal,
    /// A page of Markdown.
    Markdown,
}

impl Style {
    /// Writes the first line.
    pub(super) fn title(self, text: &str) -> String {
        match self {
            Style::Terminal => format!("{text}\n"),
            Style::Markdown => format!("# {}\n\n", marked(text)),
        }
    }

    /// Writes the first line of a part.
    pub(super) fn heading(self, text: &str) -> String {
        match self {
            Style::Terminal => format!("{text}\n"),
            Style::Markdown => format!("## {}\n\n", marked(text)),
        }
    }

    /// Writes what to beware of.
    pub(super) fn warning(self, text: &str) -> String {
        match self {
            Style::Terminal => format!("warning: {text}\n"),
            Style::Markdown => format!("\n> **warning:** {}\n", marked(text)),
        }
    }

    /// Lays out rows below their titles. Columns without any content are left out.
    pub(super) fn table(self, columns: &[(&str, Side)], rows: &[Vec<String>]) -> String {
        if self == Style::Terminal {
            return table(columns, rows);
        }
        let is_used = |index: usize| rows.iter().any(|row| row.get(index).is_some_and(|cell| !cell.is_empty()));
        let used: Vec<usize> = (0..columns.len()).filter(|index| rows.is_empty() || is_used(*index)).collect();
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut out = line(used.iter().map(|index| columns[*index].0.to_owned()).collect());
        let side = |index: &usize| if matches!(columns[*index].1, Side::Right) { "---:" } else { "---" };
        out.push_str(&line(used.iter().map(side).map(str::to_owned).collect()));
        for row in rows {
            let cell = |index: &usize| marked(&printable(row.get(*index).map_or("", String::as_str)));
            out.push_str(&line(used.iter().map(cell).collect()));
        }
        out.push('\n');
        out
    }
}

/// Escapes what Markdown would act on. Names come from clients, and a page shows them to others.
fn marked(text: &str) -> String {
    text.chars()
        .flat_map(|found| {
            let is_mark = matches!(found, '|' | '<' | '>' | '&' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' | '!');
            is_mark.then_some('\\').into_iter().chain(std::iter::once(found))
        })
        .collect()
}

/// Writes one line of CSV. `escape`: a terminal is going to show it.
/// Source: RFC 4180.
pub(super) fn csv_line(cells: &[String], escape: bool) -> String {
    let cell = |text: &String| {
        let text = if escape { printable(text) } else { Cow::Borrowed(text.as_str()) };
        if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into_owned() }
    };
    format!("{}\r\n", cells.iter().map(cell).collect::<Vec<_>>().join(","))
}

/// Returns a number of an answer, also where it is a decimal in a string.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite())
}

/// Returns what stands in a cell for any value: texts as they are, whole numbers in groups, nothing for null.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the text of a member, if it has one.
pub(super) fn text_of<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Returns the elements of a member, none if it is absent.
pub(super) fn elements<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Writes a count with commas between thousands.
pub(super) fn count(value: &Value) -> String {
    let digits = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return String::new(),
    };
    let (sign, whole) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let (whole, fraction) = whole.find('.').map_or((whole, ""), |at| whole.split_at(at));
    if !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return digits;
    }
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

/// Writes a share as percent, with 2 decimals, more where they would all be 0.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", decimals(share * 100.0, 2))
}

/// Writes a change with its sign.
pub(super) fn signed(value: f64, digits: usize) -> String {
    let text = decimals(value, digits);
    if value > 0.0 { format!("+{text}") } else { text }
}

/// Writes a number with `digits` decimals; where those would all be 0, with 2 significant digits.
pub(super) fn decimals(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if value == 0.0 {
        return format!("{:.digits$}", 0.0);
    }
    if text.bytes().any(|byte| (b'1'..=b'9').contains(&byte)) {
        return text;
    }
    let needed = (-value.abs().log10().floor()) as usize + 1;
    if needed <= 8 { format!("{value:.needed$}") } else { format!("{value:.1e}") }
}

/// Writes a p-value; very small ones by their logarithm, which holds where a float is 0 already.
pub(super) fn p_value(p: Option<f64>, log10: Option<f64>) -> Option<String> {
    let p = p?;
    Some(match log10 {
        _ if p >= 0.000_1 => format!("{p:.4}"),
        Some(log10) if log10 < 0.0 => {
            let exponent = log10.floor();
            let mantissa = format!("{:.1}", 10f64.powf(log10 - exponent));
            // 9.97 becomes 10.0, which is the next power.
            if mantissa == "10.0" { format!("1.0e{}", exponent + 1.0) } else { format!("{mantissa}e{exponent}") }
        }
        _ if p > 0.0 => format!("{p:.1e}"),
        _ => "below 1e-300".to_owned(),
    })
}

/// Draws an interval on a scale: `[`, `]` its ends, `o` the estimate, `|` zero.
pub(super) fn interval(low: f64, estimate: f64, high: f64, scale: (f64, f64), width: usize) -> String {
    let span = scale.1 - scale.0;
    if span.is_nan() || span <= 0.0 || width < 3 {
        return String::new();
    }
    let place = |value: f64| (((value - scale.0) / span).clamp(0.0, 1.0) * (width - 1) as f64).round() as usize;
    let mut drawn = vec![' '; width];
    drawn[place(low)..=place(high).max(place(low))].fill('-');
    drawn[place(0.0)] = '|';
    drawn[place(low)] = '[';
    drawn[place(high)] = ']';
    drawn[place(estimate)] = 'o';
    drawn.into_iter().collect::<String>().trim_end().to_owned()
}

/// Draws a share of a whole.
pub(super) fn bar(share: f64, width: usize) -> String {
    "#".repeat((share.clamp(0.0, 1.0) * width as f64).round() as usize)
}

/// Writes seconds as people say them.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3_600.0 => format!("{:.1} min", s / 60.0),
        s if s < 86_400.0 => format!("{:.1} h", s / 3_600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terminals_are_not_obeyed_to_clients() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected);
        check("Prüfung 2", "Prüfung 2");
        check("a\u{1b}[31mb", "a\\u{1b}[31mb");
        check("a\nb\t\r\u{7}\u{7f}\u{9b}", "a\\nb\\t\\r\\u{7}\\u{7f}\\u{9b}");
        check("x\u{202e}gpj", "x\\u{202e}gpj");
        check("\u{2028}", "\\u{2028}");
    }

    #[test]
    fn tables_line_up_and_drop_what_is_empty() {
        let rows = vec![vec!["a\nb".into(), String::new(), "1".into()], vec!["c".into(), String::new(), "1,000".into()]];
        let found = table(&[("name", Side::Left), ("empty", Side::Left), ("users", Side::Right)], &rows);
        assert_eq!(found, "name  users\na\\nb      1\nc     1,000\n");
        assert_eq!(table(&[("name", Side::Left), ("users", Side::Right)], &[]), "name  users\n");
    }

    #[test]
    fn markdown_is_not_obeyed_to_clients_either() {
        let rows = vec![vec!["a|b <img>".into(), "1".into(), String::new()]];
        let found = Style::Markdown.table(&[("name", Side::Left), ("users", Side::Right), ("empty", Side::Left)], &rows);
        assert_eq!(found, "| name | users |\n| --- | ---: |\n| a\\|b \\<img\\> | 1 |\n\n");
        assert_eq!(Style::Markdown.heading("x_y"), "## x\\_y\n\n");
        assert_eq!(Style::Terminal.warning("x_y"), "warning: x_y\n");
    }

    #[test]
    fn csv_is_quoted_where_needed() {
        let line = |cells: &[&str], escape| csv_line(&cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>(), escape);
        assert_eq!(line(&["a", "b,c", "say \"x\"", "two\nlines"], false), "a,\"b,c\",\"say \"\"x\"\"\",\"two\nlines\"\r\n");
        assert_eq!(line(&["two\nlines\u{1b}"], true), "two\\nlines\\u{1b}\r\n");
    }

    #[test]
    fn numbers_keep_their_meaning() {
        assert_eq!(count(&json!(1_234_567)), "1,234,567");
        assert_eq!(count(&json!("-1234.50")), "-1,234.50");
        assert_eq!(count(&json!(12)), "12");
        assert_eq!(count(&json!("zero_denominator")), "zero_denominator");
        assert_eq!(count(&json!(null)), "");
        assert_eq!(percent(0.1), "10.00 %");
        assert_eq!(percent(0.000_012_3), "0.0012 %");
        assert_eq!(percent(0.0), "0.00 %");
        assert_eq!(signed(0.25, 1), "+0.2");
        assert_eq!(signed(-3.0, 2), "-3.00");
        assert_eq!(signed(-0.0, 2), "0.00");
        assert_eq!(decimals(1e-12, 2), "1.0e-12");
        assert_eq!(number(&json!("19.90")), Some(19.9));
        assert_eq!(number(&json!("inf")), None);
        assert_eq!(number(&json!("no_data")), None);
    }

    #[test]
    fn p_values_reach_below_floats() {
        let check = |p: Option<f64>, log10: Option<f64>, expected: Option<&str>| {
            assert_eq!(p_value(p, log10).as_deref(), expected);
        };
        check(Some(0.021), Some(-1.68), Some("0.0210"));
        check(Some(7.4e-39), Some(-38.13), Some("7.4e-39"));
        check(Some(0.0), Some(-412.5), Some("3.2e-413"));
        check(Some(9.99e-6), Some(-5.000_4), Some("1.0e-5"));
        check(Some(2e-5), None, Some("2.0e-5"));
        check(Some(0.0), None, Some("below 1e-300"));
        check(None, Some(-3.0), None);
    }

    #[test]
    fn intervals_are_drawn_to_scale() {
        let check = |low, estimate, high, scale, expected: &str| assert_eq!(interval(low, estimate, high, scale, 11), expected);
        check(-0.2, 0.1, 0.4, (-0.5, 0.5), "   [-|o--]");
        check(0.1, 0.2, 0.5, (-0.5, 0.5), "     |[o--]");
        check(-0.5, -0.5, -0.5, (-0.5, 0.5), "o    |");
        check(0.0, 0.0, 0.0, (0.0, 0.0), "");
    }

    #[test]
    fn durations_are_said_in_their_own_unit() {
        for (seconds, expected) in
            [(0.04, "0.0 s"), (5.0, "5.0 s"), (12.0, "12 s"), (90.0, "1.5 min"), (7_200.0, "2.0 h"), (172_800.0, "2.0 days")]
        {
            assert_eq!(duration(seconds), expected);
        }
    }
}
