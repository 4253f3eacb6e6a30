//! What variants' users sum up to, in whole numbers.
//!
//! Each user with a counted row has one [`UserSum`] per metric. Everything else is a sum over these entries: by variant, by value of a dimension, over users with complete windows, with or without a cap. Which user belongs where is
//! said by [`Groups`].

use statistics::I256;

use crate::experiment::measure::counted::UserSum;
use crate::experiment::measure::covariates::{Covariates, Cross, CrossSums};
use crate::experiment::measure::groups::Groups;
use statistics::moments::{Moments, Overflow, Products};

/// Sums that are not 0 from which on a percentile near 100 means something: below, it would only shave the largest one.
pub const CAP_SUMS_MIN: usize = 1_000;

/// What the users of one group did, of one metric. Users without an entry are among them, with zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    /// All users of the group.
    pub users: u64,
    /// Those who converted.
    pub converters: u64,
    /// Those whose sum was cut.
    pub capped: u64,
    /// The sums.
    pub amount: Moments,
    /// What a ratio is over.
    pub base: Moments,
    /// Products of both.
    pub amount_base: I256,
    /// What is known of them before their first exposure.
    pub covariates: CrossSums,
    /// The same by stratum; empty where there are none.
    pub strata: Vec<Sums>,
}

impl Sums {
    /// Returns the sums over the users of all of these, which have the same strata; none of nothing.
    /// # Errors
    /// [`Overflow`].
    pub fn of_all<'s>(mut all: impl Iterator<Item = &'s Sums>) -> Result<Option<Sums>, Overflow> {
        let Some(first) = all.next() else { return Ok(None) };
        let mut found = first.clone();
        for other in all {
            found.merge(other)?;
            for (stratum, other) in found.strata.iter_mut().zip(&other.strata) {
                stratum.merge(other)?;
            }
        }
        Ok(Some(found))
    }

    pub(super) fn merge(&mut self, other: &Sums) -> Result<(), Overflow> {
        self.users += other.users;
        self.converters += other.converters;
        self.capped += other.capped;
        self.amount.merge(&other.amount)?;
        self.base.merge(&other.base)?;
        self.amount_base = self.amount_base.checked_add(other.amount_base).ok_or(Overflow)?;
        self.covariates.merge(&other.covariates)
    }
}

/// The same while it is added up. Users without an entry add nothing but their number.
#[derive(Clone)]
pub(super) struct Running {
    converters: u64,
    capped: u64,
    amount: Quantity,
    base: Quantity,
    amount_base: Products,
    covariates: Cross,
}

#[derive(Clone, Copy, Default)]
struct Quantity {
    sum: i128,
    squares: Products,
}

impl Quantity {
    fn add(&mut self, value: i128) -> Result<(), Overflow> {
        self.sum = self.sum.checked_add(value).ok_or(Overflow)?;
        self.squares.add(value, value)
    }

    fn merge(&mut self, other: &Quantity) -> Result<(), Overflow> {
        self.sum = self.sum.checked_add(other.sum).ok_or(Overflow)?;
        self.squares.merge(&other.squares)
    }

    fn over(&self, users: u64) -> Result<Moments, Overflow> {
        Ok(Moments::from_parts(users, self.sum, self.squares.total()?))
    }
}

impl Running {
    /// Begins with nobody.
    pub(super) fn new(covariates: &Covariates) -> Self {
        Running {
            converters: 0,
            capped: 0,
            amount: Quantity::default(),
            base: Quantity::default(),
            amount_base: Products::default(),
            covariates: covariates.cross(),
        }
    }

    /// Adds a user: what it came to, if anything, and its covariates. The sum counts up to `cap`.
    pub(super) fn add(&mut self, entry: Option<&UserSum>, covariates: &[i128], cap: Option<i128>) -> Result<(), Overflow> {
        self.covariates.add(covariates)?;
        let Some(entry) = entry else { return Ok(()) };
        let amount = cap.map_or(entry.amount, |cap| entry.amount.min(cap));
        self.converters += u64::from(entry.has_converted);
        self.capped += u64::from(amount != entry.amount);
        self.amount.add(amount)?;
        if entry.base != 0 {
            self.base.add(entry.base)?;
            self.amount_base.add(amount, entry.base)?;
        }
        self.covariates.advance(covariates, [0, 0], [amount, entry.base])
    }

    /// Adds the users of another one.
    pub(super) fn merge(&mut self, other: &Running) -> Result<(), Overflow> {
        self.converters += other.converters;
        self.capped += other.capped;
        self.amount.merge(&other.amount)?;
        self.base.merge(&other.base)?;
        self.amount_base.merge(&other.amount_base)?;
        self.covariates.merge(&other.covariates)
    }

    /// Returns the sums over so many users.
    pub(super) fn over(&self, users: u64) -> Result<Sums, Overflow> {
        Ok(Sums {
            users,
            converters: self.converters,
            capped: self.capped,
            amount: self.amount.over(users)?,
            base: self.base.over(users)?,
            amount_base: self.amount_base.total()?,
            covariates: self.covariates.total()?,
            strata: Vec::new(),
        })
    }
}

/// Sums entries up by group; they are ordered by user. Sums above `cap` count as `cap`.
/// # Errors
/// [`Overflow`].
pub fn sums(entries: &[UserSum], covariates: &Covariates, groups: &Groups, cap: Option<i128>) -> Result<Vec<Sums>, Overflow> {
    let mut running = vec![Running::new(covariates); groups.cells().len()];
    covariates.each(entries, |user, entry, row| match groups.cell(user) {
        Some(cell) => running[cell].add(entry, row, cap),
        None => Ok(()),
    })?;
    let cells = running.iter().zip(groups.cells()).map(|(running, users)| running.over(*users)).collect::<Result<_, _>>()?;
    groups.sums_of(cells)
}

/// Returns how many users of a group have a sum that is not 0.
pub fn filled(entries: &[UserSum], groups: &Groups) -> usize {
    entries.iter().filter(|entry| entry.amount != 0 && groups.of(entry.user).is_some()).count()
}

/// Returns the sums of each cell's users in units, zeros of users without an entry included, in no order.
pub fn amounts(entries: &[UserSum], groups: &Groups, cap: Option<i128>) -> Vec<Vec<f64>> {
    let unit = Moments::SCALE as f64;
    let mut amounts: Vec<Vec<f64>> = groups.cells().iter().map(|users| Vec::with_capacity(*users as usize)).collect();
    for entry in entries {
        if let Some(cell) = groups.cell(entry.user) {
            amounts[cell].push(cap.map_or(entry.amount, |cap| entry.amount.min(cap)) as f64 / unit);
        }
    }
    for (amounts, users) in amounts.iter_mut().zip(groups.cells()) {
        amounts.resize(*users as usize, 0.0);
    }
    amounts
}

/// Returns the share of all value that the top hundredth of users with a value brought; `None` where fewer than 100 users
/// have one or the values do not add up to more than 0.
pub fn outlier_share(entries: &[UserSum], groups: &Groups) -> Option<f64> {
    let counted = entries.iter().filter(|entry| entry.amount > 0 && groups.of(entry.user).is_some());
    let mut amounts: Vec<i128> = counted.map(|entry| entry.amount).collect();
    let top = amounts.len() / 100;
    if top == 0 {
        return None;
    }
    let total: i128 = amounts.iter().sum();
    let place = amounts.len() - top;
    let (_, _, _) = amounts.select_nth_unstable(place);
    let of_top: i128 = amounts[place..].iter().sum();
    (total > 0).then(|| of_top as f64 / total as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ::catalogue::definitions::{Definition, PerUser};
    use ::catalogue::versions::Reference;

    use crate::experiment::measure::counted::{CohortMetric, LeftOut};
    use crate::experiment::measure::covariates::Column;
    use crate::experiment::measure::metrics::default_metrics;
    use crate::experiment::read::catalogue::{Aggregation, Amount, Configured, DefinedMetric, Denominator};
    use crate::experiment::read::cohort::{Cohort, DAY_US, Row, Rows, Source, Users};
    use proptest::prelude::*;

    const M: i128 = Moments::SCALE;

    /// Makes a cohort of users (arm, time of exposure) and their conversions (user, time, name, value in units), which are the events of a
    /// definition, too; those of the second name are the events that it may be over.
    pub(crate) fn cohort(users: &[(u32, i64)], rows: &[(u32, i64, u32, i128)]) -> Cohort {
        let row = |(user, time, name, value): &(u32, i64, u32, i128)| {
            (*user, Row { time: *time, value: Some(*value * M), name: *name, currency: 0, confidence: 100 })
        };
        let (after, before): (Vec<_>, Vec<_>) = rows.iter().map(row).partition(|(user, row)| row.time >= users[*user as usize].1);
        let names = vec!["buy".to_owned(), "view".to_owned()];
        let views: Vec<_> = after.iter().filter(|(_, row)| row.name == 1).copied().collect();
        let (after, before) = (Rows::new(users.len(), after), Rows::new(users.len(), before));
        let views =
            Source { texts: names.clone(), after: Rows::new(users.len(), views), before: Rows::new(users.len(), Vec::new()) };
        Cohort {
            sources: vec![Source { texts: names.clone(), after: after.clone(), before: before.clone() }, views],
            users: Users {
                ids: (0..users.len() as u128).map(u128::to_be_bytes).collect(),
                arms: users.iter().map(|(arm, _)| *arm).collect(),
                exposed: users.iter().map(|(_, time)| *time).collect(),
                assigned: Vec::new(),
                is_triggered: Vec::new(),
                is_mixed: vec![false; users.len()],
                impressions: vec![2; users.len()],
            },
            names,
            currencies: vec![None],
            after,
            before,
            ..Cohort::default()
        }
    }

    fn groups(cohort: &Cohort) -> Groups {
        Groups::new(cohort.users.len(), 2, |user| Some(cohort.users.arms[user] as usize))
    }

    fn metric(conversion_type: Option<&str>, aggregation: Aggregation) -> Configured {
        let [rate, _] = default_metrics(conversion_type);
        Configured { aggregation, ..rate }
    }

    #[test]
    fn each_aggregation_counts_its_own() {
        let users = [(0, 10), (0, 10), (1, 10), (1, 10)];
        let rows = [
            (0, 10, 0, 5),
            (0, 11, 1, 0),
            (0, 12, 0, 7),
            (2, 10, 1, 0),
            (2, 10 + DAY_US, 0, 3),
            (2, 11 + DAY_US, 0, 100),
            (3, 9, 0, 50),
        ];
        let cohort = cohort(&users, &rows);
        let check = |metric: Configured, expected: [(u64, i128, i128); 2]| {
            let counted = CohortMetric::new(&metric, &cohort, Some(0), 1);
            let entries = counted.after(&cohort).expect("fits");
            let found = sums(&entries, &Covariates::default(), &groups(&cohort), None).expect("fits");
            let found: Vec<_> = found.iter().map(|sums| (sums.converters, sums.amount.sum() / M, sums.base.sum() / M)).collect();
            assert_eq!(found, expected, "{metric:?}");
        };
        use crate::experiment::read::catalogue::Amount::{Count, Value};
        check(metric(None, Aggregation::ConversionRate), [(1, 1, 0), (1, 1, 0)]);
        check(metric(Some("buy"), Aggregation::ConversionRate), [(1, 1, 0), (1, 1, 0)]);
        check(metric(Some("never"), Aggregation::ConversionRate), [(0, 0, 0), (0, 0, 0)]);
        check(metric(None, Aggregation::CountPerUser), [(1, 3, 0), (1, 2, 0)]);
        check(metric(None, Aggregation::ValuePerUser), [(1, 12, 0), (1, 3, 0)]);
        let per_view = Aggregation::Ratio(Count, Denominator::Conversions(Some("view".to_owned())));
        check(metric(Some("buy"), per_view), [(1, 2, 1), (1, 1, 1)]);
        let per_order = Aggregation::Ratio(Value, Denominator::Conversions(Some("buy".to_owned())));
        check(metric(Some("buy"), per_order), [(1, 12, 2), (1, 3, 1)]);
        check(metric(Some("buy"), Aggregation::Ratio(Count, Denominator::Impressions)), [(1, 2, 4), (1, 1, 4)]);
        check(metric(None, Aggregation::Quantile(Value, 500)), [(1, 12, 0), (1, 3, 0)]);
        let shorter = Configured { window_days: Some(0), ..metric(None, Aggregation::CountPerUser) };
        check(shorter, [(1, 1, 0), (1, 1, 0)]);
        let counted = CohortMetric::new(&metric(None, Aggregation::ValuePerUser), &cohort, None, 1);
        let before = counted.before(&cohort).expect("fits");
        assert_eq!(before, [UserSum { user: 3, amount: 50 * M, base: 0, has_converted: true }]);
    }

    /// A metric of a definition with a window of so many days.
    pub(crate) fn defined(per_user: PerUser, days: i64) -> Configured {
        let definition = Definition {
            description: None,
            kind: events::Kind::Conversion,
            events: Vec::new(),
            condition: None,
            value: None,
            per_user,
            then: Vec::new(),
            over: None,
            quantile: None,
            window: None,
            covariates: Vec::new(),
        };
        let reference = Reference { name: "defined".to_owned(), version: 1, definition };
        let defined = DefinedMetric { reference, source: 0, over: None, then: Vec::new(), window_us: (0, days * DAY_US) };
        metric(None, Aggregation::Defined(Box::new(defined)))
    }

    /// The same over what users come to of the events of the second name, or of its own events.
    pub(crate) fn defined_over(per_user: PerUser, over: PerUser, is_own: bool, days: i64) -> Configured {
        let metric = defined(per_user, days);
        let Aggregation::Defined(mut found) = metric.aggregation else { unreachable!("it is made of a definition") };
        let own = found.reference.definition.clone();
        let events = if is_own { Vec::new() } else { vec!["view".to_owned()] };
        found.reference.definition.over = Some(Box::new(Definition { per_user: over, events, ..own }));
        found.over = (!is_own).then_some(1);
        Configured { aggregation: Aggregation::Defined(found), ..metric }
    }

    /// 12 minutes in two views and 7 in one, and the same over the users' own three and one events.
    #[test]
    fn what_users_come_to_is_divided_by_what_they_come_to_of_other_events() {
        let rows = [(0, 10, 0, 5), (0, 11, 1, 3), (0, 12, 1, 4), (1, 10, 1, 7)];
        let cohort = cohort(&[(0, 10), (0, 10), (0, 10)], &rows);
        let check = |over: PerUser, is_own: bool, expected: (i128, i128, i128)| {
            let counted = CohortMetric::new(&defined_over(PerUser::Sum, over, is_own, 2), &cohort, None, 30);
            let groups = Groups::new(3, 1, |_| Some(0));
            let found = &sums(&counted.after(&cohort).expect("fits"), &Covariates::default(), &groups, None).expect("fits")[0];
            let products = found.amount_base / (I256::from(M) * I256::from(M));
            assert_eq!(
                (found.amount.sum() / M, found.base.sum() / M, products),
                (expected.0, expected.1, I256::from(expected.2))
            );
        };
        check(PerUser::Count, false, (19, 3, 12 * 2 + 7));
        check(PerUser::Exists, false, (19, 2, 12 + 7));
        check(PerUser::Sum, false, (19, 14, 12 * 7 + 7 * 7));
        check(PerUser::Count, true, (19, 4, 12 * 3 + 7));
    }

    /// Rows of one time are told apart by their value, and the end of the window does not belong to it.
    #[test]
    fn definitions_count_what_they_say() {
        let rows = [(0, 10, 0, 5), (0, 10, 1, 3), (0, 11 + DAY_US, 0, -7), (0, 10 + 2 * DAY_US, 0, 100), (1, 9, 0, 1)];
        let cohort = cohort(&[(0, 10), (0, 10)], &rows);
        let check = |per_user: PerUser, expected: (u64, i128)| {
            let counted = CohortMetric::new(&defined(per_user, 2), &cohort, None, 30);
            let groups = Groups::new(2, 1, |_| Some(0));
            let found = &sums(&counted.after(&cohort).expect("fits"), &Covariates::default(), &groups, None).expect("fits")[0];
            assert_eq!((found.converters, found.amount.sum() / M), expected, "{per_user}");
        };
        check(PerUser::Count, (1, 3));
        check(PerUser::Sum, (1, 1));
        check(PerUser::Min, (1, -7));
        check(PerUser::Max, (1, 5));
        check(PerUser::First, (1, 3));
        check(PerUser::Last, (1, -7));
        check(PerUser::Distinct, (1, 2));
        check(PerUser::DistinctDays, (1, 2));
        check(PerUser::Exists, (1, 1));
        check(PerUser::AtLeast(3), (1, 1));
        check(PerUser::AtLeast(4), (0, 0));
    }

    /// A refund counts in values and where it is named; it is no conversion where all are meant.
    #[test]
    fn what_takes_something_back_is_no_conversion() {
        // User 0 orders and gets it back, user 1 gets back an older order, user 2 has a refund of its own type without a value.
        let rows = [(0, 10, 0, 20), (0, 11, 0, -20), (1, 10, 0, -20), (2, 10, 1, 0)];
        let mut cohort = cohort(&[(0, 10), (0, 10), (0, 10)], &rows);
        cohort.names = vec!["order".to_owned(), "refund".to_owned()];
        let check = |name: Option<&str>, aggregation: Aggregation, converters: u64, sum: i128| {
            let counted = CohortMetric::new(&metric(name, aggregation.clone()), &cohort, Some(0), 1);
            let groups = Groups::new(3, 1, |_| Some(0));
            let found = &sums(&counted.after(&cohort).expect("fits"), &Covariates::default(), &groups, None).expect("fits")[0];
            assert_eq!((found.converters, found.amount.sum() / M), (converters, sum), "{name:?} {aggregation:?}");
        };
        use crate::experiment::read::catalogue::Amount::{Count, Value};
        check(None, Aggregation::ConversionRate, 1, 1);
        check(None, Aggregation::CountPerUser, 1, 1);
        check(None, Aggregation::Ratio(Count, Denominator::Impressions), 1, 1);
        check(None, Aggregation::ValuePerUser, 1, -20);
        check(None, Aggregation::Quantile(Value, 500), 1, -20);
        check(Some("order"), Aggregation::ConversionRate, 2, 2);
        check(Some("refund"), Aggregation::ConversionRate, 1, 1);
    }

    /// Orders in another currency or without a value are in neither part of a ratio.
    #[test]
    fn a_ratio_is_of_the_same_rows() {
        let mut cohort = cohort(&[(0, 10), (0, 10)], &[]);
        cohort.currencies = vec![Some("EUR".to_owned()), Some("USD".to_owned())];
        let row = |value: Option<i128>, name, currency| Row {
            time: 10,
            value: value.map(|value| value * M),
            name,
            currency,
            confidence: 100,
        };
        let rows = [
            (0, row(Some(21), 0, 0)),
            (0, row(Some(22), 0, 1)),
            (1, row(Some(21), 0, 0)),
            (1, row(None, 0, 0)),
            (1, row(None, 1, 0)),
        ];
        cohort.after = Rows::new(2, rows.to_vec());
        let check = |base: Option<&str>, expected: (i128, i128)| {
            let aggregation = Aggregation::Ratio(Amount::Value, Denominator::Conversions(base.map(str::to_owned)));
            let counted = CohortMetric::new(&metric(Some("buy"), aggregation), &cohort, Some(0), 1);
            let groups = Groups::new(2, 1, |_| Some(0));
            let found = &sums(&counted.after(&cohort).expect("fits"), &Covariates::default(), &groups, None).expect("fits")[0];
            assert_eq!((found.amount.sum() / M, found.base.sum() / M), expected, "{base:?}");
            assert_eq!(counted.left_out(&cohort, &groups), LeftOut { without_value: 1, other_currency: 1 });
        };
        check(Some("buy"), (42, 2));
        check(Some("view"), (42, 1));
        check(None, (42, 3));
    }

    /// What users did before as the only covariate.
    pub(crate) fn history(before: &[UserSum]) -> Covariates {
        let column = Column { name: "history".to_owned(), is_share: false, is_history: true };
        Covariates::default().with_amounts([column], before, |earlier| [earlier.amount])
    }

    fn entry(user: u32, amount: i128) -> UserSum {
        UserSum { user, amount, base: 0, has_converted: true }
    }

    #[test]
    fn a_cap_cuts_what_is_above() {
        let entries = [entry(0, 10), entry(1, 30)];
        let groups = Groups::new(3, 1, |_| Some(0));
        let found = &sums(&entries, &Covariates::default(), &groups, Some(15)).expect("fits")[0];
        assert_eq!((found.users, found.capped, found.amount.sum()), (3, 1, 25));
        assert_eq!(filled(&entries, &groups), 2);
        assert_eq!(amounts(&[entry(0, 7 * M), entry(2, -M)], &groups, Some(5 * M)), [[5.0, -1.0, 0.0]]);
    }

    /// Each stratum of a group has the sums of its users, and the group those of all.
    #[test]
    fn strata_add_up() {
        let entries: Vec<UserSum> = (0..12).map(|user| entry(user, i128::from(user) * M)).collect();
        let plain = Groups::new(12, 2, |user| (user != 5).then_some(user % 2));
        let groups = plain.clone().stratified(3, |user| user / 4);
        assert_eq!((groups.users(), groups.cells()), (&[6, 5][..], &[2, 2, 2, 1, 2, 2][..]));
        assert_eq!(
            (groups.of(4), groups.cell(4), groups.of(7), groups.cell(7), groups.cell(5)),
            (Some(0), Some(2), Some(1), Some(3), None)
        );
        let covariates = history(&entries);
        let (found, expected) = (sums(&entries, &covariates, &groups, None), sums(&entries, &covariates, &plain, None));
        for (found, expected) in found.expect("fits").iter().zip(expected.expect("fits")) {
            let of_strata: Vec<_> = found.strata.iter().map(|sums| sums.amount.sum() / M).collect();
            assert_eq!(of_strata, if found.users == 6 { [2, 10, 18] } else { [4, 7, 20] });
            assert_eq!(Sums { strata: Vec::new(), ..found.clone() }, expected);
        }
        let amounts = amounts(&entries, &groups, None);
        assert_eq!(amounts, [vec![0.0, 2.0], vec![1.0, 3.0], vec![4.0, 6.0], vec![7.0], vec![8.0, 10.0], vec![9.0, 11.0]]);
        assert_eq!(plain.clone().stratified(1, |_| 0), plain);
    }

    #[test]
    fn outliers_are_the_top_hundredth() {
        let entries: Vec<UserSum> = (0..200).map(|user| entry(user, if user < 2 { 99 } else { 1 })).collect();
        let groups = Groups::new(200, 1, |_| Some(0));
        assert_eq!(outlier_share(&entries, &groups), Some(198.0 / 396.0));
        assert_eq!(outlier_share(&entries[..99], &groups), None);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_plain_loops(
            entries in prop::collection::btree_map(0u32..60, -50i128..50, 0..40),
            before in prop::collection::btree_map(0u32..60, 0i128..50, 0..40),
            cap in prop::option::of(0i128..40),
        ) {
            let groups = Groups::new(60, 3, |user| Some(user % 4));
            let list = |map: &std::collections::BTreeMap<u32, i128>| map.iter().map(|(user, amount)| entry(*user, *amount)).collect::<Vec<_>>();
            let found = sums(&list(&entries), &history(&list(&before)), &groups, cap).expect("fits");
            for (group, found) in found.iter().enumerate() {
                let users: Vec<u32> = (0..60).filter(|user| *user as usize % 4 == group).collect();
                let y = |user: &u32| entries.get(user).map_or(0, |amount| cap.map_or(*amount, |cap| (*amount).min(cap)));
                let x = |user: &u32| before.get(user).copied().unwrap_or(0);
                prop_assert_eq!(found.users, users.len() as u64);
                prop_assert_eq!(found.amount.users(), found.users);
                prop_assert_eq!(found.amount.sum(), users.iter().map(y).sum::<i128>());
                prop_assert_eq!(found.amount.squares(), I256::from(users.iter().map(|user| y(user) * y(user)).sum::<i128>()));
                prop_assert_eq!(found.covariates.covariate(0, found.users).sum(), users.iter().map(x).sum::<i128>());
                let products = I256::from(users.iter().map(|user| x(user) * y(user)).sum::<i128>());
                prop_assert_eq!(found.covariates.products(0).0, [products, I256::ZERO]);
            }
        }
    }
}
