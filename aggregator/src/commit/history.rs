//! The raw rows of users, as far as participation and attribution need them.

use std::collections::BTreeMap;

use compact_str::CompactString;
use events::{Kind, Micros, Money};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::commit::derive::{Conversion, Derived, Exposure, Rules, derive};
use crate::commit::exposed::{self, ExposuresOf, LookedAt};
use crate::commit::over_active::{self, Mark};
use crate::database::Timestamp;

/// A user of a project.
pub(crate) type User = (Uuid, Uuid);

/// `LIMIT` bounds what one user takes, and keeps it a lookup for each user. Tables grow by the second, so the planner's notion of them is always old, and
/// otherwise it now and then reads all of one: with `user_id = ANY ($2)` it did, and that batch took twenty times as long.
const IMPRESSIONS: &str = "
    SELECT u.number, i.experiment_id, i.variant_id, i.event_time, i.id, i.claimed_at
    FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS u (project_id, user_id, number)
    CROSS JOIN LATERAL (
        SELECT i.experiment_id, i.variant_id, i.event_time, i.id, i.claimed_at FROM impressions i
        WHERE i.project_id = u.project_id AND i.user_id = u.user_id AND i.experiment_id IS NOT NULL
          AND i.variant_id IS NOT NULL AND i.user_was_eligible IS NOT FALSE AND NOT i.is_bot
        LIMIT $3
    ) i";

const CONVERSIONS: &str = "
    SELECT u.number, c.experiment_id, c.event_time, c.id, c.claimed_at, c.is_bot, c.conversion_type, c.value, c.currency
    FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS u (project_id, user_id, number)
    CROSS JOIN LATERAL (
        SELECT c.experiment_id, c.event_time, c.id, c.claimed_at, c.is_bot, c.conversion_type, c.conversion_value::text AS value,
               c.currency
        FROM conversions c WHERE c.project_id = u.project_id AND c.user_id = u.user_id
        LIMIT $3
    ) c";

/// What users did, stored rows and those that are about to be.
#[derive(Debug)]
pub(crate) struct Histories {
    users: BTreeMap<User, History>,
    /// Who has more rows takes no part; of such a user one more is read at most, of each kind.
    pub rows_max: usize,
}

/// What one user did.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Impressions that name a variant, by experiment, ascending: most users have one or two, and a list of these takes a fifth of a tree's
    /// memory.
    exposures: Vec<(Uuid, Rows<Exposure>)>,
    /// The same for experiments to which other events expose, by their definition.
    defined: Vec<(Uuid, Defined)>,
    conversions: Rows<Conversion>,
    /// That it had too many rows before this commit.
    mark: Option<Box<Mark>>,
}

/// Events that a definition is about.
#[derive(Clone, Debug, Default)]
struct Defined {
    /// Those that expose. Nothing is kept of a user with too many that are looked at.
    exposures: Rows<Exposure>,
    /// How many are looked at, whether they expose or not: those stored, and all; up to one more than may be.
    looked_at: (usize, usize),
}

impl Defined {
    /// Looks at a stored event.
    fn look_at_stored(&mut self, exposure: Option<Exposure>, rows_max: usize) {
        self.look_at(exposure, rows_max);
        self.settle(rows_max);
    }

    /// Looks at an event of this commit.
    fn look_at(&mut self, exposure: Option<Exposure>, rows_max: usize) {
        self.looked_at.1 = (self.looked_at.1 + 1).min(rows_max.saturating_add(1));
        if self.looked_at.1 <= rows_max {
            self.exposures.rows.extend(exposure);
        }
    }

    /// What is looked at is stored now.
    fn settle(&mut self, rows_max: usize) {
        self.looked_at.0 = self.looked_at.1;
        if self.looked_at.0 > rows_max {
            self.exposures = Rows::default();
        }
        self.exposures.stored = self.exposures.rows.len();
    }
}

/// Rows in two parts: those stored before, and then those of this commit.
#[derive(Clone, Debug)]
struct Rows<T> {
    rows: Vec<T>,
    stored: usize,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Rows { rows: Vec::new(), stored: 0 }
    }
}

impl<T> Rows<T> {
    fn push_stored(&mut self, row: T) {
        self.rows.push(row);
        self.stored = self.rows.len();
    }

    /// Adds a row of the commit. Most users have few rows, and their lists are to take no more room than that.
    fn push(&mut self, row: T) {
        if self.rows.len() < 8 {
            self.rows.reserve_exact(1);
        }
        self.rows.push(row);
    }

    /// The rows of the commit are not stored after all.
    fn take_back(&mut self) {
        self.rows.truncate(self.stored);
    }

    /// The rows of the commit are stored now. The list takes no more than it needs.
    fn settle(&mut self) {
        self.stored = self.rows.len();
        self.rows.shrink_to_fit();
    }

    /// Bytes of the list.
    fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<T>() + ALLOCATION_BYTES
    }
}

/// What an allocator takes beside the bytes asked for, about.
const ALLOCATION_BYTES: usize = 16;

/// Returns whether a row has a part in participation or attribution.
pub(crate) fn affects_participation(row: &StagedRow<'_>, exposures_of: &ExposuresOf<'_>) -> bool {
    let event = row.event();
    match event.kind() {
        Kind::Impression if row.ids.experiment.is_some() => true,
        Kind::Conversion => true,
        kind => exposures_of(event.project_id.0).is_looked_at(kind, event.name.as_deref()),
    }
}

/// Returns whose row it is.
fn user_of(row: &StagedRow<'_>) -> User {
    (row.event().project_id.0, row.event().user_id.0)
}

/// Returns the users whose participation rows may affect, each with the log partition that all of its rows come by.
pub(crate) fn touched(rows: &[StagedRow<'_>], exposures_of: &ExposuresOf<'_>) -> BTreeMap<User, u32> {
    rows.iter().filter(|row| affects_participation(row, exposures_of)).map(|row| (user_of(row), row.decoded.partition)).collect()
}

impl Histories {
    /// Holds nobody yet.
    pub(crate) fn new(rows_max: usize) -> Self {
        Histories { users: BTreeMap::new(), rows_max }
    }

    /// Reads the stored rows of the users that the rows of a batch touch.
    pub(crate) async fn of_batch(
        connection: &mut PgConnection,
        rows: &[StagedRow<'_>],
        rows_max: usize,
        exposures_of: &ExposuresOf<'_>,
    ) -> Result<Self, sqlx::Error> {
        Self::of_users(connection, touched(rows, exposures_of).into_keys(), rows_max, exposures_of).await
    }

    /// Reads the stored rows of users, or their marks.
    pub(crate) async fn of_users(
        connection: &mut PgConnection,
        users: impl Iterator<Item = User>,
        rows_max: usize,
        exposures_of: &ExposuresOf<'_>,
    ) -> Result<Self, sqlx::Error> {
        let mut histories = Histories::new(rows_max);
        histories.users = users.map(|user| (user, History::default())).collect();
        if !histories.users.is_empty() {
            histories.read_marks(connection).await?;
            histories.read_rows(connection, exposures_of).await?;
        }
        Ok(histories)
    }

    async fn read_marks(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let users: Vec<User> = self.users.keys().copied().collect();
        for (user, mark) in over_active::marks(connection, &users).await? {
            if let Some(history) = self.users.get_mut(&user) {
                history.mark = Some(Box::new(mark));
            }
        }
        Ok(())
    }

    async fn read_rows(&mut self, connection: &mut PgConnection, exposures_of: &ExposuresOf<'_>) -> Result<(), sqlx::Error> {
        let (rows_max, limit) = (self.rows_max, i64::try_from(self.rows_max).unwrap_or(i64::MAX).saturating_add(1));
        let read = self.users.iter_mut().filter(|(_, history)| !history.is_over_active(rows_max));
        let (users, mut histories): (Vec<User>, Vec<&mut History>) = read.map(|(user, history)| (*user, history)).unzip();
        if users.is_empty() {
            return Ok(());
        }
        let mut places: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
        for (place, (project, _)) in users.iter().enumerate() {
            places.entry(*project).or_default().push(place);
        }
        let (projects, users): (Vec<Uuid>, Vec<Uuid>) = users.into_iter().unzip();
        for (project, places) in places {
            let of_project: Vec<Uuid> = places.iter().map(|place| users[*place]).collect();
            let look = |LookedAt { user, experiment, exposure }: LookedAt| {
                histories[places[user]].defined(experiment).look_at_stored(exposure, rows_max);
            };
            exposed::read(connection, (project, &of_project), exposures_of(project), limit, look).await?;
        }
        for row in sqlx::query(IMPRESSIONS).bind(&projects).bind(&users).bind(limit).fetch_all(&mut *connection).await? {
            let exposure = Exposure {
                event_time: time(&row, 3)?,
                id: row.try_get(4)?,
                claimed_at: time(&row, 5)?,
                variant: row.try_get(2)?,
            };
            if let Some(history) = at(&mut histories, &row)? {
                history.exposures_of(row.try_get(1)?).push_stored(exposure);
            }
        }
        for row in sqlx::query(CONVERSIONS).bind(&projects).bind(&users).bind(limit).fetch_all(connection).await? {
            let conversion = Conversion {
                experiment: row.try_get(1)?,
                event_time: time(&row, 2)?,
                id: row.try_get(3)?,
                claimed_at: time(&row, 4)?,
                is_bot: row.try_get(5)?,
                kind: row.try_get::<&str, _>(6)?.into(),
                value: money(&row, 7)?,
                currency: row.try_get::<Option<&str>, _>(8)?.map(CompactString::from),
            };
            if let Some(history) = at(&mut histories, &row)? {
                history.conversions.push_stored(conversion);
            }
        }
        Ok(())
    }

    /// Adds the rows that a commit stores.
    pub(crate) fn add(&mut self, new: &[StagedRow<'_>], exposures_of: &ExposuresOf<'_>) {
        for row in new.iter().filter(|row| affects_participation(row, exposures_of)) {
            let event = row.event();
            let history = self.users.entry(user_of(row)).or_default();
            let exposure =
                |variant| Exposure { event_time: event.event_time, id: event.event_id.0, claimed_at: event.claimed_at, variant };
            if exposed::may_expose(row) {
                for (experiment, variant) in exposed::looked_at(row, exposures_of(event.project_id.0)) {
                    history.defined(experiment).look_at(variant.map(exposure), self.rows_max);
                }
            }
            match (event.kind(), row.ids.experiment, row.ids.variant) {
                (Kind::Conversion, experiment, _) => history.conversions.push(Conversion {
                    id: event.event_id.0,
                    claimed_at: event.claimed_at,
                    event_time: event.event_time,
                    experiment,
                    is_bot: event.is_bot,
                    kind: event.name.clone().unwrap_or_default(),
                    value: event.value,
                    currency: event.currency.clone(),
                }),
                (Kind::Impression, Some(experiment), Some(variant)) if exposed::may_expose(row) => {
                    history.exposures_of(experiment).push(exposure(variant));
                }
                _ => {}
            }
        }
    }

    /// Returns each user with what it did.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (User, &History)> {
        self.users.iter().map(|(user, history)| (*user, history))
    }

    /// Adds what is known of a user, or replaces it.
    pub(crate) fn insert(&mut self, user: User, history: History) {
        self.users.insert(user, history);
    }

    /// Returns what a user did.
    pub(crate) fn get(&self, user: &User) -> Option<&History> {
        self.users.get(user)
    }

    /// The rows that were added are not stored after all.
    pub(crate) fn take_back(&mut self) {
        self.users.values_mut().for_each(History::take_back);
    }

    /// The rows that were added are stored now.
    pub(crate) fn settle(&mut self) {
        let rows_max = self.rows_max;
        self.users.values_mut().for_each(|history| history.settle(rows_max));
    }
}

impl IntoIterator for Histories {
    type Item = (User, History);
    type IntoIter = std::collections::btree_map::IntoIter<User, History>;

    fn into_iter(self) -> Self::IntoIter {
        self.users.into_iter()
    }
}

impl History {
    /// Returns the experiments that the user may have been exposed to, each once.
    pub(crate) fn experiments(&self) -> impl Iterator<Item = Uuid> {
        let defined = self.defined.iter().map(|(experiment, _)| *experiment);
        let only_defined = defined.filter(|experiment| self.find_exposures(*experiment).is_none());
        self.exposures.iter().map(|(experiment, _)| *experiment).chain(only_defined)
    }

    /// Returns those to which other events than impressions have exposed the user.
    pub(crate) fn exposed_by_definition(&self) -> impl Iterator<Item = Uuid> {
        self.defined.iter().filter(|(_, defined)| !defined.exposures.rows.is_empty()).map(|(experiment, _)| *experiment)
    }

    /// Returns those to which the user was exposed, some twice.
    pub(crate) fn exposed(&self) -> impl Iterator<Item = Uuid> {
        self.exposures.iter().map(|(experiment, _)| *experiment).chain(self.exposed_by_definition())
    }

    fn defined(&mut self, experiment: Uuid) -> &mut Defined {
        let place = match self.defined.binary_search_by_key(&experiment, |(experiment, _)| *experiment) {
            Ok(place) => place,
            Err(place) => {
                self.defined.insert(place, (experiment, Defined::default()));
                place
            }
        };
        &mut self.defined[place].1
    }

    /// Returns what exposed the user to an experiment by its rules, all or those stored before the commit: none of who has too many events
    /// that are looked at.
    fn shown(&self, experiment: Uuid, (rules, rows_max): (&Rules, usize), is_before: bool) -> &[Exposure] {
        let rows = if rules.exposure.is_none() {
            self.find_exposures(experiment)
        } else {
            let place = self.defined.binary_search_by_key(&experiment, |(experiment, _)| *experiment).ok();
            let defined = place.and_then(|place| self.defined.get(place)).map(|(_, defined)| defined);
            let looked_at = |defined: &&Defined| if is_before { defined.looked_at.0 } else { defined.looked_at.1 };
            defined.filter(|defined| looked_at(defined) <= rows_max).map(|defined| &defined.exposures)
        };
        rows.map_or(&[], |rows| if is_before { &rows.rows[..rows.stored] } else { &rows.rows })
    }

    fn exposures_of(&mut self, experiment: Uuid) -> &mut Rows<Exposure> {
        let place = match self.exposures.binary_search_by_key(&experiment, |(experiment, _)| *experiment) {
            Ok(place) => place,
            Err(place) => {
                self.exposures.reserve_exact(1); // one or two, as a rule
                self.exposures.insert(place, (experiment, Rows::default()));
                place
            }
        };
        &mut self.exposures[place].1
    }

    fn find_exposures(&self, experiment: Uuid) -> Option<&Rows<Exposure>> {
        let place = self.exposures.binary_search_by_key(&experiment, |(experiment, _)| *experiment).ok()?;
        self.exposures.get(place).map(|(_, exposures)| exposures)
    }

    /// Returns the number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.exposures.iter().map(|(_, exposures)| exposures.rows.len()).sum::<usize>() + self.conversions.rows.len()
    }

    /// Returns the number of those stored before the commit.
    pub(crate) fn stored_rows(&self) -> usize {
        self.exposures.iter().map(|(_, exposures)| exposures.stored).sum::<usize>() + self.conversions.stored
    }

    /// Returns the mark that it had before this commit.
    pub(crate) fn mark(&self) -> Option<&Mark> {
        self.mark.as_deref()
    }

    /// Returns whether it has more rows than may be, with those of this commit.
    pub(crate) fn is_over_active(&self, rows_max: usize) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.rows_max >= rows_max) || self.rows() > rows_max
    }

    /// Returns what is to be remembered once the rows of the commit are stored: of who takes part all rows, of who is marked the mark
    /// alone. Nothing where the commit has written or changed a mark.
    pub(crate) fn into_remembered(self, rows_max: usize) -> Option<History> {
        match &self.mark {
            None => (self.rows() <= rows_max).then_some(self),
            Some(mark) if mark.rows_max < rows_max || self.exposed().any(|new| !mark.experiments.contains(&new)) => None,
            Some(_) => Some(History { mark: self.mark, ..History::default() }),
        }
    }

    fn take_back(&mut self) {
        self.exposures.iter_mut().for_each(|(_, exposures)| exposures.take_back());
        self.exposures.retain(|(_, exposures)| exposures.stored > 0);
        self.defined.iter_mut().for_each(|(_, defined)| {
            defined.looked_at.1 = defined.looked_at.0;
            defined.exposures.take_back();
        });
        self.defined.retain(|(_, defined)| defined.looked_at.0 > 0);
        self.conversions.take_back();
    }

    fn settle(&mut self, rows_max: usize) {
        self.exposures.iter_mut().for_each(|(_, exposures)| exposures.settle());
        self.exposures.shrink_to_fit();
        self.defined.iter_mut().for_each(|(_, defined)| {
            defined.settle(rows_max);
            defined.exposures.rows.shrink_to_fit();
        });
        self.defined.shrink_to_fit();
        self.conversions.settle();
    }

    /// Returns the bytes that it takes outside of itself, about.
    pub(crate) fn heap_bytes(&self) -> usize {
        let exposures: usize = self.exposures.iter().map(|(_, exposures)| exposures.bytes()).sum();
        let text = |text: &CompactString| if text.is_heap_allocated() { text.capacity() + ALLOCATION_BYTES } else { 0 };
        let texts = |conversion: &Conversion| text(&conversion.kind) + conversion.currency.as_ref().map_or(0, text);
        self.exposures.capacity() * size_of::<(Uuid, Rows<Exposure>)>()
            + ALLOCATION_BYTES
            + exposures
            + self.defined.iter().map(|(_, defined)| size_of::<(Uuid, Defined)>() + defined.exposures.bytes()).sum::<usize>()
            + self.conversions.bytes()
            + self
                .mark
                .as_ref()
                .map_or(0, |mark| size_of::<Mark>() + mark.experiments.capacity() * size_of::<Uuid>() + 2 * ALLOCATION_BYTES)
            + self.conversions.rows.iter().map(texts).sum::<usize>()
    }

    /// Returns whether both are the same stored rows, in any order, and the same mark.
    pub(crate) fn is_same(&self, other: &History) -> bool {
        let sorted = |exposures: &Rows<Exposure>| {
            let mut rows = exposures.rows[..exposures.stored].to_vec();
            rows.sort_unstable();
            rows
        };
        let exposures = |history: &History| {
            let exposures = history.exposures.iter().map(|(experiment, exposures)| (*experiment, sorted(exposures)));
            let defined = history.defined.iter();
            let defined = defined.map(|(experiment, defined)| (*experiment, defined.looked_at.0, sorted(&defined.exposures)));
            (exposures.collect::<Vec<_>>(), defined.collect::<Vec<_>>())
        };
        let conversions = |history: &History| {
            let mut rows = history.conversions.rows[..history.conversions.stored].to_vec();
            rows.sort_unstable_by_key(Conversion::identity);
            rows
        };
        self.mark == other.mark && exposures(self) == exposures(other) && conversions(self) == conversions(other)
    }

    /// Returns the conversions of this commit.
    pub(crate) fn new_conversions(&self) -> &[Conversion] {
        &self.conversions.rows[self.conversions.stored..]
    }

    /// Derives what the user had in an experiment before this commit.
    pub(crate) fn before(&self, experiment: Uuid, rules: &Rules, rows_max: usize) -> Derived {
        let conversions = &self.conversions.rows[..self.conversions.stored];
        derive(experiment, rules, self.shown(experiment, (rules, rows_max), true), conversions)
    }

    /// Derives what the user has in an experiment with this commit.
    pub(crate) fn after(&self, experiment: Uuid, rules: &Rules, rows_max: usize) -> Derived {
        derive(experiment, rules, self.shown(experiment, (rules, rows_max), false), &self.conversions.rows)
    }
}

fn at<'a, 'b>(histories: &'a mut [&'b mut History], row: &PgRow) -> Result<Option<&'a mut &'b mut History>, sqlx::Error> {
    let number: i64 = row.try_get(0)?;
    Ok(histories.get_mut(number as usize - 1))
}

/// Reads a point in time from a column.
pub(crate) fn time(row: &PgRow, column: usize) -> Result<Micros, sqlx::Error> {
    Ok(row.try_get::<Timestamp, _>(column)?.0)
}

/// Reads an amount from a column that is a numeric as a text.
pub(crate) fn money(row: &PgRow, column: usize) -> Result<Option<Money>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(|text| text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))).transpose()
}
