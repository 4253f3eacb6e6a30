//! New facts: each identity once, in its table.
//!
//! Two ways lead there. Through the staging table any batch can go: what is stored already is passed over. A batch without a
//! duplicate can be copied straight, which costs about half; the first identity that is stored already fails all of it, and
//! the batch is repeated through staging.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use events::Kind;
use events::fact::{FACT_TABLES, FactTable, KEY};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::commit::copy::{Encoded, kind_number};
use crate::commit::{CommitError, StagedRow};

/// Drops staged rows whose user and id were seen before: a client's retry of an event without a time carries our later
/// receipt, and only its id tells that it is the same. Of several in one batch the first stays.
pub(crate) async fn drop_known_ids(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    // A temporary table has no statistics: the planner takes the kept rows for one, and compares each row with each.
    sqlx::raw_sql(NO_NESTED_LOOPS).execute(&mut *connection).await?;
    sqlx::raw_sql(DROP_KNOWN_IDS).execute(&mut *connection).await?;
    sqlx::raw_sql("SET LOCAL enable_nestloop = on").execute(connection).await?;
    Ok(())
}

pub(super) const NO_NESTED_LOOPS: &str = "SET LOCAL enable_nestloop = off";

pub(super) const DROP_KNOWN_IDS: &str = "
    WITH firsts AS (
        SELECT DISTINCT ON (project_id, kind, user_id, id) project_id, kind, user_id, id, content, log_partition, log_offset
        FROM staging WHERE known_by_id_alone ORDER BY project_id, kind, user_id, id, log_partition, log_offset
    ), new AS (
        INSERT INTO untimed_ids (project_id, kind, user_id, event_id, content)
        SELECT project_id, kind, user_id, id, content FROM firsts ORDER BY project_id, kind, user_id, id
        ON CONFLICT DO NOTHING RETURNING project_id, kind, user_id, event_id
    ), kept AS (
        SELECT f.log_partition, f.log_offset FROM firsts f
        JOIN new n ON n.project_id = f.project_id AND n.kind = f.kind AND n.user_id = f.user_id AND n.event_id = f.id
    )
    DELETE FROM staging s WHERE s.known_by_id_alone
        AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.log_partition = s.log_partition AND k.log_offset = s.log_offset)";

/// Inserts the staged rows that are new. Returns the place of each in the log: log partition and offset. Of several rows
/// with one identity the first in the log stays.
pub(crate) async fn insert(connection: &mut PgConnection, kinds: &[Kind]) -> Result<BTreeSet<(u32, u64)>, sqlx::Error> {
    let mut new = BTreeSet::new();
    for table in STATEMENTS.iter().filter(|table| kinds.contains(&table.kind)) {
        let rows = sqlx::query(AssertSqlSafe(table.insert.as_str())).fetch_all(&mut *connection).await?;
        for row in rows {
            let (partition, offset): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
            new.insert((partition as u32, offset as u64));
        }
    }
    Ok(new)
}

/// Splits rows into those that were inserted and those that were not.
pub(crate) fn split<'a>(rows: &[StagedRow<'a>], inserted: &BTreeSet<(u32, u64)>) -> (Vec<StagedRow<'a>>, Vec<StagedRow<'a>>) {
    rows.iter().copied().partition(|row| inserted.contains(&(row.decoded.partition, row.decoded.offset)))
}

/// Rows of one kind, ordered by key and encoded for their own table.
pub(crate) struct EncodedTable {
    statement: &'static str,
    rows: u64,
    chunks: Vec<Vec<u8>>,
}

/// Encodes rows for their tables, if they may go there straight: none is known by its id alone, and no identity is twice
/// among them.
pub(crate) fn encode(rows: &[StagedRow<'_>]) -> Option<Vec<EncodedTable>> {
    let mut tables = Vec::new();
    for table in STATEMENTS.iter() {
        let mut of_kind: Vec<&StagedRow<'_>> = rows.iter().filter(|row| row.event().kind() == table.kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        of_kind.sort_unstable_by_key(|row| row.key());
        if of_kind.iter().any(|row| row.event().is_known_by_id_alone())
            || of_kind.windows(2).any(|two| two[0].key() == two[1].key())
        {
            return None;
        }
        let mut bytes = Encoded::begin();
        for row in &of_kind {
            bytes.row(row);
        }
        tables.push(EncodedTable { statement: &table.copy, rows: of_kind.len() as u64, chunks: bytes.end() });
    }
    Some(tables)
}

/// Copies encoded rows into their tables. The first identity that is stored already fails all of it with 23505.
pub(crate) async fn copy(connection: &mut PgConnection, tables: &[EncodedTable]) -> Result<(), CommitError> {
    for table in tables {
        let mut copy = connection.copy_in_raw(table.statement).await?;
        for chunk in &table.chunks {
            copy.send(chunk.as_slice()).await?;
        }
        let copied = copy.finish().await?;
        if copied != table.rows {
            return Err(CommitError::Staging { staged: copied as i64, sent: table.rows as usize });
        }
    }
    Ok(())
}

/// How rows get into a fact table.
struct Statements {
    kind: Kind,
    /// From the staging table, what is new.
    insert: String,
    /// From our bytes.
    copy: String,
}

/// In the order of [`FACT_TABLES`].
static STATEMENTS: LazyLock<Vec<Statements>> = LazyLock::new(|| FACT_TABLES.iter().map(statements).collect());

fn statements(table: &FactTable) -> Statements {
    let columns = table.columns().map(|column| column.name).collect::<Vec<_>>().join(", ");
    let (name, key, number) = (table.name, KEY.join(", "), kind_number(table.kind));
    Statements {
        kind: table.kind,
        insert: format!(
            "INSERT INTO {name} ({columns})
             SELECT DISTINCT ON ({key}) {columns} FROM staging WHERE kind = {number}
             ORDER BY {key}, log_partition, log_offset
             ON CONFLICT DO NOTHING RETURNING log_partition, log_offset"
        ),
        copy: format!("COPY {name} ({columns}) FROM STDIN (FORMAT BINARY)"),
    }
}
