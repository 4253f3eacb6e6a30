//! `weir admin key`: write keys, server keys, read tokens.

use catalogue::keys::{self, Key, NewKey};
use catalogue::{KeyKind, Project};
use sqlx::{Connection, PgConnection};

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list};
use crate::keys::mint;

/// What is done with keys.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a key and show it, once only
    Create(Create),
    /// Show the keys of a project, without their secrets
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Revoke a key; services notice within 5 seconds
    Revoke {
        /// Its id, or the first characters that a list shows
        key: String,
        #[command(flatten)]
        project: InProject,
    },
}

/// The arguments of `weir admin key create`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// write sends current events and may be public in a web page, server sends historical events too and stays on servers,
    /// read queries the query service
    #[arg(long, value_name = "KIND", default_value_t = KeyKind::Write)]
    kind: KeyKind,
    /// Its name in lists
    #[arg(long, default_value = "")]
    name: String,
    /// Rate limit in requests per second [default: none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    requests_per_second: Option<i32>,
    /// Rate limit in events per second [default: none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    events_per_second: Option<i32>,
    /// Days until it expires [default: never]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i32).range(1..=3650))]
    expires_in_days: Option<i32>,
    #[command(flatten)]
    project: InProject,
}

/// What `weir up` calls a key of a kind.
fn word(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Write => "write_key",
        KeyKind::Server => "server_key",
        KeyKind::Read => "read_token",
    }
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => {
            let project = args.project.find(conn).await?;
            let text = create(conn, &project, &args).await?;
            print(&format!("{} {text}\n", word(args.kind)))
        }
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            print_list(&keys::list(conn, &project).await?, format, |list| render_list(list))
        }
        Command::Revoke { key, project } => {
            let project = project.find(conn).await?;
            let id = keys::revoke(conn, &project, &key).await?;
            print(&format!("key {id} is revoked; services notice within 5 seconds\n"))
        }
    }
}

/// Makes a key and returns its text, which is stored nowhere.
async fn create(conn: &mut PgConnection, project: &Project, args: &Create) -> anyhow::Result<String> {
    let text = mint(args.kind)?;
    let new = NewKey {
        requests_per_second: args.requests_per_second,
        events_per_second: args.events_per_second,
        expires_in_days: args.expires_in_days,
        ..NewKey::new(args.kind, &args.name, &text)
    };
    let mut tx = conn.begin().await?;
    keys::add(&mut tx, project.id, &new).await?;
    tx.commit().await?;
    Ok(text)
}

fn render_list(keys: &[Key]) -> String {
    if keys.is_empty() {
        return "no keys\n".to_owned();
    }
    let row = |key: &Key| {
        let rate = |rate: Option<i32>| rate.map(|rate| rate.to_string()).unwrap_or_default();
        let state = match (&key.revoked_at, &key.expires_at) {
            (Some(time), _) => format!("revoked {time}"),
            (None, Some(time)) if key.is_expired => format!("expired {time}"),
            (None, Some(time)) => format!("until {time}"),
            (None, None) => "valid".to_owned(),
        };
        vec![
            key.kind.to_string(),
            format!("{}..", key.prefix),
            key.name.clone(),
            state,
            rate(key.requests_per_second),
            rate(key.events_per_second),
            key.created_at.clone(),
            key.id.to_string(),
        ]
    };
    let columns = [
        ("kind", Side::Left),
        ("begins", Side::Left),
        ("name", Side::Left),
        ("state", Side::Left),
        ("requests/s", Side::Right),
        ("events/s", Side::Right),
        ("made", Side::Left),
        ("id", Side::Left),
    ];
    table(&columns, &keys.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use catalogue::find_project;
    use migrations::testing::TestDatabase;

    use super::*;

    fn args(kind: KeyKind, name: &str) -> Create {
        Create {
            kind,
            name: name.into(),
            requests_per_second: None,
            events_per_second: None,
            expires_in_days: None,
            project: InProject { project: "default".into() },
        }
    }

    async fn database() -> (PgConnection, Project) {
        let mut conn = TestDatabase::create().await.connect().await;
        sqlx::raw_sql("INSERT INTO projects (name) VALUES ('default')").execute(&mut conn).await.expect("a project");
        let project = find_project(&mut conn, "default").await.expect("just made");
        (conn, project)
    }

    #[tokio::test]
    async fn a_key_is_shown_once_and_stored_as_a_digest() {
        let (mut conn, project) = database().await;
        let limited = Create {
            requests_per_second: Some(10),
            events_per_second: Some(20),
            expires_in_days: Some(30),
            ..args(KeyKind::Read, "ana")
        };
        let text = create(&mut conn, &project, &limited).await.expect("made");
        assert!(text.starts_with("rt_") && text.len() == 46, "{text}");
        let stored: Vec<u8> = sqlx::query_scalar("SELECT digest FROM keys").fetch_one(&mut conn).await.expect("one key");
        assert_eq!(stored, keys::digest(&text));
        let days: i32 = sqlx::query_scalar("SELECT (expires_at::date - created_at::date) FROM keys")
            .fetch_one(&mut conn)
            .await
            .expect("days");
        assert_eq!(days, 30);
        let listed = keys::list(&mut conn, &project).await.expect("a list");
        let key = &listed[0];
        assert_eq!((key.kind, key.name.as_str(), key.prefix.as_str()), (KeyKind::Read, "ana", &text[..8]));
        assert_eq!((key.requests_per_second, key.events_per_second, key.is_expired), (Some(10), Some(20), false));
        let line = render_list(&listed);
        assert!(!line.contains(&text) && line.contains(&format!("{}..", &text[..8])), "{line}");
    }

    #[tokio::test]
    async fn a_key_is_revoked_by_what_names_only_it() {
        let (mut conn, project) = database().await;
        let first = create(&mut conn, &project, &args(KeyKind::Write, "")).await.expect("made");
        let second = create(&mut conn, &project, &args(KeyKind::Server, "")).await.expect("made");
        create(&mut conn, &project, &args(KeyKind::Server, "")).await.expect("made");
        let revoke =
            async |conn: &mut PgConnection, key: &str| keys::revoke(conn, &project, key).await.map_err(|error| error.to_string());
        let ambiguous = revoke(&mut conn, "sk_").await.expect_err("two begin so");
        assert!(ambiguous.starts_with(r#"key: found "sk_", with which 2 keys begin; name one by its id: "#), "{ambiguous}");
        let unknown = revoke(&mut conn, "x").await.expect_err("none");
        assert_eq!(
            unknown,
            r#"key "x": there is none of this name or id in project "default"; `weir admin key list` shows those that there are"#
        );
        let id = revoke(&mut conn, "wk_").await.expect("one begins so");
        assert_eq!(
            revoke(&mut conn, &id.to_string()).await,
            Err(format!("key {id} is revoked already; there is nothing left to do"))
        );
        revoke(&mut conn, &second).await.expect("the whole key names it");
        let valid: i64 = sqlx::query_scalar("SELECT count(*) FROM keys WHERE revoked_at IS NULL")
            .fetch_one(&mut conn)
            .await
            .expect("a number");
        assert_eq!(valid, 1);
        let revoked: Vec<u8> =
            sqlx::query_scalar("SELECT digest FROM keys WHERE id = $1").bind(id).fetch_one(&mut conn).await.expect("it");
        assert_eq!(revoked, keys::digest(&first));
        let audited: Vec<String> =
            sqlx::query_scalar("SELECT action FROM audit ORDER BY id").fetch_all(&mut conn).await.expect("rows");
        assert_eq!(audited, ["key.create", "key.create", "key.create", "key.revoke", "key.revoke"]);
    }
}
