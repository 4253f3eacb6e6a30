//! A service over a database of its own, a plain HTTP client, and rows.

use std::collections::HashMap;
use std::net::SocketAddr;

use migrations::testing::TestDatabase;
use query::{Config, Limits, Query};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

/// The read token of the first project.
pub(crate) const TOKEN: &str = "rt_first";
/// The read token of the second project.
pub(crate) const OTHER_TOKEN: &str = "rt_other";
/// The first project.
pub(crate) const PROJECT: Uuid = Uuid::from_u128(1);
/// The second project.
pub(crate) const OTHER_PROJECT: Uuid = Uuid::from_u128(2);
/// The log of all rows.
pub(crate) const LOG: Uuid = Uuid::from_u128(0xabc);

pub(crate) struct Service {
    pub(crate) database: TestDatabase,
    pub(crate) query: Query,
    pub(crate) address: SocketAddr,
    pub(crate) rows: PgConnection,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Returns the body of an answer with status 200.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// Checks a refusal.
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        let error = self.json()["error"].clone();
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.body);
        error
    }
}

/// A configuration whose workers are this program, told to run one test.
pub(crate) fn config() -> Config {
    let program = std::env::current_exe().expect("its path").into_os_string();
    let arguments = ["worker::this_process_is_a_worker", "--exact", "--ignored", "--nocapture"];
    Config { worker: std::iter::once(program).chain(arguments.map(Into::into)).collect(), ..Config::default() }
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub(crate) async fn start_with(limits: Limits) -> Self {
        Self::start_on(TestDatabase::create().await, limits).await
    }

    pub(crate) async fn start_on(database: TestDatabase, limits: Limits) -> Self {
        Self::start_as(database, Config { limits, ..config() }).await
    }

    /// Starts one on a database with two projects, on a free port.
    pub(crate) async fn start_as(database: TestDatabase, config: Config) -> Self {
        let mut rows = database.connect().await;
        for (project, name, token) in [(PROJECT, "first", TOKEN), (OTHER_PROJECT, "other", OTHER_TOKEN)] {
            run(&mut rows, &format!("INSERT INTO projects (id, name) VALUES ('{project}', '{name}')")).await;
            add_key(&mut rows, project, token, "read").await;
        }
        run(&mut rows, &format!("INSERT INTO logs (log_id, log_partitions) VALUES ('{LOG}', 2)")).await;
        run(
            &mut rows,
            &format!(
                "INSERT INTO checkpoints (log_id, log_partition, next_offset) VALUES ('{LOG}', 0, 500), ('{LOG}', 1, 900);
                 INSERT INTO project_progress (project_id, log_id, log_partition, records, event_time)
                 VALUES ('{PROJECT}', '{LOG}', 0, 120, '2026-03-01T10:00:00Z'),
                        ('{PROJECT}', '{LOG}', 1, 7, '2026-03-01T09:00:00.5Z'),
                        ('{OTHER_PROJECT}', '{LOG}', 0, 2, '2026-03-01T10:00:00Z')"
            ),
        )
        .await;
        follow_writes(&mut rows).await;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { query: address, database_url: database.url.clone(), ..config };
        let query = Query::start(config).await.expect("the service starts");
        let address = query.address();
        Service { database, query, address, rows }
    }

    /// Starts one over an event of each of three users, two of them a day old, the third's ten days.
    pub(crate) async fn with_events_of_days_ago() -> Self {
        let mut service = Self::start().await;
        for (user, days) in [(0, 1), (1, 1), (2, 10)] {
            Event::new("engagement", "quiz", user, 0.0).store(&mut service.rows).await;
            let user = self::user(user);
            let sql =
                format!("UPDATE engagement_events SET event_time = now() - interval '{days} days' WHERE user_id = '{user}'");
            service.run(&sql).await;
        }
        service
    }

    pub(crate) async fn run(&mut self, sql: &str) {
        run(&mut self.rows, sql).await;
    }

    /// Returns a number of the page of metrics.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").await.body;
        let number = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// Waits until a number of the page of metrics is as expected.
    pub(crate) async fn until(&self, name: &str, expected: impl Fn(f64) -> bool) {
        for _ in 0..500 {
            if expected(self.metric(name).await) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("{name} is {}", self.metric(name).await);
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        request(self.address, "GET", path, &[("authorization", &format!("Bearer {TOKEN}"))], "").await
    }

    pub(crate) async fn get_as(&self, token: &str, path: &str) -> Reply {
        request(self.address, "GET", path, &[("authorization", &format!("Bearer {token}"))], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_as(TOKEN, path, body).await
    }

    pub(crate) async fn post_as(&self, token: &str, path: &str, body: &Value) -> Reply {
        request(self.address, "POST", path, &[("authorization", &format!("Bearer {token}"))], &body.to_string()).await
    }

    pub(crate) async fn sql(&self, sql: &str) -> Reply {
        self.post("/v1/sql", &serde_json::json!({"sql": sql})).await
    }

    /// Returns the rows of a statement that is expected to work.
    pub(crate) async fn rows(&self, sql: &str) -> Value {
        self.sql(sql).await.ok()["rows"].clone()
    }
}

pub(crate) async fn run(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{error}: {sql}"));
}

/// Raises `change_seq` with every write, as each of the aggregator's transactions does, and the catalogue's version with every change of it.
async fn follow_writes(rows: &mut PgConnection) {
    run(
        rows,
        "CREATE FUNCTION follow_write() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN UPDATE checkpoints SET change_seq = change_seq + 1; RETURN NULL; END';
         CREATE FUNCTION follow_change() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN
              INSERT INTO catalogue_versions (project_id, version) SELECT id, 1 FROM projects
              ON CONFLICT (project_id) DO UPDATE SET version = catalogue_versions.version + 1;
              RETURN NULL;
          END'",
    )
    .await;
    let written =
        ["impressions", "conversions", "user_experiment_participation", "conversion_attribution"].map(|table| (table, "write"));
    for (table, what) in
        written.into_iter().chain(["experiments", "variants", "metrics", "experiment_phases"].map(|table| (table, "change")))
    {
        let sql = format!(
            "CREATE TRIGGER follow_{what} AFTER INSERT OR UPDATE OR DELETE ON {table}
             FOR EACH STATEMENT EXECUTE FUNCTION follow_{what}()"
        );
        run(rows, &sql).await;
    }
}

pub(crate) async fn add_key(connection: &mut PgConnection, project: Uuid, token: &str, kind: &str) {
    let digest: Vec<u8> = Sha256::digest(token).to_vec();
    sqlx::query("INSERT INTO keys (project_id, kind, digest, prefix) VALUES ($1, $2, $3, $4)")
        .bind(project)
        .bind(kind)
        .bind(digest)
        .bind(&token[..3])
        .execute(connection)
        .await
        .expect("a key is stored");
}

/// Sends one request on a connection of its own.
pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let (head, body) = request_bytes(address, method, path, headers, body).await;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok()).expect("a status");
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Reply { status, headers: lines.filter_map(header).collect(), body: String::from_utf8(body).expect("UTF-8") }
}

/// The same for a body that is no text: the head, and the body.
pub(crate) async fn request_bytes(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    // A server that refuses a body early may close before it has read all of it.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer to {method} {path}: {:?}", String::from_utf8_lossy(&bytes)));
    let body = bytes.split_off(end + 4);
    (String::from_utf8_lossy(&bytes).into_owned(), body)
}

/// Returns the user of a number.
pub(crate) fn user(number: u64) -> Uuid {
    Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(number))
}

/// The same in SQL, over a column `i`.
pub(crate) const USER_SQL: &str = "('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid";

/// One event, to be stored as the aggregator stores it.
#[derive(Clone)]
pub(crate) struct Event<'a> {
    pub(crate) project: Uuid,
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) user: Uuid,
    /// Seconds after 2026-03-01T00:00:00Z.
    pub(crate) second: f64,
    pub(crate) is_bot: bool,
    /// Further columns with their SQL.
    pub(crate) more: &'a [(&'a str, &'a str)],
}

impl<'a> Event<'a> {
    pub(crate) fn new(kind: &'a str, name: &'a str, user: u64, second: f64) -> Self {
        Event { project: PROJECT, kind, name, user: self::user(user), second, is_bot: false, more: &[] }
    }

    pub(crate) async fn store(&self, connection: &mut PgConnection) {
        let (table, name_column) = match self.kind {
            "impression" => ("impressions", None),
            "conversion" => ("conversions", Some("conversion_type")),
            "campaign_event" => ("campaign_events", Some("event_type")),
            "engagement" => ("engagement_events", Some("event_type")),
            _ => ("identity_events", Some("event_type")),
        };
        let time = format!("timestamptz '2026-03-01T00:00:00Z' + interval '{} seconds'", self.second);
        let mut columns: Vec<(&str, String)> = vec![
            ("project_id", format!("'{}'", self.project)),
            ("id", "gen_random_uuid()".to_owned()),
            ("user_id", format!("'{}'", self.user)),
            ("claimed_at", time.clone()),
            ("event_time", time.clone()),
            ("received_at", time),
            ("untimed", "false".to_owned()),
            ("is_bot", self.is_bot.to_string()),
            ("log_id", format!("'{LOG}'")),
            ("log_partition", "0".to_owned()),
            ("log_offset", "0".to_owned()),
        ];
        columns.extend(name_column.map(|column| (column, format!("'{}'", self.name))));
        columns.extend(self.more.iter().map(|(column, value)| (*column, (*value).to_owned())));
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
        run(connection, &format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))).await;
    }
}

/// Stores an experiment with variants (name, weight or null). Its id and theirs come from their names.
pub(crate) async fn add_experiment(
    connection: &mut PgConnection,
    project: Uuid,
    name: &str,
    columns: &str,
    variants: &[(&str, &str)],
) {
    let id = experiment_id(project, name);
    let (names, values) = columns.split_once(" = ").map_or(("", String::new()), |(names, values)| (names, values.to_owned()));
    let comma = if names.is_empty() { "" } else { ", " };
    let insert = format!(
        "INSERT INTO experiments (project_id, id, name, status{comma}{names}) VALUES ('{project}', '{id}', '{name}', 'running'{comma}{values})"
    );
    run(connection, &insert).await;
    for (variant, weight) in variants {
        let variant_id = variant_id(id, variant);
        let insert = format!(
            "INSERT INTO variants (project_id, experiment_id, id, name, weight)
             VALUES ('{project}', '{id}', '{variant_id}', '{variant}', {weight})"
        );
        run(connection, &insert).await;
    }
}

pub(crate) fn experiment_id(project: Uuid, name: &str) -> Uuid {
    Uuid::new_v5(&project, name.as_bytes())
}

pub(crate) fn variant_id(experiment: Uuid, name: &str) -> Uuid {
    Uuid::new_v5(&experiment, name.as_bytes())
}

/// Stores participation of the users `from..from + users` in one variant; `seen` is SQL of the variants that they saw.
pub(crate) async fn add_users(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: &str,
    variant: &str,
    from: u64,
    users: u64,
) {
    let id = experiment_id(project, experiment);
    let variant = variant_id(id, variant);
    let insert = format!(
        "INSERT INTO user_experiment_participation (project_id, id, user_id, experiment_id, variant_id, first_exposure_date,
             first_impression_id, total_impressions, variants_seen, has_converted, conversion_within_window)
         SELECT '{project}', gen_random_uuid(), {USER_SQL}, '{id}', '{variant}', '2026-03-01T00:00:00Z', gen_random_uuid(), 1,
             ARRAY['{variant}'::uuid], false, false
         FROM generate_series({from}, {}) i",
        from + users - 1
    );
    run(connection, &insert).await;
}

/// Stores one attributed conversion for each of the users `from..from + users`. `value` is SQL, may use `i`; `currency` too.
pub(crate) async fn add_conversions(
    connection: &mut PgConnection,
    (project, experiment, variant): (Uuid, &str, &str),
    name: &str,
    (from, users): (u64, u64),
    (value, currency): (&str, &str),
) {
    let id = experiment_id(project, experiment);
    let variant = variant_id(id, variant);
    let insert = format!(
        "INSERT INTO conversion_attribution (project_id, id, user_id, conversion_id, conversion_claimed_at, conversion_time,
             conversion_type, experiment_id, variant_id, attribution_method, attribution_confidence, time_to_conversion_hours,
             conversion_value_attributed, currency)
         SELECT '{project}', gen_random_uuid(), {USER_SQL}, gen_random_uuid(), '2026-03-01T01:00:00Z', '2026-03-01T01:00:00Z',
             '{name}', '{id}', '{variant}', 'first_exposure', 1, 1, {value}, {currency}
         FROM generate_series({from}, {}) i",
        from + users - 1
    );
    run(connection, &insert).await;
}

/// Stores a conversion before the exposure of the users `from..from + users`.
pub(crate) async fn add_before(service: &mut Service, from: u64, users: u64, value: &str, hours: u32) {
    let insert = format!(
        "INSERT INTO conversions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
             log_partition, log_offset, conversion_type, conversion_value, currency)
         SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, t, t, t, false, false, '{LOG}', 0, 0, 'buy', {value}, 'EUR'
         FROM generate_series({from}, {}) i, (SELECT timestamptz '2026-03-01T00:00:00Z' - interval '{hours} hours' AS t) t",
        from + users - 1
    );
    service.run(&insert).await;
}

/// Stores the first impression of each participant; `columns` are further ones with their SQL, which may use `n`, a number of the user's.
pub(crate) async fn add_first_impressions(service: &mut Service, columns: &[(&str, &str)]) {
    let names: String = columns.iter().map(|(name, _)| format!(", {name}")).collect();
    let values: String = columns.iter().map(|(_, value)| format!(", {value}")).collect();
    let insert = format!(
        "INSERT INTO impressions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
             log_partition, log_offset, experiment_id, variant_id{names})
         SELECT project_id, first_impression_id, user_id, t, t, t, false, false, '{LOG}', 0, 0, experiment_id, variant_id{values}
         FROM (SELECT *, first_exposure_date AS t, ('x' || right(user_id::text, 4))::bit(16)::int AS n
               FROM user_experiment_participation) p"
    );
    service.run(&insert).await;
}

/// Compares two numbers of JSON to nine digits.
pub(crate) fn check_number(found: &Value, expected: f64) {
    let number = found.as_f64().unwrap_or_else(|| panic!("{found} is no number, expected {expected}"));
    assert!((number - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "{number}, expected {expected}");
}
