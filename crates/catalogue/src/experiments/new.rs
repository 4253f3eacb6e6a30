//! What an experiment is made of, and which values are accepted. Nothing here knows the database.

use events::Micros;

use crate::metrics::{METRICS_MAX, NewMetric};
use crate::policy::Policy;
use crate::trigger::Trigger;
use crate::vocabulary::AttributionMethod;
use crate::{CatalogueError, check};

/// More arms than anybody compares; each is a row in every answer.
pub(crate) const VARIANTS_MAX: usize = 100;

/// Names that mean the control where no variant is marked as it, in any case.
pub const CONTROL_NAMES: [&str; 5] = ["control", "baseline", "original", "off", "false"];

/// An experiment to be made. What is `None` gets the default of the schema.
#[derive(Clone, Debug, Default)]
pub struct NewExperiment {
    /// Unique in the project, for ever.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// At least one.
    pub variants: Vec<NewVariant>,
    /// None at all: the default metrics of the query service.
    pub metrics: Vec<NewMetric>,
    /// Users over all variants.
    pub target_sample_size: Option<i32>,
    /// 0.80 to 0.99, 2 decimals.
    pub confidence_level: Option<String>,
    /// Relative, above 0 and below 10, 4 decimals.
    pub minimum_detectable_effect: Option<String>,
    /// 0 to 3650.
    pub conversion_window_days: Option<i32>,
    /// Default: first exposure.
    pub attribution_method: Option<AttributionMethod>,
    /// Three capital letters; default: the only one seen.
    pub currency: Option<String>,
    /// What begins the analysis of a user; default: the exposure.
    pub trigger: Option<Trigger>,
    /// How it decides; default: the usual one.
    pub policy: Option<Policy>,
    /// Whether it runs at once.
    pub start: bool,
    /// From when on exposures count; default: the time of the start. Only together with `start`.
    pub started_at: Option<Micros>,
}

/// One arm.
#[derive(Clone, Debug, Default)]
pub struct NewVariant {
    /// Unique in the experiment, for ever.
    pub name: String,
    /// Share of the traffic, in any unit, at most 6 decimals. All variants have one, or none.
    pub weight: Option<String>,
    /// Whether the others are compared with this one; at most one.
    pub is_control: bool,
    /// What it has for people and for clients.
    pub details: VariantDetails,
}

/// What a variant has for people and for clients. Nothing of it is computed with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariantDetails {
    /// For people.
    pub description: Option<String>,
    /// For clients: any JSON value, at most 64 KiB.
    pub config_json: Option<String>,
}

impl VariantDetails {
    /// Checks both; `field` is what comes before their names in an error.
    pub(crate) fn check(&self, field: &str) -> Result<(), CatalogueError> {
        check::description(&format!("{field}description"), self.description.as_deref())?;
        check::json(&format!("{field}config_json"), self.config_json.as_deref())
    }
}

impl NewExperiment {
    /// Checks every value. What passes is taken by every check of the schema, without rounding.
    pub(crate) fn check(&self) -> Result<(), CatalogueError> {
        check::name("name", &self.name)?;
        check::description("description", self.description.as_deref())?;
        check_variants(&self.variants)?;
        self.check_metrics()?;
        if let Some(size) = self.target_sample_size.filter(|size| *size <= 0) {
            return Err(CatalogueError::invalid(
                "target_sample_size",
                format!("found {size}; users over all variants, at least 1"),
            ));
        }
        check::decimal("confidence_level", self.confidence_level.as_deref(), "0.80 to 0.99 with 2 decimals", 2, |level| {
            (800_000..=990_000).contains(&level)
        })?;
        let accepted = "a relative effect above 0 and below 10 with 4 decimals, such as 0.05 for 5 %";
        check::decimal("minimum_detectable_effect", self.minimum_detectable_effect.as_deref(), accepted, 4, |effect| {
            (1..10_000_000).contains(&effect)
        })?;
        check::window("conversion_window_days", self.conversion_window_days)?;
        self.trigger.as_ref().map_or(Ok(()), Trigger::check)?;
        self.policy.as_ref().map_or(Ok(()), Policy::check)?;
        if let Some(currency) = &self.currency
            && (currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()))
        {
            return Err(CatalogueError::invalid(
                "currency",
                format!("found {currency:?}; three capital letters such as EUR are accepted"),
            ));
        }
        match self.started_at {
            Some(_) if !self.start => Err(CatalogueError::invalid(
                "started_at",
                "the experiment is not started; a time is accepted together with a start",
            )),
            // Postgres' own times reach further back, but no event does.
            Some(time) if time < Micros::MIN || time > Micros::MAX => {
                Err(CatalogueError::invalid("started_at", format!("found {time}; years 1 to 9999 are accepted")))
            }
            _ => Ok(()),
        }
    }

    fn check_metrics(&self) -> Result<(), CatalogueError> {
        if self.metrics.len() > METRICS_MAX {
            return Err(CatalogueError::invalid(
                "metrics",
                format!("found {}; at most {METRICS_MAX} are accepted", self.metrics.len()),
            ));
        }
        for (index, metric) in self.metrics.iter().enumerate() {
            let field = format!("metrics[{index}].");
            metric.check(&field)?;
            if self.metrics[..index].iter().any(|other| other.name == metric.name) {
                return Err(CatalogueError::invalid(
                    format!("{field}name"),
                    format!("found {:?} twice; each name once", metric.name),
                ));
            }
        }
        Ok(())
    }

    /// Returns whether an answer can tell the control: the marked one, else one of the usual names.
    pub fn has_control(&self) -> bool {
        let is_usual = |variant: &NewVariant| CONTROL_NAMES.contains(&variant.name.to_lowercase().as_str());
        self.variants.iter().any(|variant| variant.is_control || is_usual(variant))
    }
}

/// Checks the variants of one experiment together.
pub(crate) fn check_variants(variants: &[NewVariant]) -> Result<(), CatalogueError> {
    if variants.is_empty() || variants.len() > VARIANTS_MAX {
        return Err(CatalogueError::invalid("variants", format!("found {}; 1 to {VARIANTS_MAX} are accepted", variants.len())));
    }
    for (index, variant) in variants.iter().enumerate() {
        let field = format!("variants[{index}]");
        check::name(&format!("{field}.name"), &variant.name)?;
        variant.details.check(&format!("{field}."))?;
        if variants[..index].iter().any(|other| other.name == variant.name) {
            return Err(CatalogueError::invalid(
                format!("{field}.name"),
                format!("found {:?} twice; each name once", variant.name),
            ));
        }
        if variant.is_control && variants[..index].iter().any(|other| other.is_control) {
            return Err(CatalogueError::invalid(field, "a second control; at most one is accepted"));
        }
        if variant.weight.is_none() != variants[0].weight.is_none() {
            return Err(CatalogueError::invalid(
                format!("{field}.weight"),
                "some variants have a weight and some have none; all or none is accepted",
            ));
        }
        let accepted = "0 to 999999 with at most 6 decimals";
        check::decimal(&format!("{field}.weight"), variant.weight.as_deref(), accepted, 6, |weight| {
            (0..1_000_000_000_000).contains(&weight)
        })?;
    }
    let all_zero = |variant: &NewVariant| variant.weight.as_deref().and_then(check::millionths) == Some(0);
    if variants.iter().all(all_zero) {
        return Err(CatalogueError::invalid("variants", "all weights are 0; at least one above 0 is accepted"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::{Aggregation, Role};

    fn variant(name: &str, weight: Option<&str>, is_control: bool) -> NewVariant {
        NewVariant { name: name.into(), weight: weight.map(Into::into), is_control, ..NewVariant::default() }
    }

    fn metric(name: &str) -> NewMetric {
        NewMetric { name: name.into(), role: Role::Primary, ..NewMetric::default() }
    }

    fn valid() -> NewExperiment {
        NewExperiment {
            name: "checkout".into(),
            variants: vec![variant("a", Some("50"), true), variant("b", Some("50"), false)],
            metrics: vec![metric("m")],
            ..NewExperiment::default()
        }
    }

    #[test]
    fn each_value_is_checked() {
        let check = |change: &dyn Fn(&mut NewExperiment), expected: &str| {
            let mut experiment = valid();
            change(&mut experiment);
            let found = experiment.check().err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(found, expected);
        };
        check(&|_| {}, "");
        check(&|e| e.name = String::new(), r#"name: found "", which is empty; a name is accepted"#);
        check(&|e| e.description = Some("\0".into()), "description: found the character U+0000, which Postgres cannot hold");
        check(&|e| e.variants.clear(), "variants: found 0; 1 to 100 are accepted");
        check(&|e| e.variants[1].name = "a".into(), r#"variants[1].name: found "a" twice; each name once"#);
        check(&|e| e.variants[1].is_control = true, "variants[1]: a second control; at most one is accepted");
        check(
            &|e| e.variants[1].weight = None,
            "variants[1].weight: some variants have a weight and some have none; all or none is accepted",
        );
        let weight = |text: &str| format!("variants[1].weight: found {text:?}; accepted: 0 to 999999 with at most 6 decimals");
        for text in ["-1", "x", "", "1000000", "0.0000001", "1e400"] {
            check(&|e| e.variants[1].weight = Some(text.into()), &weight(text));
        }
        check(&|e| e.variants[1].weight = Some("0.000001".into()), "");
        check(
            &|e| e.variants[1].details.description = Some("\0".into()),
            "variants[1].description: found the character U+0000, which Postgres cannot hold",
        );
        check(
            &|e| e.variants[1].details.config_json = Some("{".into()),
            "variants[1].config_json: found text that is no JSON: EOF while parsing an object at line 1 column 1",
        );
        check(&|e| e.variants.iter_mut().for_each(|v| v.weight = None), "");
        check(
            &|e| e.variants.iter_mut().for_each(|v| v.weight = Some("0.0".into())),
            "variants: all weights are 0; at least one above 0 is accepted",
        );
        check(&|e| e.metrics.push(metric("m")), r#"metrics[1].name: found "m" twice; each name once"#);
        check(
            &|e| e.metrics[0].conversion_type = Some(String::new()),
            r#"metrics[0].conversion_type: found "", which is empty; a name is accepted"#,
        );
        check(
            &|e| e.metrics[0].margin = Some("0.02".into()),
            "metrics[0].margin: found with the role primary; only a guardrail has a margin",
        );
        check(&|e| e.metrics[0].window_days = Some(3_651), "metrics[0].window_days: found 3651; 0 to 3650 days are accepted");
        check(
            &|e| {
                e.metrics[0].aggregation = Aggregation::ValuePerUser;
                e.metrics[0].cap = Some("0".into());
            },
            r#"metrics[0].cap: found "0"; accepted: an amount above 0 with at most 6 decimals"#,
        );
        check(&|e| e.target_sample_size = Some(0), "target_sample_size: found 0; users over all variants, at least 1");
        for text in ["0.79", "1", "0.955"] {
            let expected = format!("confidence_level: found {text:?}; accepted: 0.80 to 0.99 with 2 decimals");
            check(&|e| e.confidence_level = Some(text.into()), &expected);
        }
        check(&|e| e.confidence_level = Some("0.9".into()), "");
        for text in ["0", "10", "0.00001"] {
            let expected = format!(
                "minimum_detectable_effect: found {text:?}; accepted: a relative effect above 0 and below 10 with 4 decimals, \
                 such as 0.05 for 5 %"
            );
            check(&|e| e.minimum_detectable_effect = Some(text.into()), &expected);
        }
        check(&|e| e.conversion_window_days = Some(-1), "conversion_window_days: found -1; 0 to 3650 days are accepted");
        for text in ["eur", "EU", "ÄB"] {
            let expected = format!("currency: found {text:?}; three capital letters such as EUR are accepted");
            check(&|e| e.currency = Some(text.into()), &expected);
        }
        check(
            &|e| e.started_at = Some(Micros(0)),
            "started_at: the experiment is not started; a time is accepted together with a start",
        );
    }

    #[test]
    fn the_control_is_marked_or_has_a_usual_name() {
        let check = |name: &str, is_control: bool, expected: bool| {
            let experiment =
                NewExperiment { variants: vec![variant(name, None, is_control), variant("b", None, false)], ..valid() };
            assert_eq!(experiment.has_control(), expected, "{name}");
        };
        check("a", true, true);
        check("a", false, false);
        check("Control", false, true);
        check("OFF", false, true);
        check("controls", false, false);
    }
}
