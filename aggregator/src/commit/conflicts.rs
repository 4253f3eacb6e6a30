//! Records whose identity is stored already, with other content: no retries, so they are not passed over in silence.
//!
//! Of different records with one identity the first that is committed stays. A later one that differs from it in name, value,
//! currency, experiment, variant, or a campaign event's campaign or component, becomes a dead letter; one that does not is a retry, whatever
//! else it carries. Only rows that were not stored are looked at, each by one key.
//!
//! Anybody with a public key can send them. So these dead letters halt nothing (`limit.rs`), so many of a project and a day are kept, and
//! a repetition of one that is kept and open, such as a client's retry or a replay, is a repetition and no other letter.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use events::{Kind, Micros, Money};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::batch::{DeadLetter, ID_CONFLICT};
use crate::commit::StagedRow;
use crate::commit::copy::kind_number;
use crate::database::Timestamp;

/// Dead letters that are kept of a project and a day of receipt, about: workers of several log partitions do not wait for each other.
pub(crate) const KEPT_MAX: i64 = 10_000;

/// What became of conflicting records.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    /// In the order of the log.
    pub kept: Vec<DeadLetter>,
    /// More than are kept of their project and day: counted, and nothing else.
    pub passed: u64,
}

/// What has to be the same in a retry. Empty where the kind's table has no such column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Content<'a> {
    name: Option<&'a str>,
    value: Option<Money>,
    currency: Option<&'a str>,
    experiment: Option<Uuid>,
    variant: Option<Uuid>,
    campaign: Option<Uuid>,
    component: Option<Uuid>,
}

impl<'a> Content<'a> {
    fn of(row: &StagedRow<'a>) -> Self {
        let (event, ids) = (row.event(), row.ids);
        let name = Content { name: event.name.as_deref(), ..Content::default() };
        let money = Content { value: event.value, currency: event.currency.as_deref(), ..name };
        match event.kind() {
            Kind::Impression => Content { experiment: ids.experiment, variant: ids.variant, ..Content::default() },
            Kind::Conversion => Content { experiment: ids.experiment, variant: ids.variant, ..money },
            Kind::CampaignEvent => Content { campaign: ids.campaign, component: ids.component, ..money },
            Kind::Engagement => Content { experiment: ids.experiment, variant: ids.variant, ..name },
            Kind::Identity => name,
        }
    }

    /// The first 8 bytes of a UUIDv5 over all of it, each part with its length. Stored in `untimed_ids`, so never changed.
    fn fingerprint(&self) -> i64 {
        let value = self.value.map(|value| value.millionths().to_string());
        let ids = [&self.experiment, &self.variant, &self.campaign, &self.component];
        let texts = [self.name, value.as_deref(), self.currency].map(|text| text.map(str::as_bytes));
        let mut bytes = b"weir:content:".to_vec();
        for part in texts.into_iter().chain(ids.map(|id| id.as_ref().map(|id| id.as_bytes().as_slice()))) {
            bytes.push(u8::from(part.is_some()));
            if let Some(part) = part {
                bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
                bytes.extend_from_slice(part);
            }
        }
        (Uuid::new_v5(&Uuid::NAMESPACE_OID, &bytes).as_u128() >> 64) as i64
    }
}

/// Returns what tells the contents of rows with one identity apart.
pub(super) fn fingerprint(row: &StagedRow<'_>) -> i64 {
    Content::of(row).fingerprint()
}

/// A column of a fact table, and what it is called in [`Content`].
type Column = (&'static str, &'static str);

/// Compares each kind's rows with the stored ones of the same identity.
struct Statement {
    kind: Kind,
    sql: String,
}

static STATEMENTS: LazyLock<Vec<Statement>> = LazyLock::new(|| {
    const EXPERIMENT: &[Column] = &[("experiment_id", "experiment"), ("variant_id", "variant")];
    const CAMPAIGN: &[Column] = &[("campaign_id", "campaign"), ("component_id", "component")];
    let tables: [(Kind, &str, Vec<Column>); 5] = [
        (Kind::Impression, "impressions", EXPERIMENT.to_vec()),
        (
            Kind::Conversion,
            "conversions",
            [&[("conversion_type", "name"), ("conversion_value", "value"), ("currency", "currency")], EXPERIMENT].concat(),
        ),
        (
            Kind::CampaignEvent,
            "campaign_events",
            [&[("event_type", "name"), ("revenue", "value"), ("currency", "currency")], CAMPAIGN].concat(),
        ),
        (Kind::Engagement, "engagement_events", [&[("event_type", "name")], EXPERIMENT].concat()),
        (Kind::Identity, "identity_events", vec![("event_type", "name")]),
    ];
    tables.into_iter().map(|(kind, table, columns)| Statement { kind, sql: statement(table, &columns) }).collect()
});

/// `OFFSET 0` keeps it a look-up by key, whatever the planner believes of tables that grow by the second.
fn statement(table: &str, columns: &[Column]) -> String {
    let names: Vec<&str> = columns.iter().map(|(column, _)| *column).collect();
    let differs: Vec<String> = columns
        .iter()
        .map(|(column, field)| format!("CASE WHEN t.{column} IS DISTINCT FROM n.{field} THEN '{field}' END"))
        .collect();
    format!(
        "SELECT n.number, array_to_string(ARRAY[{differs}], ', ') FROM (
             SELECT number, project_id, user_id, claimed_at, id, name, value::numeric AS value, currency, experiment, variant, campaign,
                    component
             FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::uuid[],
                         $9::uuid[], $10::uuid[], $11::uuid[])
                  WITH ORDINALITY AS n (project_id, user_id, claimed_at, id, name, value, currency, experiment, variant, campaign,
                                        component, number)) n
         CROSS JOIN LATERAL (
             SELECT {names} FROM {table} f
             WHERE f.project_id = n.project_id AND f.user_id = n.user_id AND f.claimed_at = n.claimed_at AND f.id = n.id
             OFFSET 0) t
         WHERE array_to_string(ARRAY[{differs}], '') <> ''",
        differs = differs.join(", "),
        names = names.join(", "),
    )
}

const UNTIMED: &str = "
    SELECT n.number FROM unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::uuid[], $5::bigint[])
         WITH ORDINALITY AS n (project_id, kind, user_id, event_id, content, number)
    CROSS JOIN LATERAL (
        SELECT u.content FROM untimed_ids u
        WHERE u.project_id = n.project_id AND u.kind = n.kind AND u.user_id = n.user_id AND u.event_id = n.event_id
        OFFSET 0) u
    WHERE u.content <> n.content";

/// Looks at the rows of a batch that were not stored, after those that were. Counts the conflicts by project and day, and returns what is
/// to be kept of them.
pub(super) async fn find(
    connection: &mut PgConnection,
    log_id: Uuid,
    not_stored: &[StagedRow<'_>],
) -> Result<Conflicts, sqlx::Error> {
    let mut found: Vec<(&StagedRow<'_>, String)> = Vec::new();
    let (untimed, timed): (Vec<&StagedRow<'_>>, Vec<&StagedRow<'_>>) =
        not_stored.iter().partition(|row| row.event().is_known_by_id_alone());
    for statement in STATEMENTS.iter() {
        let rows: Vec<&StagedRow<'_>> = timed.iter().copied().filter(|row| row.event().kind() == statement.kind).collect();
        if !rows.is_empty() {
            found.extend(different(connection, &statement.sql, &rows).await?);
        }
    }
    if !untimed.is_empty() {
        found.extend(different_untimed(connection, &untimed).await?);
    }
    if found.is_empty() {
        return Ok(Conflicts::default());
    }
    found.sort_by_key(|(row, _)| (row.decoded.partition, row.decoded.offset));
    let letters =
        found.into_iter().map(|(row, what)| Letter { day: day(row.event().received_at), letter: letter(row, &what) }).collect();
    let new = without_repetitions(connection, letters).await?;
    keep(connection, log_id, new).await
}

async fn different<'r, 'a>(
    connection: &mut PgConnection,
    sql: &'static str,
    rows: &[&'r StagedRow<'a>],
) -> Result<Vec<(&'r StagedRow<'a>, String)>, sqlx::Error> {
    let contents: Vec<Content<'_>> = rows.iter().map(|row| Content::of(row)).collect();
    let found = sqlx::query(AssertSqlSafe(sql))
        .bind(rows.iter().map(|row| row.event().project_id.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.event().user_id.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| Timestamp(row.event().claimed_at)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.event().event_id.0).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.name).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.value.map(|value| value.to_string())).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.currency).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.experiment).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.variant).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.campaign).collect::<Vec<_>>())
        .bind(contents.iter().map(|content| content.component).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    let mut different = Vec::with_capacity(found.len());
    for row in found {
        let number: i64 = row.try_get(0)?;
        if let Some(of) = rows.get(number as usize - 1) {
            different.push((*of, row.try_get(1)?));
        }
    }
    Ok(different)
}

async fn different_untimed<'r, 'a>(
    connection: &mut PgConnection,
    rows: &[&'r StagedRow<'a>],
) -> Result<Vec<(&'r StagedRow<'a>, String)>, sqlx::Error> {
    let numbers: Vec<i64> = sqlx::query_scalar(UNTIMED)
        .bind(rows.iter().map(|row| row.event().project_id.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| kind_number(row.event().kind())).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.event().user_id.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.event().event_id.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| fingerprint(row)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    let row = |number: i64| rows.get(number as usize - 1).map(|row| (*row, "content".to_owned()));
    Ok(numbers.into_iter().filter_map(row).collect())
}

fn letter(row: &StagedRow<'_>, what: &str) -> DeadLetter {
    let event = row.event();
    let kind = event.kind().as_str();
    let reason = format!(
        "an event of this identity is stored with another {what}: {kind} {} of user {}; the first one stays",
        event.event_id, event.user_id
    );
    // The same for each repetition of this record, and for no other one.
    let time = if event.is_known_by_id_alone() { "untimed".to_owned() } else { event.claimed_at.to_string() };
    let subject = format!("{kind} {} {} {time} {:016x}", event.event_id, event.user_id, fingerprint(row));
    DeadLetter { subject: Some(subject), ..DeadLetter::of(row.decoded, ID_CONFLICT, reason) }
}

/// A conflict, and the day of its receipt: days since 1970-01-01, UTC.
struct Letter {
    letter: DeadLetter,
    day: i32,
}

/// Leaves out what is among the open dead letters, and in these, already.
async fn without_repetitions(connection: &mut PgConnection, letters: Vec<Letter>) -> Result<Vec<Letter>, sqlx::Error> {
    let open = "SELECT project_id, subject FROM dead_letters
                WHERE status = 'open' AND code = $1 AND project_id = ANY ($2) AND subject = ANY ($3)";
    let projects: BTreeSet<Option<Uuid>> = letters.iter().map(|of| of.letter.project).collect();
    let open: Vec<(Option<Uuid>, Option<String>)> = sqlx::query_as(open)
        .bind(ID_CONFLICT)
        .bind(projects.into_iter().collect::<Vec<_>>())
        .bind(letters.iter().map(|of| of.letter.subject.clone()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    let mut known: HashSet<(Option<Uuid>, Option<String>)> = open.into_iter().collect();
    Ok(letters.into_iter().filter(|of| known.insert((of.letter.project, of.letter.subject.clone()))).collect())
}

/// Counts letters, and keeps those that have room among their project's of the day.
async fn keep(connection: &mut PgConnection, log_id: Uuid, letters: Vec<Letter>) -> Result<Conflicts, sqlx::Error> {
    // By project, day and log partition.
    let mut counts: BTreeMap<(Uuid, i32, u32), i64> = BTreeMap::new();
    for Letter { letter, day } in &letters {
        *counts.entry((letter.project.unwrap_or_default(), *day, letter.partition)).or_default() += 1;
    }
    let (projects, days): (Vec<Uuid>, Vec<i32>) = counts.keys().map(|(project, day, _)| (*project, *day)).unzip();
    let before: Vec<(Uuid, i32, i64)> = sqlx::query_as(
        "SELECT c.project_id, c.day - '1970-01-01'::date, sum(c.records)::bigint FROM id_conflicts c
         WHERE (c.project_id, c.day) IN (
             SELECT n.project_id, '1970-01-01'::date + n.day FROM unnest($1::uuid[], $2::int[]) n (project_id, day))
         GROUP BY 1, 2",
    )
    .bind(&projects)
    .bind(&days)
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO id_conflicts AS c (log_id, project_id, day, log_partition, records)
         SELECT $1, n.project_id, '1970-01-01'::date + n.day, n.log_partition, n.records
         FROM unnest($2::uuid[], $3::int[], $4::int[], $5::bigint[]) AS n (project_id, day, log_partition, records)
         ON CONFLICT (project_id, day, log_id, log_partition) DO UPDATE SET records = c.records + excluded.records",
    )
    .bind(log_id)
    .bind(&projects)
    .bind(&days)
    .bind(counts.keys().map(|(.., partition)| *partition as i32).collect::<Vec<_>>())
    .bind(counts.values().copied().collect::<Vec<_>>())
    .execute(connection)
    .await?;
    let mut seen: BTreeMap<(Uuid, i32), i64> =
        before.into_iter().map(|(project, day, records)| ((project, day), records)).collect();
    let mut conflicts = Conflicts::default();
    for Letter { letter, day } in letters {
        let seen = seen.entry((letter.project.unwrap_or_default(), day)).or_default();
        *seen += 1;
        if *seen <= KEPT_MAX { conflicts.kept.push(letter) } else { conflicts.passed += 1 }
    }
    Ok(conflicts)
}

fn day(received_at: Micros) -> i32 {
    const DAY: i64 = 86_400 * Micros::SECOND;
    received_at.0.div_euclid(DAY) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by Python's uuid and hashlib.
    #[test]
    fn a_fingerprint_never_changes() {
        let content = Content {
            name: Some("purchase"),
            value: Some("19.90".parse().expect("money")),
            currency: Some("EUR"),
            experiment: Some(Uuid::from_u128(7)),
            ..Content::default()
        };
        assert_eq!(content.fingerprint(), 4326265989180117155);
    }
}
