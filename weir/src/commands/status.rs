//! `weir status`: what runs, how far it is, and what waits for somebody.

use std::path::Path;
use std::time::Duration;

use aggregator::admin::{dead_letters, months};
use serde_json::{Map, Value, json};
use sqlx::PgConnection;

use super::places::{connect, shown, url};
use super::text::{NOTHING, Side, count, duration, elements, number, plain, printable, table, text_of};
use super::{ListFormat, print_list};
use crate::cli::Globals;
use crate::client::Client;
use crate::data::WeirJson;

/// The first schema in which months leave.
const RETENTION_SCHEMA: i64 = 19;

/// How long a health page may take.
const PROBE_MAX: Duration = Duration::from_secs(3);

/// The arguments of `weir status`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The collector; without it the one of weir.json
    #[arg(long, value_name = "URL", env = "WEIR_COLLECTOR")]
    collector: Option<String>,
    /// The query service; without it the one of weir.json
    #[arg(long, value_name = "URL", env = "WEIR_QUERY")]
    query: Option<String>,
    /// Address of the aggregator's health and metrics; without it the one of weir.json
    #[arg(long, value_name = "URL", env = "WEIR_AGGREGATOR")]
    aggregator: Option<String>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t)]
    format: ListFormat,
}

/// Looks everywhere and prints. What cannot be reached is a part of the answer, not a failure.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let found = globals.weir_json()?;
    let services = addresses(&args, found.as_ref());
    let ca = globals.ca.as_deref();
    let (collector, query, aggregator) = tokio::join!(probe(&services[0], ca), probe(&services[1], ca), probe(&services[2], ca));
    let lags = lags(&services[2].1, ca).await;
    let mut status = Map::new();
    status.insert("data".into(), globals.folder()?.display().to_string().into());
    status.insert("services".into(), json!([collector, query, aggregator]));
    let database = match database(globals, &lags).await {
        Ok(database) => database,
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    status.insert("database".into(), database);
    print_list(&Value::Object(status), args.format, render)
}

/// The services by name, each where it was said to be, else where it is written, else where it is by default.
fn addresses(args: &Args, found: Option<&WeirJson>) -> [(&'static str, String); 3] {
    let choose = |said: &Option<String>, written: Option<&String>, usual: &str| {
        let said = said.as_ref().filter(|text| !text.is_empty());
        url(said.or(written).map_or(usual, String::as_str))
    };
    [
        ("collector", choose(&args.collector, found.map(|file| &file.collector), "127.0.0.1:8080")),
        ("query", choose(&args.query, found.map(|file| &file.query), "127.0.0.1:8081")),
        ("aggregator", choose(&args.aggregator, found.map(|file| &file.aggregator), "127.0.0.1:8082")),
    ]
}

/// Asks a service whether it is ready.
async fn probe((name, base): &(&'static str, String), ca: Option<&Path>) -> Value {
    let answer = async { Client::new(base, None, ca)?.probe("/readyz", PROBE_MAX).await };
    let (ready, state) = match answer.await {
        Ok(answer) if answer.status.is_success() => (true, "ready".to_owned()),
        Ok(answer) => (false, format!("not ready: {} {}", answer.status.as_u16(), answer.line())),
        Err(error) => (false, format!("no answer: {}", error.root_cause())),
    };
    json!({ "name": name, "url": base, "ready": ready, "state": state })
}

/// Returns how many records of each log partition are not stored yet, as the aggregator's numbers say; the log itself is
/// open to its own process only.
async fn lags(base: &str, ca: Option<&Path>) -> Map<String, Value> {
    let page = async { Client::new(base, None, ca)?.probe("/metrics", PROBE_MAX).await };
    match page.await {
        Ok(page) if page.status.is_success() => parse_lags(&String::from_utf8_lossy(&page.body)),
        _ => Map::new(),
    }
}

fn parse_lags(page: &str) -> Map<String, Value> {
    let sample = |line: &str| {
        let (labels, value) = line.strip_prefix("weir_aggregator_lag_records{")?.split_once("} ")?;
        let partition = labels.split(',').find_map(|label| label.strip_prefix("log_partition=\"")?.strip_suffix('"'))?;
        let records = value.split_whitespace().next()?.parse::<f64>().ok()?;
        Some((partition.to_owned(), Value::from(records as u64)))
    };
    page.lines().filter_map(sample).collect()
}

async fn database(globals: &Globals, lags: &Map<String, Value>) -> anyhow::Result<Value> {
    let url = globals.any_database_url()?;
    let mut conn = connect(globals).await?;
    let (server, schema): (String, Option<i64>) =
        sqlx::query_as("SELECT current_setting('server_version'), (SELECT max(version) FROM _sqlx_migrations WHERE success)")
            .fetch_one(&mut conn)
            .await?;
    Ok(json!({
        "url": shown(&url),
        "server_version": server,
        "schema_version": schema,
        "logs": logs(&mut conn, lags).await?,
        "dead_letters": dead_letters::counts(&mut conn, &dead_letters::Filter::default()).await?,
        "tables": tables(&mut conn).await?,
        "retention": match schema {
            Some(RETENTION_SCHEMA..) => serde_json::to_value(months::list(&mut conn).await?)?,
            _ => Value::Null,
        },
    }))
}

/// The logs, the present one first, each with its log partitions: how far they are stored, and by whom.
async fn logs(conn: &mut PgConnection, lags: &Map<String, Value>) -> anyhow::Result<Value> {
    type Row = (String, i32, Option<i32>, Option<i64>, Option<String>, Option<f64>, Option<String>, Option<i64>, Option<bool>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT l.log_id::text, l.log_partitions, c.log_partition, c.next_offset, \
             to_char((SELECT max(p.event_time) FROM project_progress p \
                      WHERE p.log_id = c.log_id AND p.log_partition = c.log_partition) AT TIME ZONE 'UTC', \
                 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
             extract(epoch FROM now() - c.updated_at)::float8, s.owner::text, s.epoch, \
             s.owner IS NOT NULL AND EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.pid = s.writer_pid AND coalesce(a.backend_start = s.writer_start, true)) \
         FROM logs l LEFT JOIN checkpoints c USING (log_id) LEFT JOIN leases s USING (log_id, log_partition) \
         ORDER BY l.last_used_at DESC, l.log_id, c.log_partition",
    )
    .fetch_all(conn)
    .await?;
    let mut logs: Vec<Value> = Vec::new();
    for (log_id, log_partitions, partition, next_offset, event_time, age, owner, epoch, writes) in rows {
        if logs.last().and_then(|log| text_of(log, "/log_id")) != Some(&log_id) {
            logs.push(json!({ "log_id": log_id, "log_partitions": log_partitions, "partitions": [] }));
        }
        // The aggregator reads the present log only.
        let lag = partition.filter(|_| logs.len() == 1).and_then(|partition| lags.get(&partition.to_string()).cloned());
        if let (Some(partition), Some(list)) =
            (partition, logs.last_mut().and_then(|log| log.get_mut("partitions")).and_then(Value::as_array_mut))
        {
            list.push(json!({
                "log_partition": partition, "next_offset": next_offset, "lag_records": lag, "event_time": event_time,
                "committed_seconds_ago": age, "owner": owner, "epoch": epoch, "writer_connected": writes,
            }));
        }
    }
    Ok(logs.into())
}

/// The partitioned tables with their months, and what lies outside of every month.
async fn tables(conn: &mut PgConnection) -> anyhow::Result<Value> {
    type Row = (String, i64, Option<String>, Option<String>, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT p.relname::text, count(*) FILTER (WHERE NOT is_default), \
             min(child) FILTER (WHERE NOT is_default), max(child) FILTER (WHERE NOT is_default), \
             sum(pg_total_relation_size(parts.oid))::bigint, coalesce(sum(pg_relation_size(parts.oid)) FILTER (WHERE is_default), 0)::bigint \
         FROM (SELECT i.inhparent, c.oid, c.relname::text AS child, pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AS is_default \
               FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relispartition AND c.relkind = 'r') parts \
         JOIN pg_class p ON p.oid = inhparent \
         WHERE p.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'impressions'::regclass) \
         GROUP BY p.relname ORDER BY p.relname",
    )
    .fetch_all(conn)
    .await?;
    let row = |(table, months, first, last, bytes, default_bytes)| json!({ "table": table, "months": months, "first": first, "last": last, "bytes": bytes, "default_bytes": default_bytes });
    Ok(rows.into_iter().map(row).collect::<Vec<Value>>().into())
}

/// Writes a status for people.
fn render(status: &Value) -> String {
    let cell = |value: &Value, member: &str| value.get(member).map(plain).unwrap_or_default();
    let mut out = format!("data folder {}\n\n", printable(text_of(status, "/data").unwrap_or(NOTHING)));
    let services =
        elements(status, "/services").iter().map(|service| ["name", "url", "state"].map(|member| cell(service, member)).into());
    let database = status.get("database").unwrap_or(&Value::Null);
    let postgres = match text_of(database, "/error") {
        Some(error) => vec!["postgres".to_owned(), String::new(), error.to_owned()],
        None => {
            let state = format!("Postgres {}, schema {}", cell(database, "server_version"), cell(database, "schema_version"));
            vec!["postgres".to_owned(), cell(database, "url"), state]
        }
    };
    let rows: Vec<Vec<String>> = services.chain([postgres]).collect();
    out.push_str(&table(&[("service", Side::Left), ("address", Side::Left), ("state", Side::Left)], &rows));
    if text_of(database, "/error").is_some() {
        return out;
    }
    for log in elements(database, "/logs") {
        out.push_str(&format!("\nlog {}, {} log partitions\n", printable(&cell(log, "log_id")), cell(log, "log_partitions")));
        out.push_str(&log_partitions(log));
    }
    if elements(database, "/logs").is_empty() {
        out.push_str("\nno log was ever read\n");
    }
    out.push('\n');
    out.push_str(&counts(elements(database, "/dead_letters")));
    let rows: Vec<Vec<String>> = elements(database, "/tables").iter().map(table_row).collect();
    let columns = [
        ("table", Side::Left),
        ("months", Side::Right),
        ("first", Side::Left),
        ("last", Side::Left),
        ("size", Side::Right),
        ("outside of months", Side::Right),
    ];
    out.push('\n');
    out.push_str(&table(&columns, &rows));
    out.push_str(&retention(database.get("retention").unwrap_or(&Value::Null)));
    out
}

/// Writes what is kept, once that is not all, and what of it does not go on.
fn retention(found: &Value) -> String {
    let text = |value: &Value, member: &str| text_of(value, member).map(|text| printable(text).into_owned());
    let mut out = String::new();
    if let Some(kept) = found.get("months_kept").and_then(Value::as_u64) {
        out.push_str(&format!(
            "\n{kept} whole months before the present one are kept; `weir admin month list` shows which have left\n"
        ));
    }
    if let (Some(month), Some(why)) = (text(found, "/held_month"), text(found, "/held_by")) {
        out.push_str(&format!("month {month} is due and stays: {why}\n"));
    }
    for month in elements(found, "/months") {
        if let (Some(name), Some(state), Some(why)) = (text(month, "/month"), text(month, "/state"), text(month, "/problem")) {
            out.push_str(&format!("month {name} is {state} and does not go on: {why}\n"));
        }
    }
    out
}

fn log_partitions(log: &Value) -> String {
    let mut rows = Vec::new();
    for partition in elements(log, "/partitions") {
        let counted = |member: &str| partition.get(member).map(count).unwrap_or_default();
        let owner = match (text_of(partition, "/owner"), partition.get("writer_connected").and_then(Value::as_bool)) {
            (None, _) => "nobody".to_owned(),
            (Some(owner), Some(true)) => owner.to_owned(),
            (Some(owner), _) => format!("{owner}, not connected"),
        };
        rows.push(vec![
            counted("log_partition"),
            counted("next_offset"),
            counted("lag_records"),
            text_of(partition, "/event_time").unwrap_or_default().to_owned(),
            partition
                .get("committed_seconds_ago")
                .and_then(number)
                .map(|age| format!("{} ago", duration(age.max(0.0))))
                .unwrap_or_default(),
            owner,
        ]);
    }
    let columns = [
        ("log partition", Side::Right),
        ("next offset", Side::Right),
        ("lag", Side::Right),
        ("newest event", Side::Left),
        ("committed", Side::Right),
        ("stored by", Side::Left),
    ];
    table(&columns, &rows)
}

/// Writes the numbers of dead letters.
pub(super) fn counts(counts: &[Value]) -> String {
    if counts.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let row = |line: &Value| {
        let text = |member: &str| text_of(line, member).unwrap_or_default().to_owned();
        vec![text("/code"), text("/status"), line.get("count").map(count).unwrap_or_default(), text("/oldest"), text("/newest")]
    };
    let rows: Vec<_> = counts.iter().map(row).collect();
    let columns = [
        ("dead letters", Side::Left),
        ("status", Side::Left),
        ("number", Side::Right),
        ("oldest", Side::Left),
        ("newest", Side::Left),
    ];
    table(&columns, &rows)
}

fn table_row(table: &Value) -> Vec<String> {
    let name = text_of(table, "/table").unwrap_or_default();
    // A month's own name repeats its table's.
    let month = |member: &str| {
        let name_of_month = text_of(table, member).unwrap_or_default();
        name_of_month.strip_prefix(name).unwrap_or(name_of_month).trim_start_matches('_').to_owned()
    };
    let size = |member: &str| table.get(member).and_then(number).map(bytes).unwrap_or_default();
    let outside = match table.get("default_bytes").and_then(number) {
        Some(bytes) if bytes > 0.0 => size("default_bytes"),
        _ => "nothing".to_owned(),
    };
    vec![
        name.to_owned(),
        table.get("months").map(count).unwrap_or_default(),
        month("/first"),
        month("/last"),
        size("bytes"),
        outside,
    ]
}

/// Writes a number of bytes.
pub(super) fn bytes(bytes: f64) -> String {
    match bytes {
        b if b < 1024.0 * 1024.0 => format!("{:.0} KiB", b / 1024.0),
        b if b < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", b / 1024.0 / 1024.0),
        b => format!("{:.1} GiB", b / 1024.0 / 1024.0 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use migrations::testing::TestDatabase;

    use super::*;

    #[test]
    fn a_status_becomes_tables() {
        let status = json!({
            "data": "/var/lib/weir",
            "services": [
                { "name": "collector", "url": "http://127.0.0.1:8080", "ready": true, "state": "ready" },
                { "name": "query", "url": "http://127.0.0.1:8081", "ready": false, "state": "not ready: 503 postgres\u{1b}" } ],
            "database": {
                "url": "postgresql://weir@%2Frun/weir", "server_version": "15.9", "schema_version": 4,
                "logs": [{ "log_id": "l-1", "log_partitions": 8, "partitions": [
                    { "log_partition": 0, "next_offset": 1234, "lag_records": 5, "event_time": "2026-03-01T00:00:00Z",
                      "committed_seconds_ago": 0.4, "owner": "w-1", "epoch": 3, "writer_connected": true },
                    { "log_partition": 1, "next_offset": 0, "lag_records": null, "event_time": null,
                      "committed_seconds_ago": 7200.0, "owner": "w-2", "epoch": 1, "writer_connected": false },
                    { "log_partition": 2, "next_offset": 0, "owner": null, "writer_connected": false } ] }],
                "dead_letters": [{ "status": "open", "code": "unknown_experiment", "count": 1200,
                                   "oldest": "2026-03-01T00:00:00Z", "newest": "2026-03-02T00:00:00Z" }],
                "tables": [{ "table": "impressions", "months": 3, "first": "impressions_2026_02", "last": "impressions_2026_04",
                             "bytes": 3_500_000, "default_bytes": 0 }],
            },
        });
        let expected = "\
data folder /var/lib/weir

service    address                        state
collector  http://127.0.0.1:8080          ready
query      http://127.0.0.1:8081          not ready: 503 postgres\\u{1b}
postgres   postgresql://weir@%2Frun/weir  Postgres 15.9, schema 4

log l-1, 8 log partitions
log partition  next offset  lag  newest event          committed  stored by
            0        1,234    5  2026-03-01T00:00:00Z  0.4 s ago  w-1
            1            0                             2.0 h ago  w-2, not connected
            2            0                                        nobody

dead letters        status  number  oldest                newest
unknown_experiment  open     1,200  2026-03-01T00:00:00Z  2026-03-02T00:00:00Z

table        months  first    last        size  outside of months
impressions       3  2026_02  2026_04  3.3 MiB            nothing
";
        let found = render(&status);
        assert_eq!(found, expected, "{found}");
    }

    #[test]
    fn what_cannot_be_reached_is_said() {
        let status = json!({ "data": "/d", "services": [], "database": { "error": "no database: /d has no weir.json" } });
        assert_eq!(render(&status), "data folder /d\n\nservice   state\npostgres  no database: /d has no weir.json\n");
    }

    #[test]
    fn lag_is_read_from_the_aggregators_numbers() {
        let page = "# TYPE weir_aggregator_lag_records gauge\nweir_aggregator_lag_records{log_partition=\"0\"} 12\n\
                    weir_aggregator_lag_records{log_partition=\"11\"} 0\nweir_aggregator_halted{log_partition=\"0\"} 1\n\
                    weir_aggregator_lag_records{broken\n";
        let found: Vec<_> = parse_lags(page).into_iter().map(|(partition, lag)| format!("{partition}:{lag}")).collect();
        assert_eq!(found, ["0:12", "11:0"]);
    }

    #[tokio::test]
    async fn the_database_is_looked_at() {
        let test = TestDatabase::create().await;
        let mut conn = test.connect().await;
        sqlx::raw_sql(
            "INSERT INTO logs (log_id, log_partitions) VALUES ('00000000-0000-0000-0000-000000000001', 2);
             INSERT INTO checkpoints (log_id, log_partition, next_offset) VALUES
                 ('00000000-0000-0000-0000-000000000001', 0, 7), ('00000000-0000-0000-0000-000000000001', 1, 0);
             INSERT INTO leases (log_id, log_partition, owner, epoch, writer_pid) VALUES
                 ('00000000-0000-0000-0000-000000000001', 0, '00000000-0000-0000-0000-000000000002', 3, pg_backend_pid());
             CREATE TABLE impressions_2026_03 PARTITION OF impressions FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')",
        )
        .execute(&mut conn)
        .await
        .expect("rows");
        let globals = Globals { database_url: Some(test.url.clone()), data: Some("/nowhere".into()), ca: None };
        let lags = [("0".to_owned(), Value::from(5))].into_iter().collect();
        let found = database(&globals, &lags).await.expect("a status");
        let at = |pointer: &str| found.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/logs/0/log_partitions"), json!(2));
        assert_eq!(at("/logs/0/partitions/0/next_offset"), json!(7));
        assert_eq!(at("/logs/0/partitions/0/lag_records"), json!(5));
        assert_eq!(at("/logs/0/partitions/0/writer_connected"), json!(true));
        assert_eq!(at("/logs/0/partitions/1/owner"), json!(null));
        assert_eq!(at("/dead_letters"), json!([]));
        let impressions = elements(&found, "/tables").iter().find(|table| text_of(table, "/table") == Some("impressions"));
        let impressions = impressions.expect("is partitioned");
        assert_eq!((impressions.get("months"), text_of(impressions, "/first")), (Some(&json!(1)), Some("impressions_2026_03")));
        assert_eq!(elements(&found, "/tables").len(), 5);
        assert_eq!(at("/schema_version"), json!(::migrations::MIGRATOR.iter().map(|m| m.version).max()));
    }
}
