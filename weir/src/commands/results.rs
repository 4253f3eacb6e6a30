//! `weir results`: what an experiment has shown so far.

mod csv;
mod sections;
mod summary;

use std::io::Write;
use std::process::ExitCode;

use serde_json::Value;

use super::text::{
    NOTHING, Side, Style, count, decimals, elements, interval, number, p_value, percent, plain, printable, signed, text_of,
};
use super::{Endpoint, print, print_answer};
use crate::cli::Globals;
use crate::client::segment;
pub(crate) use summary::summary;
use summary::{counts_the_same, metric_name};

/// Characters of a drawn interval.
const DRAWN_WIDTH: usize = 33;

/// The arguments of `weir results`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Name or id of the experiment
    experiment: String,
    /// The variant that the others are compared with, by name or id; without it the control
    #[arg(long, value_name = "VARIANT")]
    baseline: Option<String>,
    /// Show these metrics only, separated by commas, \, for a comma that belongs to a name; may be given several times
    #[arg(long, value_name = "NAMES")]
    metrics: Vec<String>,
    /// Answer as of this time, such as 2026-03-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    as_of: Option<String>,
    /// Test method: fixed, sequential, group_sequential or hybrid; all but fixed allow interim looks [default: as planned]
    #[arg(long)]
    analysis: Option<String>,
    /// Statistics that the verdict rests on: frequentist, bayesian or both
    #[arg(long)]
    engine: Option<String>,
    /// Correction for multiple tests: none, holm, bh or preferential_bonferroni
    #[arg(long)]
    correction: Option<String>,
    /// Split users by what they had at their first exposure: country, device_type, another column of events, properties.NAME, or up to
    /// three of them, crossed, with commas
    #[arg(long)]
    dimension: Option<String>,
    /// Only users who were first exposed from this time on
    #[arg(long, value_name = "TIME")]
    exposed_from: Option<String>,
    /// Only users who were first exposed before this time
    #[arg(long, value_name = "TIME")]
    exposed_until: Option<String>,
    /// Only users for whose first exposure this holds, in SQL over the columns of an event, such as "country = 'DE'"
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// Only what users did from this time on; numbers that are cut so describe and decide nothing
    #[arg(long, value_name = "TIME")]
    counted_from: Option<String>,
    /// Only what users did before this time
    #[arg(long, value_name = "TIME")]
    counted_until: Option<String>,
    /// Search columns and properties of the first exposure for users who are affected otherwise
    #[arg(long)]
    explore: bool,
    /// What happens to users who saw several variants: exclude_multi or first_exposure
    #[arg(long)]
    population: Option<String>,
    /// Whose conversion windows count: all or complete
    #[arg(long)]
    windows: Option<String>,
    /// Variance reduction by behaviour before the exposure (CUPED): auto or off
    #[arg(long)]
    cuped: Option<String>,
    /// How values are capped: auto, off or a percentile
    #[arg(long)]
    cap: Option<String>,
    /// How sentences express the effect: relative, absolute or scaled
    #[arg(long)]
    difference: Option<String>,
    /// Show the results day by day
    #[arg(long)]
    daily: bool,
    /// Show effects by the time since each user's own exposure, and whether they change with it
    #[arg(long)]
    since_exposure: bool,
    /// Show what was known at the end of a day, such as 2026-03-01, as it was recorded then, whatever came later; without a day of the
    /// newest one
    #[arg(long, value_name = "DAY", num_args = 0..=1, default_missing_value = "latest")]
    as_decided: Option<String>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// End with 0 if a variant is to be shipped, 1 if all are to be rolled back, 2 if that is not decided, 3 without an answer
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs, as the service answers
    Json,
    /// For spreadsheets
    Csv,
    /// For reports
    Markdown,
}

/// The exit code of a decision, for scripts that wait for one.
const SHIP: u8 = 0;
const ROLL_BACK: u8 = 1;
const UNDECIDED: u8 = 2;
const NO_ANSWER: u8 = 3;

/// Asks and prints. Returns what the program ends with.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    match ask(&args, globals).await {
        Ok(answer) if args.exit_code => Ok(ExitCode::from(code(&answer))),
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) if args.exit_code => {
            // As any failure is said, but not with the code of a decision.
            let _ = writeln!(std::io::stderr(), "weir: {error:#}");
            Ok(ExitCode::from(NO_ANSWER))
        }
        Err(error) => Err(error),
    }
}

async fn ask(args: &Args, globals: &Globals) -> anyhow::Result<Value> {
    let client = args.endpoint.client(globals)?;
    let path = format!("/v1/experiments/{}/results{}", segment(&args.experiment), args.query_string());
    let answer = client.get_json(&path).await?;
    let shared = |format| print_answer(&answer, format, render, csv::csv);
    match args.format {
        Format::Table => shared(super::Format::Table)?,
        Format::Json => shared(super::Format::Json)?,
        Format::Csv => shared(super::Format::Csv)?,
        Format::Markdown => print(&render_as(&answer, Style::Markdown))?,
    }
    Ok(answer)
}

impl Args {
    /// Returns the URL's query string.
    fn query_string(&self) -> String {
        let series: Vec<&str> = [(self.daily, "daily"), (self.since_exposure, "since_exposure")]
            .into_iter()
            .filter(|(is_asked, _)| *is_asked)
            .map(|(_, name)| name)
            .collect();
        let series = (!series.is_empty()).then(|| series.join(","));
        let explore = self.explore.then(|| "auto".to_owned());
        let fields = [
            ("baseline", &self.baseline),
            ("as_of", &self.as_of),
            ("analysis", &self.analysis),
            ("engine", &self.engine),
            ("correction", &self.correction),
            ("dimension", &self.dimension),
            ("exposed_from", &self.exposed_from),
            ("exposed_until", &self.exposed_until),
            ("where", &self.condition),
            ("counted_from", &self.counted_from),
            ("counted_until", &self.counted_until),
            ("explore", &explore),
            ("population", &self.population),
            ("windows", &self.windows),
            ("cuped", &self.cuped),
            ("cap", &self.cap),
            ("difference", &self.difference),
            ("series", &series),
            ("as_decided", &self.as_decided),
        ];
        let field = |(name, value): (&str, &Option<String>)| value.as_deref().map(|value| format!("{name}={}", segment(value)));
        let metrics = self.metrics.iter().map(|names| format!("metrics={}", segment(names)));
        let asked: Vec<String> = fields.into_iter().filter_map(field).chain(metrics).collect();
        if asked.is_empty() { String::new() } else { format!("?{}", asked.join("&")) }
    }
}

fn code(answer: &Value) -> u8 {
    match text_of(answer, "/decision/status") {
        Some("ship-now") => SHIP,
        Some("rollback-now") => ROLL_BACK,
        _ => UNDECIDED,
    }
}

/// Writes an answer for people: what to beware of first, then each metric with a row for each arm.
/// What the service did not compute is not shown; a status is shown in its words, never as a number.
pub(crate) fn render(answer: &Value) -> String {
    render_as(answer, Style::Terminal)
}

fn render_as(answer: &Value, style: Style) -> String {
    let mut out = head(answer, style);
    for warning in warnings(answer) {
        out.push_str(&style.warning(&printable(&warning)));
    }
    let metrics = elements(answer, "/metrics");
    for (number, metric) in metrics.iter().enumerate() {
        match metrics[..number].iter().find(|earlier| counts_the_same(earlier, metric)) {
            Some(earlier) => out.push_str(&format!("\n{}: the same as {}\n", metric_name(metric), metric_name(earlier))),
            None => {
                out.push('\n');
                out.push_str(&render_metric(answer, metric, style));
            }
        }
    }
    out.push_str(&sections::exploration(answer, style));
    out.push_str(&sections::attribution(answer, style));
    out.push_str(&sections::decision(answer, style));
    out.push_str(&as_of(answer));
    out
}

/// The experiment and its state.
fn head(answer: &Value, style: Style) -> String {
    let name = text_of(answer, "/experiment/name").or(text_of(answer, "/experiment/id")).unwrap_or("without a name");
    let mut parts = Vec::new();
    parts.extend(text_of(answer, "/experiment/status").map(str::to_owned));
    parts.extend(text_of(answer, "/experiment/started_at").map(|time| format!("since {time}")));
    parts.extend(text_of(answer, "/experiment/ended_at").map(|time| format!("until {time}")));
    parts.extend(answer.pointer("/experiment/days_running").and_then(number).map(|days| format!("{days:.1} days")));
    parts.extend(
        answer.pointer("/experiment/confidence_level").and_then(number).map(|level| format!("{:.0} % confidence", level * 100.0)),
    );
    let parts = if parts.is_empty() { String::new() } else { format!(": {}", printable(&parts.join(", "))) };
    let users = |pointer: &str| answer.pointer(pointer).map(count).filter(|users| !users.is_empty());
    let mut out = style.title(&format!("experiment {}{parts}", printable(name)));
    if let Some(exposed) = users("/population/exposed_users") {
        let excluded = |member: &str, text: &str| {
            let found = answer.pointer(&format!("/population/excluded/{member}"))?;
            (number(found)? > 0.0).then(|| format!("{} {text}", count(found)))
        };
        let mut parts: Vec<String> = Vec::new();
        parts.extend(users("/population/analysed_users").map(|analysed| format!("{analysed} analysed")));
        parts.extend(excluded("multi_exposed", "left out, who saw several variants"));
        parts.extend(excluded("incomplete_window", "left out, whose window is not over"));
        parts.extend(excluded("unknown_variant", "not stored, with an unknown variant"));
        parts.extend(excluded("exposed_otherwise", "left out, exposed at another time"));
        parts.extend(excluded("internal", "left out, own staff"));
        parts.extend(excluded("filtered", "left out by the condition"));
        parts.extend(excluded("not_triggered", "whose analysis has not begun"));
        parts.extend(excluded("over_active", "left out, with too many rows"));
        parts.extend(excluded("impressions_not_counted", "impressions not counted"));
        out.push_str(&format!("{}\n", [vec![format!("{exposed} users exposed")], parts].concat().join(", ")));
    }
    out.push_str(&sections::record(answer));
    out.push_str(&sections::settings(answer));
    out
}

/// What to beware of: the answer's own warnings, and checks that did not pass.
fn warnings(answer: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for warning in elements(answer, "/warnings") {
        warnings.push(match (text_of(warning, "/code"), text_of(warning, "/message")) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(text), None) | (None, Some(text)) => text.to_owned(),
            (None, None) => plain(warning),
        });
    }
    for check in elements(answer, "/health/checks") {
        let Some(level) = text_of(check, "/level").filter(|level| *level != "ok") else { continue };
        let id = text_of(check, "/id").unwrap_or("a check");
        // A warning of the same name says it in words.
        if elements(answer, "/warnings").iter().any(|warning| text_of(warning, "/code") == Some(id)) {
            continue;
        }
        let mut facts = Vec::new();
        facts.extend(text_of(check, "/message").map(str::to_owned));
        facts.extend(p_of(check).map(|p| format!("p = {p}")));
        facts.extend(check.get("share").and_then(number).map(percent));
        facts.extend(check.get("users").map(|users| format!("{} users", count(users))));
        facts.extend(
            check.get("lag_seconds").and_then(number).map(|seconds| format!("{} behind", super::text::duration(seconds))),
        );
        let facts = if facts.is_empty() { String::new() } else { format!(", {}", facts.join(", ")) };
        warnings.push(format!("{id}: {level}{facts}"));
    }
    warnings
}

fn p_of(test: &Value) -> Option<String> {
    let member = |name: &str| test.get(name).and_then(number);
    p_value(member("p_value"), member("log10_p"))
}

/// How a metric's means are written.
#[derive(Clone, Copy)]
enum Scale {
    Share,
    Amount,
}

impl Scale {
    fn of(metric: &Value) -> Scale {
        match text_of(metric, "/type") {
            Some("proportion" | "conversion_rate") => Scale::Share,
            _ => Scale::Amount,
        }
    }

    fn mean(self, mean: f64) -> String {
        match self {
            Scale::Share => percent(mean),
            Scale::Amount => decimals(mean, 4),
        }
    }

    /// A difference of means; of shares in percentage points.
    fn difference(self, value: f64) -> String {
        match self {
            Scale::Share => signed(value * 100.0, 2),
            Scale::Amount => signed(value, 4),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Scale::Share => " pp",
            Scale::Amount => "",
        }
    }
}

fn render_metric(answer: &Value, metric: &Value, style: Style) -> String {
    let scale = Scale::of(metric);
    let name = text_of(metric, "/name").or(text_of(metric, "/id")).unwrap_or("metric without a name");
    let mut facts: Vec<String> = Vec::new();
    facts.extend(text_of(metric, "/role").map(str::to_owned));
    facts.extend(text_of(metric, "/direction").map(|direction| match direction {
        "increase" => "higher is better".to_owned(),
        "decrease" => "lower is better".to_owned(),
        other => other.to_owned(),
    }));
    facts.extend(metric.get("window_days").and_then(number).map(|days| format!("window {days} days")));
    facts.extend(metric.get("cap").map(cap_text).filter(|cap| !cap.is_empty()).map(|cap| format!("capped at {cap}")));
    facts.extend(text_of(metric, "/currency").map(str::to_owned));
    let facts = if facts.is_empty() { String::new() } else { format!(": {}", facts.join(", ")) };
    let mut out = style.heading(&printable(&format!("{name}{facts}")));
    if let Some(status) = text_of(metric, "/status").filter(|status| *status != "ok") {
        out.push_str(&format!("{}\n", printable(status)));
    }

    let comparisons = elements(metric, "/comparisons");
    let drawn = drawn_scale(comparisons);
    let mut rows = Vec::new();
    for arm in elements(metric, "/arms") {
        let id = arm_id(arm);
        let comparison = comparisons.iter().find(|comparison| id.is_some() && arm_id(comparison) == id);
        rows.push(row(answer, scale, arm, comparison, drawn));
    }
    let has_sums = elements(metric, "/arms").iter().any(|arm| arm.get("sum").is_some());
    let numerator = match scale {
        Scale::Share => "converted",
        Scale::Amount if has_sums => "sum",
        Scale::Amount => "number",
    };
    let columns = [
        ("variant", Side::Left),
        ("users", Side::Right),
        (numerator, Side::Right),
        (if matches!(scale, Scale::Share) { "rate" } else { "mean" }, Side::Right),
        ("difference", Side::Left),
        ("lift", Side::Left),
        ("p", Side::Right),
        ("adjusted p", Side::Right),
        ("chance to win", Side::Right),
        ("verdict", Side::Left),
        ("interval of the lift", Side::Left),
    ];
    if rows.is_empty() {
        out.push_str("no arms\n");
    } else {
        out.push_str(&style.table(&columns, &rows));
    }
    for comparison in comparisons {
        if let Some(plain) = text_of(comparison, "/plain") {
            out.push_str(&format!("{}\n", printable(plain)));
        }
        if let Some(state) = text_of(comparison, "/guardrail/state") {
            let arm = name_of(answer, comparison);
            out.push_str(&format!("{}\n", printable(&format!("guardrail: {arm} is {state}"))));
        }
        out.push_str(&sections::diluted(comparison));
        // What is decided needs no more users.
        if !matches!(text_of(comparison, "/verdict"), Some("won" | "lost")) {
            out.push_str(&sections::power(comparison));
        }
    }
    out.push_str(&sections::dimensions(answer, metric, style));
    out.push_str(&sections::series(answer, metric, style));
    out.push_str(&sections::since_exposure(answer, metric, style));
    out
}

fn cap_text(cap: &Value) -> String {
    match cap {
        Value::Object(members) => members.get("value").map(plain).unwrap_or_default(),
        Value::Array(_) | Value::Bool(_) => String::new(),
        other => plain(other),
    }
}

fn arm_id(value: &Value) -> Option<&str> {
    text_of(value, "/variant_id").or(text_of(value, "/variant")).or(text_of(value, "/name"))
}

/// The name of an arm, as the list of variants has it.
fn name_of<'a>(answer: &'a Value, arm: &'a Value) -> &'a str {
    let id = arm_id(arm);
    let listed = elements(answer, "/variants").iter().find(|variant| id.is_some() && text_of(variant, "/id") == id);
    listed.and_then(|variant| text_of(variant, "/name")).or(text_of(arm, "/name")).or(id).unwrap_or("without a name")
}

fn is_control(answer: &Value, arm: &Value) -> bool {
    let id = arm_id(arm);
    let listed = elements(answer, "/variants").iter().find(|variant| id.is_some() && text_of(variant, "/id") == id);
    let marked = |value: &Value| value.get("is_control").and_then(Value::as_bool) == Some(true);
    let chosen = text_of(answer, "/experiment/control_variant_id");
    match chosen {
        Some(chosen) => id == Some(chosen),
        None => marked(arm) || listed.is_some_and(marked),
    }
}

fn row(answer: &Value, scale: Scale, arm: &Value, comparison: Option<&Value>, drawn: Option<(f64, f64)>) -> Vec<String> {
    let mean = arm.get("mean").and_then(number).map_or(NOTHING.to_owned(), |mean| scale.mean(mean));
    let numerator = match scale {
        Scale::Share => arm.get("numerator").or(arm.get("converters")),
        Scale::Amount => arm.get("sum").or(arm.get("numerator")),
    };
    let control = if is_control(answer, arm) { " *" } else { "" };
    let counted = |value: Option<&Value>| value.map(count).filter(|text| !text.is_empty()).unwrap_or_else(|| NOTHING.to_owned());
    let mut cells = vec![format!("{}{control}", name_of(answer, arm)), counted(arm.get("users")), counted(numerator), mean];
    let Some(comparison) = comparison else {
        cells.resize(11, String::new());
        return cells;
    };
    let status = text_of(comparison, "/status").unwrap_or("ok");
    cells.push(effect(comparison.get("absolute"), "/estimate", |value| scale.difference(value), scale.unit(), status));
    cells.push(effect(comparison.get("relative"), "/lift", |value| signed(value * 100.0, 1), " %", status));
    cells.push(test_text(comparison).unwrap_or_else(|| NOTHING.to_owned()));
    cells.push(comparison.get("adjusted").and_then(p_of).unwrap_or_default());
    let chance = comparison.pointer("/bayesian/chance_to_win").and_then(number);
    cells.push(chance.map(|chance| format!("{:.1} %", chance * 100.0)).unwrap_or_default());
    cells.push(text_of(comparison, "/verdict").unwrap_or_default().to_owned());
    let ends = comparison.get("relative").and_then(ends);
    let estimate = comparison.pointer("/relative/lift").and_then(number);
    cells.push(match (ends, estimate, drawn) {
        (Some((low, high)), Some(estimate), Some(drawn)) => interval(low, estimate, high, drawn, DRAWN_WIDTH),
        _ => String::new(),
    });
    cells
}

/// The p-value that decides: of the exact test where the approximation does not hold.
fn test_text(comparison: &Value) -> Option<String> {
    let exact = comparison.pointer("/test/p_fisher").and_then(number);
    match exact {
        Some(p) if text_of(comparison, "/approximation") == Some("exact") => {
            p_value(Some(p), None).map(|p| format!("{p} (exact)"))
        }
        _ => comparison.get("test").and_then(p_of),
    }
}

/// Both ends of an interval, if it has both.
fn ends(effect: &Value) -> Option<(f64, f64)> {
    match elements(effect, "/ci") {
        [low, high] => Some((number(low)?, number(high)?)),
        _ => None,
    }
}

/// An effect with its interval; in the words of its status where there is none.
fn effect(effect: Option<&Value>, estimate: &str, write: impl Fn(f64) -> String, unit: &str, status: &str) -> String {
    let own_status = effect.and_then(|effect| text_of(effect, "/status")).filter(|status| *status != "ok");
    let reason = own_status.or((status != "ok").then_some(status));
    let Some(value) = effect.and_then(|effect| effect.pointer(estimate)).and_then(number) else {
        return reason.unwrap_or(NOTHING).to_owned();
    };
    match effect.and_then(ends) {
        Some((low, high)) => format!("{}{unit} [{}, {}]", write(value), write(low), write(high)),
        None => format!("{}{unit} [{}]", write(value), reason.unwrap_or("no interval")),
    }
}

/// One scale for all intervals of a metric, zero included.
fn drawn_scale(comparisons: &[Value]) -> Option<(f64, f64)> {
    let ends: Vec<_> = comparisons.iter().filter_map(|comparison| comparison.get("relative").and_then(ends)).collect();
    if ends.is_empty() {
        return None;
    }
    let low = ends.iter().fold(0.0, |low: f64, (end, _)| low.min(*end));
    let high = ends.iter().fold(0.0, |high: f64, (_, end)| high.max(*end));
    Some((low, high))
}

/// Up to where the answer reaches.
pub(super) fn as_of(answer: &Value) -> String {
    let Some(as_of) = answer.get("as_of").filter(|as_of| !as_of.is_null()) else { return String::new() };
    let Some(log_id) = text_of(as_of, "/log_id") else { return "\nno event was ever stored\n".to_owned() };
    let offsets = as_of.get("offsets").and_then(Value::as_object);
    let mut offsets: Vec<(u64, String)> =
        offsets.into_iter().flatten().map(|(partition, offset)| (partition.parse().unwrap_or(u64::MAX), count(offset))).collect();
    offsets.sort();
    let offsets: Vec<_> = offsets.into_iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
    let time = text_of(as_of, "/event_time").map(|time| format!("{time}, ")).unwrap_or_default();
    let offsets = if offsets.is_empty() { String::new() } else { format!(" at {}", offsets.join(" ")) };
    format!("\nas of {}\n", printable(&format!("{time}log {log_id}{offsets}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn sample() -> Value {
        json!({
            "experiment": { "id": "e-1", "name": "checkout", "status": "running", "started_at": "2026-03-01T00:00:00Z", "ended_at": null,
                            "days_running": 12.0, "confidence_level": 0.95, "control_variant_id": "v-1" },
            "as_of": { "log_id": "l-1", "offsets": { "10": 7, "2": 1234 }, "event_time": "2026-03-13T00:00:00Z" },
            "population": { "exposed_users": 2010, "analysed_users": 2000,
                            "excluded": { "multi_exposed": 10, "incomplete_window": 0, "unknown_variant": 0 } },
            "health": { "overall": "warn", "checks": [
                { "id": "srm", "level": "fail", "p_value": 0.0003, "log10_p": -3.5 },
                { "id": "multi_exposure", "level": "ok", "share": 0.005 },
                { "id": "windows_incomplete", "level": "warn" },
                { "id": "minimum_users", "level": "warn", "users": 1010 },
                { "id": "freshness", "level": "warn", "lag_seconds": 90 } ] },
            "variants": [{ "id": "v-1", "name": "control", "is_control": true }, { "id": "v-2", "name": "b\u{1b}[31m" }],
            "metrics": [
                { "id": "conversion_rate", "type": "proportion", "role": "primary", "direction": "increase", "window_days": 30, "cap": null,
                  "arms": [{ "variant_id": "v-1", "users": 1000, "numerator": 100, "mean": 0.1 },
                           { "variant_id": "v-2", "users": 1000, "numerator": 110, "mean": 0.11 }],
                  "comparisons": [{ "variant_id": "v-2", "status": "ok", "approximation": "t",
                      "absolute": { "estimate": 0.01, "ci": [-0.016, 0.036] },
                      "relative": { "lift": 0.1, "ci": [-0.148, 0.413] },
                      "test": { "name": "welch_t", "p_value": 0.4657, "log10_p": -0.33 },
                      "adjusted": { "method": "holm", "p_value": 0.9314 },
                      "bayesian": { "chance_to_win": 0.767 },
                      "verdict": "inconclusive", "plain": "b converts 11.0% vs 10.0%." }] },
                { "id": "value_per_user", "type": "mean", "role": "guardrail", "direction": "decrease", "currency": "EUR",
                  "arms": [{ "variant_id": "v-1", "users": 1000, "sum": "0.00", "mean": "0" },
                           { "variant_id": "v-2", "users": 1000, "sum": "1990.50", "mean": 1.9905 }],
                  "comparisons": [{ "variant_id": "v-2", "status": "zero_baseline",
                      "absolute": { "estimate": "1.9905", "ci": ["0.5", "3.481"] },
                      "test": { "p_value": 1e-20, "log10_p": -20.0 },
                      "guardrail": { "margin": 0.02, "state": "inconclusive" } }] },
                { "id": "few", "type": "proportion", "arms": [{ "variant_id": "v-2", "users": 10, "numerator": 1, "mean": 0.1 }],
                  "comparisons": [{ "variant_id": "v-2", "status": "ok", "approximation": "exact",
                      "absolute": { "estimate": 0.1, "ci": [null, null], "status": "insufficient_sample" },
                      "relative": { "lift": 0.5, "ci": [null, null], "status": "unbounded_relative_ci" },
                      "test": { "p_value": 0.2, "p_fisher": 0.31 } }] },
                { "id": "empty", "status": "no_data" } ],
            "decision": { "status": "unhealthy", "why": [{ "rule": "health", "fact": "srm failed" }] },
            "warnings": [{ "code": "windows_incomplete", "message": "43 % of the users have had their whole window" }],
        })
    }

    #[test]
    fn an_answer_becomes_tables() {
        let expected = "\
experiment checkout: running, since 2026-03-01T00:00:00Z, 12.0 days, 95 % confidence
2,010 users exposed, 2,000 analysed, 10 left out, who saw several variants
warning: windows_incomplete: 43 % of the users have had their whole window
warning: srm: fail, p = 0.0003
warning: minimum_users: warn, 1,010 users
warning: freshness: warn, 1.5 min behind

conversion_rate: primary, higher is better, window 30 days
variant      users  converted     rate  difference               lift                         p  adjusted p  chance to win  verdict       interval of the lift
control *    1,000        100  10.00 %
b\\u{1b}[31m  1,000        110  11.00 %  +1.00 pp [-1.60, +3.60]  +10.0 % [-14.8, +41.3]  0.4657      0.9314         76.7 %  inconclusive  [-------|-----o-----------------]
b converts 11.0% vs 10.0%.

value_per_user: guardrail, lower is better, EUR
variant      users       sum    mean  difference                  lift                 p
control *    1,000      0.00  0.0000
b\\u{1b}[31m  1,000  1,990.50  1.9905  +1.9905 [+0.5000, +3.4810]  zero_baseline  1.0e-20
guardrail: b\\u{1b}[31m is inconclusive

few
variant      users  converted     rate  difference                       lift                                          p
b\\u{1b}[31m     10          1  10.00 %  +10.00 pp [insufficient_sample]  +50.0 % [unbounded_relative_ci]  0.3100 (exact)

empty
no_data
no arms

decision: unhealthy
- srm failed

as of 2026-03-13T00:00:00Z, log l-1 at 2:1,234 10:7
";
        let found = render(&sample());
        assert_eq!(found, expected, "{found}");
    }

    #[test]
    fn what_is_absent_is_no_number() {
        let check = |answer: Value, expected: &str| {
            let found = render(&answer);
            assert_eq!(found, expected, "{found}");
        };
        check(json!({}), "experiment without a name\n");
        check(json!(null), "experiment without a name\n");
        check(json!({ "as_of": {} }), "experiment without a name\n\nno event was ever stored\n");
        let arms = json!([{ "variant_id": "a" }, { "variant_id": "b", "users": 3, "mean": null }]);
        let comparisons = json!([{ "variant_id": "b", "status": "insufficient_sample" }]);
        check(
            json!({ "experiment": { "id": "e-1" }, "metrics": [{ "id": "m", "type": "mean", "arms": arms, "comparisons": comparisons }] }),
            "experiment e-1\n\nm\nvariant  users  number  mean  difference           lift                 p\n\
             a            -       -     -\n\
             b            3       -     -  insufficient_sample  insufficient_sample  -\n",
        );
        check(
            json!({ "warnings": ["as a text", { "code": "no_control" }, 7] }),
            "experiment without a name\nwarning: as a text\nwarning: no_control\nwarning: 7\n",
        );
    }

    #[test]
    fn what_is_asked_for_becomes_a_question() {
        let parse = |args: &[&str]| {
            #[derive(clap::Parser)]
            struct Alone {
                #[command(flatten)]
                args: Args,
            }
            let args = ["results", "checkout"].iter().chain(args);
            <Alone as clap::Parser>::try_parse_from(args).expect("parses").args.query_string()
        };
        assert_eq!(parse(&[]), "");
        assert_eq!(parse(&["--baseline", "old one", "--daily"]), "?baseline=old%20one&series=daily");
        assert_eq!(parse(&["--daily", "--since-exposure"]), "?series=daily%2Csince_exposure");
        assert_eq!(parse(&["--metrics", "50% off, summer", "--metrics", "b"]), "?metrics=50%25%20off%2C%20summer&metrics=b");
        assert_eq!(
            parse(&["--as-of", "2026-03-01T00:00:00+01:00", "--dimension", "country", "--cap", "99.9"]),
            "?as_of=2026-03-01T00%3A00%3A00%2B01%3A00&dimension=country&cap=99%2E9"
        );
    }

    #[test]
    fn the_exit_code_is_the_decision() {
        let check =
            |status: &str, expected: u8| assert_eq!(code(&json!({ "decision": { "status": status } })), expected, "{status}");
        check("ship-now", 0);
        check("rollback-now", 1);
        for status in ["continue", "ready-for-review", "unhealthy", "something new"] {
            check(status, 2);
        }
        assert_eq!(code(&json!({})), 2);
    }

    #[test]
    fn a_page_has_the_same_parts() {
        let page = render_as(&sample(), Style::Markdown);
        for part in [
            "# experiment checkout: running",
            "> **warning:** srm: fail",
            "## conversion\\_rate: primary",
            "| control \\* | 1,000 |",
            "## decision: unhealthy",
        ] {
            assert!(page.contains(part), "no {part:?} in {page}");
        }
        assert!(!page.contains('\u{1b}'), "{page}");
    }
}
