//! What an earlier release wrote is read on: `../releases/VERSION` holds its database, its data folder, and how many events both
//! hold together; `../releases/keep.sh` made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use migrations::testing::TestDatabase;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Folder, Up, weir};
use crate::support::{Database, run};

/// Counts all events that are stored.
pub(crate) const STORED: &str =
    "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions) + (SELECT count(*) FROM campaign_events)
            + (SELECT count(*) FROM engagement_events) + (SELECT count(*) FROM identity_events)";

/// Where releases are kept.
pub(crate) fn releases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/releases");
    let entries = fs::read_dir(folder).expect("the releases").map(|entry| entry.expect("an entry").path());
    let mut releases: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    releases.sort();
    releases
}

/// Runs a program of Postgres, of the newest version that is installed.
async fn postgres_program(name: &str, change: impl FnOnce(&mut Command)) {
    let mut versions: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let program = versions.pop().map_or_else(|| PathBuf::from(name), |version| version.join("bin").join(name));
    let mut command = Command::new(program);
    change(&mut command);
    let ended = run(command, Duration::from_secs(60)).await;
    assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// Restores a release's database beside another one, and returns its URL.
pub(crate) async fn restored(release: &Path, beside: &str) -> String {
    let name = format!("release_{}", std::process::id());
    Database::connect(beside).await.execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await;
    let url = format!("{}/{name}", beside.rsplit_once('/').expect("a database's URL").0);
    postgres_program("pg_restore", |command| {
        command.args(["--exit-on-error", "--no-owner", "--dbname", &url]).arg(release.join("database"));
    })
    .await;
    url
}

/// Puts a release's data folder into another one.
pub(crate) async fn unpacked(release: &Path, folder: &Path) {
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(release.join("data.tar.gz")).arg("-C").arg(folder);
    assert!(run(unpack, Duration::from_secs(20)).await.status.success());
}

/// How many events a release's database and log hold together.
pub(crate) fn expected_events(release: &Path) -> i64 {
    let expected = fs::read_to_string(release.join("expected")).expect("a file");
    expected.trim().strip_prefix("events ").and_then(|number| number.parse().ok()).expect("a number")
}

#[tokio::test]
async fn what_an_earlier_release_wrote_is_read_on() {
    let releases = releases();
    assert!(!releases.is_empty());
    for release in releases {
        eprintln!("release {}", release.display());
        reads_on(&release).await;
    }
}

async fn reads_on(release: &Path) {
    let beside = TestDatabase::create().await;
    let url = restored(release, &beside.url).await;
    let folder = Folder::new();
    unpacked(release, folder.path()).await;
    let events = expected_events(release);

    let mut migrate = weir();
    migrate.args(["migrate", "--database-url", &url]);
    let migrated = run(migrate, Duration::from_secs(60)).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let up = Up::start_with(&folder, |command| {
        command
            .args(["--database-url", &url])
            .env("WEIR_WRITE_KEY", "a-new-write-key")
            .env("WEIR_READ_TOKEN", "a-new-read-token");
    });
    let mut database = Database::connect(&url).await;
    database.until(STORED, events, Duration::from_secs(30)).await;
    assert_eq!(
        database.number("SELECT sum(conversion_value)::bigint FROM conversions WHERE conversion_type = 'kept'").await,
        5_050
    );

    // The events that were not stored yet had no time of their own, but ids: sent again, they are the same.
    let kept = |number: u32| -> Value {
        json!({"type": "conversion", "event_id": format!("00000000-0000-4000-8000-{number:012}"), "user_id": format!("kept-{number}"),
               "name": "kept", "value": number.to_string(), "currency": "EUR"})
    };
    up.accepted((1..=101).map(kept).collect()).await;
    database.until(STORED, events + 1, Duration::from_secs(30)).await;
    assert_eq!(database.number("SELECT count(*) FROM dead_letters").await, 0);

    let mut recompute = weir();
    recompute.args(["admin", "recompute", "checkout_button", "--database-url", &url]);
    let ended = run(recompute, Duration::from_secs(120)).await;
    let (out, said) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && out.contains("nothing differed"), "{out}{said}");
    let users = up.sql("SELECT count(DISTINCT user_id) FROM events WHERE event = 'impression'").await.expect("an answer");
    assert_eq!(users[0][0], 200);
    assert!(up.end(Signal::TERM).success());
}
