//! Months against a real Postgres and a real folder. Rows are compared as texts of Postgres, which shares nothing with the archive.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use events::fact::ColumnType;
use migrations::testing::TestDatabase;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use super::*;
use crate::{database, lease, metrics, partitions};

const PROJECT: Uuid = Uuid::from_u128(0xa11);
const EXPERIMENT: Uuid = Uuid::from_u128(0xe1);
const ROWS: usize = 120;

/// A database with rows in the months 2025-11 to 2026-01, and a folder.
struct Case {
    database: TestDatabase,
    connection: PgConnection,
    folder: TempDir,
}

/// 2026-06-01, when all of these months are old.
fn now() -> Micros {
    Month::parse("2026-06").expect("a month").start()
}

fn month() -> Month {
    Month::parse("2025-11").expect("a month")
}

impl Case {
    async fn new() -> Self {
        let database = TestDatabase::create().await;
        let mut connection = database::connect(&database.url, "retention").await.expect("connects");
        let log = eventlog::LogIdentity { log_id: Uuid::from_u128(7), partitions: 8 };
        lease::register_log(&mut connection, log, true).await.expect("a log");
        let mut case = Case { database, connection, folder: tempfile::tempdir().expect("a folder") };
        case.execute(&format!("INSERT INTO projects (id, name) VALUES ('{PROJECT}', 'shop')")).await;
        case.execute("UPDATE retention SET months_kept = 3").await;
        for text in ["2025-11", "2025-12", "2026-01"] {
            let month = Month::parse(text).expect("a month");
            let (from, to) = month.bounds();
            for table in &FACT_TABLES {
                let partition = month.table(table.name);
                case.execute(&format!(
                    "CREATE TABLE {partition} PARTITION OF {} FOR VALUES FROM ('{from}') TO ('{to}')",
                    table.name
                ))
                .await;
                case.fill(month, table).await;
            }
        }
        case
    }

    /// Stores rows with values of all kinds, and some nulls.
    async fn fill(&mut self, month: Month, table: &FactTable) {
        let start = month.date();
        let value = |column: &events::fact::Column| {
            let name = column.name;
            let value = match (name, column.column_type) {
                ("project_id", _) => return format!("'{PROJECT}'"),
                ("experiment_id" | "variant_id", _) => return "NULL".to_owned(),
                ("claimed_at" | "event_time" | "received_at", _) => {
                    return format!("'{start} 00:00:00+00'::timestamptz + n * interval '17 minutes 1.000001 seconds'");
                }
                ("log_id", _) => return format!("'{}'", Uuid::from_u128(7)),
                ("log_partition", _) => return "n % 8".to_owned(),
                ("currency", _) => "'EUR'".to_owned(),
                ("event_type", _) => {
                    return match table.name {
                        "campaign_events" => "'click'",
                        "identity_events" => "'alias'",
                        _ => "'quiz'",
                    }
                    .to_owned();
                }
                (_, ColumnType::Uuid) => format!("md5('{name}' || n)::uuid"),
                (_, ColumnType::Text) => format!("'{name}' || chr(9) || chr(10) || '\\N,\"€' || chr(128512) || n"),
                (_, ColumnType::Timestamp) => format!("'{start} 12:00:00.000001+00'::timestamptz - n * interval '1 second'"),
                (_, ColumnType::Boolean) => "n % 2 = 0".to_owned(),
                (_, ColumnType::Integer) => "n % 100".to_owned(),
                (_, ColumnType::Bigint) => "9223372036854775807 - n".to_owned(),
                (_, ColumnType::Money) => {
                    "CASE n % 4 WHEN 0 THEN 99999999999999.999999 WHEN 1 THEN -99999999999999.999999 ELSE n / 7.0 - 5 END"
                        .to_owned()
                }
                (_, ColumnType::Json) => {
                    "jsonb_build_object('n', n, 'text', 'a\"b\\c', 'list', '[1.50, null, {\"x\": 1e300}]'::jsonb)".to_owned()
                }
            };
            if column.is_required { value } else { format!("CASE WHEN n % 5 > 0 THEN {value} END") }
        };
        let names: Vec<&str> = table.columns().map(|column| column.name).collect();
        let values: Vec<String> = table.columns().map(value).collect();
        self.execute(&format!(
            "INSERT INTO {} ({}) SELECT {} FROM generate_series(1, {ROWS}) n",
            table.name,
            names.join(", "),
            values.join(", ")
        ))
        .await;
    }

    async fn execute(&mut self, statement: &str) {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection).await.expect("executes");
    }

    async fn scalar<T>(&mut self, query: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut self.connection).await.expect("answers")
    }

    /// All rows that queries see, by fact table, as one text each.
    async fn rows(&mut self) -> BTreeMap<&'static str, String> {
        let mut rows = BTreeMap::new();
        for table in &FACT_TABLES {
            let query = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {} t", table.name);
            rows.insert(table.name, self.scalar::<String>(&query).await);
        }
        rows
    }

    async fn state(&mut self) -> Option<MonthState> {
        find(&mut self.connection, month()).await.expect("answers").map(|moving| moving.state)
    }

    async fn look(&mut self) -> Look {
        due::look(&mut self.connection, now()).await.expect("answers")
    }

    async fn step(&mut self) -> Result<Step, RetentionError> {
        let moving = find(&mut self.connection, month()).await.expect("answers").expect("it began to leave");
        step(&mut self.connection, &moving, Some(self.folder.path()), now()).await
    }

    /// Closes the oldest month and takes it to a state.
    async fn leave(&mut self, until: MonthState) {
        assert_eq!(self.look().await, Look::Due(month()));
        begin(&mut self.connection, month(), Some(self.folder.path())).await.expect("closes").expect("nobody has locks");
        while self.state().await != Some(until) {
            let done = self.step().await.expect("a step");
            assert!(matches!(done, Step::Done(_)), "{done:?}");
        }
    }

    /// Waits until Postgres has noticed that whoever moved months is gone.
    async fn until_free(&mut self) {
        let others = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                                     AND backend_type = 'client backend')";
        while self.scalar::<bool>(others).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Tables, constraints and files that only exist in between.
    async fn leftovers(&mut self) -> (Vec<String>, Vec<String>) {
        let query = "SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM (
                         SELECT relname::text AS name FROM pg_class WHERE relkind = 'r' AND relname ~ '_2025_11$' AND NOT relispartition
                         UNION ALL SELECT conname::text FROM pg_constraint WHERE conname ~ '^without_|_month$') l";
        let tables = self.scalar(query).await;
        let files = std::fs::read_dir(self.folder.path().join("2025-11")).expect("the month's folder");
        let names = files.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        let mut files: Vec<String> = names.collect();
        files.sort();
        (tables, files)
    }
}

/// Polls a future so many times at most: then it is dropped wherever it is, as a process that ends leaves it.
async fn interrupted<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// A month leaves and comes back while whoever moves it ends again and again, each time a little later: what is seen in each state is all
/// rows or those of the other months, and at the end nothing is lost, doubled or left over.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_leaves_and_comes_back_however_often_it_is_interrupted() {
    let mut case = Case::new().await;
    let all = case.rows().await;
    let count = "SELECT count(*) FROM impressions WHERE claimed_at < '2025-12-01 00:00:00+00'";
    let meter = metrics::meter();
    let metrics = Metrics::new(Arc::clone(&meter));
    let mut interruptions = 0;
    for polls in 1.. {
        let mut connection = database::connect(&case.database.url, "retention").await.expect("connects");
        let mut looks = Looks::default();
        let round = round(&mut connection, Some(case.folder.path()), now(), &mut looks, &metrics);
        let ended = interrupted(round, polls).await;
        drop(connection);
        case.until_free().await;
        let state = case.state().await;
        let seen: i64 = case.scalar(count).await;
        let expected = if matches!(state, None | Some(Closed | Archived)) { ROWS as i64 } else { 0 };
        assert_eq!(seen, expected, "after {polls} polls it is {state:?}");
        match ended {
            Some(result) => {
                result.expect("a round");
                assert_eq!(state, Some(Dropped));
                break;
            }
            None => interruptions += 1,
        }
    }
    assert!(interruptions > 20, "{interruptions} interruptions");
    let files: Vec<String> = FACT_TABLES.iter().map(|table| format!("{}.parquet", table.name)).collect();
    assert_eq!(case.leftovers().await, (vec![], files.clone()));
    assert_eq!(case.scalar::<i64>("SELECT sum(rows)::bigint FROM month_files WHERE month = '2025-11-01'").await, 5 * ROWS as i64);

    interruptions = 0;
    for polls in 1.. {
        let mut connection = database::connect(&case.database.url, "restore").await.expect("connects");
        let ended = interrupted(crate::admin::months::restore(&mut connection, "2025-11", None), polls).await;
        drop(connection);
        case.until_free().await;
        let seen: i64 = case.scalar(count).await;
        let state = case.state().await;
        assert_eq!(seen, if state == Some(Restored) { ROWS as i64 } else { 0 }, "after {polls} polls it is {state:?}");
        match ended {
            Some(restored) => {
                assert_eq!(restored.expect("restored"), 5 * ROWS as u64);
                break;
            }
            None => interruptions += 1,
        }
    }
    assert!(interruptions > 20, "{interruptions} interruptions");
    assert_eq!(case.leftovers().await, (vec![], files));
    // The other two months left as well.
    for month in ["2025-12", "2026-01"] {
        crate::admin::months::restore(&mut case.connection, month, None).await.expect("restored");
    }
    assert_eq!(case.rows().await, all);
    assert_eq!(case.scalar::<String>("SELECT months_away::text FROM horizon").await, "[]");
    // Each has the indexes and constraints that it had: those of its fact table.
    let made = "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname ~ '_2025_11$'";
    assert_eq!(case.scalar::<i64>(made).await, 10);
    let checks = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'impressions_2025_11'::regclass AND contype = 'c'";
    assert_eq!(case.scalar::<i64>(checks).await, 3);
}

/// Each reason keeps the month here, and when it is gone the month is due.
#[tokio::test]
async fn a_month_stays_while_something_needs_it() {
    let mut case = Case::new().await;
    let november = month();
    assert_eq!(case.look().await, Look::Due(november));
    let held = async |case: &mut Case, before: &str, reason: &str, after: &str| {
        case.execute(before).await;
        match case.look().await {
            Look::Held(month, why) => assert!(month == november && why.contains(reason), "{why}"),
            other => panic!("{before}: {other:?}"),
        }
        case.execute(after).await;
        assert_eq!(case.look().await, Look::Due(november), "{after}");
    };
    // Without a policy, and while the month is one of those kept, nothing leaves. Kept are six months and the present one: 2025-12 on.
    for (policy, expected) in [("NULL", Look::Nothing), ("7", Look::Nothing), ("6", Look::Due(november))] {
        case.execute(&format!("UPDATE retention SET months_kept = {policy}")).await;
        assert_eq!(case.look().await, expected, "{policy}");
    }
    assert_eq!(
        due::look(&mut case.connection, Micros(Month::parse("2026-01").expect("a month").start().0)).await.expect("answers"),
        Look::Nothing
    );

    let stored = |time: &str| {
        format!(
            "UPDATE impressions SET received_at = '{time}' WHERE id = (SELECT id FROM impressions_2025_11 ORDER BY id LIMIT 1)"
        )
    };
    held(&mut case, &stored("2026-05-20T00:00:00Z"), "received at 2026-05-20T00:00:00Z", &stored("2025-11-20T00:00:00Z")).await;

    case.execute(&format!(
        "INSERT INTO experiments (project_id, id, name, status, started_at, conversion_window_days)
         VALUES ('{PROJECT}', '{EXPERIMENT}', 'checkout', 'running', '2025-11-01', 20)"
    ))
    .await;
    assert_eq!(case.look().await, Look::Due(november), "it has nothing in it");
    let name = format!(
        "UPDATE impressions_2025_11 SET experiment_id = '{EXPERIMENT}' WHERE id = (SELECT min(id::text)::uuid FROM impressions_2025_11)"
    );
    let end = |days: i64| {
        format!(
            "UPDATE experiments SET status = 'completed', ended_at = '2026-06-01T00:00:00Z'::timestamptz - interval '{days} days'"
        )
    };
    case.execute(&name).await;
    held(&mut case, "SELECT 1", "\"checkout\"", &end(51)).await;
    held(&mut case, &end(49), "\"checkout\"", &end(51)).await;
    let metric = |days: &str| {
        format!(
            "DELETE FROM metrics; INSERT INTO metrics (project_id, experiment_id, name, aggregation, window_days)
             VALUES ('{PROJECT}', '{EXPERIMENT}', 'orders', 'conversion_rate', {days})"
        )
    };
    held(&mut case, &metric("30"), "\"checkout\"", &metric("10")).await;
    held(
        &mut case,
        "UPDATE experiments SET status = 'running', ended_at = NULL",
        "\"checkout\"",
        "UPDATE experiments SET status = 'archived'",
    )
    .await;

    // Rows that name no experiment belong to all whose users were exposed by then; a running one looks back from its first exposure, too.
    case.execute("UPDATE impressions_2025_11 SET experiment_id = NULL").await;
    case.execute(&format!(
        "INSERT INTO user_experiment_participation (project_id, id, user_id, experiment_id, variant_id, first_exposure_date,
             first_impression_id, total_impressions, variants_seen, has_converted, conversion_within_window)
         VALUES ('{PROJECT}', '{EXPERIMENT}', '{EXPERIMENT}', '{EXPERIMENT}', '{EXPERIMENT}', '2025-11-01T00:00:00Z',
             '{EXPERIMENT}', 1, '{{}}', false, false);
         UPDATE experiments SET status = 'running'"
    ))
    .await;
    let exposed = |time: &str| format!("UPDATE user_experiment_participation SET first_exposure_date = '{time}'");
    held(&mut case, "SELECT 1", "looks back", &exposed("2026-01-15T00:00:00Z")).await;
    held(&mut case, &exposed("2025-11-25T00:00:00Z"), "looks back", &exposed("2026-01-15T00:00:00Z")).await;
    let behind = format!(
        "INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) VALUES ('{PROJECT}', '{EXPERIMENT}', true)"
    );
    held(&mut case, &behind, "computed again", "DELETE FROM experiments_behind").await;
}

/// What is over is frozen in the transaction that detaches, and what has nothing in the month is not.
#[tokio::test]
async fn experiments_are_frozen_with_their_months() {
    let mut case = Case::new().await;
    let other = Uuid::from_u128(0xe2);
    case.execute(&format!(
        "INSERT INTO experiments (project_id, id, name, status) VALUES ('{PROJECT}', '{EXPERIMENT}', 'checkout', 'archived'),
             ('{PROJECT}', '{other}', 'search', 'archived');
         INSERT INTO catalogue_versions VALUES ('{PROJECT}', 5);
         UPDATE impressions_2025_11 SET experiment_id = '{EXPERIMENT}';
         UPDATE impressions_2025_12 SET experiment_id = '{other}'"
    ))
    .await;
    case.leave(Archived).await;
    let frozen = "SELECT coalesce(string_agg(name, ','), '') FROM experiments WHERE frozen_at IS NOT NULL";
    assert_eq!(case.scalar::<String>(frozen).await, "");
    // An experiment that began again meanwhile keeps its rows.
    case.execute("UPDATE experiments SET status = 'running' WHERE name = 'checkout'").await;
    assert!(matches!(case.step().await.expect("looks"), Step::Stays(why) if why.contains("checkout")));
    assert_eq!(case.state().await, Some(Archived));
    case.execute("UPDATE experiments SET status = 'archived' WHERE name = 'checkout'").await;
    assert_eq!(case.step().await.expect("a step"), Step::Done(Detached));
    assert_eq!(case.scalar::<String>(frozen).await, "checkout");
    assert_eq!(
        case.scalar::<i64>("SELECT version FROM catalogue_versions").await,
        6,
        "what is remembered of its users is dropped"
    );
    let away = format!("[{{\"month\": \"2025-11\", \"projects\": [\"{PROJECT}\"]}}]");
    assert_eq!(case.scalar::<String>("SELECT months_away::text FROM horizon").await, away);
    assert_eq!(case.scalar::<String>("SELECT until::text FROM horizon").await, "2025-12-01 00:00:00+00");
    assert_eq!(case.step().await.expect("a step"), Step::Done(Dropped));
    crate::admin::months::restore(&mut case.connection, "2025-11", None).await.expect("restored");
    assert_eq!(case.scalar::<String>("SELECT until::text FROM horizon").await, "2025-12-01 00:00:00+00", "it never moves back");
    assert_eq!(case.scalar::<String>(frozen).await, "checkout", "what came for its month meanwhile is in none of its rows");
}

/// A month is not made again by an event that was read before the boundary moved.
#[tokio::test]
async fn a_month_that_left_is_not_made_again() {
    let mut case = Case::new().await;
    case.leave(Dropped).await;
    for (text, exists) in [("2025-11", false), ("2025-10", false), ("2026-02", true)] {
        let month = Month::parse(text).expect("a month");
        partitions::make_month(&mut case.connection, events::Kind::Impression, month).await.expect("no failure");
        let query = format!("SELECT to_regclass('{}') IS NOT NULL", month.table("impressions"));
        assert_eq!(case.scalar::<bool>(&query).await, exists, "{text}");
    }
}

/// Another reader of Parquet finds the same rows under the same names, and the ids of columns are those for ever.
#[tokio::test]
async fn files_are_plain_parquet() {
    let mut case = Case::new().await;
    let total: String = case.scalar("SELECT sum(conversion_value)::text FROM conversions_2025_11").await;
    let nulls: i64 = case.scalar("SELECT count(*) FROM conversions_2025_11 WHERE conversion_value IS NULL").await;
    let users: String = case.scalar("SELECT string_agg(user_id::text, ',' ORDER BY user_id) FROM conversions_2025_11").await;
    let times: i64 = case
        .scalar("SELECT sum((extract(epoch FROM claimed_at) * 1000000)::bigint % 1000000007)::bigint FROM conversions_2025_11")
        .await;
    let properties: String =
        case.scalar("SELECT metadata::text FROM conversions_2025_11 WHERE metadata IS NOT NULL ORDER BY user_id LIMIT 1").await;
    case.leave(Archived).await;
    let path = case.folder.path().join("2025-11/conversions.parquet");
    let reader = SerializedFileReader::new(std::fs::File::open(path).expect("the file")).expect("Parquet");
    let schema = reader.metadata().file_metadata().schema_descr();
    let ids: Vec<(String, i32)> = (0..schema.num_columns())
        .map(|index| (schema.column(index).name().to_owned(), schema.column(index).self_type().get_basic_info().id()))
        .filter(|(name, _)| {
            ["project_id", "metadata", "experiment_id", "conversion_value", "conversion_context"].contains(&name.as_str())
        })
        .collect();
    let expected = [
        ("project_id", 1),
        ("metadata", 31),
        ("experiment_id", 1_001),
        ("conversion_value", 1_006),
        ("conversion_context", 1_018),
    ];
    assert_eq!(ids, expected.map(|(name, id)| (name.to_owned(), id)));
    let (mut found, mut missing, mut sum, mut seconds, mut first) = (Vec::new(), 0, 0i128, 0, None);
    for row in reader.get_row_iter(None).expect("rows") {
        let row = row.expect("a row");
        let column = |name: &str| row.get_column_iter().find(|(found, _)| *found == name).expect("a column").1.clone();
        match column("conversion_value") {
            Field::Null => missing += 1,
            Field::Decimal(value) => {
                let mut bytes = [if value.data()[0] >= 0x80 { 0xff } else { 0 }; 16];
                bytes[16 - value.data().len()..].copy_from_slice(value.data());
                assert_eq!((value.precision(), value.scale()), (20, 6));
                sum += i128::from_be_bytes(bytes);
            }
            other => panic!("{other:?}"),
        }
        match column("claimed_at") {
            Field::TimestampMicros(time) => seconds += time % 1_000_000_007,
            other => panic!("{other:?}"),
        }
        match column("user_id") {
            Field::Bytes(bytes) => found.push(Uuid::from_slice(bytes.data()).expect("16 bytes").to_string()),
            other => panic!("{other:?}"),
        }
        if let (None, Field::Bytes(text)) = (&first, column("metadata")) {
            first = Some(String::from_utf8(text.data().to_vec()).expect("text"));
        } else if let (None, Field::Str(text)) = (&first, column("metadata")) {
            first = Some(text);
        }
    }
    assert_eq!((found.join(","), missing, seconds), (users, nulls, times));
    assert_eq!(format!("{}.{:06}", sum / 1_000_000, (sum % 1_000_000).abs()), total);
    assert_eq!(first, Some(properties));
}

/// Nothing is dropped that differs from its file, and nothing is restored from a file that was changed.
#[tokio::test]
async fn files_and_rows_that_differ_are_found() {
    let mut case = Case::new().await;
    case.leave(Closed).await;
    let table = FactTable::of(events::Kind::Conversion);
    let path = case.folder.path().join("one.parquet");
    let connection = &mut case.connection;
    let written = file::write(connection, table, "conversions_2025_11", &path).await.expect("written");
    assert_eq!(written.rows, ROWS as u64);
    assert_eq!(file::compare(connection, table, "conversions_2025_11", &path).await.expect("equal"), ROWS as u64);
    for (change, row) in [
        (
            "UPDATE conversions_2025_11 SET conversion_value = coalesce(conversion_value, 0) + 0.000001 WHERE id = (SELECT id FROM conversions_2025_11 WHERE abs(coalesce(conversion_value, 0)) < 1000 ORDER BY project_id, user_id LIMIT 1)",
            None,
        ),
        (
            "DELETE FROM conversions_2025_11 WHERE user_id = (SELECT max(user_id::text)::uuid FROM conversions_2025_11)",
            Some(ROWS as u64),
        ),
        (
            "INSERT INTO conversions_2025_11 SELECT * FROM conversions_2025_12 ORDER BY user_id DESC LIMIT 0; DELETE FROM conversions_2025_11",
            Some(1),
        ),
    ] {
        let mut connection = database::connect(&case.database.url, "test").await.expect("connects");
        let mut transaction = connection.begin().await.expect("begins");
        sqlx::raw_sql(AssertSqlSafe(change)).execute(&mut *transaction).await.expect("changes");
        let found = file::compare(&mut transaction, table, "conversions_2025_11", &path).await;
        match found {
            Err(ArchiveError::Differs { row: found, .. }) => assert!(row.is_none_or(|row| row == found), "{change}: row {found}"),
            other => panic!("{change}: {other:?}"),
        }
    }
    while case.state().await != Some(Detached) {
        case.step().await.expect("a step");
    }
    case.execute("DELETE FROM conversions_2025_11 WHERE user_id = (SELECT max(user_id::text)::uuid FROM conversions_2025_11)")
        .await;
    let error = case.step().await.expect_err("a row is missing");
    assert!(error.to_string().contains("differ from row 120 on"), "{error}");
    case.execute("INSERT INTO conversions_2025_11 SELECT * FROM conversions_2025_12 LIMIT 0").await;
    assert_eq!(case.state().await, Some(Detached));

    let mut case = Case::new().await;
    case.leave(Dropped).await;
    let path = case.folder.path().join("2025-11/impressions.parquet");
    let bytes = std::fs::read(&path).expect("the file");
    let mut changed = bytes.clone();
    changed[100] ^= 1;
    std::fs::write(&path, &changed).expect("written");
    let error = crate::admin::months::restore(&mut case.connection, "2025-11", None).await.expect_err("another file");
    assert!(error.to_string().contains("its SHA-256 is"), "{error}");
    assert_eq!(case.state().await, Some(Restoring));
    std::fs::write(&path, &bytes).expect("written");
    case.connection = database::connect(&case.database.url, "test").await.expect("connects");
    // An aggregator goes on with what a command began.
    assert_eq!(case.step().await.expect("a step"), Step::Done(Restored));
    let error = crate::admin::months::restore(&mut case.connection, "2025-11", None).await;
    assert!(error.is_ok(), "it is restored already");
    crate::admin::months::release(&mut case.connection, "2025-11").await.expect("released");
    assert_eq!(case.step().await.expect("a step"), Step::Done(Detached));
    assert_eq!(case.step().await.expect("a step"), Step::Done(Dropped));
}

/// A query that does not end keeps the month here, and no commit waits for its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_query_holds_up_no_writer() {
    let mut case = Case::new().await;
    case.leave(Archived).await;
    let mut reader = case.database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM impressions").execute(&mut reader).await.expect("reads");
    let mut writer = case.database.connect().await;
    // Far beyond what it may wait, on a busy machine too.
    sqlx::raw_sql("SET lock_timeout = '5s'").execute(&mut writer).await.expect("set");
    let mut commits = 0;
    let mut detaching = Box::pin(case.step());
    let outcome = loop {
        let commit = sqlx::raw_sql(
            "BEGIN; UPDATE checkpoints SET change_seq = change_seq + 1;
             INSERT INTO impressions (project_id, user_id, claimed_at, id, event_time, received_at, log_offset, log_id, log_partition, untimed, is_bot)
             SELECT gen_random_uuid(), gen_random_uuid(), '2026-01-05', gen_random_uuid(), '2026-01-05', '2026-01-05', 1, gen_random_uuid(), 0, false, false;
             COMMIT",
        );
        tokio::select! {
            biased;
            outcome = &mut detaching => break outcome.expect("tried"),
            done = async { let done = commit.execute(&mut writer).await; tokio::time::sleep(Duration::from_millis(20)).await; done } => {
                done.expect("stored while the query goes on");
                commits += 1;
            }
        }
    };
    drop(detaching);
    assert_eq!(outcome, Step::Stays(BUSY.to_owned()));
    assert!(commits > 5, "{commits} commits while the query went on");
    sqlx::raw_sql("ROLLBACK").execute(&mut reader).await.expect("ends");
    assert_eq!(case.step().await.expect("a step"), Step::Done(Detached));
}
