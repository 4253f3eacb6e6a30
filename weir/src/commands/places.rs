//! Where a command finds the query service and the database: on the command line, in the environment, or in weir.json.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use crate::cli::Globals;
use crate::client::Client;
use crate::data::WeirJson;

/// How long a connection to the database may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Which query service, and as whom.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Endpoint {
    /// The query service; without it the one of weir.json
    #[arg(long, value_name = "URL", env = "WEIR_QUERY")]
    query: Option<String>,
    /// The read token, which also says which project
    #[arg(long, value_name = "TOKEN", env = "WEIR_READ_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl Endpoint {
    /// Finds the service.
    /// # Errors
    /// A text that says what was looked for, and where.
    pub(crate) fn client(&self, globals: &Globals) -> anyhow::Result<Client> {
        let folder = globals.folder()?;
        let (query, token) = self.choose(&folder, || globals.weir_json())?;
        Client::new(&query, Some(&token), globals.ca.as_deref())
    }

    fn choose(&self, folder: &Path, read: impl FnOnce() -> anyhow::Result<Option<WeirJson>>) -> anyhow::Result<(String, String)> {
        let said = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        let (query, token) = (said(&self.query).map(|query| url(&query)), said(&self.token));
        if let (Some(query), Some(token)) = (&query, &token) {
            return Ok((query.clone(), token.clone()));
        }
        let file = folder.join("weir.json");
        let Some(found) = read()? else {
            let missing = match (&query, &token) {
                (None, None) => "--query and WEIR_QUERY, --token and WEIR_READ_TOKEN are",
                (None, _) => "--query and WEIR_QUERY are",
                _ => "--token and WEIR_READ_TOKEN are",
            };
            bail!(
                "{missing} not given, and {} does not exist; start everything with `weir up`, name its data folder with --data, \
                 or give --query URL and --token TOKEN",
                file.display()
            );
        };
        match (query, token) {
            (None, token) => Ok((url(&found.query), token.unwrap_or(found.read_token))),
            // A token is a secret between its service and us.
            (Some(query), None) if query != url(&found.query) => bail!(
                "--token and WEIR_READ_TOKEN are not given; the token in {} is for {}, not for {query}",
                file.display(),
                found.query
            ),
            (Some(query), _) => Ok((query, found.read_token)),
        }
    }
}

/// Makes a URL of what may be the address that a service listens on, since both have the same variable.
pub(super) fn url(text: &str) -> String {
    let text = text.trim_end_matches('/');
    if text.contains("://") { text.to_owned() } else { format!("http://{text}") }
}

/// Connects to the database that was chosen, else to that of what runs here, and sees that it has the schema.
/// # Errors
/// A text that names the database without its password.
pub(super) async fn connect(globals: &Globals) -> anyhow::Result<PgConnection> {
    let url = globals.any_database_url()?;
    let name = shown(&url);
    let options = PgConnectOptions::from_str(&url).with_context(|| format!("the database URL {name}"))?;
    // As the aggregator has them: recomputing here and there is one and the same.
    let options =
        options.application_name("weir admin").options([("TimeZone", "UTC"), ("synchronous_commit", "on"), ("jit", "off")]);
    let connecting = PgConnection::connect_with(&options);
    let mut conn = tokio::time::timeout(CONNECT_MAX, connecting)
        .await
        .with_context(|| format!("{name}: no answer within {} s", CONNECT_MAX.as_secs()))?
        .with_context(|| format!("{name}: the database does not answer"))?;
    let there: bool = sqlx::query_scalar("SELECT to_regclass('experiments') IS NOT NULL").fetch_one(&mut conn).await?;
    if !there {
        bail!("{name}: the database has no tables of weir; make them with `weir migrate`");
    }
    Ok(conn)
}

/// Returns a database's URL without its password.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "(not a URL)".to_owned() };
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => authority.to_owned(),
    };
    let tail = match tail.split_once('?') {
        Some((path, query)) => {
            let kept: Vec<_> = query.split('&').filter(|part| !part.starts_with("password=")).collect();
            if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> anyhow::Result<Option<WeirJson>> {
        Ok(Some(WeirJson {
            collector: "http://127.0.0.1:8080".into(),
            query: "http://127.0.0.1:8081".into(),
            aggregator: "http://127.0.0.1:8082".into(),
            postgres: "postgresql://weir@%2Frun/weir".into(),
            write_key: "wk_1".into(),
            read_token: "rt_1".into(),
            server_key: "sk_1".into(),
        }))
    }

    #[test]
    fn the_query_service_is_said_or_found() {
        let check = |query: Option<&str>, token: Option<&str>, there: bool, expected: Result<(&str, &str), &str>| {
            let endpoint = Endpoint { query: query.map(Into::into), token: token.map(Into::into) };
            let found = endpoint.choose(Path::new("/data"), || if there { file() } else { Ok(None) });
            let found = found.map_err(|error| error.to_string());
            let expected = expected.map(|(query, token)| (query.to_owned(), token.to_owned())).map_err(str::to_owned);
            assert_eq!(found, expected);
        };
        check(None, None, true, Ok(("http://127.0.0.1:8081", "rt_1")));
        check(Some("q:1"), Some("t"), false, Ok(("http://q:1", "t")));
        check(Some("http://q:1/"), Some("t"), true, Ok(("http://q:1", "t")));
        check(None, Some("t"), true, Ok(("http://127.0.0.1:8081", "t")));
        check(Some("127.0.0.1:8081"), None, true, Ok(("http://127.0.0.1:8081", "rt_1")));
        check(Some(""), Some(""), true, Ok(("http://127.0.0.1:8081", "rt_1")));
        let other = "--token and WEIR_READ_TOKEN are not given; the token in /data/weir.json is for http://127.0.0.1:8081, \
                     not for http://q:1";
        check(Some("http://q:1"), None, true, Err(other));
        let way_out = "not given, and /data/weir.json does not exist; start everything with `weir up`, name its data folder with \
                       --data, or give --query URL and --token TOKEN";
        let nothing = format!("--query and WEIR_QUERY, --token and WEIR_READ_TOKEN are {way_out}");
        check(None, None, false, Err(&nothing));
        check(Some("q:1"), None, false, Err(&format!("--token and WEIR_READ_TOKEN are {way_out}")));
        check(None, Some("t"), false, Err(&format!("--query and WEIR_QUERY are {way_out}")));
    }

    #[test]
    fn passwords_are_not_shown() {
        let check = |url: &str, expected: &str| assert_eq!(shown(url), expected);
        check("postgres://weir:secret@db:5432/weir?sslmode=require", "postgres://weir@db:5432/weir?sslmode=require");
        check("postgres://weir:a@b@db/weir?password=secret&x=1", "postgres://weir@db/weir?x=1");
        check("postgres://db/weir?password=secret", "postgres://db/weir");
        check("postgresql://weir@%2Frun/weir", "postgresql://weir@%2Frun/weir");
        check("secret", "(not a URL)");
    }
}
