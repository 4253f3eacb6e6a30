//! Credit models: how the value of a conversion is divided among the impressions before it. They describe, and never
//! feed a test: what is credited depends on what the treatment did.

/// How credit is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Model {
    /// All to the first touch.
    FirstTouch,
    /// All to the last touch.
    LastTouch,
    /// Equal parts.
    Linear,
    /// 40 % to the first and the last touch each, the rest in equal parts; two touches get halves.
    PositionBased,
    /// Half as much for every `half_life_hours` (positive) earlier.
    TimeDecay {
        /// The half-life.
        half_life_hours: f64,
    },
}

impl Model {
    /// Returns the model as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Model::FirstTouch => "first_touch",
            Model::LastTouch => "last_touch",
            Model::Linear => "linear",
            Model::PositionBased => "position_based",
            Model::TimeDecay { .. } => "time_decay",
        }
    }

    /// Returns the weights of touches, the oldest first, of any scale. Whole where the model allows it.
    fn weights(self, hours_before: &[f64]) -> Vec<f64> {
        let count = hours_before.len();
        let only = |place: usize| (0..count).map(|index| if index == place { 1.0 } else { 0.0 }).collect();
        match self {
            Model::FirstTouch => only(0),
            Model::LastTouch => only(count.saturating_sub(1)),
            Model::PositionBased if count > 2 => {
                let inner = count - 2;
                (0..count).map(|index| if index == 0 || index == count - 1 { 2.0 * inner as f64 } else { 1.0 }).collect()
            }
            Model::Linear | Model::PositionBased => vec![1.0; count],
            Model::TimeDecay { half_life_hours } => {
                // From the latest touch, so that not all can underflow.
                let latest = hours_before.iter().copied().fold(f64::INFINITY, f64::min);
                hours_before.iter().map(|hours| (-(hours - latest) / half_life_hours).exp2()).collect()
            }
        }
    }

    /// Divides a value among touches, the oldest first, by the hours between each and the conversion. Empty without
    /// touches, or if an hour or the half-life is not finite or the latter not positive.
    /// Source: the models of Google Ads' AttributionModel and of Matomo; the parts of each sum to the whole.
    pub fn divide(self, value: f64, hours_before: &[f64]) -> Vec<f64> {
        if !self.is_defined(hours_before) {
            return Vec::new();
        }
        let weights = self.weights(hours_before);
        let whole: f64 = weights.iter().sum();
        weights.iter().map(|weight| value * (weight / whole)).collect()
    }

    /// Divides a whole number of the smallest unit of money so that the parts sum to it exactly: each part is rounded down,
    /// and what is missing goes to the largest remainders, of equal ones to the earlier touch. Empty as [`Model::divide`].
    /// Source: the method of largest remainders (Hare, Hamilton).
    pub fn divide_whole(self, value: i128, hours_before: &[f64]) -> Vec<i128> {
        if !self.is_defined(hours_before) {
            return Vec::new();
        }
        let weights = self.weights(hours_before);
        let mut parts = if weights.iter().all(|weight| weight.fract() == 0.0) {
            by_whole_weights(value, &weights.iter().map(|weight| *weight as i128).collect::<Vec<_>>())
        } else {
            by_weights(value, &weights)
        };
        // Rounding down leaves fewer units than there are touches.
        let mut missing = value - parts.iter().map(|(part, _)| part).sum::<i128>();
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by(|one, other| parts[*other].1.total_cmp(&parts[*one].1).then(one.cmp(other)));
        for index in order.into_iter().cycle() {
            if missing <= 0 {
                break;
            }
            parts[index].0 += 1;
            missing -= 1;
        }
        parts.into_iter().map(|(part, _)| part).collect()
    }

    fn is_defined(self, hours_before: &[f64]) -> bool {
        let half_life = if let Model::TimeDecay { half_life_hours } = self { half_life_hours } else { 1.0 };
        !hours_before.is_empty() && hours_before.iter().all(|hours| hours.is_finite()) && half_life > 0.0 && half_life.is_finite()
    }
}

/// Parts rounded down with their remainders.
fn by_whole_weights(value: i128, weights: &[i128]) -> Vec<(i128, f64)> {
    let whole: i128 = weights.iter().sum();
    let (each, rest) = (value.div_euclid(whole), value.rem_euclid(whole));
    let part = |weight: &i128| (each * weight + (rest * weight).div_euclid(whole), (rest * weight).rem_euclid(whole) as f64);
    weights.iter().map(part).collect()
}

/// Parts rounded down with their remainders. What is a whole number but for rounding is one.
fn by_weights(value: i128, weights: &[f64]) -> Vec<(i128, f64)> {
    let whole: f64 = weights.iter().sum();
    let part = |weight: &f64| {
        let share = value as f64 * (weight / whole);
        let near = share.round();
        if (share - near).abs() < 1e-9 { (near as i128, 0.0) } else { (share.floor() as i128, round_off(share - share.floor())) }
    };
    let mut parts: Vec<(i128, f64)> = weights.iter().map(part).collect();
    // Rounding may have given away more than there is; the touches with the largest parts return it.
    let mut excess = parts.iter().map(|(part, _)| part).sum::<i128>() - value;
    while excess > 0 {
        if let Some((part, _)) = parts.iter_mut().max_by_key(|(part, _)| *part) {
            let back = excess.min(i128::from(u32::MAX));
            *part -= back;
            excess -= back;
        }
    }
    parts
}

/// Remainders that differ by rounding only are equal.
fn round_off(remainder: f64) -> f64 {
    (remainder * 1e9).round() / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DECAY: Model = Model::TimeDecay { half_life_hours: 168.0 };

    fn check(model: Model, value: i128, hours: &[f64], expected: &[i128]) {
        assert_eq!(model.divide_whole(value, hours), expected, "{model:?} {value} {hours:?}");
    }

    #[test]
    fn what_is_missing_goes_to_the_largest_remainders() {
        check(Model::Linear, 100, &[3.0, 2.0, 1.0], &[34, 33, 33]);
        check(Model::Linear, 1, &[3.0, 2.0, 1.0], &[1, 0, 0]);
        check(Model::Linear, 0, &[3.0, 2.0], &[0, 0]);
        check(Model::Linear, -101, &[3.0, 2.0], &[-50, -51]);
        check(Model::PositionBased, 101, &[4.0, 3.0, 2.0, 1.0], &[41, 10, 10, 40]);
        check(Model::PositionBased, 101, &[2.0, 1.0], &[51, 50]);
        check(Model::FirstTouch, 99, &[2.0, 1.0], &[99, 0]);
        check(Model::LastTouch, 99, &[2.0, 1.0], &[0, 99]);
        check(DECAY, 300, &[168.0, 0.0], &[100, 200]);
        check(DECAY, 100, &[7.0, 7.0, 7.0], &[34, 33, 33]);
        check(DECAY, 5, &[1e9, 0.0], &[0, 5]);
    }

    #[test]
    fn what_is_undefined_is_empty() {
        for hours in [&[][..], &[f64::NAN], &[1.0, f64::INFINITY]] {
            assert!(DECAY.divide(1.0, hours).is_empty() && DECAY.divide_whole(1, hours).is_empty());
        }
        assert!(Model::TimeDecay { half_life_hours: 0.0 }.divide(1.0, &[1.0]).is_empty());
        // Touches long ago share by their distance to each other.
        assert_eq!(DECAY.divide(3.0, &[1e6 + 168.0, 1e6]), [1.0, 2.0]);
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_whole(
            value in -1_000_000_000_000i128..1_000_000_000_000, hours in prop::collection::vec(0.0..1e5_f64, 1..40), half_life in 0.01..1e4_f64,
        ) {
            let decay = Model::TimeDecay { half_life_hours: half_life };
            for model in [Model::FirstTouch, Model::LastTouch, Model::Linear, Model::PositionBased, decay] {
                let (parts, exact) = (model.divide_whole(value, &hours), model.divide(value as f64, &hours));
                prop_assert_eq!(parts.iter().sum::<i128>(), value, "{:?}", model);
                for (part, exact) in parts.iter().zip(exact) {
                    prop_assert!((*part as f64 - exact).abs() < 1.0 + 1e-9 * exact.abs(), "{part} {exact}");
                }
            }
        }
    }
}
