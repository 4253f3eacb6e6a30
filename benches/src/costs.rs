//! What costs what: each index and each column of the tables that commits fill, by leaving it out and writing the same rows again.
//!
//! The rows are those of a round of [`crate::copy`], stored by the aggregator and read back. A case is a table as the schema has it but
//! for one change; every round begins with an empty database, and the server's CPU seconds of its processes and bytes of WAL are what
//! the case took. What is left out is no proposal: a case says what that part costs.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::copy::{self, Log};
use crate::database::{Database, Databases, project};
use crate::payload::{Mix, Plan};
use crate::report::{Figures, Page, number};

/// Settings of the comparison.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Events that are written in each case
    #[arg(long, default_value_t = 300_000)]
    pub events: u64,
    /// How many users they belong to
    #[arg(long, default_value_t = 120_000)]
    pub users: u64,
    /// How many in 100 events are conversions
    #[arg(long, default_value_t = 5)]
    pub conversions_percent: u64,
    /// Rows in each transaction, where a case does not say otherwise
    #[arg(long, default_value_t = 20_000)]
    pub batch: usize,
    /// How often each case runs
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Tables, all if none is named
    #[arg(long)]
    pub table: Vec<String>,
    /// Server to measure on, whose user may make databases and run CHECKPOINT; none: a private one, with fsync off
    #[arg(long, env = "DATABASE_URL")]
    pub database_url: Option<String>,
    /// Folder for the log's files
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Folder of runs in which the result is kept
    #[arg(long)]
    pub save: Option<PathBuf>,
}

/// The tables, and the order in which their rows come.
const TABLES: [(&str, &str); 4] = [
    ("impressions", "log_offset, log_partition"),
    ("conversions", "log_offset, log_partition"),
    (PARTICIPATION, "first_exposure_date, user_id"),
    ("conversion_attribution", "conversion_time, conversion_id"),
];
const PARTICIPATION: &str = "user_experiment_participation";

/// In which order rows come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// In the order of the log.
    Log,
    /// Each transaction's by the table's key, as commits write them.
    KeyInBatch,
    /// All of them by the key.
    Key,
}

/// A table as it would be, and how its rows come.
struct Case {
    name: String,
    /// Statements that change the empty database.
    changes: Vec<String>,
    /// Columns that are not written.
    left_out: Vec<String>,
    order: Order,
    /// Rows in each transaction.
    batch: usize,
}

/// Runs the comparison and returns its page.
/// # Errors
/// Whatever fails first, and rows that are not what was sent.
pub async fn run(options: &Options) -> anyhow::Result<String> {
    let folder = crate::folder(options.folder.as_deref())?;
    let mut databases = Databases::open(options.database_url.as_deref()).await?;
    let facts = vec![databases.facts().await?];
    let mut page = Page::new("what-costs-what", "What costs what in the tables that commits fill", folder.path(), facts);
    page.say(&format!(
        "{} events of {} users, {} % of them conversions. Each case writes the same rows by COPY BINARY, {} in a transaction \
         ordered by the table's key, into an empty table that differs in one thing, right beside the table as it is, in turns. CPU \
         of all processes of the server, least / **median** / most of {} rounds.",
        number(options.events as f64, 0),
        number(options.users as f64, 0),
        options.conversions_percent,
        number(options.batch as f64, 0),
        options.rounds
    ));

    let source = databases.create(None).await?;
    let mut connection = source.connect().await?;
    let plan = Plan { seed: 2, users: options.users, mix: Mix::Exposures { conversions_percent: options.conversions_percent } };
    let log = Log::open_embedded(&folder.path().join("log"))?;
    copy::fill(&log, plan, options.events, copy::Mess::default(), project(&mut connection).await?).await?;
    connection.close().await?;
    copy::store(options.events, (1, 20_000), &databases, &source, &log).await?;
    let mut connection = source.connect().await?;

    let months = months(&mut connection).await?;
    for (table, order_of_log) in
        TABLES.into_iter().filter(|(table, _)| options.table.is_empty() || options.table.iter().any(|of| of == table))
    {
        let columns = Columns::of(&mut connection, table).await?;
        let rows = Rows::read(&mut connection, table, &columns, order_of_log).await?;
        let is_fact = order_of_log.starts_with("log_offset");
        let cases = if is_fact { fact_cases(options, table, &columns) } else { derived_cases(options, table, &columns) };
        measure(options, &mut databases, &mut page, &rows, &cases, &months).await?;
    }
    connection.close().await?;
    databases.remove(source).await?;
    page.finish(options.save.as_deref())
}

/// Returns statements that make the months which the aggregator has made.
async fn months(connection: &mut PgConnection) -> anyhow::Result<String> {
    let statements: Vec<String> = sqlx::query_scalar(
        "SELECT format('CREATE TABLE %I PARTITION OF %s %s', c.relname, i.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid))
         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE c.relkind = 'r' AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'",
    )
    .fetch_all(connection)
    .await?;
    Ok(statements.join("; "))
}

/// The columns of a table in their order, and which of them no row of ours fills.
struct Columns {
    names: Vec<String>,
    empty: Vec<String>,
    /// The primary key's name, its columns.
    key: (String, Vec<String>),
}

impl Columns {
    async fn of(connection: &mut PgConnection, table: &str) -> anyhow::Result<Self> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        )
        .bind(table)
        .fetch_all(&mut *connection)
        .await?;
        let counts: Vec<String> = names.iter().map(|name| format!("count({name})")).collect();
        let statement = format!("SELECT ARRAY[{}] FROM {table}", counts.join(", "));
        let counts: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut *connection).await?;
        let empty = names.iter().zip(counts).filter(|(_, count)| *count == 0).map(|(name, _)| name.clone()).collect();
        let row = sqlx::query(
            "SELECT c.conname::text, array_agg(a.attname::text ORDER BY k.place)
             FROM pg_constraint c, unnest(c.conkey) WITH ORDINALITY AS k (attnum, place), pg_attribute a
             WHERE c.conrelid = $1::regclass AND c.contype = 'p' AND a.attrelid = c.conrelid AND a.attnum = k.attnum GROUP BY 1",
        )
        .bind(table)
        .fetch_one(connection)
        .await?;
        Ok(Columns { names, empty, key: (row.try_get(0)?, row.try_get(1)?) })
    }
}

fn fact_cases(options: &Options, table: &str, columns: &Columns) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name: &str, changes: &[String], left_out: &[String], order, batch| {
        cases.push(Case { name: name.to_owned(), changes: changes.to_vec(), left_out: left_out.to_vec(), order, batch });
    };
    let batch = options.batch;
    let by_key = Order::KeyInBatch;
    case("as it is", &[], &[], by_key, batch);
    case("rows in the order of the log", &[], &[], Order::Log, batch);
    case("all rows in the order of the key", &[], &[], Order::Key, batch);
    for other in [1_000, 5_000, 50_000, usize::MAX] {
        let name = if other == usize::MAX {
            "one transaction".to_owned()
        } else {
            format!("{} rows a transaction", number(other as f64, 0))
        };
        case(&name, &[], &[], by_key, other);
    }
    let without_key = format!("ALTER TABLE {table} DROP CONSTRAINT {}", columns.key.0);
    let without_range = format!("DROP INDEX {table}_by_offset");
    case("without the primary key", std::slice::from_ref(&without_key), &[], by_key, batch);
    case("without the block range", std::slice::from_ref(&without_range), &[], by_key, batch);
    case("without both", &[without_key.clone(), without_range], &[], by_key, batch);
    let months = format!(
        "DROP TABLE {table}; CREATE TABLE {table} (LIKE {table}_like, PRIMARY KEY ({})); CREATE INDEX ON {table} USING brin (log_offset)",
        columns.key.1.join(", ")
    );
    case("one table without months", &[format!("CREATE TABLE {table}_like (LIKE {table})"), months], &[], by_key, batch);
    let checks = format!(
        "DO $$ DECLARE name text; BEGIN FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = '{table}'::regclass AND contype = 'c'
         LOOP EXECUTE format('ALTER TABLE {table} DROP CONSTRAINT %I', name); END LOOP; END $$"
    );
    case("without checks of values", &[checks], &[], by_key, batch);
    let drop = |names: &[String]| names.iter().map(|name| format!("ALTER TABLE {table} DROP COLUMN {name}")).collect::<Vec<_>>();
    case(
        &format!("without the {} columns that are null here", columns.empty.len()),
        &drop(&columns.empty),
        &columns.empty,
        by_key,
        batch,
    );
    for name in columns.names.iter().filter(|name| !columns.empty.contains(name) && !columns.key.1.contains(name)) {
        // The block range is over one of them.
        let name = std::slice::from_ref(name);
        case(&format!("without `{}`", name[0]), &drop(name), name, by_key, batch);
    }
    cases
}

fn derived_cases(options: &Options, table: &str, columns: &Columns) -> Vec<Case> {
    let batch = options.batch;
    let mut cases = Vec::new();
    let mut case = |name: &str, changes: &[String], left_out: &[String], order| {
        cases.push(Case { name: name.to_owned(), changes: changes.to_vec(), left_out: left_out.to_vec(), order, batch });
    };
    case("as it is", &[], &[], Order::KeyInBatch);
    case("rows in the order of time", &[], &[], Order::Log);
    case("all rows in the order of the key", &[], &[], Order::Key);
    for fill in [100, 85, 50] {
        case(&format!("fillfactor {fill}"), &[format!("ALTER TABLE {table} SET (fillfactor = {fill})")], &[], Order::KeyInBatch);
    }
    let checks = format!(
        "DO $$ DECLARE name text; BEGIN FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = '{table}'::regclass AND contype = 'c'
         LOOP EXECUTE format('ALTER TABLE {table} DROP CONSTRAINT %I', name); END LOOP; END $$"
    );
    case("without checks of values", &[checks], &[], Order::KeyInBatch);
    for name in columns.names.iter().filter(|name| !columns.key.1.contains(name)) {
        let name = std::slice::from_ref(name);
        let drop = format!("ALTER TABLE {table} DROP COLUMN {}", name[0]);
        case(&format!("without `{}`", name[0]), &[drop], name, Order::KeyInBatch);
    }
    cases
}

/// The rows of a table, each as the values that binary COPY has, and the two orders beside that of the log.
struct Rows {
    table: &'static str,
    columns: Vec<String>,
    key: Vec<String>,
    /// In the order of the log; of each the bytes of its fields, each with its length.
    rows: Vec<Vec<u8>>,
    /// Places in it, by key.
    by_key: Vec<usize>,
}

/// What binary COPY begins and ends with.
const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const END: &[u8] = &[0xff, 0xff];

impl Rows {
    async fn read(connection: &mut PgConnection, table: &'static str, columns: &Columns, order: &str) -> anyhow::Result<Self> {
        let names = columns.names.join(", ");
        let statement = format!("COPY (SELECT {names} FROM {table} ORDER BY {order}) TO STDOUT (FORMAT BINARY)");
        let mut stream = connection.copy_out_raw(&statement).await?;
        let mut all = Vec::new();
        while let Some(bytes) = stream.try_next().await? {
            all.extend_from_slice(&bytes);
        }
        drop(stream);
        let mut rows = Vec::new();
        let mut rest = all.get(HEAD.len()..).context("a head")?;
        while rest.len() > END.len() {
            let length = fields(rest).last().map_or(2, |(_, range)| range.end);
            rows.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        let key_places: Vec<usize> =
            columns.key.1.iter().filter_map(|key| columns.names.iter().position(|name| name == key)).collect();
        // Of the types that a key has here, bytes compare as values do: ids, and times after 2000.
        let key_of = |row: &Vec<u8>| {
            let ranges: Vec<_> = fields(row).map(|(_, range)| range).collect();
            key_places.iter().map(|place| row[ranges[*place].clone()].to_vec()).collect::<Vec<_>>()
        };
        let mut by_key: Vec<usize> = (0..rows.len()).collect();
        by_key.sort_by_cached_key(|place| key_of(&rows[*place]));
        Ok(Rows { table, columns: columns.names.clone(), key: columns.key.1.clone(), rows, by_key })
    }

    /// Returns the transactions of a case, as COPY takes them.
    fn encode(&self, case: &Case) -> Vec<Vec<u8>> {
        let kept: Vec<bool> = self.columns.iter().map(|name| !case.left_out.contains(name)).collect();
        let count = kept.iter().filter(|kept| **kept).count() as i16;
        let mut rank = vec![0; self.rows.len()];
        for (place, row) in self.by_key.iter().enumerate() {
            rank[*row] = place;
        }
        let mut order: Vec<usize> = if case.order == Order::Key { self.by_key.clone() } else { (0..self.rows.len()).collect() };
        let batches = order.chunks_mut(case.batch.min(self.rows.len().max(1)));
        let batches = batches.map(|batch| {
            if case.order == Order::KeyInBatch {
                batch.sort_unstable_by_key(|row| rank[*row]);
            }
            let mut bytes = HEAD.to_vec();
            for row in batch {
                let row = &self.rows[*row];
                bytes.extend_from_slice(&count.to_be_bytes());
                for (_, range) in fields(row).filter(|(index, _)| kept[*index]) {
                    bytes.extend_from_slice(&row[range]);
                }
            }
            bytes.extend_from_slice(END);
            bytes
        });
        batches.collect()
    }
}

/// Walks the fields of a row: its number, and where its bytes lie, those of the length included.
fn fields(row: &[u8]) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
    let count = i16::from_be_bytes([row[0], row[1]]).max(0) as usize;
    let mut at = 2;
    (0..count).map(move |index| {
        let length = i32::from_be_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]).max(0) as usize;
        let range = at..at + 4 + length;
        at = range.end;
        (index, range)
    })
}

/// Runs each case beside the table as it is, and says what it took.
async fn measure(
    options: &Options,
    databases: &mut Databases,
    page: &mut Page,
    rows: &Rows,
    cases: &[Case],
    months: &str,
) -> anyhow::Result<()> {
    let empty = databases.create(None).await?;
    let mut connection = empty.connect().await?;
    sqlx::raw_sql(AssertSqlSafe(months)).execute(&mut connection).await?;
    connection.close().await?;
    let Some((as_it_is, changed)) = cases.split_first() else { return Ok(()) };
    let mut written = Table::default();
    let mut upserted = Table::default();
    let mut recounted = Table::default();
    for round in 0..options.rounds {
        for case in changed {
            let mut costs = [Costs::default(), Costs::default()];
            let mut turns = [(0, as_it_is), (1, case)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (side, case) in turns {
                costs[side] = write(options, databases, rows, &empty, case).await?;
            }
            let [before, after] = costs;
            written.push(&case.name, before.written, after.written);
            upserted.push(&case.name, before.upserted, after.upserted);
            recounted.push(&case.name, before.recounted, after.recounted);
            crate::progress(&format!("round {}: {}: {}", round + 1, rows.table, case.name));
        }
    }
    databases.remove(empty).await?;
    written.say(page, &format!("`{}`: {} rows", rows.table, number(rows.rows.len() as f64, 0)));
    upserted.say(page, &format!("`{}`: each row updated once, all of it, by `INSERT .. ON CONFLICT`", rows.table));
    recounted.say(page, &format!("`{}`: each row updated once, its count of impressions alone, by `UPDATE`", rows.table));
    Ok(())
}

/// What one run of a case took; of updates nothing where there are none.
#[derive(Default)]
struct Costs {
    written: Option<Cost>,
    upserted: Option<Cost>,
    recounted: Option<Cost>,
}

/// Writes the rows of a case into a database of its own.
async fn write(
    options: &Options,
    databases: &mut Databases,
    rows: &Rows,
    empty: &Database,
    case: &Case,
) -> anyhow::Result<Costs> {
    let mut costs = Costs::default();
    let database = databases.create(Some(empty)).await?;
    let mut connection = database.connect().await?;
    for change in &case.changes {
        sqlx::raw_sql(AssertSqlSafe(change.as_str())).execute(&mut connection).await.with_context(|| case.name.clone())?;
    }
    let batches = rows.encode(case);
    let columns: Vec<&str> = rows.columns.iter().filter(|name| !case.left_out.contains(name)).map(String::as_str).collect();
    let statement = format!("COPY {} ({}) FROM STDIN (FORMAT BINARY)", rows.table, columns.join(", "));
    databases.settle().await?;
    let began = Meter::begin(databases, &mut connection).await?;
    for batch in &batches {
        let mut copy = connection.copy_in_raw(&statement).await?;
        for chunk in batch.chunks(64 * 1024) {
            copy.send(chunk).await?;
        }
        copy.finish().await?;
    }
    costs.written = Some(began.end(databases, &mut connection, rows.rows.len()).await?);
    let count = format!("SELECT count(*) FROM {}", rows.table);
    let stored: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut connection).await?;
    if stored != rows.rows.len() as i64 {
        bail!("{}: {stored} of {} rows", case.name, rows.rows.len());
    }
    if rows.table == PARTICIPATION && columns.contains(&"total_impressions") {
        let [whole, count] = updates(options, &mut connection, rows, &columns).await?;
        costs.upserted = Some(update(options, databases, &mut connection, &whole, rows.rows.len()).await?);
        costs.recounted = Some(update(options, databases, &mut connection, &count, rows.rows.len()).await?);
    }
    connection.close().await?;
    databases.remove(database).await?;
    Ok(costs)
}

/// Returns statements that raise the count of each row of a batch: one that writes all of the row, and one that writes the count. A
/// batch has as many users as a commit touches, in no order of theirs; its number is the parameter.
async fn updates(options: &Options, connection: &mut PgConnection, rows: &Rows, columns: &[&str]) -> anyhow::Result<[String; 2]> {
    // What commits leave to its default.
    const DEFAULTS: [&str; 4] = ["created_at", "updated_at", "was_eligible_at_exposure", "eligibility_criteria"];
    let names: Vec<&str> = columns.iter().copied().filter(|name| !DEFAULTS.contains(name)).collect();
    let (all, key, table, batch) = (names.join(", "), rows.key.join(", "), rows.table, options.batch);
    let prepare = format!(
        "CREATE TEMPORARY TABLE changed AS
             SELECT (row_number() OVER (ORDER BY md5(user_id::text)) - 1) / {batch} AS batch, {all} FROM {table} ORDER BY 1, {key};
         CREATE INDEX ON changed (batch); ANALYZE changed; SET enable_hashjoin = off; SET enable_mergejoin = off"
    );
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await?;
    let is_key = |name: &str| rows.key.iter().any(|key| key == name);
    let touched = if columns.contains(&"updated_at") { ", updated_at = now()" } else { "" };
    let set: Vec<String> =
        names.iter().filter(|name| !is_key(name) && **name != "id").map(|name| format!("{name} = excluded.{name}")).collect();
    let values = all.replace("total_impressions", "total_impressions + 1");
    let same: Vec<String> = rows.key.iter().map(|key| format!("p.{key} = n.{key}")).collect();
    Ok([
        format!(
            "INSERT INTO {table} ({all}) SELECT {values} FROM changed WHERE batch = $1 ORDER BY {key}
             ON CONFLICT ({key}) DO UPDATE SET {}{touched}",
            set.join(", ")
        ),
        format!(
            "UPDATE {table} p SET total_impressions = n.total_impressions + 2{touched}
             FROM (SELECT * FROM changed WHERE batch = $1 ORDER BY {key} OFFSET 0) n WHERE {}",
            same.join(" AND ")
        ),
    ])
}

async fn update(
    options: &Options,
    databases: &mut Databases,
    connection: &mut PgConnection,
    statement: &str,
    rows: usize,
) -> anyhow::Result<Cost> {
    databases.settle().await?;
    let began = Meter::begin(databases, connection).await?;
    for batch in 0..rows.div_ceil(options.batch) {
        sqlx::query(AssertSqlSafe(statement)).bind(batch as i64).execute(&mut *connection).await?;
    }
    began.end(databases, connection, rows).await
}

/// What rows took.
#[derive(Clone, Copy)]
struct Cost {
    cpu_per_million: f64,
    wal_per_row: f64,
}

/// What the server had used when a case began.
struct Meter {
    cpu: f64,
    wal: i64,
}

impl Meter {
    async fn begin(databases: &Databases, connection: &mut PgConnection) -> anyhow::Result<Self> {
        Ok(Meter { wal: wal_bytes(connection).await?, cpu: databases.cpu_seconds() })
    }

    async fn end(self, databases: &Databases, connection: &mut PgConnection, rows: usize) -> anyhow::Result<Cost> {
        Ok(Cost {
            cpu_per_million: (databases.cpu_seconds() - self.cpu) * 1e6 / rows as f64,
            wal_per_row: (wal_bytes(connection).await? - self.wal) as f64 / rows as f64,
        })
    }
}

async fn wal_bytes(connection: &mut PgConnection) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetch_one(connection).await?)
}

/// Cases in their order, each with what it took in all rounds.
#[derive(Default)]
struct Table {
    cases: Vec<(String, Figures, Figures, Figures)>,
    as_it_is: (Figures, Figures),
}

impl Table {
    fn push(&mut self, name: &str, before: Option<Cost>, after: Option<Cost>) {
        let Some((before, after)) = before.zip(after) else { return };
        self.as_it_is.0.push(before.cpu_per_million);
        self.as_it_is.1.push(before.wal_per_row);
        let known = self.cases.iter().position(|(known, ..)| known == name);
        let place = known.unwrap_or_else(|| {
            self.cases.push((name.to_owned(), Figures::default(), Figures::default(), Figures::default()));
            self.cases.len() - 1
        });
        let (_, cpu, of, wal) = &mut self.cases[place];
        cpu.push(after.cpu_per_million);
        of.push(after.cpu_per_million / before.cpu_per_million);
        wal.push(after.wal_per_row);
    }

    fn say(&self, page: &mut Page, title: &str) {
        if self.cases.is_empty() {
            return;
        }
        page.say(&format!("## {title}"));
        let mut table = vec![
            ["", "CPU s per million rows", "of the table as it is, pair by pair", "WAL bytes a row"].map(str::to_owned).to_vec(),
        ];
        let (cpu, wal) = &self.as_it_is;
        table.push(vec!["as it is".to_owned(), cpu.spread(2), "1".to_owned(), number(wal.median(), 0)]);
        for (name, cpu, of, wal) in &self.cases {
            table.push(vec![name.clone(), cpu.spread(2), of.spread(2), number(wal.median(), 0)]);
        }
        page.table(&table);
    }
}
