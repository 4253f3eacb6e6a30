//! Experiments without any effect, looked at every day: how often does each method raise a false alarm?

use crate::comparison::{Sample, difference};
use crate::group_sequential::{Sides, bounds, look};
use crate::proportions::Count;
use crate::sample_ratio::{CONCENTRATION, sequential as sequential_shares};
use crate::sequential::{Tuning, confidence_sequence, hybrid, hybrid_level};

/// Days, each with a look.
pub const DAYS: u64 = 30;
/// Users per day of each variant, on average.
const USERS_PER_DAY: u64 = 500;
/// Of all users, in both variants.
const RATE: f64 = 0.1;

/// Part of the experiments in which a method raised a false alarm on any day.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FalseAlarms {
    /// A fixed test, looked at every day: what the other methods are for.
    pub peeking: f64,
    /// A fixed test, looked at once at the end.
    pub fixed: f64,
    /// A confidence sequence.
    pub sequence: f64,
    /// Group-sequential bounds.
    pub group_sequential: f64,
    /// A sequence while the experiment runs, and a fixed test at its end.
    pub hybrid: f64,
    /// The sequential check of the shares of users, at the same level.
    pub sample_ratio: f64,
}

/// Random bits of Steele, Lea, Flood 2014 (SplitMix64): the same for the same seed on every machine.
pub struct Random(pub u64);

impl Random {
    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Returns a number between 0 and 1, neither of them.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Returns how many of `users` do what each does with the chance `rate`.
    pub fn binomial(&mut self, users: u64, rate: f64) -> u64 {
        // From one success to the next, whose distance is geometric.
        let step = (1.0 - rate).ln();
        let (mut count, mut place) = (0, 0.0);
        loop {
            place += (self.unit().ln() / step).floor() + 1.0;
            if place > users as f64 {
                return count;
            }
            count += 1;
        }
    }
}

/// Simulates `runs` experiments at the level `alpha` and counts false alarms.
pub fn simulate(runs: u64, alpha: f64, seed: u64) -> FalseAlarms {
    let planned = 2 * USERS_PER_DAY * DAYS;
    let fractions: Vec<f64> = (1..=DAYS).map(|day| day as f64 / DAYS as f64).collect();
    let bounds = bounds(&fractions, alpha, Sides::Two, 2.0);
    let tuning = Tuning { tightest_at: planned as f64, alpha };
    let mut random = Random(seed);
    let mut alarms = [0u64; 6];
    for _ in 0..runs {
        let (mut control, mut treatment) = (Count { users: 0, converted: 0 }, Count { users: 0, converted: 0 });
        let mut daily_users = Vec::new();
        let mut raised = [false; 6];
        for day in 1..=DAYS {
            let users = random.binomial(2 * USERS_PER_DAY, 0.5);
            daily_users.push(vec![users, 2 * USERS_PER_DAY - users]);
            for (count, users) in [(&mut control, users), (&mut treatment, 2 * USERS_PER_DAY - users)] {
                count.users += users;
                count.converted += random.binomial(users, RATE);
            }
            let [control, treatment] = [control, treatment].map(|count| Sample::Share(count).into());
            let Ok(found) = difference(&control, &treatment) else { continue };
            let (seen, is_over) = (control.users + treatment.users, day == DAYS);
            let is_found = found.p_value().p < alpha;
            raised[0] |= is_found;
            raised[1] |= is_over && is_found;
            raised[2] |= confidence_sequence(found.z(), seen, alpha, &tuning).p_value.p < alpha;
            raised[3] |= look(found.z(), &bounds[..day as usize], &[]).is_some_and(|look| look.crossed);
            raised[4] |= hybrid(&found, seen, alpha, &tuning, is_over).p_value.p < hybrid_level(alpha);
        }
        let shares = sequential_shares(&daily_users, &[1.0, 1.0], CONCENTRATION);
        raised[5] = shares.last().is_some_and(|log10_p| *log10_p < alpha.log10());
        for (count, raised) in alarms.iter_mut().zip(raised) {
            *count += u64::from(raised);
        }
    }
    let [peeking, fixed, sequence, group_sequential, hybrid, sample_ratio] = alarms.map(|count| count as f64 / runs as f64);
    FalseAlarms { peeking, fixed, sequence, group_sequential, hybrid, sample_ratio }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_looks_keep_their_promise() {
        let runs = 2_000;
        let alpha = 0.05;
        let found = simulate(runs, alpha, 1);
        // Three standard errors above alpha: what chance explains.
        let limit = alpha + 3.0 * (alpha * (1.0 - alpha) / runs as f64).sqrt();
        for part in [found.fixed, found.sequence, found.group_sequential, found.hybrid, found.sample_ratio] {
            assert!(part <= limit, "{found:?}");
        }
        // The simulation can see what it looks for, and the plan with an end spends what it may.
        assert!(found.peeking > 0.2, "{found:?}");
        assert!(found.group_sequential > 0.03 && found.fixed > 0.03, "{found:?}");
    }
}
