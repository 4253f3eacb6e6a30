//! Answers of the query service about one large experiment: how long they take, and where the time goes.
//!
//! The rows are written by SQL as the aggregator would have: who was exposed and when, a quarter of them with a conversion
//! after it, a tenth with one before it. Then the same question is asked while nothing is written, while events of some users come in
//! between, and after changes of the catalogue, each of which has all users read again. Then the experiment gets metrics over other events,
//! by definitions, and is asked about these.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, HOST};
use hyper_util::rt::TokioIo;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::net::TcpStream;

use crate::child::Server;
use crate::database::Databases;
use crate::histogram::Histogram;
use crate::report::{Page, number};

const TOKEN: &str = "bench-read-token";
const LOG: &str = "7b0c5c60-7f5e-4a4e-9f0c-0d9c8a5e1a11";
const EXPERIMENT: &str = "6f1d7c52-31a2-4f0e-8a53-5f3f9f7a2b01";
const VARIANTS: [&str; 2] = ["6f1d7c52-31a2-4f0e-8a53-5f3f9f7a2b02", "6f1d7c52-31a2-4f0e-8a53-5f3f9f7a2b03"];

/// Settings of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The program whose query service is measured
    #[arg(long)]
    pub weir: PathBuf,
    /// Users of the experiment
    #[arg(long, default_value_t = 1_000_000)]
    pub users: u64,
    /// Answers of each kind; of those that read everything a tenth
    #[arg(long, default_value_t = 100)]
    pub answers: u32,
    /// Server to measure on, whose user may make databases and run CHECKPOINT; none: a private one, with fsync off
    #[arg(long, env = "DATABASE_URL")]
    pub database_url: Option<String>,
    /// Folder for files
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Folder of runs in which the result is kept
    #[arg(long)]
    pub save: Option<PathBuf>,
}

/// What happens before each answer of a kind.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    /// Exposures of so many new users, and as many conversions of those who were there.
    Events(u64),
    CatalogueChange,
}

/// Runs the measurement and returns its page.
/// # Errors
/// Whatever fails first: an answer other than success, and users that are not those that were written.
pub async fn run(options: &Options) -> anyhow::Result<String> {
    let folder = crate::folder(options.folder.as_deref())?;
    let mut databases = Databases::open(options.database_url.as_deref()).await?;
    let facts = vec![databases.facts().await?];
    let mut page = Page::new("results", "Answers about one experiment", folder.path(), facts);
    let database = databases.create(None).await?;
    let mut connection = database.connect().await?;
    let rows = Rows::write(&mut connection, options.users).await?;
    databases.settle().await?;
    let mut command = Command::new(&options.weir);
    command.args(["query", "--query", "127.0.0.1:0", "--database-url", &database.url, "--until-stdin-closes"]);
    let server = Server::start_program(&mut command, "query")?;
    let client = Client::connect(&server.url).await?;
    page.say(&format!(
        "{} users, {} attributed conversions and {} before exposure, 3 metrics (rate, value per user, count per user), all defaults: \
         sequential analysis, CUPED, Holm, Bayes, health, attribution models. One answer at a time, over one connection, the program \
         as built for release. *Same*: nothing was written since the answer before. *Followed*: so many events were stored in between, half \
         exposures of new users, half conversions of known ones. *Read*: the catalogue changed, so that everybody is read \
         again. Milliseconds; the parts are those of the header Server-Timing, at their median.",
        number(options.users as f64, 0),
        number(options.users as f64 / 4.0, 0),
        number(options.users as f64 / 10.0, 0),
    ));
    let usual = [
        ("same", "", Before::Nothing, options.answers),
        ("same, `series=daily`", "?series=daily", Before::Nothing, options.answers),
        ("followed, 20 events", "", Before::Events(10), options.answers),
        ("followed, 2,000 events", "", Before::Events(1_000), options.answers / 2),
        ("read", "", Before::CatalogueChange, options.answers.div_ceil(10)),
    ];
    let defined = [
        ("followed, 2,000 events", "", Before::Events(1_000), options.answers / 2),
        ("read", "", Before::CatalogueChange, options.answers.div_ceil(10)),
    ];
    let mut measured = Measured { client, rows, connection, server: &server, databases: &mut databases };
    page.table(&measured.table(&usual).await?);
    measured.rows.view(&mut measured.connection, options.users / 2).await?;
    measured.databases.settle().await?;
    page.say(&format!(
        "The same experiment with {} metrics over {} page views instead, by definitions: how many, the sum of a property, how many values of another, \
         the largest one, and whether there is one for which a condition holds.",
        DEFINED.len(),
        number(options.users as f64 / 2.0, 0),
    ));
    page.table(&measured.table(&defined).await?);
    let Measured { client, connection, .. } = measured;
    page.say(&format!("Peak memory of the query service: {} MiB.", number(server.peak_memory_mib(), 0)));
    drop(client);
    server.stop()?;
    sqlx::Connection::close(connection).await?;
    databases.remove(database).await?;
    page.finish(options.save.as_deref())
}

/// A kind of answers: its name, the question, what happens before each, and how many.
type Answers<'a> = (&'a str, &'a str, Before, u32);

/// Whom to ask, and what it rests on.
struct Measured<'a> {
    client: Client,
    rows: Rows,
    connection: PgConnection,
    server: &'a Server,
    databases: &'a mut Databases,
}

impl Measured<'_> {
    /// Asks for answers of some kinds, and returns the table of how long they took.
    async fn table(&mut self, kinds: &[Answers<'_>]) -> anyhow::Result<Vec<Vec<String>>> {
        let mut table = vec![
            ["", "answers", "p50", "p99", "longest", "catalogue", "cohort", "statistics", "query CPU ms", "Postgres CPU ms"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for (name, question, before, answers) in kinds.iter().copied() {
            // What this kind needs is there before it is measured.
            let first = self.client.ask(question).await?;
            self.rows.check(&first)?;
            let mut took = Histogram::default();
            let mut parts: [Histogram; 3] = Default::default();
            let mut cpu = (0.0, 0.0);
            for _ in 0..answers {
                self.rows.change(&mut self.connection, before).await?;
                let used = (self.server.cpu_seconds(), self.databases.cpu_seconds());
                let answer = self.client.ask(question).await?;
                cpu = (cpu.0 + self.server.cpu_seconds() - used.0, cpu.1 + self.databases.cpu_seconds() - used.1);
                self.rows.check(&answer)?;
                took.record(answer.took);
                for (part, found) in parts.iter_mut().zip(answer.parts) {
                    part.record(found);
                }
            }
            let milliseconds = |took: std::time::Duration| number(took.as_secs_f64() * 1e3, 1);
            let mut row = vec![name.to_owned(), answers.to_string()];
            row.extend([took.quantile(0.5), took.quantile(0.99), took.max()].map(milliseconds));
            row.extend(parts.iter().map(|part| milliseconds(part.quantile(0.5))));
            row.extend([cpu.0, cpu.1].map(|seconds| number(seconds * 1e3 / f64::from(answers), 1)));
            crate::progress(&row.join(" | "));
            table.push(row);
        }
        Ok(table)
    }
}

/// Metrics over page views: what a definition has beside its events.
const DEFINED: [(&str, &str); 5] = [
    ("views", r#""per_user": "count""#),
    ("seconds", r#""value": "properties.seconds", "per_user": "sum""#),
    ("pages", r#""value": "properties.page", "per_user": "distinct""#),
    ("longest", r#""value": "properties.seconds", "per_user": "max""#),
    ("read", r#""where": "json_get_int(properties, 'seconds') > 30", "per_user": "exists""#),
];

/// What was written.
struct Rows {
    users: u64,
    offset: u64,
}

impl Rows {
    async fn write(connection: &mut PgConnection, users: u64) -> anyhow::Result<Self> {
        let sql = format!(
            "INSERT INTO keys (project_id, kind, name, digest, prefix)
             SELECT id, 'read', 'bench', sha256(convert_to('{TOKEN}', 'UTF8')), 'bench' FROM projects;
             INSERT INTO logs (log_id, log_partitions) VALUES ('{LOG}', 1);
             INSERT INTO checkpoints (log_id, log_partition) VALUES ('{LOG}', 0);
             INSERT INTO experiments (project_id, id, name, status, started_at)
             SELECT id, '{EXPERIMENT}', 'large', 'running', '2026-01-01' FROM projects;
             INSERT INTO variants (project_id, experiment_id, id, name, is_control, weight)
             SELECT p.id, '{EXPERIMENT}', v.id::uuid, v.name, v.name = 'control', 1
             FROM projects p, (VALUES ('{}', 'control'), ('{}', 'treatment')) v (id, name);
             INSERT INTO metrics (project_id, experiment_id, name, conversion_type, aggregation, role)
             SELECT id, '{EXPERIMENT}', m, 'purchase', m, CASE m WHEN 'conversion_rate' THEN 'primary' ELSE 'secondary' END
             FROM projects, unnest(ARRAY['conversion_rate', 'value_per_user', 'count_per_user']) m",
            VARIANTS[0], VARIANTS[1]
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.context("the catalogue")?;
        let mut rows = Rows { users: 0, offset: 0 };
        rows.expose(connection, users).await?;
        rows.convert(connection, users / 4, 4, "interval '1 day'").await?;
        rows.convert(connection, users / 10, 10, "interval '-3 days'").await?;
        sqlx::raw_sql("VACUUM ANALYZE").execute(connection).await?;
        Ok(rows)
    }

    /// Stores first exposures of new users, who come at a steady pace.
    async fn expose(&mut self, connection: &mut PgConnection, users: u64) -> anyhow::Result<()> {
        let offset = self.offset;
        let moved = self.moved(users);
        let sql = format!(
            "BEGIN;
             CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
             SELECT p.id AS project_id, md5('user' || i)::uuid AS user_id, md5('seen' || i)::uuid AS id, {} + row_number() OVER () - 1 AS place,
                    (ARRAY['{}', '{}']::uuid[])[1 + (hashint8(i) & 1)] AS variant_id,
                    timestamptz '2026-01-01' + i % 1000000 * interval '2 seconds' AS at
             FROM projects p, generate_series({}, {}) i;
             INSERT INTO impressions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id, log_partition,
                                      log_offset, experiment_id, variant_id)
             SELECT project_id, id, user_id, at, at, at, false, false, '{LOG}', 0, place, '{EXPERIMENT}', variant_id FROM fresh;
             INSERT INTO user_experiment_participation (project_id, id, user_id, experiment_id, variant_id, first_exposure_date,
                 first_impression_id, total_impressions, variants_seen, has_converted, conversion_within_window)
             SELECT project_id, id, user_id, '{EXPERIMENT}', variant_id, at, id, 1, ARRAY[variant_id], false, false FROM fresh;
             {moved}
             COMMIT",
            offset,
            VARIANTS[0],
            VARIANTS[1],
            self.users,
            self.users + users - 1
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.context("exposures")?;
        self.users += users;
        Ok(())
    }

    /// Stores a conversion of each of the first users whose number is a multiple of `every`, so long after exposure; those after it
    /// are attributed.
    async fn convert(&mut self, connection: &mut PgConnection, users: u64, every: u64, later: &str) -> anyhow::Result<()> {
        let offset = self.offset;
        let moved = self.moved(users);
        let sql = format!(
            "BEGIN;
             CREATE TEMPORARY TABLE fresh ON COMMIT DROP AS
             SELECT f.project_id, f.user_id, f.variant_id, md5('bought' || {offset} + i)::uuid AS id, {offset} + i AS place,
                    f.first_exposure_date + {later} AS at, {later} > interval '0' AS is_after, 1 + hashint8(i) % 5000 * 0.01 AS value
             FROM generate_series(0, {last}) i
             CROSS JOIN LATERAL (SELECT * FROM user_experiment_participation f
                                 WHERE f.user_id = md5('user' || i * {every})::uuid AND f.experiment_id = '{EXPERIMENT}'
                                   AND f.project_id = (SELECT id FROM projects) OFFSET 0) f;
             INSERT INTO conversions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id, log_partition,
                                      log_offset, conversion_type, conversion_value, currency)
             SELECT project_id, id, user_id, at, at, at, false, false, '{LOG}', 0, place, 'purchase', abs(value), 'EUR' FROM fresh;
             INSERT INTO conversion_attribution (project_id, id, user_id, conversion_id, conversion_claimed_at, conversion_time,
                 conversion_type, experiment_id, variant_id, attribution_method, attribution_confidence, time_to_conversion_hours,
                 conversion_value_attributed, currency)
             SELECT project_id, id, user_id, id, at, at, 'purchase', '{EXPERIMENT}', variant_id, 'first_exposure', 1, 24, abs(value), 'EUR'
             FROM fresh WHERE is_after;
             {moved}
             COMMIT",
            last = users - 1,
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.context("conversions")?;
        Ok(())
    }

    /// Stores a page view of each of the first users whose number is even, an hour after exposure, and has the experiment measure these.
    async fn view(&mut self, connection: &mut PgConnection, users: u64) -> anyhow::Result<()> {
        let offset = self.offset;
        let moved = self.moved(users);
        let defined = DEFINED.map(|(name, rest)| {
            let definition = format!(r#"{{"kind": "engagement", "events": ["page_view"], {rest}}}"#).replace('\'', "''");
            format!("('{name}', '{definition}')")
        });
        let sql = format!(
            "BEGIN;
             INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id, log_partition,
                                            log_offset, event_type, metadata)
             SELECT p.id, md5('viewed' || i)::uuid, md5('user' || 2 * i)::uuid, at, at, at, false, false, '{LOG}', 0, {offset} + i, 'page_view',
                    jsonb_build_object('seconds', i % 60, 'page', 'page ' || i % 7)
             FROM projects p, generate_series(0, {last}) i,
                  LATERAL (SELECT timestamptz '2026-01-01 01:00' + 2 * i % 1000000 * interval '2 seconds' AS at) a;
             DELETE FROM metrics;
             INSERT INTO metric_definitions (project_id, name, version, definition)
             SELECT p.id, d.name, 1, d.definition::jsonb FROM projects p, (VALUES {defined}) d (name, definition);
             INSERT INTO metrics (project_id, experiment_id, name, aggregation, role, definition, definition_version)
             SELECT project_id, '{EXPERIMENT}', name, 'defined', CASE name WHEN 'read' THEN 'primary' ELSE 'secondary' END, name, version
             FROM metric_definitions;
             UPDATE catalogue_versions SET version = version + 1;
             {moved}
             COMMIT;
             VACUUM ANALYZE engagement_events",
            defined = defined.join(", "),
            last = users - 1,
        );
        for statement in sql.rsplit_once(';').into_iter().flat_map(|(first, last)| [first, last]) {
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await.context("page views")?;
        }
        Ok(())
    }

    /// Writes the checkpoint's statement.
    fn moved(&mut self, records: u64) -> String {
        self.offset += records;
        format!(
            "UPDATE checkpoints SET next_offset = {offset}, change_seq = change_seq + 1;
             INSERT INTO project_progress (project_id, log_id, log_partition, records, event_time)
             SELECT id, '{LOG}', 0, {offset}, '2026-02-01' FROM projects
             ON CONFLICT (project_id, log_id, log_partition) DO UPDATE SET records = excluded.records;",
            offset = self.offset
        )
    }

    async fn change(&mut self, connection: &mut PgConnection, before: Before) -> anyhow::Result<()> {
        match before {
            Before::Nothing => {}
            Before::Events(number) => {
                self.expose(connection, number).await?;
                self.convert(connection, number, 7, "interval '2 days'").await?;
            }
            Before::CatalogueChange => {
                sqlx::raw_sql("UPDATE catalogue_versions SET version = version + 1").execute(connection).await?;
            }
        }
        Ok(())
    }

    fn check(&self, answer: &Answer) -> anyhow::Result<()> {
        let found = &answer.body["population"]["exposed_users"];
        if found.as_u64() != Some(self.users) {
            bail!("the answer has {found} users, but {} were written", self.users);
        }
        Ok(())
    }
}

struct Answer {
    body: serde_json::Value,
    took: std::time::Duration,
    parts: [std::time::Duration; 3],
}

/// One connection to the query service.
struct Client {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
}

impl Client {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let host = url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&host).await.with_context(|| format!("connecting to {host}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // What breaks it, breaks the request in it.
        tokio::spawn(connection);
        Ok(Client { sender, host })
    }

    async fn ask(&mut self, question: &str) -> anyhow::Result<Answer> {
        let request = Request::get(format!("/v1/experiments/large/results{question}"))
            .header(HOST, &self.host)
            .header(AUTHORIZATION, format!("Bearer {TOKEN}"))
            .body(Empty::new())?;
        self.sender.ready().await?;
        let began = Instant::now();
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let took = began.elapsed();
        if head.status != 200 {
            bail!("{}: {}", head.status, String::from_utf8_lossy(&body));
        }
        let timing = head.headers.get("server-timing").and_then(|value| value.to_str().ok()).context("no Server-Timing")?;
        let part = |name: &str| {
            let found = timing.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(";dur=")?.parse::<f64>().ok());
            found
                .map(|milliseconds| std::time::Duration::from_secs_f64(milliseconds / 1e3))
                .with_context(|| format!("no {name} in {timing}"))
        };
        let parts = [part("catalogue")?, part("cohort")?, part("statistics")?];
        Ok(Answer { body: serde_json::from_slice(&body)?, took, parts })
    }
}
