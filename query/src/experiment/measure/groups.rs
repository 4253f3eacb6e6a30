//! Where users belong: groups, such as variants, and strata of them.

use statistics::moments::Overflow;

use crate::experiment::measure::sums::Sums;

/// Where users belong. A user may belong nowhere. Where users of a group belong to strata, too, each stratum of each group is a cell: first
/// those of the first stratum. Without strata cells are the groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The cell of each user; [`Groups::NOWHERE`] for none.
    of: Vec<u32>,
    /// Users of each group.
    users: Vec<u64>,
    /// Users of each cell.
    cells: Vec<u64>,
}

impl Groups {
    /// The group of users who do not count.
    pub const NOWHERE: u32 = u32::MAX;

    /// Puts `users` users into `groups` groups. Groups beyond belong nowhere.
    pub fn new(users: usize, groups: usize, group_of: impl Fn(usize) -> Option<usize>) -> Self {
        let mut counts = vec![0; groups];
        let of = (0..users)
            .map(|user| match group_of(user).filter(|group| *group < groups) {
                Some(group) => {
                    counts[group] += 1;
                    group as u32
                }
                None => Self::NOWHERE,
            })
            .collect();
        Groups { of, cells: counts.clone(), users: counts }
    }

    /// Puts the users of each group into strata.
    pub fn stratified(mut self, strata: usize, stratum_of: impl Fn(usize) -> usize) -> Self {
        if strata < 2 {
            return self;
        }
        let groups = self.users.len();
        self.cells = vec![0; strata * groups];
        for (user, cell) in self.of.iter_mut().enumerate().filter(|(_, cell)| **cell != Self::NOWHERE) {
            let place = stratum_of(user).min(strata - 1) * groups + *cell as usize;
            self.cells[place] += 1;
            *cell = place as u32;
        }
        self
    }

    /// Returns how many users there are, whether they belong somewhere or not.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Returns the users of each group.
    pub fn users(&self) -> &[u64] {
        &self.users
    }

    /// Returns a user's group.
    pub fn of(&self, user: u32) -> Option<usize> {
        self.cell(user).map(|cell| cell % self.users.len())
    }

    /// Returns a user's cell.
    pub fn cell(&self, user: u32) -> Option<usize> {
        let cell = *self.of.get(user as usize)?;
        (cell != Self::NOWHERE).then_some(cell as usize)
    }

    /// Returns the users of each cell.
    pub fn cells(&self) -> &[u64] {
        &self.cells
    }

    /// Puts the sums of cells together to those of groups.
    /// # Errors
    /// [`Overflow`].
    pub fn sums_of(&self, cells: Vec<Sums>) -> Result<Vec<Sums>, Overflow> {
        let groups = self.users.len();
        if cells.len() == groups {
            return Ok(cells);
        }
        let of_group = |group: usize| {
            let strata: Vec<Sums> = cells.iter().skip(group).step_by(groups).cloned().collect();
            let (first, others) = strata.split_first().ok_or(Overflow)?;
            let mut all = first.clone();
            for other in others {
                all.merge(other)?;
            }
            Ok(Sums { strata, ..all })
        };
        (0..groups).map(of_group).collect()
    }

    /// Returns how many users belong somewhere.
    pub fn total(&self) -> u64 {
        self.users.iter().sum()
    }
}
