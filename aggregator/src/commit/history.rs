//! The raw rows of users, as far as participation and attribution need them.

use std::collections::BTreeMap;

use events::{Details, Kind, Micros, Money};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::commit::derive::{Conversion, Derived, Exposure, Rules, derive};
use crate::database::Timestamp;

/// A user of a project.
pub(crate) type User = (Uuid, Uuid);

/// `OFFSET 0` keeps it a lookup for each user. Tables grow by the second, so the planner's notion of them is always old, and
/// otherwise it now and then reads all of one: with `user_id = ANY ($2)` it did, and that batch took twenty times as long.
const IMPRESSIONS: &str = "
    SELECT u.number, i.experiment_id, i.variant_id, i.event_time, i.id, i.claimed_at
    FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS u (project_id, user_id, number)
    CROSS JOIN LATERAL (
        SELECT i.experiment_id, i.variant_id, i.event_time, i.id, i.claimed_at FROM impressions i
        WHERE i.project_id = u.project_id AND i.user_id = u.user_id AND i.experiment_id IS NOT NULL
          AND i.variant_id IS NOT NULL AND i.user_was_eligible IS NOT FALSE AND NOT i.is_bot
        OFFSET 0
    ) i";

const CONVERSIONS: &str = "
    SELECT u.number, c.experiment_id, c.event_time, c.id, c.claimed_at, c.is_bot, c.conversion_type, c.value, c.currency
    FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS u (project_id, user_id, number)
    CROSS JOIN LATERAL (
        SELECT c.experiment_id, c.event_time, c.id, c.claimed_at, c.is_bot, c.conversion_type, c.conversion_value::text AS value,
               c.currency
        FROM conversions c WHERE c.project_id = u.project_id AND c.user_id = u.user_id
        OFFSET 0
    ) c";

/// What users did, stored rows and those that are about to be.
#[derive(Debug, Default)]
pub(crate) struct Histories(BTreeMap<User, History>);

/// What one user did.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// By experiment.
    exposures: BTreeMap<Uuid, Rows<Exposure>>,
    conversions: Rows<Conversion>,
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
}

/// Returns whether a row has a part in participation or attribution.
pub(crate) fn affects_participation(row: &StagedRow<'_>) -> bool {
    match row.event().kind() {
        Kind::Impression => row.ids.experiment.is_some(),
        Kind::Conversion => true,
        Kind::CampaignEvent | Kind::Engagement | Kind::Identity => false,
    }
}

/// Returns whose row it is.
fn user_of(row: &StagedRow<'_>) -> User {
    (row.event().project_id.0, row.event().user_id.0)
}

impl Histories {
    /// Reads the stored rows of the users that the rows of a batch touch.
    pub(crate) async fn of_batch(connection: &mut PgConnection, rows: &[StagedRow<'_>]) -> Result<Self, sqlx::Error> {
        let users = rows.iter().filter(|row| affects_participation(row)).map(user_of);
        let histories = Histories(users.map(|user| (user, History::default())).collect());
        histories.read(connection).await
    }

    /// Reads the stored rows of users.
    pub(crate) async fn of_users(connection: &mut PgConnection, users: impl Iterator<Item = User>) -> Result<Self, sqlx::Error> {
        Histories(users.map(|user| (user, History::default())).collect()).read(connection).await
    }

    async fn read(mut self, connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        if self.0.is_empty() {
            return Ok(self);
        }
        let (projects, users): (Vec<Uuid>, Vec<Uuid>) = self.0.keys().copied().unzip();
        let mut histories: Vec<&mut History> = self.0.values_mut().collect();
        for row in sqlx::query(IMPRESSIONS).bind(&projects).bind(&users).fetch_all(&mut *connection).await? {
            let exposure = Exposure {
                event_time: time(&row, 3)?,
                id: row.try_get(4)?,
                claimed_at: time(&row, 5)?,
                variant: row.try_get(2)?,
            };
            if let Some(history) = at(&mut histories, &row)? {
                history.exposures.entry(row.try_get(1)?).or_default().push_stored(exposure);
            }
        }
        for row in sqlx::query(CONVERSIONS).bind(&projects).bind(&users).fetch_all(connection).await? {
            let conversion = Conversion {
                experiment: row.try_get(1)?,
                event_time: time(&row, 2)?,
                id: row.try_get(3)?,
                claimed_at: time(&row, 4)?,
                is_bot: row.try_get(5)?,
                kind: row.try_get(6)?,
                value: money(&row, 7)?,
                currency: row.try_get(8)?,
            };
            if let Some(history) = at(&mut histories, &row)? {
                history.conversions.push_stored(conversion);
            }
        }
        Ok(self)
    }

    /// Adds the rows that a commit stores.
    pub(crate) fn add(&mut self, new: &[StagedRow<'_>]) {
        for row in new.iter().filter(|row| affects_participation(row)) {
            let event = row.event();
            let history = self.0.entry(user_of(row)).or_default();
            match (event.kind(), row.ids.experiment, row.ids.variant) {
                (Kind::Conversion, experiment, _) => history.conversions.rows.push(Conversion {
                    id: event.event_id.0,
                    claimed_at: event.claimed_at,
                    event_time: event.event_time,
                    experiment,
                    is_bot: event.is_bot,
                    kind: event.name.clone().unwrap_or_default(),
                    value: event.value,
                    currency: event.currency.clone(),
                }),
                (_, Some(experiment), Some(variant)) => {
                    let was_ineligible = matches!(
                        &event.details,
                        Details::Impression(details) if details.user_was_eligible == Some(false)
                    );
                    if !was_ineligible && !event.is_bot {
                        let exposures = history.exposures.entry(experiment).or_default();
                        exposures.rows.push(Exposure {
                            event_time: event.event_time,
                            id: event.event_id.0,
                            claimed_at: event.claimed_at,
                            variant,
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns each user with what it did.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (User, &History)> {
        self.0.iter().map(|(user, history)| (*user, history))
    }
}

impl History {
    /// Returns the experiments that the user was exposed to.
    pub(crate) fn experiments(&self) -> impl Iterator<Item = Uuid> {
        self.exposures.keys().copied()
    }

    /// Returns the conversions of this commit.
    pub(crate) fn new_conversions(&self) -> &[Conversion] {
        &self.conversions.rows[self.conversions.stored..]
    }

    /// Derives what the user had in an experiment before this commit.
    pub(crate) fn before(&self, experiment: Uuid, rules: &Rules) -> Derived {
        let conversions = &self.conversions.rows[..self.conversions.stored];
        let exposures = self.exposures.get(&experiment).map_or(&[][..], |exposures| &exposures.rows[..exposures.stored]);
        derive(experiment, rules, exposures, conversions)
    }

    /// Derives what the user has in an experiment with this commit.
    pub(crate) fn after(&self, experiment: Uuid, rules: &Rules) -> Derived {
        let exposures = self.exposures.get(&experiment).map_or(&[][..], |exposures| &exposures.rows);
        derive(experiment, rules, exposures, &self.conversions.rows)
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
