//! What users of one experiment saw and did, in arrays of numbers.
//!
//! [`super::cohort_reader`] fills it from one snapshot; then a user is a number, and everything that an answer counts is a pass
//! over these arrays, whatever the number of metrics. A cohort of a former moment becomes one of now by [`Cohort::replace`] of
//! the users whom new facts touched.

use std::collections::HashMap;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::traits::{Trait, TraitQuery};

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// All users of an experiment and what they did.
#[derive(Clone, Debug, Default)]
pub struct Cohort {
    /// Who was exposed.
    pub users: Users,
    /// Conversion names; their places are the numbers of names. By name.
    pub names: Vec<String>,
    /// Currencies; their places are the numbers of currencies. None for values without one, which come first.
    pub currencies: Vec<Option<String>>,
    /// Conversions from the first exposure on, within the experiment's window, or within the longest one of its metrics if that is
    /// longer.
    pub after: Rows,
    /// Conversions in the days before the first exposure.
    pub before: Rows,
    /// The events of each definition that a metric has, in the order of the metrics.
    pub sources: Vec<Source>,
    /// What was asked of each first exposure, and what it was.
    pub traits: Vec<(TraitQuery, Trait)>,
    /// Impressions of those who saw several variants and converted.
    pub touches: Touches,
}

impl Cohort {
    /// Puts users in the place of those with the same ids, and new ones after all others.
    pub fn replace(&mut self, newer: Cohort) {
        let ids = &mut self.users.ids;
        let places: Vec<u32> = newer.users.ids.all().iter().map(|id| ids.find(id).unwrap_or_else(|| ids.push(*id))).collect();
        let of_name = merge(&mut self.names, newer.names);
        let of_currency = merge(&mut self.currencies, newer.currencies);
        self.after.number(&of_name.0, &of_currency.0);
        self.before.number(&of_name.0, &of_currency.0);
        for ((query, known), (_, newer)) in self.traits.iter_mut().zip(newer.traits) {
            known.replace(&places, newer, query.values_max());
        }
        for (user, place) in places.iter().enumerate() {
            self.users.set(*place as usize, &newer.users, user);
            self.touches.remove(place);
        }
        self.touches.extend(newer.touches.into_iter().map(|(user, touches)| (places[user as usize], touches)));
        for (rows, mut newer) in [(&mut self.after, newer.after), (&mut self.before, newer.before)] {
            newer.number(&of_name.1, &of_currency.1);
            rows.replace(self.users.len(), &places, &newer);
        }
        for (source, mut newer) in self.sources.iter_mut().zip(newer.sources) {
            let of_text = merge(&mut source.texts, std::mem::take(&mut newer.texts));
            source.number(&of_text.0, &of_currency.0);
            newer.number(&of_text.1, &of_currency.1);
            source.after.replace(self.users.len(), &places, &newer.after);
            source.before.replace(self.users.len(), &places, &newer.before);
        }
    }

    /// Returns what was there at a moment, in microseconds since 1970: without later exposures, and without what was done later. Who saw
    /// several variants is known as of the newest impression.
    pub fn until(&self, us: i64) -> Cohort {
        let kept: Vec<u32> = (0..self.users.len() as u32).filter(|user| self.users.assigned(*user as usize) <= us).collect();
        let rows = |rows: &Rows| rows.until(&kept, us);
        let source =
            |source: &Source| Source { texts: source.texts.clone(), after: rows(&source.after), before: rows(&source.before) };
        let touches = |(place, user): (u32, &u32)| Some((place, self.touches.get(user)?.clone()));
        Cohort {
            users: self.users.only(&kept).until(us),
            names: self.names.clone(),
            currencies: self.currencies.clone(),
            after: rows(&self.after),
            before: rows(&self.before),
            sources: self.sources.iter().map(source).collect(),
            traits: self.traits.iter().map(|(query, known)| (query.clone(), known.only(&kept))).collect(),
            touches: (0..).zip(&kept).filter(|_| !self.touches.is_empty()).filter_map(touches).collect(),
        }
    }

    /// Returns what was asked of each first exposure; none of what was not asked.
    pub fn find_trait(&self, query: &TraitQuery) -> Option<&Trait> {
        self.traits.iter().find(|(asked, _)| asked == query).map(|(_, known)| known)
    }

    /// Returns whether a user did anything that is known in the days before the first exposure.
    pub fn did_before(&self, user: usize) -> bool {
        let mut all = self.sources.iter().map(|source| &source.before).chain([&self.before]);
        all.any(|rows| !rows.of(user).is_empty())
    }

    /// Returns the time of the newest exposure or conversion.
    pub fn newest(&self) -> Option<i64> {
        let exposed = self.users.exposed.iter().copied().max();
        let rows = self.sources.iter().map(|source| &source.after).chain([&self.after]);
        exposed.max(rows.flat_map(Rows::all).map(|row| row.time).max())
    }

    /// Returns whether anybody did anything a day before the first exposure: less is no history.
    pub fn has_history(&self) -> bool {
        let is_old = |user: &u32| {
            let exposed = self.users.exposed[*user as usize];
            self.before.of(*user as usize).first().is_some_and(|row| exposed - row.time >= DAY_US)
        };
        self.before.filled().iter().any(is_old)
    }

    /// Returns about how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let rows =
            |rows: &Rows| rows.rows.capacity() * size_of::<Row>() + (rows.starts.len() + rows.filled.len()) * size_of::<u32>();
        let touches: usize = self.touches.values().map(|touches| 64 + size_of_val(touches.as_slice())).sum();
        let text = |text: &String| size_of::<String>() + text.len();
        let source = |source: &Source| rows(&source.after) + rows(&source.before) + source.texts.iter().map(text).sum::<usize>();
        let sources: usize = self.sources.iter().map(source).sum();
        let traits: usize = self.traits.iter().map(|(_, known)| known.bytes()).sum();
        self.users.bytes() + rows(&self.after) + rows(&self.before) + sources + traits + touches
    }
}

/// Events of a definition, as conversions are: what a row's name is, is the text by which a definition tells values apart.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Their places are the numbers of names. In their order.
    pub texts: Vec<String>,
    /// In the definition's window.
    pub after: Rows,
    /// In the days before the first exposure.
    pub before: Rows,
}

impl Source {
    /// Gives texts and currencies other numbers.
    pub(super) fn number(&mut self, of_text: &[u32], of_currency: &[u32]) {
        self.after.number(of_text, of_currency);
        self.before.number(of_text, of_currency);
    }
}

/// Adds texts to a sorted list, and returns where the former ones and the added ones now are.
fn merge<T: Ord + Clone>(texts: &mut Vec<T>, more: Vec<T>) -> (Vec<u32>, Vec<u32>) {
    let mut all: Vec<T> = texts.iter().chain(&more).cloned().collect();
    all.sort();
    all.dedup();
    let places = |of: &[T]| of.iter().filter_map(|text| all.binary_search(text).ok()).map(|place| place as u32).collect();
    let found = (places(texts), places(&more));
    *texts = all;
    found
}

fn set<T>(column: &mut Vec<T>, place: usize, value: T) {
    match column.get_mut(place) {
        Some(found) => *found = value,
        // New users come in the order of their numbers.
        None => column.push(value),
    }
}

/// The id of each user by number, and the number of each by id. The table has numbers alone, five bytes each: a map would have the ids
/// once more.
#[derive(Clone, Debug, Default)]
pub struct UserIds {
    ids: Vec<[u8; 16]>,
    numbers: HashTable<u32>,
    /// Of random keys: clients choose ids.
    hasher: DefaultHashBuilder,
}

impl UserIds {
    /// Adds a user who is not there yet, and returns the number.
    pub fn push(&mut self, id: [u8; 16]) -> u32 {
        let UserIds { ids, numbers, hasher } = self;
        let number = ids.len() as u32;
        ids.push(id);
        numbers.insert_unique(hasher.hash_one(id), number, |number| hasher.hash_one(ids[*number as usize]));
        number
    }

    /// Returns the number of a user.
    pub fn find(&self, id: &[u8; 16]) -> Option<u32> {
        self.numbers.find(self.hasher.hash_one(id), |number| self.ids[*number as usize] == *id).copied()
    }

    /// Returns all ids, in the order of numbers.
    pub fn all(&self) -> &[[u8; 16]] {
        &self.ids
    }

    fn bytes(&self) -> usize {
        self.ids.len() * size_of::<[u8; 16]>() + self.numbers.allocation_size()
    }
}

impl FromIterator<[u8; 16]> for UserIds {
    fn from_iter<T: IntoIterator<Item = [u8; 16]>>(ids: T) -> Self {
        let mut all = UserIds::default();
        ids.into_iter().for_each(|id| {
            all.push(id);
        });
        all
    }
}

/// Users by number.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// The user's id.
    pub ids: UserIds,
    /// The variant of the first exposure.
    pub arms: Vec<u32>,
    /// From when on it counts what the user does, in microseconds since 1970: the first exposure, or the first trigger after it where that
    /// begins the analysis and has come.
    pub exposed: Vec<i64>,
    /// The time of the first exposure, where a trigger may begin the analysis; else empty.
    pub assigned: Vec<i64>,
    /// Whether the trigger has come, where one begins the analysis; else empty.
    pub is_triggered: Vec<bool>,
    /// Whether the user saw several variants.
    pub is_mixed: Vec<bool>,
    /// Eligible impressions.
    pub impressions: Vec<i64>,
}

impl Users {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.arms.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.arms.is_empty()
    }

    /// Returns about how many bytes they take.
    pub fn bytes(&self) -> usize {
        let of_trigger = if self.assigned.is_empty() { 0 } else { size_of::<i64>() + 1 };
        self.len() * (size_of::<u32>() + 2 * size_of::<i64>() + 1 + of_trigger) + self.ids.bytes()
    }

    /// Returns the times of all first exposures.
    pub fn all_assigned(&self) -> impl Iterator<Item = i64> {
        (0..self.len()).map(|user| self.assigned(user))
    }

    /// Returns the time of a user's first exposure.
    pub fn assigned(&self, user: usize) -> i64 {
        self.assigned.get(user).copied().unwrap_or(self.exposed[user])
    }

    /// Returns whether the analysis of a user has begun.
    pub fn has_begun(&self, user: usize) -> bool {
        self.is_triggered.get(user).copied().unwrap_or(true)
    }

    /// Returns what they are at a moment: whose trigger came later has not begun.
    fn until(mut self, us: i64) -> Self {
        for (user, is_triggered) in self.is_triggered.iter_mut().enumerate() {
            if *is_triggered && self.exposed[user] > us {
                (self.exposed[user], *is_triggered) = (self.assigned[user], false);
            }
        }
        self
    }

    /// Returns some of them, under new numbers.
    fn only(&self, kept: &[u32]) -> Self {
        fn those<T: Copy>(column: &[T], kept: &[u32]) -> Vec<T> {
            // Columns may be empty.
            kept.iter().filter_map(|user| column.get(*user as usize)).copied().collect()
        }
        Users {
            ids: kept.iter().filter_map(|user| self.ids.all().get(*user as usize)).copied().collect(),
            arms: those(&self.arms, kept),
            exposed: those(&self.exposed, kept),
            assigned: those(&self.assigned, kept),
            is_triggered: those(&self.is_triggered, kept),
            is_mixed: those(&self.is_mixed, kept),
            impressions: those(&self.impressions, kept),
        }
    }

    fn set(&mut self, place: usize, newer: &Users, user: usize) {
        set(&mut self.arms, place, newer.arms[user]);
        set(&mut self.exposed, place, newer.exposed[user]);
        if let (Some(assigned), Some(is_triggered)) = (newer.assigned.get(user), newer.is_triggered.get(user)) {
            set(&mut self.assigned, place, *assigned);
            set(&mut self.is_triggered, place, *is_triggered);
        }
        set(&mut self.is_mixed, place, newer.is_mixed[user]);
        set(&mut self.impressions, place, newer.impressions[user]);
    }
}

/// One conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// When, in microseconds since 1970.
    pub time: i64,
    /// Its value, in millionths.
    pub value: Option<i128>,
    /// Number of its name.
    pub name: u32,
    /// Number of its currency.
    pub currency: u32,
    /// Confidence of the attribution, in hundredths.
    pub confidence: u8,
}

/// One impression of a user who saw several variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch {
    /// When, in microseconds since 1970.
    pub time: i64,
    /// Which variant.
    pub arm: u32,
}

/// Impressions by user, each user's in the order of time.
pub type Touches = HashMap<u32, Vec<Touch>>;

/// Conversions, or other events, by user, each user's in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Where the rows of each user begin; one more entry than users.
    starts: Vec<u32>,
    rows: Vec<Row>,
    /// The users who have rows.
    filled: Vec<u32>,
}

impl Rows {
    /// Sorts rows by user, then time. `users` is how many users there are.
    pub fn new(users: usize, rows: Vec<(u32, Row)>) -> Self {
        let mut starts = vec![0u32; users + 1];
        for (user, _) in &rows {
            starts[*user as usize + 1] += 1;
        }
        for user in 0..users {
            starts[user + 1] += starts[user];
        }
        let mut next = starts.clone();
        let mut sorted = vec![Row::default(); rows.len()];
        for (user, row) in rows {
            let place = &mut next[user as usize];
            sorted[*place as usize] = row;
            *place += 1;
        }
        for user in 0..users {
            // Rows of equal times come in any order; what is first or last of them is told by the value.
            sorted[starts[user] as usize..starts[user + 1] as usize].sort_by_key(|row| (row.time, row.value));
        }
        Rows { filled: filled(&starts), starts, rows: sorted }
    }

    /// Gives names and currencies other numbers.
    pub(super) fn number(&mut self, of_name: &[u32], of_currency: &[u32]) {
        let is_same = |numbers: &[u32]| numbers.iter().enumerate().all(|(place, number)| place == *number as usize);
        if is_same(of_name) && is_same(of_currency) {
            return;
        }
        for row in &mut self.rows {
            row.name = of_name[row.name as usize];
            row.currency = of_currency[row.currency as usize];
        }
    }

    /// Puts other rows in the place of those of some users: user `places[n]` gets those of the user n of `newer`. `users` is
    /// how many users there are now.
    fn replace(&mut self, users: usize, places: &[u32], newer: &Rows) {
        let mut changed: Vec<(u32, usize)> = places.iter().enumerate().map(|(user, place)| (*place, user)).collect();
        changed.sort_unstable();
        let known = self.starts.len().saturating_sub(1);
        let has_as_many =
            |(place, user): &(u32, usize)| *place as usize >= known || self.of(*place as usize).len() == newer.of(*user).len();
        if known > 0 && changed.iter().all(has_as_many) {
            return self.overwrite(&changed, newer);
        }
        let mut next = Rows { starts: Vec::with_capacity(users + 1), rows: Vec::with_capacity(self.rows.len()), filled: vec![] };
        let mut done = 0;
        for (place, user) in changed {
            next.keep(self, done, (place as usize).min(known));
            next.starts.push(next.rows.len() as u32);
            next.rows.extend_from_slice(newer.of(user));
            done = place as usize + 1;
        }
        next.keep(self, done, known);
        next.starts.push(next.rows.len() as u32);
        next.filled = filled(&next.starts);
        *self = next;
    }

    /// Does the same where nobody has more rows than before or fewer; of new users all come after those who are known.
    fn overwrite(&mut self, changed: &[(u32, usize)], newer: &Rows) {
        for (place, user) in changed {
            let rows = newer.of(*user);
            match self.starts.get(*place as usize + 1) {
                Some(end) => self.rows[*end as usize - rows.len()..*end as usize].copy_from_slice(rows),
                None => {
                    self.rows.extend_from_slice(rows);
                    self.starts.push(self.rows.len() as u32);
                    self.filled.extend((!rows.is_empty()).then_some(*place));
                }
            }
        }
    }

    /// Returns the rows of some users, under new numbers, up to a moment.
    fn until(&self, kept: &[u32], us: i64) -> Rows {
        let mut cut = Rows { starts: Vec::with_capacity(kept.len() + 1), rows: Vec::new(), filled: Vec::new() };
        for user in kept {
            cut.starts.push(cut.rows.len() as u32);
            let rows = self.of(*user as usize);
            cut.rows.extend_from_slice(&rows[..rows.partition_point(|row| row.time <= us)]);
        }
        cut.starts.push(cut.rows.len() as u32);
        cut.filled = filled(&cut.starts);
        cut
    }

    /// Appends the rows of the users `from..to` of other rows.
    fn keep(&mut self, other: &Rows, from: usize, to: usize) {
        if from >= to {
            return;
        }
        let first = other.starts[from];
        let shift = self.rows.len() as u32;
        self.starts.extend(other.starts[from..to].iter().map(|start| start - first + shift));
        self.rows.extend_from_slice(&other.rows[first as usize..other.starts[to] as usize]);
    }

    /// Returns one user's rows.
    pub fn of(&self, user: usize) -> &[Row] {
        match (self.starts.get(user), self.starts.get(user + 1)) {
            (Some(from), Some(to)) => &self.rows[*from as usize..*to as usize],
            _ => &[],
        }
    }

    /// Returns the users who have rows, ascending.
    pub fn filled(&self) -> &[u32] {
        &self.filled
    }

    /// Returns all rows.
    pub fn all(&self) -> &[Row] {
        &self.rows
    }
}

fn filled(starts: &[u32]) -> Vec<u32> {
    (0..starts.len().saturating_sub(1)).filter(|user| starts[*user] < starts[user + 1]).map(|user| user as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::property::Property;
    use proptest::prelude::*;

    #[test]
    fn rows_are_found_by_user_in_the_order_of_time() {
        let row = |time| Row { time, ..Row::default() };
        let rows = Rows::new(4, vec![(2, row(5)), (0, row(9)), (2, row(1)), (2, row(3)), (0, row(2))]);
        let times = |user| rows.of(user).iter().map(|row| row.time).collect::<Vec<_>>();
        assert_eq!([times(0), times(1), times(2), times(3), times(4)], [vec![2, 9], vec![], vec![1, 3, 5], vec![], vec![]]);
        assert_eq!(rows.all().len(), 5);
        assert!(Rows::default().of(0).is_empty());
    }

    /// What is known of a user: arm, exposure, conversions (time, name, value) after and before, a property, touches.
    type UserData = (u32, i64, Vec<(i64, u8, i128)>, Vec<(i64, u8, i128)>, Option<u8>, Vec<i64>);

    fn name(number: u8) -> String {
        char::from(b'a' + number).to_string()
    }

    /// Makes a cohort of users in this order.
    fn cohort(users: &[(u8, UserData)]) -> Cohort {
        let mut names: Vec<String> =
            users.iter().flat_map(|(_, known)| known.2.iter().chain(&known.3)).map(|(_, number, _)| name(*number)).collect();
        names.sort();
        names.dedup();
        let mut values: Vec<String> = users.iter().filter_map(|(_, known)| known.4).map(name).collect();
        values.sort();
        values.dedup();
        let rows = |which: fn(&UserData) -> &Vec<(i64, u8, i128)>| {
            let of_user = |(user, (_, known)): (usize, &(u8, UserData))| {
                let row = |(time, number, value): &(i64, u8, i128)| Row {
                    time: *time,
                    value: Some(*value),
                    name: names.binary_search(&name(*number)).expect("a name") as u32,
                    currency: 0,
                    confidence: 100,
                };
                which(known).iter().map(|found| (user as u32, row(found))).collect::<Vec<_>>()
            };
            Rows::new(users.len(), users.iter().enumerate().flat_map(of_user).collect())
        };
        Cohort {
            after: rows(|known| &known.2),
            before: rows(|known| &known.3),
            users: Users {
                ids: users.iter().map(|(id, _)| [*id; 16]).collect(),
                arms: users.iter().map(|(_, known)| known.0).collect(),
                exposed: users.iter().map(|(_, known)| known.1).collect(),
                assigned: Vec::new(),
                is_triggered: Vec::new(),
                is_mixed: users.iter().map(|(_, known)| !known.5.is_empty()).collect(),
                impressions: users.iter().map(|(_, known)| known.1 + 1).collect(),
            },
            traits: vec![(
                TraitQuery::Explored(Property::Column("country")),
                Trait::new(
                    users
                        .iter()
                        .map(|(_, known)| known.4.map(|value| values.binary_search(&name(value)).expect("a value") as u32))
                        .collect::<Vec<_>>(),
                    values,
                ),
            )],
            sources: vec![Source { after: rows(|known| &known.3), before: rows(|known| &known.2), texts: names.clone() }],
            touches: users
                .iter()
                .enumerate()
                .filter(|(_, (_, known))| !known.5.is_empty())
                .map(|(user, (_, known))| (user as u32, known.5.iter().map(|time| Touch { time: *time, arm: 1 }).collect()))
                .collect(),
            names,
            currencies: vec![None],
        }
    }

    /// Everything that is known of each user, whatever the numbers.
    fn known(cohort: &Cohort) -> Vec<String> {
        let rows = |rows: &Rows, user: usize| {
            rows.of(user).iter().map(|row| (row.time, cohort.names[row.name as usize].clone(), row.value)).collect::<Vec<_>>()
        };
        let mut known: Vec<String> = (0..cohort.users.len())
            .map(|user| {
                let users = &cohort.users;
                let known = &cohort.traits[0].1;
                let value = known.of(user).map(|value| &known.values[value as usize]);
                let of_user = (
                    users.ids.all()[user][0],
                    users.arms[user],
                    users.exposed[user],
                    users.is_mixed[user],
                    users.impressions[user],
                );
                let source = &cohort.sources[0];
                let of_source = |rows: &Rows| {
                    let text = |row: &Row| (row.time, source.texts[row.name as usize].clone(), row.value);
                    rows.of(user).iter().map(text).collect::<Vec<_>>()
                };
                format!(
                    "{of_user:?} {:?} {:?} {:?} {:?} {value:?} {:?}",
                    rows(&cohort.after, user),
                    rows(&cohort.before, user),
                    of_source(&source.after),
                    of_source(&source.before),
                    cohort.touches.get(&(user as u32))
                )
            })
            .collect();
        known.sort();
        known
    }

    fn some_user() -> impl Strategy<Value = UserData> {
        let rows = || prop::collection::btree_map(0i64..90, (0u8..6, 0i128..9), 0..4);
        let flat = |rows: std::collections::BTreeMap<i64, (u8, i128)>| -> Vec<(i64, u8, i128)> {
            rows.into_iter().map(|(time, (name, value))| (time, name, value)).collect()
        };
        let value = prop::option::of(0u8..4);
        (0u32..3, 0i64..90, rows(), rows(), value, prop::collection::vec(0i64..90, 0..3)).prop_map(
            move |(arm, exposed, after, before, value, touches)| (arm, exposed, flat(after), flat(before), value, touches),
        )
    }

    proptest! {
        /// Touches are not cut: whoever looks at them looks up to a conversion.
        #[test]
        fn what_was_there_at_a_moment_is_what_is_there_of_rows_up_to_it(
            users in prop::collection::btree_map(any::<u8>(), some_user(), 0..12), us in 0i64..90,
        ) {
            let until = |rows: Vec<(i64, u8, i128)>| rows.into_iter().filter(|row| row.0 <= us).collect::<Vec<_>>();
            let cut = |(id, known): (u8, UserData)| (id, (known.0, known.1, until(known.2), until(known.3), known.4, known.5));
            let expected: Vec<_> = users.clone().into_iter().filter(|(_, known)| known.1 <= us).map(cut).collect();
            let found = cohort(&users.into_iter().collect::<Vec<_>>()).until(us);
            prop_assert_eq!(known(&found), known(&cohort(&expected)));
            let filled = (0..found.users.len() as u32).filter(|user| !found.after.of(*user as usize).is_empty());
            prop_assert_eq!(found.after.filled(), filled.collect::<Vec<_>>());
        }

        #[test]
        fn a_cohort_with_users_replaced_is_that_of_all_users_as_they_are(
            first in prop::collection::btree_map(any::<u8>(), some_user(), 0..12),
            second in prop::collection::btree_map(any::<u8>(), some_user(), 0..12),
            third in prop::collection::btree_map(any::<u8>(), some_user(), 0..12),
        ) {
            let list = |users: &std::collections::BTreeMap<u8, UserData>| users.clone().into_iter().collect::<Vec<_>>();
            let mut now = first.clone();
            let mut followed = cohort(&list(&first));
            for newer in [second, third] {
                now.extend(newer.clone());
                let mut in_any_order = list(&newer);
                in_any_order.reverse();
                followed.replace(cohort(&in_any_order));
                let ids = followed.users.ids.all();
                prop_assert!((0..).zip(ids).all(|(number, id)| followed.users.ids.find(id) == Some(number)));
                prop_assert_eq!(known(&followed), known(&cohort(&list(&now))));
                let filled = (0..followed.users.len() as u32).filter(|user| !followed.after.of(*user as usize).is_empty());
                prop_assert_eq!(followed.after.filled(), filled.collect::<Vec<_>>());
            }
        }
    }
}
