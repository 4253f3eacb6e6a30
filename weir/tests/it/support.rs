//! What several tests ask of Postgres, of pages, and of other programs.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, FromRow, PgConnection};

/// A connection of the test's own to a service's database.
pub struct Database(PgConnection);

impl Database {
    /// Connects; a Postgres that is starting is waited for.
    pub async fn connect(url: &str) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match PgConnection::connect(url).await {
                Ok(connection) => return Database(connection),
                Err(error) => assert!(Instant::now() < deadline, "{url}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks for rows.
    pub async fn rows<R: for<'r> FromRow<'r, PgRow> + Send + Unpin>(&mut self, query: &str) -> Vec<R> {
        let rows = sqlx::query_as(AssertSqlSafe(query)).fetch_all(&mut self.0).await;
        rows.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// Asks for a whole number.
    pub async fn number(&mut self, query: &str) -> i64 {
        let number = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut self.0).await;
        number.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// Asks for a text.
    pub async fn text(&mut self, query: &str) -> String {
        let text = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut self.0).await;
        text.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// Changes something.
    pub async fn execute(&mut self, statement: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.0).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// Waits until a query answers this number, and panics when it does not come about.
    pub async fn until(&mut self, query: &str, expected: i64, max: Duration) {
        let deadline = Instant::now() + max;
        loop {
            let found = self.number(query).await;
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{query}: {found}; {expected} was expected within {} s", max.as_secs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Returns a page's status and text.
pub async fn page(url: &str) -> (u16, String) {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let asked = client.get(url.parse().expect("a URL"));
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await.expect("an answer in time").expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Returns a number of the environment, by which a target such as `make chaos` makes a test longer.
pub fn number(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a number")))
}

/// Finds an installed program.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs a program to its end, in bounded time.
pub async fn run(command: Command, max: Duration) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut command = tokio::process::Command::from(command);
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(max, command.output()).await;
    ended.unwrap_or_else(|_| panic!("{name} has not ended within {} s", max.as_secs())).expect("it starts")
}
