//! Intervals of two shares by inverting the score test, whose variance is that under the difference that is tested. They leave 0
//! out exactly if that test, which pools both variants, shows a difference; they stay between -1 and 1 (of the ratio, above 0),
//! and are there for a variant of which nobody or everybody converted.

use crate::proportions::Count;
use crate::special::bisect;

/// Returns the interval of the difference treatment - control that reaches `critical` standard errors; both have users.
/// Source: Mee 1984, Biometrics 40, 1175-1176; the rates under a difference in closed form by Miettinen, Nurminen 1985,
/// Statistics in Medicine 4, 213-226.
pub(crate) fn difference(control: Count, treatment: Count, critical: f64) -> (f64, f64) {
    let found = treatment.rate() - control.rate();
    let z = |delta: f64| {
        let rate = control_rate_at_difference(control, treatment, delta);
        z(found - delta, variance(rate, control) + variance(rate + delta, treatment))
    };
    let low = if z(-1.0) <= critical { -1.0 } else { bisect(-1.0, found, |delta| z(delta) > critical) };
    let high = if z(1.0) >= -critical { 1.0 } else { bisect(found, 1.0, |delta| z(delta) > -critical) };
    (low, high)
}

/// Returns the interval of the relative difference, rate of the treatment over that of the control less 1; `None` if nobody of
/// the control converted. Both have users.
/// Source: Koopman 1984, Biometrics 40, 513-517; the rates under a ratio by Miettinen, Nurminen 1985, as above.
pub(crate) fn ratio(control: Count, treatment: Count, critical: f64) -> Option<(f64, f64)> {
    if control.converted == 0 {
        return None;
    }
    let (users, converted) = ((control.users + treatment.users) as f64, (control.converted + treatment.converted) as f64);
    let z = |ratio: f64| {
        let sum = ratio * (treatment.users as f64 + control.converted as f64) + treatment.converted as f64 + control.users as f64;
        let rate = 2.0 * converted / (sum + (sum * sum - 4.0 * users * ratio * converted).max(0.0).sqrt());
        let spread = variance(ratio * rate, treatment) + ratio * ratio * variance(rate, control);
        z(treatment.rate() - ratio * control.rate(), spread)
    };
    let found = treatment.rate() / control.rate();
    let low = if treatment.converted == 0 { 0.0 } else { bisect(0.0, found, |ratio| z(ratio) > critical) };
    let mut beyond = found.max(1.0 / users);
    for _ in 0..1_000 {
        if z(beyond) <= -critical {
            break;
        }
        beyond *= 2.0;
    }
    let high = bisect(found, beyond, |ratio| z(ratio) > -critical);
    high.is_finite().then_some((low - 1.0, high - 1.0))
}

fn variance(rate: f64, count: Count) -> f64 {
    (rate * (1.0 - rate)).max(0.0) / count.users as f64
}

fn z(off: f64, variance: f64) -> f64 {
    match variance > 0.0 {
        true => off / variance.sqrt(),
        false if off == 0.0 => 0.0,
        false => off.signum() * f64::INFINITY,
    }
}

/// The most likely rate of the control if the treatment's is greater by `delta`.
fn control_rate_at_difference(control: Count, treatment: Count, delta: f64) -> f64 {
    let (users, converted) = ((control.users + treatment.users) as f64, (control.converted + treatment.converted) as f64);
    let (own_users, own_converted) = (control.users as f64, control.converted as f64);
    // The likelihood's derivative is a polynomial of third degree in the rate.
    let square = (users + own_users) * delta - users - converted;
    let linear = (own_users * delta - users - 2.0 * own_converted) * delta + converted;
    let constant = own_converted * delta * (1.0 - delta);
    let third = square / (3.0 * users);
    let cubic = third.powi(3) - square * linear / (6.0 * users * users) + constant / (2.0 * users);
    let size = (third * third - linear / (3.0 * users)).max(0.0).sqrt();
    let root = if cubic < 0.0 { -size } else { size };
    let rate = if root == 0.0 {
        -third
    } else {
        let angle = (std::f64::consts::PI + (cubic / root.powi(3)).clamp(-1.0, 1.0).acos()) / 3.0;
        2.0 * root * angle.cos() - third
    };
    rate.clamp((-delta).max(0.0), (1.0 - delta).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::difference::Difference;
    use crate::distributions::normal_isf;
    use proptest::prelude::*;

    fn count(users: u64, converted: u64) -> Count {
        Count { users, converted }
    }

    /// Newcombe 1998, Statistics in Medicine 17, 873-890, table II (a), method 5; Koopman 1984 of 36/40 and 16/80.
    #[test]
    fn published_intervals_come_out() {
        let critical = normal_isf(0.025);
        let check = |found: (f64, f64), expected: (f64, f64), off: f64| {
            assert!((found.0 - expected.0).abs() < off && (found.1 - expected.1).abs() < off, "{found:?}, expected {expected:?}");
        };
        check(difference(count(80, 48), count(70, 56), critical), (0.0533, 0.3377), 5e-5);
        check(ratio(count(80, 16), count(40, 36), critical).expect("a control"), (1.94, 6.15), 5e-3);
        // Nobody of one, everybody of the other: the most likely rates are (1 - d) / 2 and (1 + d) / 2, so z^2 is 20 (1 - d) / (1 + d).
        check(difference(count(10, 0), count(10, 10), critical), (0.677_749_684, 1.0), 1e-8);
        check(difference(count(30, 0), count(30, 0), 1.96), (-0.113_517_091, 0.113_517_091), 1e-8);
        check(ratio(count(100, 10), count(100, 0), 1.96).expect("a control"), (-1.0, -0.626_424_890), 1e-8);
        assert_eq!(ratio(count(100, 0), count(100, 5), 1.96), None);
    }

    proptest! {
        #[test]
        fn the_rate_under_a_difference_is_the_most_likely_one(
            nc in 1u64..60, nt in 1u64..60, xc in 0u64..60, xt in 0u64..60, delta in -0.95..0.95_f64,
        ) {
            let (control, treatment) = (count(nc, xc.min(nc)), count(nt, xt.min(nt)));
            let term = |times: u64, chance: f64| if times == 0 { 0.0 } else { times as f64 * chance.ln() };
            let likelihood = |rate: f64| {
                let of = |count: Count, rate: f64| term(count.converted, rate) + term(count.users - count.converted, 1.0 - rate);
                of(control, rate) + of(treatment, rate + delta)
            };
            let found = likelihood(control_rate_at_difference(control, treatment, delta));
            let (low, high) = ((-delta).max(0.0), (1.0 - delta).min(1.0));
            for step in 1..200 {
                let other = likelihood(low + (high - low) * f64::from(step) / 200.0);
                prop_assert!(found >= other - 1e-6, "{} {}", found, other);
            }
        }

        #[test]
        fn intervals_leave_0_out_exactly_if_the_test_shows_a_difference(
            nc in 1u64..3_000, nt in 1u64..3_000, xc in 0u64..3_000, xt in 0u64..3_000, critical in 1.0..6.0_f64,
        ) {
            let (control, treatment) = (count(nc, xc.min(nc)), count(nt, xt.min(nt)));
            let (low, high) = difference(control, treatment, critical);
            let off = treatment.rate() - control.rate();
            prop_assert!((-1.0..=off).contains(&low) && (off..=1.0).contains(&high) && low < high, "{} {} {}", low, off, high);
            let Some(found) = Difference::pooled(control, treatment) else { return Ok(()) };
            prop_assume!((found.z().abs() - critical).abs() > 1e-6);
            let is_shown = found.z().abs() > critical;
            prop_assert_eq!(low > 0.0 || high < 0.0, is_shown, "{} {} {:?}", low, high, found);
            if let Some((low, high)) = ratio(control, treatment, critical) {
                prop_assert_eq!(low > 0.0 || high < 0.0, is_shown, "{} {} {:?}", low, high, found);
                let lift = found.lift().expect("a control");
                prop_assert!(-1.0 <= low && low <= lift && lift <= high, "{} {} {}", low, lift, high);
            }
        }
    }
}
