//! What is known of users before their first exposure and may explain what they do after it: the columns of a regression, and their
//! sums over the users of a cell, in whole numbers.

use std::sync::Arc;

use statistics::I256;
use statistics::moments::{Moments, Overflow, Products};
use statistics::proportions::Count;
use statistics::sums::Sums as OneSum;

use crate::experiment::measure::counted::UserSum;

/// A covariate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// What it is called in answers.
    pub name: String,
    /// Whether a user has it or not.
    pub is_share: bool,
    /// Whether it is what users did before, of which there has to be a day at least.
    pub is_history: bool,
}

/// The covariates of one metric, by user. First comes what users did before of the same.
#[derive(Clone, Debug, Default)]
pub struct Covariates {
    columns: Arc<Vec<Column>>,
    /// Users with an amount, ascending.
    users: Vec<u32>,
    /// What each of them has in the first columns.
    amounts: Vec<i128>,
    /// For each property of the exposure the column of each user's value; none of users whose value has no column.
    categories: Vec<Vec<Option<u8>>>,
}

impl Covariates {
    /// Returns how many columns there are.
    pub fn count(&self) -> usize {
        self.columns.len()
    }

    /// Returns the columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns whether nobody has any of them.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.categories.is_empty()
    }

    /// Adds columns of amounts: what these users come to of a metric before their exposure, by user. Columns of amounts come before all
    /// others.
    pub fn with_amounts<const N: usize>(
        mut self,
        columns: [Column; N],
        before: &[UserSum],
        of: impl Fn(&UserSum) -> [i128; N],
    ) -> Self {
        let known = self.columns.len();
        let mut users = Vec::with_capacity(self.users.len().max(before.len()));
        let mut amounts = Vec::with_capacity(users.capacity() * (known + N));
        let mut later = before.iter().peekable();
        let mut take = |user: u32, earlier: Option<&[i128]>, more: Option<&UserSum>| {
            users.push(user);
            match earlier {
                Some(earlier) => amounts.extend_from_slice(earlier),
                None => amounts.extend(std::iter::repeat_n(0, known)),
            }
            amounts.extend(more.map_or([0; N], &of));
        };
        for (place, user) in self.users.iter().enumerate() {
            while let Some(more) = later.next_if(|more| more.user < *user) {
                take(more.user, None, Some(more));
            }
            let same = later.next_if(|more| more.user == *user);
            take(*user, Some(&self.amounts[place * known..(place + 1) * known]), same);
        }
        for more in later {
            take(more.user, None, Some(more));
        }
        (self.users, self.amounts) = (users, amounts);
        Arc::make_mut(&mut self.columns).extend(columns);
        self
    }

    /// Adds a column for each of these values of which a user has one at most; `value_of` has its place among them.
    pub fn with_values(mut self, values: Vec<Column>, value_of: impl Iterator<Item = Option<usize>>) -> Self {
        let known = self.columns.len();
        let column = |value: usize| u8::try_from(known + value).ok();
        self.categories.push(value_of.map(|value| value.filter(|value| *value < values.len()).and_then(column)).collect());
        Arc::make_mut(&mut self.columns).extend(values);
        self
    }

    /// Hands out each user who has an entry or a covariate, ascending, with both. Without any covariate there is no slice of them.
    /// # Errors
    /// Those of `found`.
    pub fn each(
        &self,
        entries: &[UserSum],
        mut found: impl FnMut(u32, Option<&UserSum>, &[i128]) -> Result<(), Overflow>,
    ) -> Result<(), Overflow> {
        let width = self.amounts.len().checked_div(self.users.len()).unwrap_or(0);
        let amounts = |place: usize| &self.amounts[place * width..(place + 1) * width];
        let (mut entries, mut place) = (entries.iter().peekable(), 0);
        if self.categories.is_empty() {
            while place < self.users.len() || entries.peek().is_some() {
                let of_entry = entries.peek().map_or(u32::MAX, |entry| entry.user);
                let user = self.users.get(place).map_or(of_entry, |user| of_entry.min(*user));
                let entry = entries.next_if(|entry| entry.user == user);
                match self.users.get(place) {
                    Some(known) if *known == user => {
                        found(user, entry, amounts(place))?;
                        place += 1;
                    }
                    _ => found(user, entry, &[])?,
                }
            }
            return Ok(());
        }
        let mut row = vec![0; self.count()];
        for user in 0..self.categories[0].len() as u32 {
            row.fill(0);
            if self.users.get(place) == Some(&user) {
                row[..width].copy_from_slice(amounts(place));
                place += 1;
            }
            for of in &self.categories {
                if let Some(column) = of[user as usize] {
                    row[usize::from(column)] = Moments::SCALE;
                }
            }
            found(user, entries.next_if(|entry| entry.user == user), &row)?;
        }
        Ok(())
    }

    /// Returns sums of them to be added up.
    pub fn cross(&self) -> Cross {
        let count = self.count();
        Cross { columns: self.columns.clone(), sums: vec![0; count], products: vec![Products::default(); start(count)] }
    }
}

/// Where the products of a covariate begin: with what users come to, with what a ratio is over, with each covariate up to itself.
fn start(column: usize) -> usize {
    2 * column + column * (column + 1) / 2
}

/// Sums and products of covariates while they are added up.
#[derive(Clone)]
pub struct Cross {
    columns: Arc<Vec<Column>>,
    sums: Vec<i128>,
    products: Vec<Products>,
}

impl Cross {
    /// Adds a user who comes to nothing so far.
    /// # Errors
    /// [`Overflow`].
    pub fn add(&mut self, values: &[i128]) -> Result<(), Overflow> {
        for (column, value) in values.iter().enumerate().filter(|(_, value)| **value != 0) {
            self.sums[column] = self.sums[column].checked_add(*value).ok_or(Overflow)?;
            let products = &mut self.products[start(column) + 2..];
            for (products, other) in products.iter_mut().zip(&values[..=column]).filter(|(_, other)| **other != 0) {
                products.add(*value, *other)?;
            }
        }
        Ok(())
    }

    /// Moves a user from what it came to, and what that was over, to what it comes to now.
    /// # Errors
    /// [`Overflow`].
    pub fn advance(&mut self, values: &[i128], from: [i128; 2], to: [i128; 2]) -> Result<(), Overflow> {
        for (column, value) in values.iter().enumerate().filter(|(_, value)| **value != 0) {
            for (side, (from, to)) in from.into_iter().zip(to).enumerate().filter(|(_, (from, to))| from != to) {
                let products = &mut self.products[start(column) + side];
                products.add(to, *value)?;
                products.subtract(from, *value)?;
            }
        }
        Ok(())
    }

    /// Adds the users of another one.
    /// # Errors
    /// [`Overflow`].
    pub fn merge(&mut self, other: &Cross) -> Result<(), Overflow> {
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum = sum.checked_add(*other).ok_or(Overflow)?;
        }
        self.products.iter_mut().zip(&other.products).try_for_each(|(one, two)| one.merge(two))
    }

    /// Returns the sums.
    /// # Errors
    /// [`Overflow`].
    pub fn total(&self) -> Result<CrossSums, Overflow> {
        let products = self.products.iter().map(Products::total).collect::<Result<_, _>>()?;
        Ok(CrossSums { columns: self.columns.clone(), sums: self.sums.clone(), products })
    }
}

/// Sums and products of covariates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrossSums {
    columns: Arc<Vec<Column>>,
    sums: Vec<i128>,
    products: Vec<I256>,
}

impl CrossSums {
    /// Returns the columns.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns one covariate over so many users.
    pub fn covariate(&self, column: usize, users: u64) -> OneSum {
        let sum = self.sums[column];
        if self.columns[column].is_share {
            let converted = u64::try_from(sum / Moments::SCALE).unwrap_or(0);
            return OneSum::Share(Count { users, converted: converted.min(users) });
        }
        OneSum::Values(Moments::from_parts(users, sum, self.products[start(column) + 2 + column]))
    }

    /// Returns the sum of products of one covariate with what users come to, with what a ratio is over, and with each covariate before it.
    pub fn products(&self, column: usize) -> ([I256; 2], &[I256]) {
        let of = &self.products[start(column)..];
        ([of[0], of[1]], &of[2..2 + column])
    }

    /// Adds the users of another one.
    /// # Errors
    /// [`Overflow`].
    pub fn merge(&mut self, other: &CrossSums) -> Result<(), Overflow> {
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum = sum.checked_add(*other).ok_or(Overflow)?;
        }
        for (products, other) in self.products.iter_mut().zip(&other.products) {
            *products = products.checked_add(*other).ok_or(Overflow)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn column(name: &str) -> Column {
        Column { name: name.to_owned(), is_share: false, is_history: true }
    }

    fn before(users: &std::collections::BTreeMap<u32, (i128, i128)>) -> Vec<UserSum> {
        users
            .iter()
            .map(|(user, (amount, base))| UserSum { user: *user, amount: *amount, base: *base, has_converted: true })
            .collect()
    }

    proptest! {
        /// Two metrics' history and a property: each sum and product is that of a plain loop over all users, whatever way users come to
        /// what they come to.
        #[test]
        fn sums_are_those_of_plain_loops(
            own in prop::collection::btree_map(0u32..30, (1i128..50, 0i128..9), 0..20),
            other in prop::collection::btree_map(0u32..30, (1i128..50, 0i128..1), 0..20),
            values in prop::option::of(prop::collection::vec(prop::option::of(0usize..3), 30)),
            entries in prop::collection::btree_map(0u32..30, (-50i128..50, 0i128..9), 0..20),
        ) {
            let mut covariates = Covariates::default()
                .with_amounts([column("a"), column("b")], &before(&own), |user| [user.amount, user.base])
                .with_amounts([column("c")], &before(&other), |user| [user.amount]);
            if let Some(values) = &values {
                covariates = covariates.with_values(["x", "y"].map(|name| Column { is_share: true, ..column(name) }).to_vec(), values.iter().copied());
            }
            let (mut cross, mut halves) = (covariates.cross(), [covariates.cross(), covariates.cross()]);
            covariates.each(&before(&entries), |user, entry, row| {
                let to = entry.map_or([0; 2], |entry| [entry.amount, entry.base]);
                cross.add(row)?;
                cross.advance(row, [0; 2], to)?;
                let half = &mut halves[user as usize % 2];
                half.add(row)?;
                half.advance(row, [0; 2], [7, 9])?;
                half.advance(row, [7, 9], to)
            }).expect("fits");
            let [mut one, two] = halves;
            one.merge(&two).expect("fits");
            let found = cross.total().expect("fits");
            prop_assert_eq!(&one.total().expect("fits"), &found);
            let is = |user: u32, value: usize| values.as_ref().is_some_and(|values| values[user as usize] == Some(value));
            let row = |user: u32| -> Vec<i128> {
                let (a, b) = own.get(&user).copied().unwrap_or_default();
                let mut row = vec![a, b, other.get(&user).copied().unwrap_or_default().0];
                row.extend((0..2).filter(|_| values.is_some()).map(|value| if is(user, value) { Moments::SCALE } else { 0 }));
                row
            };
            let sum = |of: &dyn Fn(u32) -> i128| (0..30).map(of).sum::<i128>();
            let come = |user: u32| entries.get(&user).copied().unwrap_or_default();
            for column in 0..covariates.count() {
                let one = found.covariate(column, 30);
                prop_assert_eq!(one.sum(), sum(&|user| row(user)[column]));
                prop_assert_eq!(one.squares(), I256::from(sum(&|user| row(user)[column].pow(2))));
                let (with, among) = found.products(column);
                let expected = [sum(&|user| row(user)[column] * come(user).0), sum(&|user| row(user)[column] * come(user).1)];
                prop_assert_eq!(with, expected.map(I256::from));
                for (place, products) in among.iter().enumerate() {
                    prop_assert_eq!(*products, I256::from(sum(&|user| row(user)[column] * row(user)[place])));
                }
            }
        }
    }
}
