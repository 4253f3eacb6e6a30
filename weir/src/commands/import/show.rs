//! Shows how far an import is: a bar on a terminal, else a line now and then.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::progress::Counts;
use super::source::Source;
use crate::commands::printable;
use crate::commands::text::duration;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows progress on stderr.
pub(super) struct Show {
    bar: Option<ProgressBar>,
    name: String,
    bytes: u64,
    begun: Instant,
    lined: Instant,
    rows_before: u64,
    /// Of the first batch: what an earlier run has settled costs only the reading.
    bytes_before: Option<u64>,
    counts: Counts,
    done_bytes: u64,
}

impl Show {
    /// Begins; `rows_before` were settled by an earlier run.
    pub(super) fn new(source: &Source, rows_before: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {percent:>3} % {msg}");
            ProgressBar::new(source.bytes.max(1)).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let name = source.path.file_name().unwrap_or_else(|| source.path.as_os_str());
        let name = printable(&name.to_string_lossy()).into_owned();
        if let Some(bar) = &bar {
            bar.set_prefix(name.clone());
        }
        let now = Instant::now();
        let show = Show {
            bar,
            name,
            bytes: source.bytes,
            begun: now,
            lined: now,
            rows_before,
            bytes_before: None,
            counts: Counts::default(),
            done_bytes: 0,
        };
        if rows_before > 0 {
            show.line(&format!("continues after {} rows", grouped(rows_before)));
        }
        show
    }

    /// Takes in what is settled.
    pub(super) fn settled(&mut self, counts: Counts, done_bytes: u64) {
        self.counts = counts;
        self.done_bytes = done_bytes;
        self.bytes_before.get_or_insert(if self.rows_before > 0 { done_bytes } else { 0 });
    }

    /// Shows it, if it is time.
    pub(super) fn tick(&mut self) {
        let text = self.text();
        if let Some(bar) = &self.bar {
            bar.set_position(self.done_bytes);
            bar.set_message(text);
        } else if self.lined.elapsed() >= LINE_EVERY {
            self.lined = Instant::now();
            let percent = self.done_bytes.saturating_mul(100) / self.bytes.max(1);
            self.line(&format!("{percent} %, {text}"));
        }
    }

    /// Takes the bar away: the table that follows says it all.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            // Without a stderr nobody looks.
            None => drop(writeln!(std::io::stderr(), "{}: {text}", self.name)),
        }
    }

    fn text(&self) -> String {
        let Counts { accepted, duplicate, rejected } = self.counts;
        let rows = accepted + duplicate + rejected;
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = (rows.saturating_sub(self.rows_before) as f64 / seconds.max(0.001)) as u64;
        let left = time_left(self.bytes_before.unwrap_or_default(), self.done_bytes, self.bytes, seconds);
        let left = left.map_or_else(String::new, |left| format!(", {} left", duration(left)));
        let refused = if rejected > 0 { format!(", {} rejected", grouped(rejected)) } else { String::new() };
        format!("{} rows, {} rows/s{left}{refused}", grouped(rows), grouped(rate))
    }
}

/// Estimates how many seconds are left, from the bytes that took the seconds so far.
fn time_left(before: u64, done: u64, all: u64, seconds: f64) -> Option<f64> {
    let moved = done.checked_sub(before).filter(|moved| *moved > 0)?;
    Some(seconds * all.saturating_sub(done) as f64 / moved as f64)
}

/// Writes a number with its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let check = |number: u64, expected: &str| assert_eq!(grouped(number), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(1_234_567, "1,234,567");
    }

    #[test]
    fn the_time_left_follows_from_what_moved() {
        assert_eq!(time_left(0, 0, 100, 5.0), None);
        assert_eq!(time_left(0, 25, 100, 5.0), Some(15.0));
        assert_eq!(time_left(50, 75, 100, 5.0), Some(5.0));
        assert_eq!(time_left(0, 100, 100, 5.0), Some(0.0));
    }
}
