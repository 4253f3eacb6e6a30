//! Events per exposure, if events are Poisson distributed. Users repeat themselves, so that they rarely are: the mean per
//! user by [`crate::means::welch`] decides, and this is an addition.

use crate::beta::Beta;
use crate::distributions::{Tail, normal_isf, normal_sf};
use crate::special::{HALF_LN_2_PI, bisect, deviance, stirling_error};

/// Events of one variant and what they are counted per.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Number of events.
    pub events: u64,
    /// Users, sessions or days, positive.
    pub exposure: f64,
}

/// Events of both variants at most, beyond which the unconditional test takes too long.
const EVENTS_MAX: u64 = 1 << 34;

/// Returns statistic and two-sided p-value of the score test that both rates are equal; `None` without events.
/// Source: Gu, Ng, Tang, Schucany 2008, Biometrical Journal 50, 283-298.
pub fn score(control: Rate, treatment: Rate) -> Option<(f64, Tail)> {
    let share = treatment.exposure / control.exposure;
    let all = (control.events + treatment.events) as f64;
    let z = (treatment.events as f64 - control.events as f64 * share) / (all * share).sqrt();
    (all > 0.0).then(|| (z, normal_sf(z.abs()).doubled()))
}

/// Returns the two-sided p-value of the exact test given the number of events of both variants: the probability of all
/// divisions that are no more probable than the one found; `None` without events.
/// Source: Przyborowski, Wilenski 1940, Biometrika 31, 313-323.
pub fn exact_conditional(control: Rate, treatment: Rate) -> Option<f64> {
    let all = control.events + treatment.events;
    let chance = treatment.exposure / (control.exposure + treatment.exposure);
    if all == 0 || !(chance > 0.0 && chance < 1.0) {
        return None;
    }
    let (n, found) = (all as f64, treatment.events);
    let ln_probability = |count: u64| ln_binomial(count as f64, n, chance);
    // Equal probabilities differ by rounding.
    let limit = ln_probability(found) + 1e-7;
    let centre = ((n + 1.0) * chance).floor().clamp(0.0, n) as u64;
    if ln_probability(centre) <= limit {
        return Some(1.0);
    }
    // The other side, from the first count that is no more probable; probabilities fall away from the centre.
    let (mut near, mut far) = (centre, if found < centre { all } else { 0 });
    let is_less_probable = |count: u64| ln_probability(count) <= limit;
    let other = if is_less_probable(far) {
        while near.abs_diff(far) > 1 {
            let middle = near.min(far) + near.abs_diff(far) / 2;
            if is_less_probable(middle) { far = middle } else { near = middle }
        }
        Some(far)
    } else {
        None
    };
    let (low, high) = if found < centre { (Some(found), other) } else { (other, Some(found)) };
    let below = low.map_or(Some(0.0), |low| binomial_at_most(low, all, chance))?;
    let above = high.map_or(Some(0.0), |high| binomial_at_most(all - high, all, 1.0 - chance))?;
    Some((below + above).min(1.0))
}

/// The logarithm of a binomial probability.
/// Source: deviance form as in Loader 2000, Fast and Accurate Computation of Binomial Probabilities.
fn ln_binomial(count: f64, n: f64, chance: f64) -> f64 {
    if count == 0.0 {
        return n * (-chance).ln_1p();
    }
    if count == n {
        return n * chance.ln();
    }
    let rest = n - count;
    let off = count - n * chance;
    let deviance = deviance(count, n * chance, off) + deviance(rest, n * (1.0 - chance), -off);
    let errors = stirling_error(n) - stirling_error(count) - stirling_error(rest);
    errors - deviance - HALF_LN_2_PI - 0.5 * (count * rest / n).ln()
}

/// P(X <= count) of a binomial distribution.
fn binomial_at_most(count: u64, n: u64, chance: f64) -> Option<f64> {
    if count >= n {
        return Some(1.0);
    }
    Some(Beta::new(count as f64 + 1.0, (n - count) as f64)?.sf(chance).p)
}

/// Returns the two-sided p-value of the unconditional test with the score statistic: the probability, with both rates
/// equal to that found in both variants together, of all counts that are at least as far apart; `None` without events.
/// Source: Krishnamoorthy, Thomson 2004, Journal of Statistical Planning and Inference 119, 23-35.
pub fn unconditional(control: Rate, treatment: Rate) -> Option<f64> {
    let all = control.events + treatment.events;
    if all == 0 || all > EVENTS_MAX {
        return None;
    }
    let share = treatment.exposure / control.exposure;
    let rate = all as f64 / (control.exposure + treatment.exposure);
    let statistic = |x: f64, y: f64| if x + y == 0.0 { 0.0 } else { (x - y * share) / ((x + y) * share).sqrt() };
    let found = statistic(treatment.events as f64, control.events as f64).abs() - 1e-15;
    let (first, second) = (Poisson::new(rate * treatment.exposure), Poisson::new(rate * control.exposure));
    let total: f64 = second.probabilities.iter().sum();
    // Both limits of the second count rise with the first one.
    let (mut low, mut below) = (0usize, 0.0);
    let (mut high, mut not_above) = (0usize, 0.0);
    let mut p = 0.0;
    for (index, probability) in first.probabilities.iter().enumerate() {
        let x = first.at(index);
        while low < second.probabilities.len() && statistic(x, second.at(low)) >= found {
            below += second.probabilities[low];
            low += 1;
        }
        while high < second.probabilities.len() && statistic(x, second.at(high)) > -found {
            not_above += second.probabilities[high];
            high += 1;
        }
        p += probability * (below + (total - not_above).max(0.0));
    }
    Some(p.clamp(0.0, 1.0))
}

/// The probabilities of a Poisson distribution where they matter.
struct Poisson {
    start: u64,
    probabilities: Vec<f64>,
}

impl Poisson {
    fn new(mean: f64) -> Self {
        let reach = 10.0 * mean.sqrt() + 40.0;
        let start = (mean - reach).max(0.0).floor() as u64;
        let end = (mean + reach).ceil() as u64;
        let probability = |count: u64| {
            let k = count as f64;
            if count == 0 {
                return (-mean).exp();
            }
            (-deviance(k, mean, k - mean) - stirling_error(k) - HALF_LN_2_PI - 0.5 * k.ln()).exp()
        };
        Poisson { start, probabilities: (start..=end).map(probability).collect() }
    }

    fn at(&self, index: usize) -> f64 {
        (self.start + index as u64) as f64
    }
}

/// Returns the interval of the ratio treatment / control at 1 - `alpha` that inverts the score test of the logarithm of
/// the ratio. An end is `None` where no ratio is rejected on its side; without events of a variant there is no interval.
/// Source: Gu, Ng, Tang, Schucany 2008, Biometrical Journal 50, 283-298, statistic W4.
pub fn ratio_interval(control: Rate, treatment: Rate, alpha: f64) -> Option<(Option<f64>, Option<f64>)> {
    if control.events == 0 || treatment.events == 0 {
        return None;
    }
    let centre = (treatment.events as f64 / control.events as f64).ln();
    let scale = ((control.events + treatment.events) as f64).sqrt();
    let z = normal_isf(alpha / 2.0);
    let rejects = |at: f64| (centre - at).abs() * scale > 2.0 * z * (0.5 * at).cosh();
    let end = |sign: f64| {
        // The first rejected ratio from the centre; far out the variance grows faster than the distance.
        let step = 0.25 * z * (0.5 * centre).cosh() / scale;
        let outer = (1..400).map(|steps| centre + sign * step * f64::from(steps)).find(|at| rejects(*at))?;
        let root = if sign < 0.0 { bisect(outer, centre, rejects) } else { bisect(centre, outer, |at| !rejects(at)) };
        Some(root.exp() * control.exposure / treatment.exposure)
    };
    Some((end(-1.0), end(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(events: u64, exposure: f64) -> Rate {
        Rate { events, exposure }
    }

    #[test]
    fn no_events_say_nothing() {
        assert_eq!(score(rate(0, 5.0), rate(0, 5.0)), None);
        assert_eq!(exact_conditional(rate(0, 5.0), rate(0, 5.0)), None);
        assert_eq!(unconditional(rate(0, 5.0), rate(0, 5.0)), None);
        assert_eq!(ratio_interval(rate(0, 5.0), rate(3, 5.0), 0.05), None);
        assert_eq!(exact_conditional(rate(4, 1.0), rate(4, 1.0)), Some(1.0));
        assert!(exact_conditional(rate(0, 1.0), rate(10, 1.0)).is_some_and(|p| (p - 2.0 / 1024.0).abs() < 1e-15));
    }

    #[test]
    fn millions_of_events_end_soon() {
        let started = std::time::Instant::now();
        let (control, treatment) = (rate(1_000_000_000, 1e9), rate(1_000_100_000, 1e9));
        let found = [
            score(control, treatment).map(|(_, tail)| tail.p),
            exact_conditional(control, treatment),
            unconditional(control, treatment),
        ];
        for p in found {
            assert!((p.expect("events") / 0.025_346 - 1.0).abs() < 1e-3, "{found:?}");
        }
        assert!(started.elapsed().as_secs() < 10);
    }

    proptest! {
        #[test]
        fn the_exact_test_counts(control in 0u64..40, treatment in 0u64..40, exposure in 0.2..5.0_f64) {
            prop_assume!(control + treatment > 0);
            let (n, chance) = (control + treatment, exposure / (1.0 + exposure));
            let choose = |k: u64| (0..k).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64);
            let probability = |k: u64| choose(k) * chance.powi(k as i32) * (1.0 - chance).powi((n - k) as i32);
            let limit = probability(treatment) * (1.0 + 1e-7);
            let expected: f64 = (0..=n).map(probability).filter(|p| *p <= limit).sum();
            let found = exact_conditional(rate(control, 1.0), rate(treatment, exposure)).expect("events");
            prop_assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
        }

        #[test]
        fn intervals_hold_their_estimate(control in 1u64..5_000, treatment in 1u64..5_000, exposure in 0.01..100.0_f64) {
            let found = ratio_interval(rate(control, 1.0), rate(treatment, exposure), 0.05).expect("events");
            let ratio = treatment as f64 / control as f64 / exposure;
            prop_assert!(found.0.is_none_or(|low| low <= ratio) && found.1.is_none_or(|high| high >= ratio), "{found:?}");
        }
    }
}
