//! Raw rows to results, in plain code: what the service must answer about a small experiment, whatever its path through
//! tables and engines. Tests compare that path with this one.

use std::collections::HashMap;

use crate::capping::cap_value;
use crate::comparison::Sample;
use crate::moments::{Moments, Overflow};
use crate::proportions::Count;

/// A user saw a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The user.
    pub user: String,
    /// The variant, as in [`Settings::variants`]; others are ignored.
    pub variant: String,
    /// When, in microseconds.
    pub at: i64,
}

/// A user did something that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// The user; those without exposure are ignored.
    pub user: String,
    /// When, in microseconds.
    pub at: i64,
    /// Its value in millionths; may be 0 or negative.
    pub value: i128,
}

/// What becomes of users who saw several variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiExposed {
    /// They belong to no variant.
    Excluded,
    /// They belong to the one they saw first.
    First,
}

/// The rules of an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The variants; the first one is the control.
    pub variants: Vec<String>,
    /// Days (of 24 hours) after the first exposure in which conversions count, both ends included.
    pub window_days: i64,
    /// Exposures before it are ignored.
    pub started_at: Option<i64>,
    /// Exposures after it are ignored.
    pub ended_at: Option<i64>,
    /// Conversions after it are ignored.
    pub analysis_at: i64,
    /// What becomes of users who saw several variants.
    pub multi_exposed: MultiExposed,
    /// Whether users whose window is still open are left out.
    pub complete_windows_only: bool,
    /// The percentile at which sums per user are capped.
    pub cap_percentile: Option<f64>,
}

/// What the users of one variant did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Users of the variant.
    pub users: u64,
    /// Those with a conversion.
    pub converters: u64,
    /// Conversions.
    pub conversions: u64,
    /// The sums of value per user, capped.
    pub values: Moments,
}

impl Measured {
    /// Returns the conversion rate as a comparison takes it.
    pub fn rate(&self) -> Sample {
        Sample::Share(Count { users: self.users, converted: self.converters })
    }

    /// Returns the value per user as a comparison takes it.
    /// # Errors
    /// [`Overflow`] if the variance does not fit.
    pub fn value(&self) -> Result<Sample, Overflow> {
        Ok(Sample::Mean(self.values.arm()?))
    }
}

/// What the users of all variants did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Population {
    /// In the order of the settings.
    pub variants: Vec<Measured>,
    /// Users who saw several variants.
    pub multi_exposed_users: u64,
    /// The cap, in millionths; `None` if there is none.
    pub cap_value: Option<i128>,
}

struct User {
    variant: usize,
    first: i64,
    is_mixed: bool,
    conversions: u64,
    sum: i128,
}

const DAY_MICROSECONDS: i64 = 86_400_000_000;

/// Measures an experiment from its raw rows, in any order. Of exposures at the same moment the earlier row counts as first.
/// # Errors
/// [`Overflow`] if a sum is too large to be exact.
pub fn measure(settings: &Settings, exposures: &[Exposure], conversions: &[Conversion]) -> Result<Population, Overflow> {
    let places: HashMap<&str, usize> = settings.variants.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let mut users: HashMap<&str, User> = HashMap::new();
    for exposure in exposures {
        let is_kept = settings.started_at.is_none_or(|start| exposure.at >= start)
            && settings.ended_at.is_none_or(|end| exposure.at <= end);
        let Some(variant) = places.get(exposure.variant.as_str()).copied().filter(|_| is_kept) else { continue };
        let new = User { variant, first: exposure.at, is_mixed: false, conversions: 0, sum: 0 };
        let user = users.entry(&exposure.user).or_insert(new);
        user.is_mixed |= user.variant != variant;
        if exposure.at < user.first {
            (user.first, user.variant) = (exposure.at, variant);
        }
    }
    let multi_exposed_users = users.values().filter(|user| user.is_mixed).count() as u64;
    let window = settings.window_days.saturating_mul(DAY_MICROSECONDS);
    users.retain(|_, user| {
        let is_counted = !user.is_mixed || settings.multi_exposed == MultiExposed::First;
        let is_complete = user.first.saturating_add(window) <= settings.analysis_at;
        is_counted && (is_complete || !settings.complete_windows_only)
    });
    for conversion in conversions {
        if let Some(user) = users.get_mut(conversion.user.as_str()) {
            let is_in_window = user.first <= conversion.at && conversion.at <= user.first.saturating_add(window);
            if is_in_window && conversion.at <= settings.analysis_at {
                user.conversions += 1;
                user.sum = user.sum.checked_add(conversion.value).ok_or(Overflow)?;
            }
        }
    }
    let cap = settings.cap_percentile.and_then(|percentile| cap_value(users.values().map(|user| user.sum), percentile));
    let mut variants = vec![Measured::default(); settings.variants.len()];
    for user in users.values() {
        let measured = &mut variants[user.variant];
        measured.users += 1;
        measured.converters += u64::from(user.conversions > 0);
        measured.conversions += user.conversions;
        let sum = cap.filter(|_| user.sum != 0).map_or(user.sum, |cap| user.sum.min(cap));
        measured.values.add(sum)?;
    }
    Ok(Population { variants, multi_exposed_users, cap_value: cap })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            variants: vec!["control".to_owned(), "treatment".to_owned()],
            window_days: 1,
            started_at: Some(100),
            ended_at: Some(1_000),
            analysis_at: 10 * DAY_MICROSECONDS,
            multi_exposed: MultiExposed::Excluded,
            complete_windows_only: false,
            cap_percentile: None,
        }
    }

    fn measured(settings: &Settings, exposures: &[(&str, &str, i64)], conversions: &[(&str, i64, i128)]) -> Population {
        let exposures: Vec<Exposure> = exposures
            .iter()
            .map(|(user, variant, at)| Exposure { user: (*user).to_owned(), variant: (*variant).to_owned(), at: *at })
            .collect();
        let conversions: Vec<Conversion> =
            conversions.iter().map(|(user, at, value)| Conversion { user: (*user).to_owned(), at: *at, value: *value }).collect();
        measure(settings, &exposures, &conversions).expect("fits")
    }

    #[test]
    fn both_ends_of_phase_and_window_belong_to_it() {
        let end = 100 + DAY_MICROSECONDS;
        let exposures = [("a", "control", 99), ("b", "control", 100), ("c", "treatment", 1_000), ("d", "treatment", 1_001)];
        let found =
            measured(&settings(), &exposures, &[("b", 100, 1), ("b", end, 2), ("b", end + 1, 4), ("b", 99, 8), ("a", 99, 16)]);
        let b = found.variants[0];
        assert_eq!((b.users, b.converters, b.conversions, b.values.sum()), (1, 1, 2, 3));
        assert_eq!(found.variants[1].users, 1);
    }

    #[test]
    fn mixed_users_are_excluded_or_kept_where_they_were_first() {
        let exposures = [("a", "treatment", 500), ("a", "control", 200), ("b", "control", 300), ("b", "unknown", 200)];
        let found = measured(&settings(), &exposures, &[]);
        assert_eq!((found.multi_exposed_users, found.variants[0].users, found.variants[1].users), (1, 1, 0));
        let first = Settings { multi_exposed: MultiExposed::First, ..settings() };
        let found = measured(&first, &exposures, &[]);
        assert_eq!((found.multi_exposed_users, found.variants[0].users, found.variants[1].users), (1, 2, 0));
    }

    #[test]
    fn open_windows_and_later_conversions_are_left_out() {
        let early = Settings { analysis_at: 600, complete_windows_only: true, ..settings() };
        assert_eq!(measured(&early, &[("a", "control", 200)], &[]).variants[0].users, 0);
        let all = Settings { analysis_at: 600, ..settings() };
        let found = measured(&all, &[("a", "control", 200)], &[("a", 600, 5), ("a", 601, 7)]);
        assert_eq!((found.variants[0].users, found.variants[0].values.sum()), (1, 5));
    }

    #[test]
    fn one_cap_cuts_the_sums_of_all_variants() {
        let capped = Settings { cap_percentile: Some(50.0), ..settings() };
        let exposures = [("a", "control", 200), ("b", "treatment", 200), ("c", "treatment", 200), ("d", "treatment", 200)];
        let found = measured(&capped, &exposures, &[("a", 300, 10), ("b", 300, 20), ("c", 300, 90), ("c", 301, 10)]);
        assert_eq!(found.cap_value, Some(20));
        assert_eq!((found.variants[0].values.sum(), found.variants[1].values.sum()), (10, 40));
    }
}
