//! What was asked for: the query string as typed values, and what the answer echoes of them.

use chrono::DateTime;
use serde::{Serialize, Serializer};

use crate::http::error::ApiError;
use crate::source::property::Property;
use crate::source::snapshot::time_text;

/// Days before a user's first exposure from which behaviour is taken as covariate.
pub const COVARIATE_DAYS: i64 = 14;
/// The percentile at which value metrics are capped unless something else is asked for, in ten-thousandths of a percent.
pub const CAP_PERCENTILE: u32 = 999_000;
/// The percentile that never caps.
pub const CAP_NEVER: u32 = 1_000_000;
/// Metrics that one question may name.
const METRICS_MAX: usize = 100;

/// Makes an enum whose values are the texts of a query field, with the one list of what is accepted.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value,)* }

        impl $name {
            /// All values, as they are accepted.
            pub const TEXTS: &'static [&'static str] = &[$($text,)*];

            /// Returns the text, as it is asked for and echoed.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }

            fn of(field: &str, text: &str) -> Result<Self, ApiError> {
                match text {
                    $($text => Ok($name::$value),)*
                    _ => Err(refused(field, text, &$name::TEXTS.join(", "))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.serialize_str(self.as_str())
            }
        }
    };
}

choices! {
    /// When looking at numbers is allowed for.
    Analysis {
        /// One look, at the end.
        Fixed = "fixed",
        /// Any number of looks at any time.
        Sequential = "sequential",
        /// One look a day, towards a planned size or end.
        GroupSequential = "group_sequential",
        /// Half of alpha for looks on the way, half for the one at the end.
        Hybrid = "hybrid",
    }
}

choices! {
    /// Whose verdict it is.
    Engine {
        /// Tests decide.
        Frequentist = "frequentist",
        /// The chance to win decides.
        Bayesian = "bayesian",
        /// Tests decide, the chance to win stands beside them.
        Both = "both",
    }
}

choices! {
    /// How many tests at once are allowed for.
    Correction {
        /// Not at all.
        None = "none",
        /// The chance of any false alarm stays below alpha.
        Holm = "holm",
        /// The share of false alarms among all alarms stays below alpha.
        Bh = "bh",
        /// As `holm`, with half of alpha kept for the primary metrics.
        PreferentialBonferroni = "preferential_bonferroni",
    }
}

choices! {
    /// What happens to users who saw several variants.
    PopulationRule {
        /// They are left out.
        ExcludeMulti = "exclude_multi",
        /// They belong to the variant that they saw first.
        FirstExposure = "first_exposure",
    }
}

choices! {
    /// Whose conversion windows count.
    Windows {
        /// Those of all users, ended or not.
        All = "all",
        /// Those that have ended: younger users are left out.
        Complete = "complete",
    }
}

choices! {
    /// Whether behaviour before the first exposure sharpens the comparison.
    Cuped {
        /// Where it explains enough.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}

choices! {
    /// In which terms sentences speak.
    Difference {
        /// In shares of the control.
        Relative = "relative",
        /// In the metric's own unit.
        Absolute = "absolute",
        /// In what a day would bring with everybody in the variant.
        Scaled = "scaled",
    }
}

/// Properties of the first exposure by which users are split: one, or several that are crossed; empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dimensions(pub Vec<Property>);

/// As many as anybody crosses.
const DIMENSIONS_MAX: usize = 3;
/// What is asked for most.
const USUAL_DIMENSIONS: &str = "country, region, city, device_type, language, time_zone, utm_source, utm_medium, utm_campaign or another column of events, \
     properties.NAME, or up to three of them with commas";

impl Dimensions {
    fn of(field: &str, text: &str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let found: Option<Vec<Property>> = parts.iter().map(|name| Property::prefixed(name)).collect();
        let found = found.filter(|found| found.len() <= DIMENSIONS_MAX);
        found.map(Dimensions).ok_or_else(|| refused(field, text, USUAL_DIMENSIONS))
    }

    /// Returns whether users are not split.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns them as they are asked for; none without any.
    pub fn text(&self) -> Option<String> {
        let names: Vec<String> = self.0.iter().map(Property::name).collect();
        (!names.is_empty()).then(|| names.join(","))
    }
}

/// How value metrics are capped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CapRule {
    /// As each metric says; else at the 99.9th percentile once that is more than a guess.
    Auto,
    /// Not at all.
    Off,
    /// At this percentile, in ten-thousandths of a percent, whatever metrics say.
    Percentile(u32),
}

impl Serialize for CapRule {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            CapRule::Auto => out.serialize_str("auto"),
            CapRule::Off => out.serialize_str("off"),
            CapRule::Percentile(percentile) => out.serialize_str(&percentile_text(*percentile)),
        }
    }
}

/// Writes a percentile without needless zeros.
pub fn percentile_text(percentile: u32) -> String {
    let text = format!("{}.{:04}", percentile / 10_000, percentile % 10_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// One question about an experiment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The variant that the others are compared with, by name or id; none: the control.
    pub baseline: Option<String>,
    /// The metrics asked for, once for each time that the field is given; empty: all.
    pub metrics: Vec<AskedMetrics>,
    /// The moment that is "now", in microseconds since 1970; none: the time of the newest event stored.
    pub as_of: Option<i64>,
    /// None: as the experiment's plan allows.
    pub analysis: Option<Analysis>,
    /// Whose verdict it is.
    pub engine: Engine,
    /// How many tests at once are allowed for.
    pub correction: Correction,
    /// What to split by.
    pub dimensions: Dimensions,
    /// Users who were first exposed in this time count, half open, in microseconds since 1970; none: at any.
    pub exposed: (Option<i64>, Option<i64>),
    /// Users count for whose first exposure this holds, in SQL over the columns of an event; none: all.
    pub condition: Option<String>,
    /// What users did in this time counts, half open, in microseconds since 1970; none: whenever they did it.
    pub counted: (Option<i64>, Option<i64>),
    /// Whether it is searched who is affected otherwise.
    pub is_explored: bool,
    /// What happens to users who saw several variants; none: they are left out, unless that moves what is left.
    pub population: Option<PopulationRule>,
    /// Whose conversion windows count.
    pub windows: Windows,
    /// Whether earlier behaviour sharpens the comparison.
    pub cuped: Cuped,
    /// How value metrics are capped.
    pub cap: CapRule,
    /// Whether each day is shown.
    pub has_series: bool,
    /// Whether each day since the exposure is shown.
    pub has_since_exposure: bool,
    /// In which terms sentences speak.
    pub difference: Difference,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            baseline: None,
            metrics: Vec::new(),
            as_of: None,
            analysis: None,
            engine: Engine::Both,
            correction: Correction::Holm,
            dimensions: Dimensions::default(),
            exposed: (None, None),
            condition: None,
            counted: (None, None),
            is_explored: false,
            population: None,
            windows: Windows::All,
            cuped: Cuped::Auto,
            cap: CapRule::Auto,
            has_series: false,
            has_since_exposure: false,
            difference: Difference::Relative,
        }
    }
}

/// What was asked for, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The variant asked for as baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// The metrics asked for; empty: all.
    pub metrics: Vec<String>,
    /// The moment asked for as now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<String>,
    /// When looking at numbers is allowed for.
    pub analysis: Analysis,
    /// `request` if it was asked for, `plan` if it follows from the experiment's.
    pub analysis_from: &'static str,
    /// Whose verdict it is.
    pub engine: Engine,
    /// How many tests at once are allowed for.
    pub correction: Correction,
    /// What users are split by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimension: Option<String>,
    /// Users count who were first exposed from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_from: Option<String>,
    /// Users count who were first exposed before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_until: Option<String>,
    /// Users count for whose first exposure this holds.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// What users did from then on counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted_from: Option<String>,
    /// What users did before counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted_until: Option<String>,
    /// `auto`, if it is searched who is affected otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explore: Option<&'static str>,
    /// What happens to users who saw several variants.
    pub population: PopulationRule,
    /// Whose conversion windows count.
    pub windows: Windows,
    /// Whether earlier behaviour sharpens the comparison.
    pub cuped: Cuped,
    /// How value metrics are capped.
    pub cap: CapRule,
    /// `daily`, if each day is shown, `since_exposure`, if each day since the exposure is, or both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<&'static str>,
    /// In which terms sentences speak.
    pub difference: Difference,
}

impl Settings {
    /// Returns what was asked for with its defaults filled in. `analysis` and `population` are those that are used; `metrics` those
    /// that are answered.
    pub fn of(request: &Request, analysis: Analysis, population: PopulationRule, metrics: Vec<String>) -> Self {
        Settings {
            baseline: request.baseline.clone(),
            metrics: if request.metrics.is_empty() { Vec::new() } else { metrics },
            as_of: request.as_of.map(time_text),
            analysis,
            analysis_from: if request.analysis.is_some() { "request" } else { "plan" },
            engine: request.engine,
            correction: request.correction,
            dimension: request.dimensions.text(),
            exposed_from: request.exposed.0.map(time_text),
            exposed_until: request.exposed.1.map(time_text),
            condition: request.condition.clone(),
            counted_from: request.counted.0.map(time_text),
            counted_until: request.counted.1.map(time_text),
            explore: request.is_explored.then_some("auto"),
            population,
            windows: request.windows,
            cuped: request.cuped,
            cap: request.cap,
            series: match (request.has_series, request.has_since_exposure) {
                (true, true) => Some("daily,since_exposure"),
                (true, false) => Some("daily"),
                (false, true) => Some("since_exposure"),
                (false, false) => None,
            },
            difference: request.difference,
        }
    }
}

/// The fields of the query string.
const FIELDS: [&str; 19] = [
    "metrics",
    "as_of",
    "analysis",
    "engine",
    "baseline",
    "correction",
    "dimension",
    "exposed_from",
    "exposed_until",
    "where",
    "counted_from",
    "counted_until",
    "explore",
    "population",
    "windows",
    "cuped",
    "cap",
    "series",
    "difference",
];

fn refused(field: &str, found: &str, accepted: &str) -> ApiError {
    let shown: String = found.chars().take(100).collect();
    ApiError::bad_request(format!("found {shown:?}; accepted: {accepted}")).at(field)
}

impl Request {
    /// Reads the fields of a query string, already unescaped. An empty value is as if the field were not there.
    /// # Errors
    /// [`ApiError`] `unsupported_option` for a field that is not known, else `bad_request`; each names its field.
    pub fn of(fields: &[(String, String)]) -> Result<Self, ApiError> {
        let mut request = Request::default();
        for (index, (field, value)) in fields.iter().enumerate() {
            let field = field.as_str();
            if !FIELDS.contains(&field) {
                let message = format!("the query field is not known here; accepted: {}", FIELDS.join(", "));
                return Err(ApiError::unsupported(message).at(field.chars().take(100).collect::<String>()));
            }
            let is_list = field == "metrics";
            if !is_list && fields[..index].iter().any(|(earlier, _)| earlier == field) {
                return Err(ApiError::bad_request("found twice; once is accepted").at(field));
            }
            if !value.is_empty() {
                request.set(field, value)?;
            }
        }
        Ok(request)
    }

    fn set(&mut self, field: &str, value: &str) -> Result<(), ApiError> {
        match field {
            "baseline" => self.baseline = Some(value.to_owned()),
            "metrics" => {
                self.metrics.push(AskedMetrics(value.to_owned()));
                check_metrics(&self.metrics)?;
            }
            "as_of" => self.as_of = Some(time(field, value)?),
            "analysis" => self.analysis = Some(Analysis::of(field, value)?),
            "engine" => self.engine = Engine::of(field, value)?,
            "correction" => self.correction = Correction::of(field, value)?,
            "dimension" => self.dimensions = Dimensions::of(field, value)?,
            "exposed_from" => self.exposed.0 = Some(time(field, value)?),
            "exposed_until" => self.exposed.1 = Some(time(field, value)?),
            "where" => self.condition = Some(value.to_owned()),
            "counted_from" => self.counted.0 = Some(time(field, value)?),
            "counted_until" => self.counted.1 = Some(time(field, value)?),
            "explore" => {
                self.is_explored = match value {
                    "auto" => true,
                    "off" => false,
                    _ => return Err(refused(field, value, "auto, off")),
                }
            }
            "population" => self.population = Some(PopulationRule::of(field, value)?),
            "windows" => self.windows = Windows::of(field, value)?,
            "cuped" => self.cuped = Cuped::of(field, value)?,
            "cap" => self.cap = cap(value)?,
            "series" => {
                for part in value.split(',').map(str::trim) {
                    match part {
                        "daily" => self.has_series = true,
                        "since_exposure" => self.has_since_exposure = true,
                        _ => return Err(refused(field, value, "daily, since_exposure, or both with a comma")),
                    }
                }
            }
            // The last of the fields that are known.
            _ => self.difference = Difference::of(field, value)?,
        }
        Ok(())
    }
}

/// Metrics as they were asked for: one name, or several with commas in between.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AskedMetrics(pub String);

impl AskedMetrics {
    /// Returns the names. A text that is a name as a whole is that one; else commas separate names, and a comma or backslash that
    /// belongs to a name stands behind a backslash.
    pub fn names(&self, is_known: impl Fn(&str) -> bool) -> Vec<String> {
        if is_known(&self.0) { vec![self.0.clone()] } else { self.parts() }
    }

    fn parts(&self) -> Vec<String> {
        let (mut names, mut name, mut letters) = (Vec::new(), String::new(), self.0.chars().peekable());
        while let Some(letter) = letters.next() {
            match letter {
                ',' => names.push(std::mem::take(&mut name)),
                '\\' => name.push(letters.next_if(|next| [',', '\\'].contains(next)).unwrap_or(letter)),
                _ => name.push(letter),
            }
        }
        names.push(name);
        names.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    }
}

fn check_metrics(asked: &[AskedMetrics]) -> Result<(), ApiError> {
    let names: usize = asked.iter().map(|asked| asked.parts().len()).sum();
    if names > METRICS_MAX {
        return Err(ApiError::bad_request(format!("found {names} names; at most {METRICS_MAX} are accepted")).at("metrics"));
    }
    Ok(())
}

fn time(field: &str, value: &str) -> Result<i64, ApiError> {
    let accepted = "a time with its zone, such as 2026-03-01T00:00:00Z";
    // A plus sign of a query string is a space.
    let value = value.replace(' ', "+");
    DateTime::parse_from_rfc3339(&value).map(|time| time.timestamp_micros()).map_err(|_| refused(field, &value, accepted))
}

fn cap(value: &str) -> Result<CapRule, ApiError> {
    let accepted = "auto, off, or a percentile above 0 and up to 100 with at most 4 decimals, such as 99.9";
    let refuse = || refused("cap", value, accepted);
    match value {
        "auto" => return Ok(CapRule::Auto),
        "off" => return Ok(CapRule::Off),
        _ => {}
    }
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 3 || fraction.len() > 4 || !is_digits(whole) || !is_digits(fraction) {
        return Err(refuse());
    }
    let scaled: u32 = format!("{whole}{fraction:0<4}").parse().map_err(|_| refuse())?;
    if scaled == 0 || scaled > CAP_NEVER {
        return Err(refuse());
    }
    Ok(CapRule::Percentile(scaled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Result<Request, ApiError> {
        let pair = |pair: &str| pair.split_once('=').map(|(field, value)| (field.to_owned(), value.to_owned()));
        Request::of(&query.split('&').filter_map(pair).collect::<Vec<_>>())
    }

    #[test]
    fn fields_become_typed_values() {
        let check = |query: &str, change: &dyn Fn(&mut Request)| {
            let mut expected = Request::default();
            change(&mut expected);
            assert_eq!(of(query), Ok(expected), "{query}");
        };
        check("", &|_| {});
        check("baseline=&analysis=", &|_| {});
        check("baseline=old", &|request| request.baseline = Some("old".to_owned()));
        check("metrics=a, b,,c.value_per_user&metrics=d", &|request| {
            request.metrics = ["a, b,,c.value_per_user", "d"].map(|asked| AskedMetrics(asked.to_owned())).to_vec();
        });
        check("as_of=1970-01-01T01:00:00.5 01:00", &|request| request.as_of = Some(500_000));
        check("analysis=hybrid", &|request| request.analysis = Some(Analysis::Hybrid));
        check("engine=bayesian&correction=bh", &|request| {
            (request.engine, request.correction) = (Engine::Bayesian, Correction::Bh);
        });
        check("dimension=device_type", &|request| request.dimensions = Dimensions(vec![Property::Column("device_type")]));
        check("dimension=country, properties.plan", &|request| {
            request.dimensions = Dimensions(vec![Property::Column("country"), Property::Json("plan".to_owned())]);
        });
        check("exposed_from=1970-01-01T00:00:01Z&exposed_until=1970-01-01T00:00:02Z", &|request| {
            request.exposed = (Some(1_000_000), Some(2_000_000));
        });
        check("counted_from=1970-01-01T00:00:01Z&counted_until=1970-01-01T00:00:02Z", &|request| {
            request.counted = (Some(1_000_000), Some(2_000_000));
        });
        check("where=country IN ('DE', 'AT')&explore=auto", &|request| {
            (request.condition, request.is_explored) = (Some("country IN ('DE', 'AT')".to_owned()), true);
        });
        check("population=first_exposure&windows=complete&cuped=off", &|request| {
            request.population = Some(PopulationRule::FirstExposure);
            request.windows = Windows::Complete;
            request.cuped = Cuped::Off;
        });
        for (text, rule) in [
            ("auto", CapRule::Auto),
            ("off", CapRule::Off),
            ("99.9", CapRule::Percentile(999_000)),
            ("95", CapRule::Percentile(950_000)),
            ("100", CapRule::Percentile(1_000_000)),
            ("0.0001", CapRule::Percentile(1)),
        ] {
            check(&format!("cap={text}"), &|request| request.cap = rule);
        }
        check("series=since_exposure", &|request| request.has_since_exposure = true);
        check("series=daily, since_exposure", &|request| (request.has_series, request.has_since_exposure) = (true, true));
        check("series=daily&difference=scaled", &|request| {
            (request.has_series, request.difference) = (true, Difference::Scaled);
        });
    }

    #[test]
    fn any_name_can_be_asked_for() {
        let check = |asked: &str, known: &[&str], expected: &[&str]| {
            let names = AskedMetrics(asked.to_owned()).names(|name| known.contains(&name));
            assert_eq!(names, expected, "{asked}");
        };
        check("a, b,,c.value_per_user", &[], &["a", "b", "c.value_per_user"]);
        check("50% off, summer.conversion_rate", &["50% off, summer.conversion_rate"], &["50% off, summer.conversion_rate"]);
        check("50% off, summer.conversion_rate", &[], &["50% off", "summer.conversion_rate"]);
        check(r"50% off\, summer.conversion_rate,b", &["b"], &["50% off, summer.conversion_rate", "b"]);
        check(r"back\\slash, other\slash", &[], &[r"back\slash", r"other\slash"]);
        check("", &[], &[]);
    }

    #[test]
    fn other_values_are_refused_with_their_field() {
        let check = |query: &str, field: &str, code: &str, part: &str| {
            let refusal = of(query).expect_err(query);
            assert_eq!((refusal.field.as_deref(), refusal.code.to_string().as_str()), (Some(field), code), "{refusal}");
            assert!(refusal.message.contains(part), "{refusal}");
        };
        check("basline=a", "basline", "unsupported_option", "accepted: metrics, as_of,");
        check(
            "analysis=bayes",
            "analysis",
            "bad_request",
            "found \"bayes\"; accepted: fixed, sequential, group_sequential, hybrid",
        );
        check("engine=x", "engine", "bad_request", "frequentist, bayesian, both");
        check("series=weekly", "series", "bad_request", "accepted: daily, since_exposure, or both");
        check("as_of=yesterday", "as_of", "bad_request", "such as 2026-03-01T00:00:00Z");
        check("as_of=2026-03-01", "as_of", "bad_request", "with its zone");
        for dimension in ["shoe_size", "properties", "country,", "country,region,city,language"] {
            check(&format!("dimension={dimension}"), "dimension", "bad_request", "country, region");
        }
        check("explore=all", "explore", "bad_request", "accepted: auto, off");
        check("exposed_from=monday", "exposed_from", "bad_request", "with its zone");
        for cap in ["0", "100.1", "1e2", "-1", "99.99999", ".5", "x"] {
            check(&format!("cap={cap}"), "cap", "bad_request", "up to 100");
        }
        check("engine=both&engine=both", "engine", "bad_request", "twice");
    }

    #[test]
    fn percentiles_are_written_without_zeros_at_the_end() {
        assert_eq!(percentile_text(999_000), "99.9");
        assert_eq!(percentile_text(1_000_000), "100");
    }
}
