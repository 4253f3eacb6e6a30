//! Strata: users who were assigned in the same shares. Users of different ones are never compared with each other, since those of a variant
//! that got more of them on some days would bring these days' behaviour into the difference.
//!
//! Phases with the same shares are one stratum, so that a pause splits nothing.

use uuid::Uuid;

use crate::experiment::read::experiment::{Experiment, Phase, Variant};

/// The strata of an experiment. Most have one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strata {
    /// When phases began, in their order, in microseconds since 1970, and the stratum of each.
    starts: Vec<(i64, u8)>,
    /// The shares of each; empty where there is one only.
    shares: Vec<Shares>,
}

/// The shares of one stratum.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// The weight of each variant; none of one that was not in it.
    pub weights: Vec<Option<f64>>,
    /// Whether they were set; equal ones are assumed else.
    pub are_configured: bool,
}

impl Shares {
    fn of(phase: &Phase, variants: &[Variant]) -> Self {
        let found = |id: Uuid| phase.weights.iter().find(|share| share.variant_id == id).map(|share| share.weight);
        let are_configured = phase.weights.iter().any(|share| share.weight.is_some());
        let weight = |variant: &Variant| {
            let weight = found(variant.id)?;
            Some(if are_configured { weight.unwrap_or(0.0) } else { 1.0 })
        };
        let weights: Vec<Option<f64>> = variants.iter().map(weight).collect();
        let total: f64 = weights.iter().flatten().sum();
        Shares {
            weights: weights.into_iter().map(|weight| weight.map(|weight| weight / total.max(f64::MIN_POSITIVE))).collect(),
            are_configured,
        }
    }

    fn is_same(&self, other: &Shares) -> bool {
        let is_close = |pair: (&Option<f64>, &Option<f64>)| match pair {
            (Some(one), Some(two)) => (one - two).abs() < 1e-9,
            (one, two) => one.is_none() && two.is_none(),
        };
        self.are_configured == other.are_configured && self.weights.iter().zip(&other.weights).all(is_close)
    }
}

impl Strata {
    /// Returns the strata of an experiment. Beyond 255 different shares the last ones are one.
    pub fn of(experiment: &Experiment, variants: &[Variant]) -> Self {
        let mut found = Strata::default();
        for phase in experiment.phases.iter().filter(|phase| phase.is_assigning()) {
            let shares = Shares::of(phase, variants);
            let place = found.shares.iter().position(|known| known.is_same(&shares)).unwrap_or_else(|| {
                found.shares.push(shares);
                found.shares.len() - 1
            });
            found.starts.push((phase.started_us.unwrap_or(i64::MIN), u8::try_from(place).unwrap_or(u8::MAX)));
        }
        found.shares.truncate(usize::from(u8::MAX) + 1);
        if found.shares.len() < 2 { Strata::default() } else { found }
    }

    /// Returns how many there are, one at least.
    pub fn count(&self) -> usize {
        self.shares.len().max(1)
    }

    /// Returns the shares of each; empty where there is one only.
    pub fn shares(&self) -> &[Shares] {
        &self.shares
    }

    /// Returns the stratum of a user by the time of the first exposure: that of the newest phase that had begun.
    pub fn of_time(&self, us: i64) -> usize {
        let begun = self.starts.partition_point(|(start, _)| *start <= us);
        self.starts.get(begun.saturating_sub(1)).map_or(0, |(_, stratum)| usize::from(*stratum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::read::experiment::PhaseWeight;

    fn variants(count: u128) -> Vec<Variant> {
        let variant = |id| Variant { id: Uuid::from_u128(id), is_control: id == 0, ..Variant::default() };
        (0..count).map(variant).collect()
    }

    fn phase(state: &str, start: Option<i64>, weights: &[(u128, Option<f64>)]) -> Phase {
        let weight = |(id, weight): &(u128, Option<f64>)| PhaseWeight { variant_id: Uuid::from_u128(*id), weight: *weight };
        Phase { state: state.to_owned(), started_us: start, weights: weights.iter().map(weight).collect(), ..Phase::default() }
    }

    #[test]
    fn phases_of_the_same_shares_are_one_stratum() {
        let half = [(0, Some(50.0)), (1, Some(50.0))];
        let strata = |phases: Vec<Phase>| Strata::of(&Experiment { phases, ..Experiment::default() }, &variants(3));
        let one = strata(vec![
            phase("assigning", None, &half),
            phase("paused", Some(10), &[]),
            phase("assigning", Some(20), &[(1, Some(1.0)), (0, Some(1.0))]),
        ]);
        assert_eq!((one.count(), one.of_time(15), one.shares().len()), (1, 0, 0));
        let changed = strata(vec![
            phase("assigning", Some(5), &half),
            phase("assigning", Some(10), &[(0, Some(9.0)), (1, Some(1.0))]),
            phase("paused", Some(20), &[]),
            phase("assigning", Some(30), &half),
            phase("assigning", Some(40), &[(0, None), (1, None), (2, None)]),
        ]);
        assert_eq!(changed.count(), 3);
        assert_eq!([0, 5, 9, 10, 25, 30, 39, 40, 99].map(|time| changed.of_time(time)), [0, 0, 0, 1, 1, 0, 0, 2, 2]);
        let weights: Vec<_> = changed.shares().iter().map(|shares| (shares.weights.as_slice(), shares.are_configured)).collect();
        let third = Some(1.0 / 3.0);
        assert_eq!(
            weights,
            [
                (&[Some(0.5), Some(0.5), None][..], true),
                (&[Some(0.9), Some(0.1), None][..], true),
                (&[third, third, third][..], false)
            ]
        );
    }
}
