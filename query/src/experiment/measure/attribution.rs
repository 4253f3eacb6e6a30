//! Who gets the credit for value: the models of attribution, side by side. They describe; the comparison of variants always
//! rests on the first exposure, since what is seen later is itself an effect.

use serde::Serialize;
use uuid::Uuid;

use crate::experiment::measure::groups::Groups;
use crate::experiment::read::cohort::{Cohort, DAY_US, Row, Touch};
use crate::experiment::read::experiment::Experiment;
use statistics::credit::Model;
use statistics::moments::{Overflow, decimal_text};

/// From here on an attribution counts as certain, in hundredths.
const CONFIDENT_FROM: u8 = 80;

/// Hours in which a touch loses half of its weight: a week.
const HALF_LIFE_HOURS: f64 = 168.0;
/// Millionths in a hundredth: parts of whole cents are whole cents.
const CENT: i128 = 10_000;

const MODELS: [Model; 5] = [
    Model::FirstTouch,
    Model::LastTouch,
    Model::Linear,
    Model::PositionBased,
    Model::TimeDecay { half_life_hours: HALF_LIFE_HOURS },
];

/// Value by variant. Descriptive: the causal comparison is that of the metrics, by first exposure.
#[derive(Clone, Debug, Serialize)]
pub struct Attribution {
    /// The experiment's method, by which conversions were stored.
    pub method: String,
    /// Of all values here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Each model; the values of each add up to the same total, to the last digit.
    pub models: Vec<AttributionModel>,
    /// What rests on little.
    pub sensitivity: Sensitivity,
}

/// One model of attribution.
#[derive(Clone, Debug, Serialize)]
pub struct AttributionModel {
    /// `first_touch`, `last_touch`, `linear`, `position_based` or `time_decay`.
    pub model: &'static str,
    /// In the order of the variants.
    pub by_variant: Vec<VariantValue>,
}

/// What one variant is credited with.
#[derive(Clone, Debug, Serialize)]
pub struct VariantValue {
    /// Which one.
    pub variant_id: Uuid,
    /// The value.
    pub value: String,
}

/// How much rests on conversions whose attribution is not certain.
#[derive(Clone, Debug, Serialize)]
pub struct Sensitivity {
    /// From here on an attribution counts as certain.
    pub min_confidence: f64,
    /// Share of the conversions below it; null without conversions.
    pub share_below: Option<f64>,
    /// Value of the conversions at or above it, by variant of the first exposure.
    pub by_variant: Vec<VariantValue>,
}

/// Shares the value of all attributed conversions in one currency among the variants, by each model. Touches are the
/// impressions up to the conversion. Users who saw several variants belong to it, whoever the metrics count.
/// # Errors
/// [`Overflow`].
pub fn attribution(
    experiment: &Experiment,
    variants: &[Uuid],
    cohort: &Cohort,
    (code, currency): (Option<&str>, Option<u32>),
    groups: &Groups,
) -> Result<Attribution, Overflow> {
    let arms = variants.len();
    let mut by_model = vec![vec![0i128; arms]; MODELS.len()];
    let mut confident = vec![0i128; arms];
    let (mut conversions, mut below) = (0u64, 0u64);
    let window_us = i64::from(experiment.conversion_window_days) * DAY_US;
    for user in cohort.after.filled() {
        let (first, exposed) = (cohort.users.arms[*user as usize] as usize, cohort.users.exposed[*user as usize]);
        // A metric may look further than the experiment, which attributes nothing there.
        for row in cohort.after.of(*user as usize).iter().filter(|row| row.time - exposed <= window_us) {
            let is_confident = row.confidence >= CONFIDENT_FROM;
            let value = row.value.filter(|_| currency.is_none_or(|currency| currency == row.currency)).unwrap_or(0);
            if groups.of(*user).is_some() {
                conversions += 1;
                below += u64::from(!is_confident);
                if is_confident {
                    add(&mut confident[first], value)?;
                }
            }
            if value == 0 {
                continue;
            }
            let seen = cohort.touches.get(user).map(|touches| until(touches, row)).unwrap_or_default();
            for (model, totals) in MODELS.iter().zip(&mut by_model) {
                if seen.is_empty() {
                    add(&mut totals[first], value)?;
                    continue;
                }
                let hours: Vec<f64> = seen.iter().map(|touch| (row.time - touch.time) as f64 / 3.6e9).collect();
                let unit = if value % CENT == 0 { CENT } else { 1 };
                for (touch, part) in seen.iter().zip(model.divide_whole(value / unit, &hours)) {
                    add(&mut totals[touch.arm as usize], part * unit)?;
                }
            }
        }
    }
    let values = |totals: &[i128]| {
        let value = |(variant, total): (&Uuid, &i128)| VariantValue { variant_id: *variant, value: decimal_text(*total) };
        variants.iter().zip(totals).map(value).collect()
    };
    let model = |(model, totals): (&Model, &Vec<i128>)| AttributionModel { model: model.as_str(), by_variant: values(totals) };
    Ok(Attribution {
        method: experiment.attribution_method.clone(),
        currency: code.map(str::to_owned),
        models: MODELS.iter().zip(&by_model).map(model).collect(),
        sensitivity: Sensitivity {
            min_confidence: f64::from(CONFIDENT_FROM) / 100.0,
            share_below: (conversions > 0).then(|| below as f64 / conversions as f64),
            by_variant: values(&confident),
        },
    })
}

fn add(total: &mut i128, value: i128) -> Result<(), Overflow> {
    *total = total.checked_add(value).ok_or(Overflow)?;
    Ok(())
}

fn until<'a>(touches: &'a [Touch], row: &Row) -> &'a [Touch] {
    &touches[..touches.partition_point(|touch| touch.time <= row.time)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::sums::tests::cohort;
    use crate::experiment::read::cohort::Touches;

    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn every_model_shares_the_same_total() {
        // User 0 saw one variant, user 1 three touches of two variants; the third one comes after the conversion.
        let mut cohort = cohort(&[(0, 0), (0, 0)], &[(0, HOUR, 0, 5), (1, 240 * HOUR, 0, 90), (1, 241 * HOUR, 0, -1)]);
        cohort.users.is_mixed[1] = true;
        let touch = |hour: i64, arm| Touch { time: hour * HOUR, arm };
        cohort.touches = Touches::from([(1, vec![touch(0, 0), touch(140, 1), touch(240, 1), touch(300, 0)])]);
        let variants = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let groups = Groups::new(2, 2, |user| (user == 0).then_some(0));
        let experiment =
            Experiment { attribution_method: "first_exposure".to_owned(), conversion_window_days: 30, ..Experiment::default() };
        let found = attribution(&experiment, &variants, &cohort, (None, Some(0)), &groups).expect("fits");
        let check = |model: &str, expected: [&str; 2]| {
            let found = found.models.iter().find(|found| found.model == model).expect("a model");
            let values: Vec<&str> = found.by_variant.iter().map(|value| value.value.as_str()).collect();
            assert_eq!(values, expected, "{model}");
        };
        check("first_touch", ["94.00", "0.00"]);
        check("last_touch", ["5.00", "89.00"]);
        // 30 of 90; of the refund a third is -0.34 to -0.33, and the cents add up.
        check("linear", ["34.67", "59.33"]);
        check("position_based", ["40.60", "53.40"]);
        let millionths = |text: &str| -> i64 { (text.parse::<f64>().expect("a decimal") * 1e6).round() as i64 };
        for model in &found.models {
            let total: i64 = model.by_variant.iter().map(|value| millionths(&value.value)).sum();
            assert_eq!(total, 94_000_000, "{}", model.model);
        }
        assert_eq!(found.sensitivity.share_below, Some(0.0));
    }

    #[test]
    fn uncertain_conversions_are_named() {
        let mut cohort = cohort(&[(0, 0)], &[(0, 1, 0, 3), (0, 2, 0, 4)]);
        let mut rows: Vec<(u32, Row)> = cohort.after.all().iter().map(|row| (0, *row)).collect();
        rows[0].1.confidence = 79;
        cohort.after = crate::experiment::read::cohort::Rows::new(1, rows);
        let groups = Groups::new(1, 1, |_| Some(0));
        let experiment = Experiment { conversion_window_days: 30, ..Experiment::default() };
        let found = attribution(&experiment, &[Uuid::nil()], &cohort, (None, None), &groups).expect("fits");
        assert_eq!(found.sensitivity.share_below, Some(0.5));
        assert_eq!(found.sensitivity.by_variant[0].value, "4.00");
        assert_eq!(found.models[0].by_variant[0].value, "7.00");
    }
}
