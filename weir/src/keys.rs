//! Keys and tokens: made at random, stored as digests, found again by `weir.json`.

use std::io::Read;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use catalogue::keys::{self, NewKey};
use catalogue::{CatalogueError, KeyKind, ensure_project};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::data::WeirJson;

/// The project that a fresh database gets.
pub(crate) const PROJECT: &str = "default";
/// Bytes of a key that an operator chooses: shorter ones can be guessed ..
const CHOSEN_BYTES_MIN: usize = 8;
/// .. and longer ones do not fit into every client's header.
const CHOSEN_BYTES_MAX: usize = 512;

/// Returns what random keys of a kind begin with.
fn prefix(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Write => "wk_",
        KeyKind::Server => "sk_",
        KeyKind::Read => "rt_",
    }
}

/// Returns the environment variable that sets the key of a kind.
fn variable(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Write => "WEIR_WRITE_KEY",
        KeyKind::Server => "WEIR_SERVER_KEY",
        KeyKind::Read => "WEIR_READ_TOKEN",
    }
}

/// The keys that `weir up` shows.
#[derive(Clone)]
pub(crate) struct Keys {
    /// For pages and apps.
    pub(crate) write: String,
    /// For servers and imports.
    pub(crate) server: String,
    /// For analysts.
    pub(crate) read: String,
}

/// Makes a key: the kind's prefix and 256 random bits.
/// # Errors
/// If the system has no randomness.
pub(crate) fn mint(kind: KeyKind) -> anyhow::Result<String> {
    Ok(format!("{}{}", prefix(kind), BASE64_URL_SAFE_NO_PAD.encode(random::<32>()?)))
}

/// Returns random bytes that nobody can guess.
/// # Errors
/// If the system has no randomness.
pub(crate) fn random<const BYTES: usize>() -> anyhow::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let mut source = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    source.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(bytes)
}

/// Makes the project `default` if it is missing, and sees to it that it has a key of each kind: the one that an environment variable
/// gives, else the one that was shown last time, else a new one.
/// # Errors
/// If a variable's key is malformed, revoked, or already something else.
pub(crate) async fn ensure(connection: &mut PgConnection, before: Option<&WeirJson>) -> anyhow::Result<Keys> {
    let mut tx = connection.begin().await?;
    let project = ensure_project(&mut tx, PROJECT, true).await?;
    let write = ensure_one(&mut tx, project, KeyKind::Write, before.map(|file| file.write_key.as_str())).await?;
    let server = ensure_one(&mut tx, project, KeyKind::Server, before.map(|file| file.server_key.as_str())).await?;
    let read = ensure_one(&mut tx, project, KeyKind::Read, before.map(|file| file.read_token.as_str())).await?;
    tx.commit().await?;
    Ok(Keys { write, server, read })
}

/// Makes the project `default` if it is missing, and the keys that environment variables give; no others.
/// # Errors
/// As of [`ensure`].
pub(crate) async fn ensure_chosen(connection: &mut PgConnection) -> anyhow::Result<()> {
    let mut tx = connection.begin().await?;
    let project = ensure_project(&mut tx, PROJECT, false).await?;
    for kind in [KeyKind::Write, KeyKind::Server, KeyKind::Read] {
        if let Some(chosen) = chosen(kind)? {
            add(&mut tx, project, kind, "set in the environment", &chosen).await.with_context(|| variable(kind))?;
        }
    }
    tx.commit().await?;
    Ok(())
}

async fn ensure_one(connection: &mut PgConnection, project: Uuid, kind: KeyKind, before: Option<&str>) -> anyhow::Result<String> {
    if let Some(chosen) = chosen(kind)? {
        add(connection, project, kind, "set in the environment", &chosen).await.with_context(|| variable(kind))?;
        return Ok(chosen);
    }
    // A key that was revoked since, or a database that was emptied: a new key is shown instead.
    if let Some(before) = before
        && add(connection, project, kind, "made by weir up", before).await.is_ok()
    {
        return Ok(before.to_owned());
    }
    let minted = mint(kind)?;
    add(connection, project, kind, "made by weir up", &minted).await?;
    Ok(minted)
}

fn chosen(kind: KeyKind) -> anyhow::Result<Option<String>> {
    let variable = variable(kind);
    match std::env::var(variable) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => check_chosen(&text).map(|()| Some(text)).with_context(|| variable),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).context(variable),
    }
}

fn check_chosen(text: &str) -> anyhow::Result<()> {
    if !(CHOSEN_BYTES_MIN..=CHOSEN_BYTES_MAX).contains(&text.len()) {
        bail!("{} bytes; {CHOSEN_BYTES_MIN} to {CHOSEN_BYTES_MAX} are accepted", text.len());
    }
    // It travels in a header, in Basic authentication's user name, which ends at a colon, and in URLs.
    if let Some(found) = text.chars().find(|found| !found.is_ascii_graphic() || *found == ':') {
        bail!("found the character {found:?}; visible ASCII without a colon is accepted");
    }
    Ok(())
}

async fn add(connection: &mut PgConnection, project: Uuid, kind: KeyKind, name: &str, text: &str) -> Result<(), CatalogueError> {
    keys::add(connection, project, &NewKey::new(kind, name, text)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_keys_differ_and_have_43_characters() {
        for kind in [KeyKind::Write, KeyKind::Server, KeyKind::Read] {
            let (one, other) = (mint(kind).expect("random"), mint(kind).expect("random"));
            assert_ne!(one, other);
            assert_eq!(one.strip_prefix(prefix(kind)).map(str::len), Some(43), "{one}");
            check_chosen(&one).expect("what is minted could be chosen");
        }
    }

    #[test]
    fn chosen_keys_fit_into_headers() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(check_chosen(text).err().map(|error| error.to_string()).as_deref(), expected, "{text}");
        };
        check("local-write-key", None);
        check("short", Some("5 bytes; 8 to 512 are accepted"));
        check(&"x".repeat(513), Some("513 bytes; 8 to 512 are accepted"));
        check("with space", Some("found the character ' '; visible ASCII without a colon is accepted"));
        check("with:colon", Some("found the character ':'; visible ASCII without a colon is accepted"));
        check("schlüssel", Some("found the character 'ü'; visible ASCII without a colon is accepted"));
    }

    async fn check_kept(connection: &mut PgConnection, project: &str, kind: &str, text: &str, expected: i64) {
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM keys JOIN projects ON projects.id = project_id WHERE projects.name = $1 AND kind = $2 AND digest = $3",
        )
        .bind(project)
        .bind(kind)
        .bind(keys::digest(text).as_slice())
        .fetch_one(connection)
        .await
        .expect("counts");
        assert_eq!(found, expected, "{kind}");
    }

    #[tokio::test]
    async fn keys_stay_the_same_until_they_are_revoked() {
        let database = migrations::testing::TestDatabase::create().await;
        let mut connection = database.connect().await;
        let file = |keys: &Keys| WeirJson {
            collector: String::new(),
            query: String::new(),
            aggregator: String::new(),
            postgres: String::new(),
            write_key: keys.write.clone(),
            read_token: keys.read.clone(),
            server_key: keys.server.clone(),
        };
        let first = ensure(&mut connection, None).await.expect("makes keys");
        for (kind, text) in [("write", &first.write), ("server", &first.server), ("read", &first.read)] {
            check_kept(&mut connection, PROJECT, kind, text, 1).await;
        }
        let second = ensure(&mut connection, Some(&file(&first))).await.expect("keeps them");
        assert_eq!((&second.write, &second.server, &second.read), (&first.write, &first.server, &first.read));

        sqlx::query("UPDATE keys SET revoked_at = now() WHERE kind = 'write'").execute(&mut connection).await.expect("revokes");
        let third = ensure(&mut connection, Some(&file(&first))).await.expect("makes a new one");
        assert_ne!(third.write, first.write);
        assert_eq!(third.server, first.server);

        let project: Uuid = sqlx::query_scalar("SELECT id FROM projects").fetch_one(&mut connection).await.expect("one project");
        let error = add(&mut connection, project, KeyKind::Write, "", &first.write).await.expect_err("revoked").to_string();
        assert_eq!(error, "this key is revoked or has expired; choose another one");
        let error = add(&mut connection, project, KeyKind::Write, "", &first.read).await.expect_err("a read token").to_string();
        assert_eq!(error, "this key is already a read key; choose another one");
    }
}
