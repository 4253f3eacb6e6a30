//! Differences between two states of the derived tables, and the statements that write them.

use std::collections::HashMap;

use events::Money;
use events::fact::Value;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::commit::copy::Encoded;
use crate::commit::derive::{Attribution, ConversionId, Derived, Participation};
use crate::commit::history::{User, money, time};
use crate::database::Timestamp;

/// Rows that a computation changed, inserted or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// In `user_experiment_participation`.
    pub participation: u64,
    /// In `conversion_attribution`.
    pub attribution: u64,
}

impl std::ops::AddAssign for Differences {
    fn add_assign(&mut self, more: Differences) {
        self.participation += more.participation;
        self.attribution += more.attribution;
    }
}

/// Reads what both tables hold of users in one experiment. `OFFSET 0` keeps it a lookup for each user, as in `history.rs`.
pub(crate) async fn read_derived(
    connection: &mut PgConnection,
    experiment: Uuid,
    users: &[User],
) -> Result<HashMap<User, Derived>, sqlx::Error> {
    let (projects, ids): (Vec<Uuid>, Vec<Uuid>) = users.iter().copied().unzip();
    let mut stored: HashMap<User, Derived> = HashMap::new();
    let participations = sqlx::query(
        "SELECT p.project_id, p.user_id, p.variant_id, p.first_exposure_date, p.first_impression_id, p.total_impressions,
                p.variants_seen, CASE WHEN p.has_converted THEN p.first_conversion_date END, p.conversion_within_window
         FROM unnest($1::uuid[], $2::uuid[]) AS u (project_id, user_id)
         CROSS JOIN LATERAL (
             SELECT * FROM user_experiment_participation p
             WHERE p.project_id = u.project_id AND p.experiment_id = $3 AND p.user_id = u.user_id
             OFFSET 0
         ) p",
    );
    for row in participations.bind(&projects).bind(&ids).bind(experiment).fetch_all(&mut *connection).await? {
        let seen: Vec<Uuid> = row.try_get(6)?;
        let participation = Participation {
            variant: row.try_get(2)?,
            first_time: time(&row, 3)?,
            first_id: row.try_get(4)?,
            impressions: row.try_get(5)?,
            variants_seen: seen.into_iter().collect(),
            first_conversion: row.try_get::<Option<Timestamp>, _>(7)?.map(|time| time.0),
            converted_within_window: row.try_get(8)?,
        };
        stored.entry((row.try_get(0)?, row.try_get(1)?)).or_default().participation = Some(participation);
    }
    let attributions = sqlx::query(
        "SELECT a.project_id, a.user_id, a.conversion_id, a.conversion_claimed_at, a.conversion_time, a.conversion_type,
                a.variant_id, a.attribution_method, (a.attribution_confidence * 100)::int, a.time_to_conversion_hours,
                a.conversion_value_attributed::text, a.currency
         FROM unnest($1::uuid[], $2::uuid[]) AS u (project_id, user_id)
         CROSS JOIN LATERAL (
             SELECT * FROM conversion_attribution a
             WHERE a.project_id = u.project_id AND a.experiment_id = $3 AND a.user_id = u.user_id
             OFFSET 0
         ) a",
    );
    for row in attributions.bind(&projects).bind(&ids).bind(experiment).fetch_all(connection).await? {
        let attribution = Attribution {
            conversion_time: time(&row, 4)?,
            kind: row.try_get::<&str, _>(5)?.into(),
            variant: row.try_get(6)?,
            method: row.try_get(7)?,
            confidence: row.try_get(8)?,
            hours: row.try_get(9)?,
            value: money(&row, 10)?,
            currency: row.try_get::<Option<&str>, _>(11)?.map(Into::into),
        };
        let of_user = stored.entry((row.try_get(0)?, row.try_get(1)?)).or_default();
        of_user.attributions.insert((row.try_get(2)?, time(&row, 3)?), attribution);
    }
    Ok(stored)
}

/// A user in an experiment.
type Key = (User, Uuid);

/// Rows of both tables that are to be written or removed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    new_participations: Vec<(Key, Participation)>,
    participations: Vec<(Key, Participation)>,
    /// Those of which only the count of impressions changes, as nearly all do.
    recounted: Vec<(Key, Participation)>,
    no_participations: Vec<Key>,
    new_attributions: Vec<(Key, ConversionId, Attribution)>,
    attributions: Vec<(Key, ConversionId, Attribution)>,
    no_attributions: Vec<(Key, ConversionId)>,
}

/// How rows are written that are not there as far as the state before them tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NewRows {
    /// Copied, which costs less. One that is there already fails all of it with 23505.
    #[default]
    Copied,
    /// Inserted, or updated if they are there.
    Upserted,
}

impl Changes {
    /// Records what leads from one state of a key to another.
    pub(crate) fn record(&mut self, user: User, experiment: Uuid, before: &Derived, after: Derived) {
        let key = (user, experiment);
        let gone = before.attributions.keys().filter(|conversion| !after.attributions.contains_key(conversion));
        self.no_attributions.extend(gone.map(|conversion| (key, *conversion)));
        for (conversion, attribution) in after.attributions {
            match before.attributions.get(&conversion) {
                None => self.new_attributions.push((key, conversion, attribution)),
                Some(known) if *known != attribution => self.attributions.push((key, conversion, attribution)),
                Some(_) => {}
            }
        }
        match (&before.participation, after.participation) {
            (None, Some(found)) => self.new_participations.push((key, found)),
            (Some(known), Some(found)) if *known == found => {}
            (Some(known), Some(found)) if known.is_same_but_for_count(&found) => self.recounted.push((key, found)),
            (Some(_), Some(found)) => self.participations.push((key, found)),
            (Some(_), None) => self.no_participations.push(key),
            (None, None) => {}
        }
    }

    /// Orders them by the tables' keys, and encodes the rows that will be copied. Asks nothing of the database.
    pub(crate) fn prepare(mut self, new: NewRows) -> Prepared {
        if new == NewRows::Upserted {
            self.participations.append(&mut self.recounted);
            self.participations.append(&mut self.new_participations);
            self.attributions.append(&mut self.new_attributions);
        }
        for rows in [&mut self.new_participations, &mut self.participations, &mut self.recounted] {
            rows.sort_unstable_by_key(|(key, _)| in_table(key));
        }
        for rows in [&mut self.new_attributions, &mut self.attributions] {
            rows.sort_unstable_by_key(|(key, conversion, _)| (in_table(key), *conversion));
        }
        let new_participations = encode_participations(&self.new_participations);
        let new_attributions = encode_attributions(&self.new_attributions);
        Prepared { changes: self, new_participations, new_attributions }
    }
}

/// Changes that are ready to be written.
pub(crate) struct Prepared {
    changes: Changes,
    new_participations: Encoded,
    new_attributions: Encoded,
}

impl Prepared {
    /// Writes them, and returns how many there were.
    pub(crate) async fn write(self, connection: &mut PgConnection) -> Result<Differences, sqlx::Error> {
        let Prepared { changes, new_participations, new_attributions } = self;
        if !changes.no_attributions.is_empty() {
            remove_attributions(connection, &changes.no_attributions).await?;
        }
        if !changes.attributions.is_empty() {
            write_attributions(connection, &changes.attributions).await?;
        }
        if !changes.new_attributions.is_empty() {
            copy(connection, COPY_ATTRIBUTIONS, new_attributions).await?;
        }
        if !changes.no_participations.is_empty() {
            remove_participations(connection, &changes.no_participations).await?;
        }
        if !changes.participations.is_empty() {
            write_participations(connection, &changes.participations).await?;
        }
        if !changes.recounted.is_empty() && recount(connection, &changes.recounted).await? != changes.recounted.len() as u64 {
            tracing::info!("participation is missing that earlier rows give; it is written");
            write_participations(connection, &changes.recounted).await?;
        }
        if !changes.new_participations.is_empty() {
            copy(connection, COPY_PARTICIPATIONS, new_participations).await?;
        }
        let updated = changes.participations.len() + changes.recounted.len();
        let participation = changes.new_participations.len() + updated + changes.no_participations.len();
        let attribution = changes.new_attributions.len() + changes.attributions.len() + changes.no_attributions.len();
        Ok(Differences { participation: participation as u64, attribution: attribution as u64 })
    }
}

/// A key in the order of the tables' own.
fn in_table(((project, user), experiment): &Key) -> (Uuid, Uuid, Uuid) {
    (*project, *experiment, *user)
}

/// The three columns of keys, for `unnest`.
fn columns<'a>(keys: impl Iterator<Item = &'a Key>) -> (Vec<Uuid>, Vec<Uuid>, Vec<Uuid>) {
    let (mut projects, mut users, mut experiments) = (Vec::new(), Vec::new(), Vec::new());
    for ((project, user), experiment) in keys {
        projects.push(*project);
        users.push(*user);
        experiments.push(*experiment);
    }
    (projects, users, experiments)
}

/// A row's id: UUIDv5 of its unique key.
fn row_id(name: String) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

fn participation_id(((project, user), experiment): &Key) -> Uuid {
    row_id(format!("weir:participation:{project}:{experiment}:{user}"))
}

fn attribution_id(((project, user), experiment): &Key, (id, claimed_at): &ConversionId) -> Uuid {
    row_id(format!("weir:attribution:{project}:{user}:{id}:{}:{experiment}", claimed_at.0))
}

async fn copy(connection: &mut PgConnection, statement: &str, rows: Encoded) -> Result<(), sqlx::Error> {
    let mut copy = connection.copy_in_raw(statement).await?;
    for chunk in rows.end() {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    Ok(())
}

const COPY_PARTICIPATIONS: &str = "
    COPY user_experiment_participation (
        project_id, user_id, experiment_id, id, variant_id, first_exposure_date, first_impression_id, total_impressions, variants_seen,
        has_converted, first_conversion_date, conversion_within_window)
    FROM STDIN (FORMAT BINARY)";

/// As [`COPY_PARTICIPATIONS`] takes them.
fn encode_participations(rows: &[(Key, Participation)]) -> Encoded {
    let mut encoded = Encoded::begin();
    for (key, found) in rows {
        let ((project, user), experiment) = key;
        encoded.columns(12);
        for id in [*project, *user, *experiment, participation_id(key), found.variant] {
            encoded.value(Value::Uuid(id));
        }
        encoded.value(Value::Timestamp(found.first_time));
        encoded.value(Value::Uuid(found.first_id));
        encoded.value(Value::Bigint(found.impressions));
        encoded.uuids(found.variants_seen.iter());
        encoded.value(Value::Boolean(found.first_conversion.is_some()));
        encoded.value(found.first_conversion.map_or(Value::Null, Value::Timestamp));
        encoded.value(Value::Boolean(found.converted_within_window));
    }
    encoded
}

const COPY_ATTRIBUTIONS: &str = "
    COPY conversion_attribution (
        project_id, user_id, experiment_id, id, conversion_id, conversion_claimed_at, conversion_time, conversion_type, variant_id,
        attribution_method, attribution_confidence, time_to_conversion_hours, conversion_value_attributed, currency)
    FROM STDIN (FORMAT BINARY)";

/// As [`COPY_ATTRIBUTIONS`] takes them.
fn encode_attributions(rows: &[(Key, ConversionId, Attribution)]) -> Encoded {
    let mut encoded = Encoded::begin();
    for (key, conversion, found) in rows {
        let ((project, user), experiment) = key;
        encoded.columns(14);
        for id in [*project, *user, *experiment, attribution_id(key, conversion), conversion.0] {
            encoded.value(Value::Uuid(id));
        }
        encoded.value(Value::Timestamp(conversion.1));
        encoded.value(Value::Timestamp(found.conversion_time));
        encoded.value(Value::Text(&found.kind));
        encoded.value(Value::Uuid(found.variant));
        encoded.value(Value::Text(found.method.as_str()));
        // In hundredths; it is a number like an amount.
        let confidence = Money::from_millionths(i128::from(found.confidence) * 10_000);
        encoded.value(confidence.map_or(Value::Null, Value::Money));
        encoded.value(Value::Integer(found.hours));
        encoded.value(found.value.map_or(Value::Null, Value::Money));
        encoded.value(found.currency.as_deref().map_or(Value::Null, Value::Text));
    }
    encoded
}

/// Updates the count of impressions alone, and returns of how many rows: a fraction of what an upsert of the whole row takes.
///
/// Each row is looked up by its key. The planner's notion of the table is old, as that of facts is, and by it the whole table is read
/// now and then for a join.
async fn recount(connection: &mut PgConnection, rows: &[(Key, Participation)]) -> Result<u64, sqlx::Error> {
    let (projects, users, experiments) = columns(rows.iter().map(|(key, _)| key));
    sqlx::raw_sql("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off").execute(&mut *connection).await?;
    let updated = sqlx::query(
        "UPDATE user_experiment_participation p SET total_impressions = n.impressions, updated_at = now()
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[]) AS n (project_id, user_id, experiment_id, impressions)
         WHERE p.project_id = n.project_id AND p.experiment_id = n.experiment_id AND p.user_id = n.user_id",
    )
    .bind(projects)
    .bind(users)
    .bind(experiments)
    .bind(rows.iter().map(|(_, found)| found.impressions).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    sqlx::raw_sql("SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on").execute(connection).await?;
    Ok(updated.rows_affected())
}

async fn write_participations(connection: &mut PgConnection, rows: &[(Key, Participation)]) -> Result<(), sqlx::Error> {
    let (projects, users, experiments) = columns(rows.iter().map(|(key, _)| key));
    // Arrays of arrays are rectangles in Postgres, so each set travels as a text.
    let seen = |found: &Participation| {
        let ids: Vec<String> = found.variants_seen.iter().map(Uuid::to_string).collect();
        format!("{{{}}}", ids.join(","))
    };
    sqlx::query(
        "INSERT INTO user_experiment_participation AS p (
             project_id, user_id, experiment_id, id, variant_id, first_exposure_date, first_impression_id, total_impressions,
             variants_seen, has_converted, first_conversion_date, conversion_within_window)
         SELECT n.project_id, n.user_id, n.experiment_id, n.id, n.variant_id, n.first_time, n.first_id, n.impressions,
                n.seen::uuid[], n.converted IS NOT NULL, n.converted, n.within
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::timestamptz[], $7::uuid[], $8::bigint[],
                     $9::text[], $10::timestamptz[], $11::boolean[])
              AS n (project_id, user_id, experiment_id, id, variant_id, first_time, first_id, impressions, seen, converted, within)
         ON CONFLICT (project_id, experiment_id, user_id) DO UPDATE SET
             variant_id = excluded.variant_id, first_exposure_date = excluded.first_exposure_date,
             first_impression_id = excluded.first_impression_id, total_impressions = excluded.total_impressions,
             variants_seen = excluded.variants_seen, has_converted = excluded.has_converted,
             first_conversion_date = excluded.first_conversion_date,
             conversion_within_window = excluded.conversion_within_window, updated_at = now()",
    )
    .bind(projects)
    .bind(users)
    .bind(experiments)
    .bind(rows.iter().map(|(key, _)| participation_id(key)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| found.variant).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| Timestamp(found.first_time)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| found.first_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| found.impressions).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| seen(found)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| found.first_conversion.map(Timestamp)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, found)| found.converted_within_window).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn remove_participations(connection: &mut PgConnection, keys: &[Key]) -> Result<(), sqlx::Error> {
    let (projects, users, experiments) = columns(keys.iter());
    sqlx::query(
        "DELETE FROM user_experiment_participation p
         USING unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS n (project_id, user_id, experiment_id)
         WHERE p.project_id = n.project_id AND p.user_id = n.user_id AND p.experiment_id = n.experiment_id",
    )
    .bind(projects)
    .bind(users)
    .bind(experiments)
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_attributions(connection: &mut PgConnection, rows: &[(Key, ConversionId, Attribution)]) -> Result<(), sqlx::Error> {
    let (projects, users, experiments) = columns(rows.iter().map(|(key, _, _)| key));
    sqlx::query(
        "INSERT INTO conversion_attribution (
             project_id, user_id, experiment_id, id, conversion_id, conversion_claimed_at, conversion_time, conversion_type,
             variant_id, attribution_method, attribution_confidence, time_to_conversion_hours, conversion_value_attributed, currency)
         SELECT n.project_id, n.user_id, n.experiment_id, n.id, n.conversion_id, n.claimed_at, n.conversion_time, n.kind,
                n.variant_id, n.method, n.confidence::numeric / 100, n.hours, n.value::numeric, n.currency
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::timestamptz[], $7::timestamptz[], $8::text[],
                     $9::uuid[], $10::text[], $11::int[], $12::int[], $13::text[], $14::text[])
              AS n (project_id, user_id, experiment_id, id, conversion_id, claimed_at, conversion_time, kind, variant_id, method,
                    confidence, hours, value, currency)
         ON CONFLICT (project_id, experiment_id, user_id, conversion_id, conversion_claimed_at) DO UPDATE SET
             conversion_time = excluded.conversion_time, conversion_type = excluded.conversion_type,
             variant_id = excluded.variant_id, attribution_method = excluded.attribution_method,
             attribution_confidence = excluded.attribution_confidence,
             time_to_conversion_hours = excluded.time_to_conversion_hours,
             conversion_value_attributed = excluded.conversion_value_attributed, currency = excluded.currency,
             updated_at = now()",
    )
    .bind(projects)
    .bind(users)
    .bind(experiments)
    .bind(rows.iter().map(|(key, conversion, _)| attribution_id(key, conversion)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, (id, _), _)| *id).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, (_, claimed_at), _)| Timestamp(*claimed_at)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| Timestamp(found.conversion_time)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.kind.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.variant).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.method.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.confidence).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.hours).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.value.map(|value| value.to_string())).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, _, found)| found.currency.as_deref()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn remove_attributions(connection: &mut PgConnection, rows: &[(Key, ConversionId)]) -> Result<(), sqlx::Error> {
    let (projects, users, experiments) = columns(rows.iter().map(|(key, _)| key));
    sqlx::query(
        "DELETE FROM conversion_attribution a
         USING unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::timestamptz[])
               AS n (project_id, user_id, experiment_id, conversion_id, claimed_at)
         WHERE a.project_id = n.project_id AND a.user_id = n.user_id AND a.experiment_id = n.experiment_id
           AND a.conversion_id = n.conversion_id AND a.conversion_claimed_at = n.claimed_at",
    )
    .bind(projects)
    .bind(users)
    .bind(experiments)
    .bind(rows.iter().map(|(_, (id, _))| *id).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, (_, claimed_at))| Timestamp(*claimed_at)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
