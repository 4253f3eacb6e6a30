//! A comparison as a sentence, with the numbers of the answer and nothing else: what it says of significance is what the
//! verdict rests on.

use crate::experiment::read::catalogue::{Aggregation, Amount, Configured};
use crate::experiment::request::Difference;
use crate::experiment::text::short;

/// What a sentence needs to know.
pub struct Sentence<'a> {
    /// What was measured.
    pub metric: &'a Configured,
    /// The currency of values.
    pub currency: Option<&'a str>,
    /// The control's name and mean.
    pub control: (&'a str, Option<f64>),
    /// The treatment's name and mean.
    pub treatment: (&'a str, Option<f64>),
    /// In which terms the effect is said.
    pub difference: Difference,
    /// The effect in these terms.
    pub effect: Option<f64>,
    /// Its interval, with the words for its confidence, such as `95% CI`.
    pub interval: Option<((f64, f64), String)>,
    /// What was found, such as `p = 0.021`; none if nothing could be tested.
    pub evidence: Option<String>,
    /// What follows from it.
    pub conclusion: String,
}

impl Sentence<'_> {
    /// Writes the sentence.
    pub fn text(&self) -> String {
        let (Some(control), Some(treatment)) = (self.control.1, self.treatment.1) else {
            let missing = if self.control.1.is_none() { self.control.0 } else { self.treatment.0 };
            return format!("{missing} has no users yet, so that nothing can be compared.");
        };
        let (verb, per_user) = match &self.metric.aggregation {
            Aggregation::ConversionRate => ("converts", ""),
            Aggregation::ValuePerUser => ("brings", " per user"),
            Aggregation::CountPerUser => ("counts", " per user"),
            aggregation if aggregation.is_ratio() => ("has", ""),
            aggregation if aggregation.quantile().is_some() => ("has", " as quantile"),
            aggregation if aggregation.is_share() => ("has", " of users"),
            _ => ("has", " per user"),
        };
        let mut text = format!(
            "{} {verb} {}{per_user} vs {} in {}",
            self.treatment.0,
            self.amount(treatment),
            self.amount(control),
            self.control.0
        );
        if let Some(effect) = self.effect {
            text.push_str(&format!(": {}", self.effect_text(effect)));
            if let Some((ends, confidence)) = &self.interval {
                text.push_str(&format!(" ({confidence} {} to {})", self.effect_text(ends.0), self.effect_text(ends.1)));
            }
        }
        match &self.evidence {
            Some(evidence) => text.push_str(&format!(", {evidence}; {}.", self.conclusion)),
            None => text.push_str(&format!("; {}.", self.conclusion)),
        }
        text
    }

    fn amount(&self, value: f64) -> String {
        match (&self.metric.aggregation, self.currency) {
            (aggregation, _) if aggregation.is_share() => format!("{}%", short(value * 100.0)),
            (aggregation, Some(currency)) if aggregation.is_value() => format!("{} {currency}", short(value)),
            _ => short(value),
        }
    }

    fn effect_text(&self, value: f64) -> String {
        let sign = if value >= 0.0 { "+" } else { "" };
        match self.difference {
            Difference::Relative => format!("{sign}{}%", short(value * 100.0)),
            Difference::Absolute if self.metric.aggregation.is_share() => {
                format!("{sign}{} points", short(value * 100.0))
            }
            Difference::Absolute => format!("{sign}{}", self.amount(value)),
            Difference::Scaled => {
                let unit = match (&self.metric.aggregation, self.currency) {
                    (Aggregation::ConversionRate, _) => " converters",
                    (Aggregation::CountPerUser | Aggregation::Quantile(Amount::Count, _), _) => " conversions",
                    (aggregation, _) if aggregation.is_share() => " users",
                    (aggregation, Some(currency)) if aggregation.is_value() => {
                        return format!("{sign}{} {currency} a day", short(value));
                    }
                    _ => "",
                };
                format!("{sign}{}{unit} a day", short(value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::metrics::default_metrics;

    #[test]
    fn sentences_name_both_variants_and_their_numbers() {
        let [rate, value] = default_metrics(None);
        let said = |metric: &Configured, difference, effect, interval: Option<(f64, f64)>, evidence: Option<&str>| {
            Sentence {
                metric,
                currency: Some("EUR"),
                control: ("control", Some(0.1)),
                treatment: ("b", Some(0.11)),
                difference,
                effect,
                interval: interval.map(|ends| (ends, "95% CI".to_owned())),
                evidence: evidence.map(str::to_owned),
                conclusion: "no difference is shown".to_owned(),
            }
            .text()
        };
        assert_eq!(
            said(&rate, Difference::Relative, Some(0.1), Some((-0.02, 0.22)), Some("p = 0.1")),
            "b converts 11% vs 10% in control: +10% (95% CI -2% to +22%), p = 0.1; no difference is shown."
        );
        assert_eq!(
            said(&rate, Difference::Absolute, Some(0.01), None, Some("p = 0.1")),
            "b converts 11% vs 10% in control: +1 points, p = 0.1; no difference is shown."
        );
        assert_eq!(
            said(&value, Difference::Scaled, Some(12.5), Some((-1.0, 26.0)), None),
            "b brings 0.11 EUR per user vs 0.1 EUR in control: +12.5 EUR a day (95% CI -1 EUR a day to +26 EUR a day); \
             no difference is shown."
        );
        let empty = Sentence {
            metric: &rate,
            currency: None,
            control: ("control", Some(0.1)),
            treatment: ("b", None),
            difference: Difference::Relative,
            effect: None,
            interval: None,
            evidence: None,
            conclusion: String::new(),
        };
        assert_eq!(empty.text(), "b has no users yet, so that nothing can be compared.");
    }
}
