//! What a user's raw rows and an experiment's rules make of participation and attribution: pure functions, no I/O.
//!
//! All times are `event_time`. Any order of the same rows gives the same result.

use std::collections::{BTreeMap, BTreeSet};

use catalogue::REFUND_TYPES;
pub(crate) use catalogue::{AttributionMethod, Rules};
use compact_str::CompactString;
use events::{Micros, Money};
use uuid::Uuid;

/// An impression that is no bot's and does not say that the user was not eligible. Their order is that of a user's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Exposure {
    pub event_time: Micros,
    pub id: Uuid,
    pub claimed_at: Micros,
    pub variant: Uuid,
}

/// A conversion, a bot's too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub id: Uuid,
    pub claimed_at: Micros,
    pub event_time: Micros,
    /// None: it may count for every experiment of its project.
    pub experiment: Option<Uuid>,
    pub is_bot: bool,
    pub kind: CompactString,
    pub value: Option<Money>,
    pub currency: Option<CompactString>,
}

impl Conversion {
    /// Returns whether it says that the user converted: not if it is a bot's, and not if it takes something back.
    fn counts(&self) -> bool {
        let is_negative = self.value.is_some_and(|value| value.millionths() < 0);
        !self.is_bot && !is_negative && !REFUND_TYPES.contains(&self.kind.as_str())
    }

    /// Returns its identity.
    pub(crate) fn identity(&self) -> ConversionId {
        (self.id, self.claimed_at)
    }
}

/// A user's row in `user_experiment_participation`, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Participation {
    pub variant: Uuid,
    pub first_time: Micros,
    pub first_id: Uuid,
    pub impressions: i64,
    pub variants_seen: BTreeSet<Uuid>,
    pub first_conversion: Option<Micros>,
    pub converted_within_window: bool,
}

impl Participation {
    /// Returns whether both differ in their counts of impressions at most.
    pub(crate) fn is_same_but_for_count(&self, other: &Participation) -> bool {
        let Participation {
            variant,
            first_time,
            first_id,
            impressions: _,
            variants_seen,
            first_conversion,
            converted_within_window,
        } = self;
        (variant, first_time, first_id) == (&other.variant, &other.first_time, &other.first_id)
            && variants_seen == &other.variants_seen
            && (first_conversion, converted_within_window) == (&other.first_conversion, &other.converted_within_window)
    }
}

/// A conversion's row in `conversion_attribution`, without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attribution {
    pub conversion_time: Micros,
    pub kind: CompactString,
    pub variant: Uuid,
    pub method: AttributionMethod,
    /// Share of the credited variant among the impressions up to the conversion, in hundredths.
    pub confidence: i32,
    pub hours: i32,
    pub value: Option<Money>,
    pub currency: Option<CompactString>,
}

/// A conversion's identity within its project: id and `claimed_at`.
pub(crate) type ConversionId = (Uuid, Micros);

/// What one user has in one experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Derived {
    pub participation: Option<Participation>,
    pub attributions: BTreeMap<ConversionId, Attribution>,
}

/// Derives what a user has in an experiment from the user's exposures to it and all conversions of the user.
///
/// Linear in the rows but for sorting them.
pub(crate) fn derive(experiment: Uuid, rules: &Rules, exposures: &[Exposure], conversions: &[Conversion]) -> Derived {
    let is_assigning = |time: Micros| {
        let holds = |(start, end): &(Option<Micros>, Option<Micros>)| {
            start.is_none_or(|start| time >= start) && end.is_none_or(|end| time < end)
        };
        rules.assigning.iter().any(holds)
    };
    let is_eligible = |exposure: &Exposure| rules.variants.contains(&exposure.variant) && is_assigning(exposure.event_time);
    let mut eligible: Vec<Exposure> = exposures.iter().copied().filter(is_eligible).collect();
    eligible.sort_unstable();
    let Some(first) = eligible.first().copied() else { return Derived::default() };
    if let Some(anew) = rules.reassigned.iter().find(|anew| first.event_time < **anew) {
        eligible.retain(|exposure| exposure.event_time < *anew);
    }
    let mut following: Vec<&Conversion> = conversions
        .iter()
        .filter(|conversion| conversion.event_time >= first.event_time)
        .filter(|conversion| conversion.experiment.is_none_or(|named| named == experiment))
        .collect();
    following.sort_unstable_by_key(|conversion| conversion.event_time);

    let attributions = attribute(rules, &eligible, &following);
    let participation = Participation {
        variant: first.variant,
        first_time: first.event_time,
        first_id: first.id,
        impressions: eligible.len() as i64,
        variants_seen: eligible.iter().map(|exposure| exposure.variant).collect(),
        first_conversion: following.iter().find(|conversion| conversion.counts()).map(|conversion| conversion.event_time),
        converted_within_window: !attributions.is_empty(),
    };
    Derived { participation: Some(participation), attributions }
}

/// Credits each conversion of a person in first <= t <= first + window. `eligible` and `conversions` lie in the order of time.
fn attribute(rules: &Rules, eligible: &[Exposure], conversions: &[&Conversion]) -> BTreeMap<ConversionId, Attribution> {
    const HOUR: i64 = 3_600 * Micros::SECOND;
    let Some(first) = eligible.first() else { return BTreeMap::new() };
    let until = first.event_time.0.saturating_add(i64::from(rules.window_days) * 24 * HOUR);
    let mut attributions = BTreeMap::new();
    let mut passed = 0;
    let mut shown: BTreeMap<Uuid, i64> = BTreeMap::new();
    for conversion in conversions.iter().filter(|conversion| !conversion.is_bot && conversion.event_time.0 <= until) {
        while let Some(exposure) = eligible.get(passed).filter(|exposure| exposure.event_time <= conversion.event_time) {
            *shown.entry(exposure.variant).or_default() += 1;
            passed += 1;
        }
        // The conversion is not before the first exposure, so one at least has passed.
        let Some(last) = passed.checked_sub(1).and_then(|last| eligible.get(last)) else { continue };
        let variant = match rules.method {
            AttributionMethod::FirstExposure => first.variant,
            AttributionMethod::LastExposure => last.variant,
        };
        let (of_all, of_variant) = (passed as i64, shown.get(&variant).copied().unwrap_or(0));
        let attribution = Attribution {
            conversion_time: conversion.event_time,
            kind: conversion.kind.clone(),
            variant,
            method: rules.method,
            confidence: ((200 * of_variant + of_all) / (2 * of_all)) as i32,
            hours: ((conversion.event_time.0 - first.event_time.0) / HOUR) as i32,
            value: conversion.value,
            currency: conversion.currency.clone(),
        };
        attributions.insert((conversion.id, conversion.claimed_at), attribution);
    }
    attributions
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPERIMENT: Uuid = Uuid::from_u128(1);
    const DAY: i64 = 86_400 * Micros::SECOND;

    fn rules(method: AttributionMethod) -> Rules {
        let variants = [Uuid::from_u128(10), Uuid::from_u128(11)].into();
        Rules {
            is_frozen: false,
            assigning: vec![(None, None)],
            reassigned: Vec::new(),
            window_days: 1,
            method,
            variants,
            exposure: None,
        }
    }

    fn exposure(time: i64, variant: u128) -> Exposure {
        Exposure {
            event_time: Micros(time),
            id: Uuid::from_u128(time as u128 + 100),
            claimed_at: Micros(time),
            variant: Uuid::from_u128(variant),
        }
    }

    fn conversion(time: i64) -> Conversion {
        Conversion {
            id: Uuid::from_u128(7),
            claimed_at: Micros(time),
            event_time: Micros(time),
            experiment: None,
            is_bot: false,
            kind: "purchase".into(),
            value: None,
            currency: None,
        }
    }

    /// Credited variant and confidence of one conversion, after exposures at the times given.
    fn check(method: AttributionMethod, exposures: &[(i64, u128)], at: i64, expected: Option<(u128, i32)>) {
        let conversion = conversion(at);
        let shown: Vec<Exposure> = exposures.iter().rev().map(|(time, variant)| exposure(*time, *variant)).collect();
        let derived = derive(EXPERIMENT, &rules(method), &shown, &[conversion]);
        let found = derived.attributions.values().next().map(|found| (found.variant.as_u128(), found.confidence));
        assert_eq!(found, expected, "{method:?} {exposures:?} {at}");
        let participation = derived.participation.map(|found| found.converted_within_window);
        assert_eq!(participation.unwrap_or(false), expected.is_some());
    }

    #[test]
    fn the_window_has_both_its_ends_and_the_method_names_the_variant() {
        use AttributionMethod::{FirstExposure as First, LastExposure as Last};
        check(First, &[(0, 10)], 0, Some((10, 100)));
        check(First, &[(0, 10)], DAY, Some((10, 100)));
        check(First, &[(0, 10)], DAY + 1, None);
        check(First, &[(5, 10)], 4, None);
        check(First, &[(0, 10), (1, 11), (2, 11)], 2, Some((10, 33)));
        check(Last, &[(0, 10), (1, 11), (2, 11)], 2, Some((11, 67)));
        check(Last, &[(0, 10), (1, 11), (2, 11)], 1, Some((11, 50)));
        check(Last, &[(0, 10), (1, 10), (2, 11)], 1, Some((10, 100)));
        check(First, &[(0, 99)], 0, None);
        check(First, &[], 0, None);
    }

    /// Exposures in a pause, and at its very beginning, begin nothing and count nowhere; conversions in it do. At its end they count again.
    #[test]
    fn a_pause_counts_no_exposures() {
        let at = |time| Some(Micros(time));
        let rules = Rules { assigning: vec![(None, at(10)), (at(20), at(30))], ..rules(AttributionMethod::LastExposure) };
        let check = |exposures: &[(i64, u128)], expected: Option<(i64, i64, u128)>| {
            let shown: Vec<Exposure> = exposures.iter().map(|(time, variant)| exposure(*time, *variant)).collect();
            let derived = derive(EXPERIMENT, &rules, &shown, &[conversion(25)]);
            let credited = derived.attributions.values().next().map(|found| found.variant.as_u128());
            let found = derived.participation.map(|found| (found.first_time.0, found.impressions));
            assert_eq!(found.zip(credited).map(|((time, count), variant)| (time, count, variant)), expected, "{exposures:?}");
        };
        check(&[(9, 10), (10, 11), (19, 11), (30, 11)], Some((9, 1, 10)));
        check(&[(10, 11), (20, 10), (29, 10)], Some((20, 2, 10)));
        check(&[(9, 10), (15, 11), (20, 11)], Some((9, 2, 11)));
        check(&[(10, 10), (19, 10), (30, 10)], None);
    }

    /// Who was exposed before everybody was assigned anew stays where it was, and what it saw afterwards counts nowhere; its conversions do. Who came
    /// afterwards is a user of that phase, until the next time.
    #[test]
    fn who_is_assigned_anew_stays_in_the_earlier_phase() {
        let check = |reassigned: &[i64], exposures: &[(i64, u128)], expected: (i64, i64, u128, usize)| {
            let reassigned = reassigned.iter().copied().map(Micros).collect();
            let rules = Rules { reassigned, ..rules(AttributionMethod::LastExposure) };
            let shown: Vec<Exposure> = exposures.iter().rev().map(|(time, variant)| exposure(*time, *variant)).collect();
            let derived = derive(EXPERIMENT, &rules, &shown, &[conversion(40)]);
            let credited = derived.attributions.values().next().map(|found| found.variant.as_u128());
            let found = derived.participation.expect("takes part");
            let found = (found.first_time.0, found.impressions, credited.expect("converts"), found.variants_seen.len());
            assert_eq!(found, expected, "{reassigned:?} {exposures:?}", reassigned = rules.reassigned);
        };
        check(&[20], &[(9, 10), (19, 10), (20, 11), (30, 11)], (9, 2, 10, 1));
        check(&[20], &[(9, 10), (19, 11), (30, 10)], (9, 2, 11, 2));
        check(&[20], &[(20, 11), (30, 11)], (20, 2, 11, 1));
        check(&[10, 20], &[(9, 10), (15, 11), (30, 11)], (9, 1, 10, 1));
        check(&[10, 20], &[(15, 11), (30, 10)], (15, 1, 11, 1));
        check(&[], &[(9, 10), (30, 11)], (9, 2, 11, 2));
    }

    /// A half is rounded up: 1 of 8 is 0.13, as floor((200k + n) / (2n)) has it.
    #[test]
    fn confidence_is_rounded_half_up() {
        let shown: Vec<(i64, u128)> = (0..8).map(|time| (time, if time == 0 { 10 } else { 11 })).collect();
        check(AttributionMethod::FirstExposure, &shown, 8, Some((10, 13)));
    }

    /// Bots', negative and refunding conversions leave a user unconverted; those of a person are attributed, with their value.
    #[test]
    fn what_takes_something_back_converts_nobody() {
        let at = |time, kind: &str, value: Option<i128>, is_bot| Conversion {
            id: Uuid::from_u128(time as u128),
            kind: kind.into(),
            value: value.map(|value| Money::from_millionths(value).expect("an amount")),
            is_bot,
            ..conversion(time)
        };
        let check = |conversions: &[Conversion], first: Option<i64>, attributed: usize| {
            let derived = derive(EXPERIMENT, &rules(AttributionMethod::FirstExposure), &[exposure(0, 10)], conversions);
            let found = derived.participation.and_then(|found| found.first_conversion);
            assert_eq!((found, derived.attributions.len()), (first.map(Micros), attributed), "{conversions:?}");
        };
        let bot = at(1, "order", Some(5), true);
        let refunds = [at(2, "order", Some(-5), false), at(3, "refund", Some(5), false), at(4, "rebill", None, false)];
        check(std::slice::from_ref(&bot), None, 0);
        check(&refunds, None, 3);
        let free = at(6, "order", Some(0), false);
        check(&[&[bot][..], &refunds[..], &[free, at(7, "order_refunded", Some(3), false)]].concat(), Some(6), 5);
    }

    #[test]
    fn a_conversion_that_names_another_experiment_is_not_ours() {
        let mut other = conversion(1);
        other.experiment = Some(Uuid::from_u128(2));
        let derived = derive(EXPERIMENT, &rules(AttributionMethod::FirstExposure), &[exposure(0, 10)], &[other]);
        assert_eq!(derived.participation.map(|found| (found.impressions, found.first_conversion)), Some((1, None)));
        assert!(derived.attributions.is_empty());
    }
}
