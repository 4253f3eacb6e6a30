//! Results as they are kept: facts of the machine, the command, and of each figure least, median and most.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::machine;

/// Rounds of one figure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// Divides round by round: only figures of one round share the machine's mood.
    pub(crate) fn ratio_to(&self, other: &Figures) -> Figures {
        Figures(self.0.iter().zip(&other.0).map(|(figure, other)| figure / other).collect())
    }

    /// Returns the median; of an even number the mean of the two in the middle; 0 of none.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => 0.0,
            length if length % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        }
    }

    /// Writes `least / **median** / most` with so many decimals, thousands apart.
    pub(crate) fn spread(&self, decimals: usize) -> String {
        let sorted = self.sorted();
        let Some((least, most)) = sorted.first().zip(sorted.last()) else { return "-".to_owned() };
        format!("{} / **{}** / {}", number(*least, decimals), number(self.median(), decimals), number(*most, decimals))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// Writes a number with commas between thousands.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let digits = text.find('.').unwrap_or(text.len());
    let mut out = String::new();
    for (place, letter) in text.char_indices() {
        if place > 0 && place < digits && (digits - place) % 3 == 0 && text.as_bytes()[place - 1].is_ascii_digit() {
            out.push(',');
        }
        out.push(letter);
    }
    out
}

/// A page of results in the making.
pub(crate) struct Page {
    name: String,
    text: String,
}

impl Page {
    /// Begins a page. `extra` are facts that only this run knows; `folder` is where it writes files.
    pub(crate) fn new(name: &str, title: &str, folder: &Path, extra: Vec<(&'static str, String)>) -> Self {
        let mut text = format!("# {title}\n\n    {}\n\n| | |\n|---|---|\n", command());
        for (fact, value) in machine::facts(folder).into_iter().chain(extra) {
            // A String takes every byte, here and below.
            let _ = writeln!(text, "| {fact} | {value} |");
        }
        Page { name: name.to_owned(), text }
    }

    /// Adds a paragraph.
    pub(crate) fn say(&mut self, paragraph: &str) {
        let _ = write!(self.text, "\n{paragraph}\n");
    }

    /// Adds a table; the first row is its head.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) {
        self.text.push('\n');
        for (index, row) in rows.iter().enumerate() {
            let _ = writeln!(self.text, "| {} |", row.join(" | "));
            if index == 0 {
                let _ = writeln!(self.text, "|{}", "---|".repeat(row.len()));
            }
        }
    }

    /// Returns the page, and writes it to `runs/DATE-PROCESSOR/NAME.md` if there is a folder for runs.
    pub(crate) fn finish(self, runs: Option<&Path>) -> anyhow::Result<String> {
        if let Some(runs) = runs {
            let date: String = events::Micros::now().to_string().chars().take(10).collect();
            let folder: PathBuf = runs.join(format!("{date}-{}", machine::short_name()));
            std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
            let file = folder.join(format!("{}.md", self.name));
            std::fs::write(&file, &self.text).with_context(|| format!("{}", file.display()))?;
        }
        Ok(self.text)
    }
}

/// The command of this process without what belongs to one machine: paths and addresses of databases.
fn command() -> String {
    let mut shown = vec!["benches".to_owned()];
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let name = argument.split('=').next().unwrap_or_default().to_owned();
        if ["--database-url", "--folder", "--save", "--name", "--weir"].contains(&name.as_str()) {
            if name == argument {
                arguments.next();
            }
            continue;
        }
        shown.push(argument);
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_least_median_most() {
        let check = |figures: &[f64], decimals, expected: &str| {
            assert_eq!(Figures(figures.to_vec()).spread(decimals), expected);
        };
        check(&[], 1, "-");
        check(&[3.0, 1.0, 2.0], 0, "1 / **2** / 3");
        check(&[123_456.4, 1_234_567.0], 0, "123,456 / **679,012** / 1,234,567");
        check(&[999.0, -1_234.567, 12.3456], 2, "-1,234.57 / **12.35** / 999.00");
        let ratio = Figures(vec![1.0, 3.0]).ratio_to(&Figures(vec![2.0, 4.0]));
        assert_eq!(ratio.spread(3), "0.500 / **0.625** / 0.750");
    }
}
