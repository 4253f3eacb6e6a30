//! What a metric is made of, and which values are accepted. Nothing here knows the database.

use events::Money;

use super::{AdminError, check_name, texts};

/// Days, 10 years: as far back as anything is accepted.
const WINDOW_DAYS_MAX: i32 = 3_650;

texts! {
    /// What a metric computes per user.
    Aggregation {
        /// Whether there was a conversion.
        ConversionRate = "conversion_rate",
        /// The sum of values.
        ValuePerUser = "value_per_user",
        /// The number of conversions.
        CountPerUser = "count_per_user",
        /// One sum over all users, divided by another.
        Ratio = "ratio",
        /// A quantile of users' sums.
        Quantile = "quantile",
    }
}

texts! {
    /// What of a conversion is added up.
    Amount {
        /// Its value.
        Value = "value",
        /// 1.
        Count = "count",
    }
}

texts! {
    /// What a ratio is over.
    Denominator {
        /// Conversions.
        Conversions = "conversions",
        /// Eligible impressions of the experiment.
        Impressions = "impressions",
    }
}

texts! {
    /// Which way is better.
    Direction {
        /// Up.
        Increase = "increase",
        /// Down.
        Decrease = "decrease",
    }
}

texts! {
    /// What a metric decides.
    Role {
        /// Whether the experiment is a success.
        Primary = "primary",
        /// Nothing alone.
        Secondary = "secondary",
        /// Whether harm was done.
        Guardrail = "guardrail",
    }
}

/// One thing that is measured.
#[derive(Clone, Debug)]
pub struct NewMetric {
    /// Unique in the experiment.
    pub name: String,
    /// The conversions that count; `None`: all.
    pub conversion_type: Option<String>,
    /// What is computed of them.
    pub aggregation: Aggregation,
    /// What of them is added up, of a ratio or quantile; `None`: their values.
    pub numerator: Option<Amount>,
    /// What a ratio is over.
    pub denominator: Option<Denominator>,
    /// The conversions of the denominator; `None`: those of the numerator.
    pub denominator_type: Option<String>,
    /// Between 0 and 1, 3 decimals, of a quantile.
    pub quantile: Option<String>,
    /// Which way is better.
    pub direction: Direction,
    /// What it decides.
    pub role: Role,
    /// Of a guardrail: the relative loss that is bearable, 4 decimals.
    pub margin: Option<String>,
    /// Days after the first exposure; `None`: the experiment's.
    pub window_days: Option<i32>,
    /// One user's sum counts up to here.
    pub cap: Option<String>,
    /// One user's sum counts up to this percentile of all sums that are not 0; 100 never cuts.
    pub cap_percentile: Option<String>,
}

impl Default for NewMetric {
    /// A secondary conversion rate of all conversions, without a name.
    fn default() -> Self {
        NewMetric {
            name: String::new(),
            conversion_type: None,
            aggregation: Aggregation::ConversionRate,
            numerator: None,
            denominator: None,
            denominator_type: None,
            quantile: None,
            direction: Direction::Increase,
            role: Role::Secondary,
            margin: None,
            window_days: None,
            cap: None,
            cap_percentile: None,
        }
    }
}

impl NewMetric {
    /// Checks every value; `place` stands before each field's name. What passes is taken by every check of the schema,
    /// without rounding.
    pub(super) fn check(&self, place: &str) -> Result<(), AdminError> {
        let field = |name: &str| format!("{place}{name}");
        let refuse = |name: &str, message: String| Err(AdminError::invalid(field(name), message));
        let of = self.aggregation.as_str();
        check_name(&field("name"), &self.name)?;
        if self.name.contains(',') {
            return refuse(
                "name",
                format!("found {:?}; questions separate names by commas, so that a name holds none", self.name),
            );
        }
        for (name, conversion) in [("conversion_type", &self.conversion_type), ("denominator_type", &self.denominator_type)] {
            if let Some(conversion) = conversion {
                check_name(&field(name), conversion)?;
            }
        }
        let is_ratio = self.aggregation == Aggregation::Ratio;
        let is_quantile = self.aggregation == Aggregation::Quantile;
        match (self.denominator, is_ratio) {
            (None, true) => {
                return refuse("denominator", format!("a ratio needs one; accepted: {}", Denominator::TEXTS.join(", ")));
            }
            (Some(_), false) => return refuse("denominator", format!("found with {of}; only a ratio has one")),
            _ => {}
        }
        if self.denominator_type.is_some() && self.denominator != Some(Denominator::Conversions) {
            return refuse("denominator_type", "only a ratio over conversions has one".to_owned());
        }
        if self.numerator.is_some() && !is_ratio && !is_quantile {
            return refuse("numerator", format!("found with {of}; only a ratio or quantile has one"));
        }
        if self.quantile.is_some() != is_quantile {
            let message = if is_quantile {
                "a quantile needs one, such as 0.9".to_owned()
            } else {
                format!("found with {of}; only a quantile has one")
            };
            return refuse("quantile", message);
        }
        decimal(
            &field("quantile"),
            self.quantile.as_deref(),
            "above 0 and below 1 with 3 decimals, such as 0.9",
            3,
            |quantile| (1..1_000_000).contains(&quantile),
        )?;
        if self.margin.is_some() && self.role != Role::Guardrail {
            return refuse("margin", format!("found with the role {}; only a guardrail has a margin", self.role.as_str()));
        }
        decimal(&field("margin"), self.margin.as_deref(), "0 to 9.9999 with 4 decimals", 4, |margin| {
            (0..10_000_000).contains(&margin)
        })?;
        window(&field("window_days"), self.window_days)?;
        let is_summed = matches!(self.aggregation, Aggregation::ValuePerUser | Aggregation::CountPerUser);
        for (name, value) in [("cap", &self.cap), ("cap_percentile", &self.cap_percentile)] {
            if value.is_some() && !is_summed {
                return refuse(name, format!("found with {of}; only value_per_user and count_per_user have one"));
            }
        }
        if self.cap.is_some() && self.cap_percentile.is_some() {
            return refuse("cap_percentile", "found beside cap; one of them is accepted".to_owned());
        }
        decimal(&field("cap"), self.cap.as_deref(), "an amount above 0 with at most 6 decimals", 6, |cap| cap > 0)?;
        let accepted = "above 0 and up to 100 with 4 decimals, such as 99.9";
        decimal(&field("cap_percentile"), self.cap_percentile.as_deref(), accepted, 4, |percentile| {
            (1..=100_000_000).contains(&percentile)
        })
    }
}

pub(super) fn window(field: &str, days: Option<i32>) -> Result<(), AdminError> {
    match days {
        Some(days) if !(0..=WINDOW_DAYS_MAX).contains(&days) => {
            Err(AdminError::invalid(field, format!("found {days}; 0 to {WINDOW_DAYS_MAX} days are accepted")))
        }
        _ => Ok(()),
    }
}

pub(super) fn millionths(text: &str) -> Option<i128> {
    text.parse::<Money>().ok().map(Money::millionths)
}

/// Checks a decimal text, of which no digit may be lost in a column with `decimals` digits after the point.
pub(super) fn decimal(
    field: &str,
    text: Option<&str>,
    accepted: &str,
    decimals: u32,
    in_range: impl Fn(i128) -> bool,
) -> Result<(), AdminError> {
    let Some(text) = text else { return Ok(()) };
    let fits = |value: i128| in_range(value) && value % 10i128.pow(6 - decimals) == 0;
    match millionths(text) {
        Some(value) if fits(value) => Ok(()),
        _ => Err(AdminError::invalid(field, format!("found {text:?}; accepted: {accepted}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_belong_to_their_aggregation() {
        let check = |change: &dyn Fn(&mut NewMetric), expected: &str| {
            let mut metric = NewMetric { name: "m".into(), ..NewMetric::default() };
            change(&mut metric);
            let found = metric.check("").err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(found, expected, "{metric:?}");
        };
        let ratio = |metric: &mut NewMetric| {
            metric.aggregation = Aggregation::Ratio;
            metric.denominator = Some(Denominator::Conversions);
        };
        let quantile = |metric: &mut NewMetric| {
            metric.aggregation = Aggregation::Quantile;
            metric.quantile = Some("0.95".into());
        };
        check(&|_| {}, "");
        check(&ratio, "");
        check(&quantile, "");
        check(&|m| m.name = "a,b".into(), r#"name: found "a,b"; questions separate names by commas, so that a name holds none"#);
        check(&|m| m.aggregation = Aggregation::Ratio, "denominator: a ratio needs one; accepted: conversions, impressions");
        check(
            &|m| m.denominator = Some(Denominator::Impressions),
            "denominator: found with conversion_rate; only a ratio has one",
        );
        check(
            &|m| {
                ratio(m);
                m.denominator = Some(Denominator::Impressions);
                m.denominator_type = Some("view".into());
            },
            "denominator_type: only a ratio over conversions has one",
        );
        check(&|m| m.numerator = Some(Amount::Count), "numerator: found with conversion_rate; only a ratio or quantile has one");
        check(&|m| m.aggregation = Aggregation::Quantile, "quantile: a quantile needs one, such as 0.9");
        check(&|m| m.quantile = Some("0.5".into()), "quantile: found with conversion_rate; only a quantile has one");
        for text in ["0", "1", "0.0001", "x"] {
            let expected = format!("quantile: found {text:?}; accepted: above 0 and below 1 with 3 decimals, such as 0.9");
            check(
                &|m| {
                    quantile(m);
                    m.quantile = Some(text.into());
                },
                &expected,
            );
        }
        check(&|m| m.cap = Some("5".into()), "cap: found with conversion_rate; only value_per_user and count_per_user have one");
        check(
            &|m| {
                m.aggregation = Aggregation::ValuePerUser;
                m.cap = Some("5".into());
                m.cap_percentile = Some("99".into());
            },
            "cap_percentile: found beside cap; one of them is accepted",
        );
        for (text, is_accepted) in [("99.9", true), ("100", true), ("0", false), ("100.0001", false), ("1.00001", false)] {
            let expected =
                format!("cap_percentile: found {text:?}; accepted: above 0 and up to 100 with 4 decimals, such as 99.9");
            check(
                &|m| {
                    m.aggregation = Aggregation::ValuePerUser;
                    m.cap_percentile = Some(text.into());
                },
                if is_accepted { "" } else { &expected },
            );
        }
    }

    #[test]
    fn texts_are_those_of_the_schema() {
        let accepted = "conversion_rate, value_per_user, count_per_user, ratio, quantile";
        assert_eq!("mean".parse::<Aggregation>(), Err(format!("found \"mean\"; accepted: {accepted}")));
        for text in Aggregation::TEXTS {
            assert_eq!(text.parse::<Aggregation>().map(Aggregation::as_str), Ok(*text));
        }
    }
}
