//! Table partitions: a month of `claimed_at` each, made before rows need them, and a default for what lies far off.
//!
//! A month is made in one transaction: a free-standing table, the rows of that month out of the default, then the attachment.
//! So a row that went into the default never stops its month from being made later.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Datelike, Months as CalendarMonths, NaiveDate, NaiveTime, Utc};
use events::fact::FactTable;
use events::rules::limits;
use events::{Event, Kind, Micros};
use sqlx::{AssertSqlSafe, PgConnection};

/// One for all makers of table partitions, and for whoever moves the retention boundary or attaches a month again.
pub(crate) const LOCK: i64 = 0x7765_6972_6d6f_6e74; // "weirmont"
const ATTEMPTS: u32 = 25;
/// Raised where a month lies before the retention boundary.
const BEFORE_HORIZON: &str = "WEIR1";

/// A calendar month, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Month(NaiveDate);

impl Month {
    /// Returns the month of a time; none of a time beyond the calendar.
    pub(crate) fn of(time: Micros) -> Option<Self> {
        let date = DateTime::<Utc>::from_timestamp_micros(time.0)?.date_naive();
        date.with_day(1).map(Month)
    }

    /// Returns the month of a text such as `2026-01`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let is_number = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(year, 4) || !is_number(month, 2) {
            return None;
        }
        NaiveDate::from_ymd_opt(year.parse().ok()?, month.parse().ok()?, 1).map(Month)
    }

    /// Returns the month of a fact table's table partition; none of its default.
    pub(crate) fn of_table(fact_table: &str, table: &str) -> Option<Self> {
        Month::parse(&table.strip_prefix(fact_table)?.strip_prefix('_')?.replace('_', "-"))
    }

    /// Returns the name of a fact table's table partition.
    pub(crate) fn table(self, fact_table: &str) -> String {
        format!("{fact_table}_{:04}_{:02}", self.0.year(), self.0.month())
    }

    /// Returns its first moment and that of the next one, as Postgres reads times.
    pub(crate) fn bounds(self) -> (String, String) {
        (format!("{} 00:00:00+00", self.0), format!("{} 00:00:00+00", self.plus(1).0))
    }

    /// Returns its first day, as Postgres reads dates.
    pub(crate) fn date(self) -> String {
        self.0.to_string()
    }

    /// Returns the month so many months later.
    pub(crate) fn plus(self, months: u32) -> Self {
        Month(self.0.checked_add_months(CalendarMonths::new(months)).unwrap_or(NaiveDate::MAX))
    }

    /// Returns the month so many months earlier.
    pub(crate) fn minus(self, months: u32) -> Self {
        Month(self.0.checked_sub_months(CalendarMonths::new(months)).unwrap_or(NaiveDate::MIN))
    }

    /// Returns its first moment.
    pub(crate) fn start(self) -> Micros {
        Micros(self.0.and_time(NaiveTime::MIN).and_utc().timestamp_micros())
    }
}

impl fmt::Display for Month {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:04}-{:02}", self.0.year(), self.0.month())
    }
}

/// The table partitions that a worker knows to exist.
#[derive(Debug, Default)]
pub(crate) struct Months(BTreeSet<(Kind, Month)>);

impl Months {
    /// Makes the months of these events that are missing. An event whose month is not worth a table partition, and one whose
    /// month cannot be made now because its locks are taken, goes to the default.
    pub(crate) async fn make(
        &mut self,
        connection: &mut PgConnection,
        events: impl Iterator<Item = &Event>,
    ) -> Result<(), sqlx::Error> {
        let month_of = |event: &Event| Month::of(event.claimed_at).map(|month| (event.kind(), month));
        let missing: BTreeSet<(Kind, Month)> =
            events.filter(|event| deserves_month(event)).filter_map(month_of).filter(|month| !self.0.contains(month)).collect();
        for (kind, month) in missing {
            make_month(connection, kind, month).await?;
            self.0.insert((kind, month));
        }
        Ok(())
    }
}

/// Returns whether an event's month may be made for it: what a public key sends must not make table partitions as it likes.
///
/// The months of the last 30 days are for everybody. An older one is made for history only, which the collector takes from
/// server keys alone: by [`limits::AGE_MAX`] no other event lies that far back by our clock. Whoever only claims an old time,
/// with a clock that is as wrong, is stored in the default table partition.
fn deserves_month(event: &Event) -> bool {
    let before_receipt = |time: Micros| event.received_at.0 - time.0;
    let is_history = before_receipt(event.event_time) > limits::AGE_MAX;
    let age_max = if is_history { limits::BACKFILL_AGE_MAX } else { limits::AGE_MAX };
    (-limits::AHEAD_MAX..=age_max).contains(&before_receipt(event.claimed_at))
}

/// Makes the months around the present: the last one, this one, the next one.
pub(crate) async fn make_usual_months(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let now = Micros::now();
    for days in [-31, 0, 28] {
        if let Some(month) = Month::of(Micros(now.0 + days * Micros::DAY)) {
            for kind in Kind::ALL {
                make_month(connection, kind, month).await?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn make_month(connection: &mut PgConnection, kind: Kind, month: Month) -> Result<(), sqlx::Error> {
    let fact_table = FactTable::of(kind).name;
    let table = month.table(fact_table);
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(&table).fetch_one(&mut *connection).await?;
    if !exists && !make_table(connection, fact_table, &table, month).await? {
        tracing::warn!(table, "its locks are taken; rows of that month go to the default table partition for now");
    }
    Ok(())
}

/// Returns whether the table partition exists now.
async fn make_table(connection: &mut PgConnection, fact_table: &str, table: &str, month: Month) -> Result<bool, sqlx::Error> {
    let (from, to) = month.bounds();
    // The names are made of a constant and two numbers.
    let statement = format!(
        "BEGIN;
         SET LOCAL lock_timeout = '200ms';
         SELECT pg_advisory_xact_lock({LOCK});
         DO $weir$ BEGIN
             IF EXISTS (SELECT FROM horizon WHERE until > '{from}') THEN
                 RAISE EXCEPTION 'before the retention boundary' USING ERRCODE = '{BEFORE_HORIZON}';
             END IF;
         END $weir$;
         CREATE TABLE IF NOT EXISTS {table} (LIKE {fact_table} INCLUDING ALL);
         LOCK TABLE {fact_table}_default IN ACCESS EXCLUSIVE MODE;
         WITH moved AS (
             DELETE FROM {fact_table}_default WHERE claimed_at >= '{from}' AND claimed_at < '{to}' RETURNING *
         ) INSERT INTO {table} SELECT * FROM moved;
         ALTER TABLE {fact_table} ATTACH PARTITION {table} FOR VALUES FROM ('{from}') TO ('{to}');
         COMMIT"
    );
    for attempt in 1..=ATTEMPTS {
        let Err(error) = sqlx::raw_sql(AssertSqlSafe(statement.as_str())).execute(&mut *connection).await else {
            tracing::info!(table, "made a table partition");
            return Ok(true);
        };
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        match code.as_str() {
            // A month that has left is not made again: its rows of now become dead letters.
            BEFORE_HORIZON => return Ok(true),
            "55P03" | "40P01" | "23514" => tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 10)).await,
            // Another worker made it: it is attached, so it cannot be attached again.
            "42809" | "42P17" | "42P07" => return Ok(true),
            _ => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_have_names_and_bounds() {
        let month = Month::parse("2026-12").expect("a month");
        assert_eq!(month.to_string(), "2026-12");
        assert_eq!(month.table("conversions"), "conversions_2026_12");
        assert_eq!(month.bounds(), ("2026-12-01 00:00:00+00".to_owned(), "2027-01-01 00:00:00+00".to_owned()));
        assert_eq!(Month::of(month.start()), Some(month));
        assert_eq!(Month::of(Micros(month.start().0 - 1)), Some(month.minus(1)));
        assert_eq!(Month::of_table("conversions", "conversions_2026_12"), Some(month));
        for text in ["2026-13", "2026-1", "26-01", "2026", "2026-01-01", "+026-01", ""] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
        for table in ["conversions_default", "conversions", "impressions_2026_12", "conversions_2026_12_old"] {
            assert_eq!(Month::of_table("conversions", table), None, "{table}");
        }
    }
}
